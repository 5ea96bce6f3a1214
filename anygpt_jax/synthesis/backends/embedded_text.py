"""The writer of the small world: topics, scenarios and scripts by its grammar, without a network.

It works from what a request is about and never reads the messages. What it writes is a pure function of the request's
purpose, seed and `about`. Descriptions name all attributes of a picture or a tune, so that they can be read back.
Pictures are of the pairs that belong to `about["split"]`: "train", which is the default, "validation" or "test".
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from anygpt_jax.embedded import grammar, scenes, sentences
from anygpt_jax.embedded.splits import TEST, TRAIN, VALIDATION
from anygpt_jax.errors import UserError
from anygpt_jax.synthesis import prompts, script
from anygpt_jax.synthesis.backends import Failure, Request, embedded_phrases
from anygpt_jax.synthesis.backends import embedded_dialogue as moves
from anygpt_jax.synthesis.backends.embedded_dialogue import Telling
from anygpt_jax.tasks.metrics.text import lexicon, spans, words

SPLITS = (TRAIN, VALIDATION, TEST)
MORE_MEDIA = 0.6  # how often a picture is asked for, or a tune, that the requirement does not name
TOGETHER = 0.75  # how often a picture and music that a requirement names are made of one another
TRIES = 1000  # draws until a topic is a new one


@dataclasses.dataclass(frozen=True)
class EmbeddedText:
    """Answers requests for text with the purposes "topics", "scenarios" and "dialogues"."""

    name: str = "embedded-text/1"  # the number grows with any change of what is written

    def make(self, requests: Sequence[Request]) -> list[bytes | Failure]:
        """A Failure where the world has too few topics, or the requirement does not fit into a dialogue.
        UserError for a purpose, split or requirement that there is not.
        """
        return [_answer(request) for request in requests]


def _answer(request: Request) -> bytes | Failure:
    if request.purpose not in PURPOSES:
        raise UserError(f"The embedded writer has no '{request.purpose}'; it writes {', '.join(PURPOSES)}.")
    about = request.about
    rng = np.random.default_rng([request.seed, zlib.crc32(json.dumps(about, sort_keys=True).encode())])
    written = PURPOSES[request.purpose](about, rng)
    return written if isinstance(written, Failure) else written.encode()


def split_of(about: Mapping[str, Any]) -> str:
    """Of what a request is about: training's where it names none. UserError for one that there is not."""
    split = about.get("split", TRAIN)
    if split not in SPLITS:
        raise UserError(f"The small world has no split '{split}'; there are {', '.join(SPLITS)}.")
    return split


def topics(about: Mapping[str, Any], rng: np.random.Generator) -> str | Failure:
    """A numbered list. The meta-topic and the round decide nothing but the draw: this world has few themes."""
    found: dict[str, None] = {}
    for _ in range(TRIES + about["count"]):
        kind = (embedded_phrases.TOPICS_OF_OBJECTS, embedded_phrases.TOPICS_OF_MUSIC)[int(rng.random() < 0.4)]
        found[sentences.fill(kind[int(rng.integers(len(kind)))], _anything(rng), rng)] = None
        if len(found) == about["count"]:
            return _numbered(list(found))
    return Failure(f"There are only {len(found)} different topics, not {about['count']}.")


def scenarios(about: Mapping[str, Any], rng: np.random.Generator) -> str:
    """A numbered list with a sentence for each topic, about the topic's object or instrument if it names one."""
    required = prompts.required(about["requirement"])
    written = []
    for topic in about["topics"]:
        named = subject(topic["topic"])
        drawn = _anything(rng) | named
        if "instrument" in named and "object" not in named:
            drawn["object"] = named["instrument"]
        told = [
            sentences.fill(options[int(rng.integers(len(options)))], drawn, rng)
            for options in (embedded_phrases.SCENARIOS[name] for name in required)
        ]
        written.append(" and then ".join(told))
    return _numbered(written)


