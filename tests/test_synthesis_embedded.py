"""The small world's writer, painter, player and speaker: what is described is understood, and is what comes."""

from __future__ import annotations

import collections
import io

import numpy as np
import pytest
import soundfile
from PIL import Image

from anygpt_jax.embedded import scenes, tunes
from anygpt_jax.embedded.splits import TEST, TRAIN, VALIDATION, split_of
from anygpt_jax.errors import UserError
from anygpt_jax.modalities.text import TextTokenizer
from anygpt_jax.synthesis import prompts, script
from anygpt_jax.synthesis.backends import Failure, medium_request, text_request
from anygpt_jax.synthesis.backends.embedded_dialogue import in_grammar
from anygpt_jax.synthesis.backends.embedded_media import EmbeddedMedia
from anygpt_jax.synthesis.backends.embedded_text import EmbeddedText
from anygpt_jax.tasks.metrics.image import scene_reader
from anygpt_jax.tasks.metrics.scores import IMAGE_ATTRIBUTES, MUSIC_ATTRIBUTES
from anygpt_jax.tasks.metrics.text import parse_attributes

REQUIREMENTS = (
    "user_image", "user_music", "ask_image", "ask_music", "user_image+ask_music", "user_music+ask_image",
    "user_image+ask_image", "ask_image+ask_music", "user_image+user_music", "user_image+ask_image+ask_music",
)  # fmt: skip
WRITER = EmbeddedText()
# Who brings which medium, by requirement.
BRINGS = {
    "user_image": (script.HUMAN, "image"), "user_music": (script.HUMAN, "music"),
    "ask_image": (script.ASSISTANT, "image"), "ask_music": (script.ASSISTANT, "music"),
}  # fmt: skip


def write(purpose: str, about: dict, seed: int = 0) -> str:
    answer = WRITER.make([text_request(purpose, [], about, seed)])[0]
    assert isinstance(answer, bytes), answer
    return answer.decode()


