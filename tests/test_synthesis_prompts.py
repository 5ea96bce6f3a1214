"""What language models are asked: our files are whole, demonstrations are scripts, lists are read as models write them."""

from __future__ import annotations

import collections
import re

import pytest

from anygpt_jax.errors import UserError
from anygpt_jax.synthesis import prompts, script

MEDIA_OF = {
    "user_image": (script.HUMAN, "image"), "user_music": (script.HUMAN, "music"),
    "ask_image": (script.ASSISTANT, "image"), "ask_music": (script.ASSISTANT, "music"),
}  # fmt: skip


def test_there_are_a_hundred_different_meta_topics():
    topics = prompts.meta_topics().splitlines()
    assert len(set(topics)) == len(topics) == 100
    assert all(topic == topic.strip() and 0 < len(topic.split()) <= 6 for topic in topics)


def test_demonstrations_keep_the_rules_that_they_demonstrate():
    assert len(prompts.demonstrations("scenarios")) >= 12
    dialogues = prompts.demonstrations("dialogues")
    assert len(dialogues) >= 9
    for one in dialogues:
        turns = script.parse(one["script"])
        assert script.write(turns) == one["script"]
        assert [turn.role for turn in turns] == [script.HUMAN, script.ASSISTANT] * (len(turns) // 2)
        assert len(turns) // 2 in (2, 3)
        assert all(5 <= len(turn.text.split()) <= 15 for turn in turns), one["script"]
        media = collections.Counter(medium.modality for turn in turns for medium in turn.media)
        assert media["image"] <= 2 and media["music"] <= 1
        brought = {(turn.role, medium.modality) for turn in turns for medium in turn.media}
        assert {MEDIA_OF[name] for name in prompts.required(one["requirement"])} <= brought
    for stage in ("scenarios", "dialogues"):
        shown = {name for one in prompts.demonstrations(stage) for name in prompts.required(one["requirement"])}
        assert shown == set(prompts.REQUIREMENTS)


def test_messages_have_every_slot_filled_and_demonstrations_by_the_seed():
    asked = [
        *prompts.topics_messages("tea {time}", 50, ["1. a pot"]),
        *prompts.scenarios_messages(["a pot", "a cup"], "user_image+ask_music", 1),
        *prompts.dialogues_messages("Somebody wants a {pot}.", "ask_image", 3, 1),
    ]
    assert [role for role, _ in asked] == ["user", "assistant", "user", "user", "user"]
    assert not re.findall(r"\{(?!time|pot)\w+\}", "".join(content for _, content in asked))
    assert "tea {time}" in asked[0][1] and "50" in asked[0][1]
    assert "the user provides a picture and the user asks the assistant to play" in asked[3][1]
    assert "\n1. a pot\n2. a cup\n" in asked[3][1]
    shown = [one["scenario"] for one in prompts.demonstrations("scenarios") if one["scenario"] in asked[3][1]]
    assert len(shown) == prompts.SCENARIO_DEMONSTRATIONS
    scripts = [one["script"] for one in prompts.demonstrations("dialogues") if one["script"] in asked[4][1]]
    assert len(scripts) == prompts.DIALOGUE_DEMONSTRATIONS

    def of_seed(seed: int) -> str:
        return prompts.dialogues_messages("x", "ask_image", 2, seed)[0][1]

    assert of_seed(5) == of_seed(5)
    assert len({of_seed(seed) for seed in range(8)}) > 4
    with pytest.raises(UserError, match="Unknown requirement 'video'"):
        prompts.dialogues_messages("x", "ask_image+video", 2, 0)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("1. a\n2. b", ["a", "b"]),
        ('Sure! Here are 2 topics:\n\n1) **Tea** for two\n2) "A pot"\n\nI hope this helps!', ["Tea for two", "A pot"]),
        ("1. a long line\n   that goes on\n\n2. b", ["a long line that goes on", "b"]),
        ("**1. Tea**\n- green\n- black\n**2. Coffee**", ["Tea", "Coffee"]),
        ("1. a 2. b 3. c", ["a", "b", "c"]),
        ("- a\n- b", ["a", "b"]),
        ("10: a\n11: b", ["a", "b"]),
        ("1. meet at 9. then go", ["meet at", "then go"]),
        ("1.\n2. b", ["b"]),
        ("nothing here", []),
    ],
)
def test_numbered_lists_are_read_as_models_write_them(text, items):
    assert prompts.numbered(text) == items


def test_the_version_is_a_digest_of_what_is_in_the_files(monkeypatch):
    assert re.fullmatch(r"[0-9a-f]{12}", prompts.VERSION)
    assert prompts._version() == prompts.VERSION
    whole = prompts.read
    monkeypatch.setattr(prompts, "read", lambda name: whole(name) + ("!" if name == "dialogues.txt" else ""))
    assert prompts._version() != prompts.VERSION