def dialogues(about: Mapping[str, Any], rng: np.random.Generator) -> str | Failure:
    """A script of so many rounds with the media that are required, and at times with more."""
    pending = list(prompts.required(about["requirement"]))
    if {"user_music", "ask_music"} <= set(pending):
        return Failure("A dialogue has one piece of music; this requirement needs two.")
    rounds = int(about["rounds"])
    wanted = subject(about["topic"]) | subject(about["scenario"])
    told = Telling(rng, split_of(about), wanted)
    apart = wanted.get("object") not in (None, *scenes.INSTRUMENTS)  # a fox makes no music
    move: Callable[[Telling], None]
    for together, move in (
        ({"user_image", "ask_music"}, moves.play_pictured), ({"user_music", "ask_image"}, moves.draw_given)
    ):  # fmt: skip
        if together <= set(pending) and (len(pending) > rounds or (not apart and rng.random() < TOGETHER)):
            told, rounds = moves.told(told, move), rounds - 1
            pending = [name for name in pending if name not in together]
    if len(pending) > rounds:
        return Failure(f"The requirement {about['requirement']} does not fit into {about['rounds']} rounds.")
    for left in range(rounds, 0, -1):
        if pending and (left == len(pending) or rng.random() < 0.8):
            move = _required(pending.pop(0), told)
        else:
            move = _filler(told, pending, last=left == 1)
        told = moves.told(told, move)
    return script.write(told.turns)


PURPOSES: Mapping[str, Callable[[Mapping[str, Any], np.random.Generator], str | Failure]] = {
    "topics": topics, "scenarios": scenarios, "dialogues": dialogues
}  # fmt: skip


def subject(text: str) -> dict[str, str]:
    """The first object that is no instrument, or else the instrument, and the music's attributes that a text names."""
    heard, known = words(text), lexicon()
    found = {
        name: said[0][2] for name in ("instrument", "tempo", "dance") if (said := spans(heard, known[name]))
    }  # fmt: skip
    objects = [name for _, _, name in spans(heard, known["object"])]
    things = [name for name in objects if name not in scenes.INSTRUMENTS]
    return found | ({"object": (things or objects)[0]} if objects else {})


def _required(name: str, told: Telling) -> Callable[[Telling], None]:
    """What a required medium comes by, given what was told before."""
    shown = told.pictures[-1] if told.pictures else {}
    instrument = shown.get("object") in scenes.INSTRUMENTS and told.tune is None
    if name == "user_image":
        return moves.show_picture
    if name == "user_music":
        return moves.compare_heard if instrument else moves.give_tune
    if name == "ask_music":
        return moves.play_shown if instrument else moves.ask_tune
    if shown and "second" not in shown and told.rng.random() < 0.7:
        return moves.change_picture
    if _can_draw_heard(told) and told.rng.random() < 0.6:
        return moves.draw_heard
    return moves.ask_picture


def _filler(told: Telling, pending: Sequence[str], last: bool) -> Callable[[Telling], None]:
    """A round that no requirement asks for, and that leaves room for the media that are still pending."""
    if not told.turns:
        return moves.open_talk
    more = told.rng.random() < MORE_MEDIA
    room = moves.MOST_PICTURES - len(told.pictures) - sum(name.endswith("image") for name in pending)
    silent = told.tune is None and not any(name.endswith("music") for name in pending)
    shown = told.pictures[-1] if told.pictures else None
    options: list[tuple[int, Callable[[Telling], None]]] = []
    if shown:
        options += [(4, moves.about_picture)] if set(told.questions()) - told.asked else []
        options += [(4, moves.change_picture)] if more and room and "second" not in shown else []
        options += [(3, moves.play_shown)] if more and silent and shown["object"] in scenes.INSTRUMENTS else []
    if len(told.pictures) == moves.MOST_PICTURES:
        options += [(3, moves.compare_pictures)]
    if told.tune:
        options += [(4, moves.about_tune)] if set(embedded_phrases.ABOUT_TUNE) - told.asked else []
        options += [(2, moves.draw_heard)] if more and room and _can_draw_heard(told) else []
    if last or not options:
        options += [(1, moves.close_talk)]
    weights = np.array([weight for weight, _ in options], float)
    return options[int(told.rng.choice(len(options), p=weights / weights.sum()))][1]


def _can_draw_heard(told: Telling) -> bool:
    """Whether the split has a picture of the tune's instrument that is not there yet."""
    name = told.tune["instrument"] if told.tune else ""
    return name in told.drawn_instruments and all(picture["object"] != name for picture in told.pictures)


def _anything(rng: np.random.Generator) -> dict[str, str]:
    """A value for every attribute. Not those of one picture: no colour is told with an object."""
    slots = (grammar.IMAGE_SLOTS | grammar.MUSIC_SLOTS).values()
    return {name: list(values)[int(rng.integers(len(values)))] for name, values in slots}


def _numbered(items: Sequence[str]) -> str:
    return "\n".join(f"{i}. {item}" for i, item in enumerate(items, 1))