def told(count: int, **more: str) -> list[tuple[dict, str]]:
    """(about, script) of so many dialogues, from topics and scenarios on."""
    topics = prompts.numbered(write("topics", {"meta_topic": "cats", "count": count, "round": 0}))
    found = []
    for start in range(0, count, 10):
        requirement = REQUIREMENTS[start // 10 % len(REQUIREMENTS)]
        listed = [{"id": str(i), "topic": topics[i]} for i in range(start, min(start + 10, count))]
        scenarios = prompts.numbered(write("scenarios", {"topics": listed, "requirement": requirement}, start))
        for one, scenario in zip(listed, scenarios, strict=True):
            about = {"topic": one["topic"], "requirement": requirement, "scenario": scenario, **more}
            about["rounds"] = 2 + len(found) % 2
            found.append((about, write("dialogues", about, start)))
    return found


@pytest.fixture(scope="module")
def for_training():
    return told(200)


@pytest.fixture(scope="module")
def held_out():
    return told(100, split=TEST) + told(40, split=VALIDATION)


def test_topics_are_short_and_differ():
    topics = prompts.numbered(write("topics", {"meta_topic": "tea", "count": 50, "round": 1}))
    assert len(set(topics)) == 50
    assert all(1 <= len(topic.split()) <= 10 and topic == topic.lower() for topic in topics)
    others = prompts.numbered(write("topics", {"meta_topic": "tea", "count": 50, "round": 2}))
    assert len(set(topics) & set(others)) < 10


def test_a_scenario_is_about_its_topics_object_and_has_what_is_required():
    about = {"topics": [{"id": "a", "topic": "a fox for a book"}, {"id": "b", "topic": "a reel on the flute"}]}
    pictured, played = prompts.numbered(write("scenarios", {**about, "requirement": "ask_image+user_music"}))
    assert "fox" in pictured
    assert played.count("flute") == 2  # the picture is of the instrument


def test_scripts_have_the_rounds_and_the_media_that_are_asked_for(for_training, held_out):
    for about, text in [*for_training, *held_out]:
        turns = script.parse(text)
        assert script.write(turns) == text
        assert all(turn.text == turn.text.lower() and turn.text.replace(" ", "").isalpha() for turn in turns)
        assert [turn.role for turn in turns] == [script.HUMAN, script.ASSISTANT] * about["rounds"]
        assert all(turn.text for turn in turns)
        media = collections.Counter(medium.modality for turn in turns for medium in turn.media)
        assert media["image"] <= 2 and media["music"] <= 1
        brought = {(turn.role, medium.modality) for turn in turns for medium in turn.media}
        assert {BRINGS[name] for name in about["requirement"].split("+")} <= brought, text


def test_every_description_is_understood_in_full(for_training, held_out):
    described = [m for _, text in [*for_training, *held_out] for turn in script.parse(text) for m in turn.media]
    for medium in described:
        if medium.modality == "music":
            stated = parse_attributes(medium.description, MUSIC_ATTRIBUTES)
            assert set(stated) == set(MUSIC_ATTRIBUTES)
            modes = [{t.key.split()[-1] for t in tunes.tunes(s, stated["dance"])} for s in (TRAIN, VALIDATION, TEST)]
            assert stated["key"].split()[-1] in set.intersection(*modes)  # every split has such a tune
        else:
            stated = set(parse_attributes(medium.description, IMAGE_ATTRIBUTES))
            assert stated in ({"object", "colour", "size", "place"}, {"object", "second", "relation", "colour"})


def test_what_is_made_of_a_picture_or_a_tune_has_its_instrument(for_training, held_out):
    for about, text in [*for_training, *held_out]:
        for asked, answered in zip(script.parse(text)[::2], script.parse(text)[1::2], strict=True):
            if (
                asked.media
                and answered.media
                and {asked.media[0].modality, answered.media[0].modality} == {"image", "music"}
            ):
                names = {
                    parse_attributes(m.description, ("instrument",)).get("instrument")
                    for m in (*asked.media, *answered.media)
                }
                assert len(names) == 1, (about, text)
                assert names & set(answered.text.split())  # what was understood is said before


def test_held_out_pairs_are_in_the_tests_dialogues_and_no_others(for_training, held_out):
    for about, text in [*for_training, *held_out]:
        split = about.get("split", TRAIN)
        for turn in script.parse(text):
            if split == TRAIN:
                assert scenes.split(parse_attributes(turn.text, IMAGE_ATTRIBUTES)) == TRAIN
                assert not in_grammar(turn.text) or split_of("sentence", turn.text) == TRAIN
            for medium in turn.media:
                if medium.modality == "image":
                    assert scenes.split(parse_attributes(medium.description, IMAGE_ATTRIBUTES)) == split


def test_dialogues_are_unlike_one_another_and_drawn_again_alike(for_training):
    assert for_training == told(200)

    def shingles(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}

    all_of_them = [shingles(text) for _, text in for_training]
    near = sum(
        any(len(a & b) >= 0.8 * len(a | b) for b in all_of_them[:i]) for i, a in enumerate(all_of_them)
    )  # fmt: skip
    assert near / len(all_of_them) < 0.05


def test_the_text_tokenizer_can_write_every_utterance(for_training):
    tokenizer = TextTokenizer.load()
    for _, text in for_training:
        for turn in script.parse(text):
            assert tokenizer.decode(tokenizer.encode(turn.text)) == turn.text


def test_what_cannot_be_told_costs_its_own_dialogue_only():
    about = {"topic": "", "scenario": "", "rounds": 2}
    requests = [
        text_request("dialogues", [], {**about, "requirement": requirement}, 0)
        for requirement in ("user_music+ask_music", "ask_image")
    ]
    failure, fine = WRITER.make(requests)
    assert isinstance(failure, Failure) and "two" in failure.reason
    assert isinstance(fine, bytes)
    with pytest.raises(UserError, match="no 'poems'"):
        write("poems", {})
    with pytest.raises(UserError, match="split"):
        write("dialogues", {**about, "requirement": "ask_image", "split": "dev"})


def draw(description: str, seed: int = 0, **about: str) -> bytes | Failure:
    return EmbeddedMedia("image").make([medium_request("image", description, about, seed)])[0]


def read(png: bytes) -> dict[str, str]:
    return scene_reader().read([np.asarray(Image.open(io.BytesIO(png)))])[0]


def test_the_judge_reads_in_a_picture_what_its_description_says(for_training, held_out):
    descriptions = [
        (medium.description, about.get("split", TRAIN))
        for about, text in [*for_training[:60], *held_out[:60]]
        for turn in script.parse(text)
        for medium in turn.media
        if medium.modality == "image"
    ]
    assert len(descriptions) > 40
    for description, split in descriptions:
        png = draw(description, split=split)
        assert isinstance(png, bytes), png
        stated = parse_attributes(description, IMAGE_ATTRIBUTES)
        assert stated.items() <= read(png).items()


def test_what_a_description_leaves_open_is_drawn_by_the_seed_from_the_split():
    drawn = [read(draw("a fox", seed)) for seed in range(12)]
    assert all(reading["object"] == "fox" and scenes.split(reading) == TRAIN for reading in drawn)
    assert len({tuple(reading.items()) for reading in drawn}) > 8
    assert draw("a fox", 3) == draw("a fox", 3)
    name = scenes.pairs(TEST)[0][0]
    assert scenes.split(read(draw(f"a large {name}", split=TEST))) == TEST


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        ("a fox in a swimming pool", "does not know 'pool'"),
        ("a plain red background", "names no object"),
        ("a fox and a tree", "several apart"),
        ("a fox on red and blue", "more than one colour"),
        ("a large fox left of a tree", "two objects are small"),
        ("a {} on {}".format(*scenes.pairs(TEST)[0]), "held out"),
    ],
)
def test_a_picture_of_something_else_is_refused(description, reason):
    answer = draw(description)
    assert isinstance(answer, Failure) and reason in answer.reason


