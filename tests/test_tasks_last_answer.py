"""What of a true answer's picture or music the dialogue asks for, against the moves that tell the dialogues."""

import numpy as np
import pytest

from anygpt_jax.embedded import scenes
from anygpt_jax.synthesis.backends import embedded_dialogue as moves
from anygpt_jax.tasks.last_answer import of_last_answer
from anygpt_jax.tasks.metrics.scores import IMAGE_ATTRIBUTES, MUSIC_ATTRIBUTES


def asked(**fields):
    found = of_last_answer({"requirement": "ask_image", **fields})
    return {n: found[n] for n in (*IMAGE_ATTRIBUTES, *MUSIC_ATTRIBUTES) if n in found}


def told(seed, *steps):
    """The fields of a dialogue of these moves, as `synthesis.export` has them."""
    telling = moves.Telling(np.random.default_rng(seed), "train", {})
    for step in steps:
        step(telling)
    *_, question, answer = telling.turns
    before = {m.modality: m.description for turn in telling.turns[:-1] for m in turn.media}
    made = {f"answer_{m.modality}": m.description for m in answer.media}
    return telling, {
        "asked": question.text, **made, "shown_image": before.get("image", ""), "heard_music": before.get("music", "")
    }  # fmt: skip


def test_what_is_named_is_asked_and_the_rest_is_free():
    picture = "a large pizza on the left on a blue background"
    assert asked(asked="i want a pizza on a blue background", answer_image=picture) == {
        "object": "pizza", "colour": "blue"
    }  # fmt: skip
    assert asked(asked="draw something nice", answer_image=picture) == {}
    assert asked(asked="i want a pizza", answer_text="here is a pizza") == {}, "no picture was answered with"


@pytest.mark.parametrize("seed", range(60))
def test_of_a_changed_picture_everything_is_asked(seed):
    telling, fields = told(seed, moves.ask_picture, moves.about_picture)
    if "second" in telling.pictures[-1]:
        return
    telling, fields = told(seed, moves.ask_picture, moves.about_picture, moves.change_picture)
    assert asked(**fields) == telling.pictures[-1], fields


@pytest.mark.parametrize("seed", range(30))
def test_what_is_heard_is_to_be_drawn_and_what_is_drawn_to_be_heard(seed):
    telling, fields = told(seed, moves.ask_tune, moves.draw_heard)
    assert asked(**fields)["object"] == telling.tune["instrument"]
    telling, fields = told(seed, moves.play_pictured)
    assert telling.pictures[-1]["object"] in scenes.INSTRUMENTS
    assert asked(**fields)["instrument"] == telling.pictures[-1]["object"]


def test_a_new_picture_is_no_change_of_the_old_one():
    """Size and place are others too, so the new one's are not asked for."""
    found = asked(
        asked="i would like to see a fox on red", shown_image="a small fox in the center on a blue background",
        answer_image="a large fox on the left on a red background",
    )  # fmt: skip
    assert found == {"object": "fox", "colour": "red"}