def play(description: str, seed: int = 0, **about: str) -> bytes | Failure:
    return EmbeddedMedia("music").make([medium_request("music", description, about, seed)])[0]


def test_a_tune_has_what_its_description_says(monkeypatch):
    played = []
    render = tunes.render

    def noting(tune, instrument, tempo):
        played.append((tune.split, tune.dance, tune.key, instrument, tempo))
        return render(tune, instrument, tempo)

    described = "a quick reel in d major played on the violin"
    monkeypatch.setattr(tunes, "render", noting)
    sound, again, other, held_out = (
        play(described, seed, split=split) for seed, split in ((0, TRAIN), (0, TRAIN), (1, TRAIN), (1, TEST))
    )
    assert isinstance(sound, bytes)
    samples, rate = soundfile.read(io.BytesIO(sound))
    assert rate == 16_000 and samples.shape == (64_000,)
    assert sound == again and len({sound, other, held_out}) == 3
    # The split of a melody does not change with its key.
    assert [whole[0] for whole in played] == [TRAIN, TRAIN, TRAIN, TEST]
    assert {whole[1:] for whole in played} == {("reel", "d major", "violin", "fast")}
    del played[:]
    for seed in range(4):
        play("something slow in e minor", seed)
    assert {(key, tempo) for _, _, key, _, tempo in played} == {("e minor", "slow")}
    refused = play("a waltz for two harps")
    assert isinstance(refused, Failure) and "does not know" in refused.reason


def test_words_are_spoken_and_silence_is_refused():
    requests = [medium_request("speech", text, {}, 0, "espeak-eva") for text in ("good morning", "…")]
    spoken, refused = EmbeddedMedia("speech").make(requests)
    samples, rate = soundfile.read(io.BytesIO(spoken))
    assert rate == 16_000 and 0.3 < len(samples) / rate < 3
    assert isinstance(refused, Failure) and "nothing to say" in refused.reason
    with pytest.raises(UserError, match="no voice 'bob'"):
        EmbeddedMedia("speech").make([medium_request("speech", "hello", {}, 0, "bob")])
