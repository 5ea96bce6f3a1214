"""Dialogues about the small world's pictures and tunes, told round by round.

The world's own sentences are taken where one fits, so that its recognizer can understand many utterances when they are
spoken; the others are drawn from the templates of embedded_phrases.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from anygpt_jax.embedded import grammar, scenes, sentences
from anygpt_jax.embedded.interleaved import REQUESTS
from anygpt_jax.embedded.splits import TRAIN, split_of
from anygpt_jax.synthesis.backends import embedded_phrases as phrases
from anygpt_jax.synthesis.dialogue import Medium, Said
from anygpt_jax.synthesis.script import ASSISTANT, HUMAN

MOST_PICTURES = 2
TRIES = 200  # draws of a round until none of its utterances is held out
TWO_OBJECTS = 0.15  # share of the new pictures
ALWAYS_MAJOR = ("hornpipe",)  # but for one tune of the collection
MINOR = 0.1  # share of the other dances, of which it has few in minor


@dataclasses.dataclass
class Telling:
    """A dialogue so far. `wanted` has the object, instrument, tempo and dance that it is to be about, if any."""

    rng: np.random.Generator
    split: str
    wanted: Mapping[str, str]
    turns: list[Said] = dataclasses.field(default_factory=list)
    pictures: list[dict[str, str]] = dataclasses.field(default_factory=list)
    tune: dict[str, str] | None = None
    asked: set[str] = dataclasses.field(default_factory=set)  # of the newest picture, and of the tune

    def choose(self, options: Sequence) -> object:
        """One of them by `rng`, each as likely as another."""
        return options[int(self.rng.integers(len(options)))]

    def text(self, templates: Sequence[str], attributes: Mapping[str, str] | None = None) -> str:
        """One of the templates, filled as `sentences.fill` does; KeyError for an attribute that is not given."""
        return sentences.fill(str(self.choose(templates)), attributes or {}, self.rng)

    def say(self, asked: str, answered: str, *, given: Medium | None = None, made: Medium | None = None) -> None:
        """Adds a round: the human's words with the medium `given`, and the assistant's with the medium `made`."""
        self.turns += [
            Said(HUMAN, asked, (given,) if given else ()),
            Said(ASSISTANT, answered, (made,) if made else ()),
        ]

    def world(self, kind: str, attributes: Mapping[str, str], request: bool) -> str:
        """One of the grammar's own sentences that says nothing but these attributes."""
        fitting = [t for t in grammar.SPOKEN[kind] if _about(t, attributes) and sentences.is_request(t) == request]
        return self.text(fitting, attributes)

    def new_scene(self, **fixed: str) -> dict[str, str]:
        """A picture of this split; what is wanted is left out where the split has no such picture."""
        fixed = {k: v for k, v in self.wanted.items() if k == "object"} | fixed
        if fixed.get("object") not in scenes.INSTRUMENTS and self.rng.random() < TWO_OBJECTS:
            return scenes.sample_two(self.rng, self.split, scenes.OBJECTS, **fixed)
        try:
            return scenes.sample(self.rng, self.split, **fixed)
        except ValueError:
            return scenes.sample(self.rng, self.split)

    @property
    def drawn_instruments(self) -> tuple[str, ...]:
        """Those of which this split has pictures."""
        return tuple(dict.fromkeys(name for name, _ in scenes.pairs(self.split, tuple(scenes.INSTRUMENTS))))

    def drawn_instrument(self) -> str:
        """The wanted instrument, or another one if the split has no picture of that."""
        wanted, names = self.wanted.get("instrument"), self.drawn_instruments
        return wanted if wanted in names else str(self.choose(names))

    def new_tune(self, **fixed: str) -> dict[str, str]:
        """Instrument, tempo, dance and key, drawn but for what is `fixed` or, after that, wanted.
        The key is always drawn, as its mode depends on the dance.
        """
        drawn = {name: str(self.choose(list(phrases))) for name, phrases in grammar.MUSIC_SLOTS.values()}
        drawn |= {k: v for k, v in self.wanted.items() if k in drawn} | fixed
        minor = drawn["dance"] not in ALWAYS_MAJOR and self.rng.random() < MINOR
        drawn["key"] = str(self.choose([key for key in grammar.KEYS if key.endswith("minor") == minor]))
        return drawn

    def picture(self, attributes: dict[str, str]) -> Medium:
        """The description of a new picture, which is the one that is talked about now."""
        self.pictures.append(attributes)
        self.asked -= {"object", *phrases.ABOUT_ONE}
        noun = bool(self.rng.random() < 0.7)
        return Medium("image", sentences.caption_scene(attributes, self.rng, self.split, noun_phrase=noun))

    def music(self, attributes: dict[str, str]) -> Medium:
        """The description of a new tune, which is the one that is talked about now."""
        self.tune = attributes
        return Medium("music", sentences.caption_music(attributes, self.rng, self.split))

    def tune_phrase(self, attributes: Mapping[str, str]) -> str:
        """What may follow "play": dance and instrument, with the tempo, the key or both."""
        return self.text(("a {tempo} {dance} on the {instrument}", "a {tempo} {dance} played on the {instrument}",
                          "a {tempo} {dance} in {key} on the {instrument}",
                          "a {dance} in {key} played on the {instrument}"), attributes)  # fmt: skip

    def questions(self) -> phrases.Questions:
        """Those about the newest picture, by whether it shows one object or two."""
        return phrases.ABOUT_TWO if "second" in self.pictures[-1] else phrases.ABOUT_ONE

    def question(self, known: phrases.Questions, attributes: Mapping[str, str]) -> tuple[str, str]:
        """Something that was not asked yet, and the answer; with another fact at times."""
        left = [name for name in known if name not in self.asked]
        name = str(self.choose(left or list(known)))
        self.asked.add(name)
        asked, answers = known[name]
        answer = self.text(answers, attributes)
        # Another fact says what it is about: "it" would be the background, or the key.
        others = [t for n in left if n != name for t in known[n][1] if t.startswith("the ")]
        if others and len(answer.split()) < 8 and self.rng.random() < 0.5:
            answer = f"{answer} and {self.text(others, attributes)}"
        return self.text(asked, attributes), answer


def ask_picture(t: Telling) -> None:
    """A new picture is asked for and drawn."""
    scene = t.new_scene()
    phrase = sentences.caption_scene(scene, t.rng, t.split, noun_phrase=True)
    asked = t.world("image", scene, True)
    if t.rng.random() < 0.3:
        asked = t.text(REQUESTS["draw_written"]).format(phrase).replace("picture of a picture", "picture")
    told = t.world("image", scene, False) if t.rng.random() < 0.5 else t.text(phrases.DRAWN).format(phrase)
    t.say(asked, told, made=t.picture(scene))


def show_picture(t: Telling) -> None:
    """A new picture is given with a question about it, or to be described, which leaves nothing of it to ask."""
    scene = t.new_scene()
    given = t.picture(scene)
    if t.rng.random() < 0.3:
        t.asked |= {"object", *phrases.ABOUT_ONE}
        answer = sentences.caption_scene(scene, t.rng, t.split)
        t.say(t.text(REQUESTS["describe_written"]), answer, given=given)
        return
    known = {**t.questions(), **(phrases.WHAT_TWO if "second" in scene else phrases.WHAT)}
    t.say(*t.question(known, scene), given=given)


def about_picture(t: Telling) -> None:
    """A question about the newest picture, which must be there."""
    t.say(*t.question(t.questions(), t.pictures[-1]))


def change_picture(t: Telling) -> None:
    """The newest picture, which has one object, with one thing another."""
    old = t.pictures[-1]
    others = {
        "colour": [c for o, c in scenes.pairs(t.split) if o == old["object"] and c != old["colour"]],
        "size": [size for size in scenes.SIZES if size != old["size"]],
        "place": [place for place in scenes.PLACES if place != old["place"]],
        "object": [o for o, c in scenes.pairs(t.split) if c == old["colour"] and o != old["object"]],
    }
    what = str(t.choose([name for name, values in others.items() if values]))
    new = {**old, what: str(t.choose(others[what]))}
    t.say(t.text(phrases.CHANGES[what], new), t.text(phrases.CHANGED, new), made=t.picture(new))


def comparable(t: Telling) -> list[str]:
    """What the two newest pictures can be compared by."""
    return [name for name in ("colour", "size") if all(name in picture for picture in t.pictures[-2:])]


def compare_pictures(t: Telling) -> None:
    """A question about the two newest pictures, which must be there."""
    first, second = t.pictures[-2:]
    name = str(t.choose(comparable(t)))
    a, b = first[name], second[name]
    if name == "colour":
        asked = t.text(("do they have the same color", "have the two pictures the same background",
                        "what color has the first picture and what color the second"))  # fmt: skip
        answer = f"both have {grammar.article(a)} background" if a == b else f"the first is {a} and the second is {b}"
    else:
        asked = t.text(("which one is larger", "are they of the same size", "is the first one as big as the second"))
        answer = f"both of them are {a}" if a == b else f"the first one is {a} and the second one is {b}"
    t.say(asked, answer)


def ask_tune(t: Telling) -> None:
    """A new tune is asked for and played."""
    tune = t.new_tune()
    asked = t.world("music", tune, True)
    if t.rng.random() < 0.4:
        asked = t.text(REQUESTS["play_written"]).format(t.tune_phrase(tune))
    told = t.world("music", tune, False) if t.rng.random() < 0.5 else t.text(phrases.PLAYED).format(t.tune_phrase(tune))
    t.say(asked, told, made=t.music(tune))


def give_tune(t: Telling) -> None:
    """A new tune is given with a question about it, or to be named, which leaves nothing of it to ask."""
    tune = t.new_tune()
    given = t.music(tune)
    if t.rng.random() < 0.3:
        t.asked |= set(phrases.ABOUT_TUNE)
        t.say(t.text(REQUESTS["name_tune"]), sentences.caption_music(tune, t.rng, t.split), given=given)
        return
    t.say(*t.question(phrases.ABOUT_TUNE, tune), given=given)


def about_tune(t: Telling) -> None:
    """A question about the tune, which must be there."""
    assert t.tune is not None
    t.say(*t.question(phrases.ABOUT_TUNE, t.tune))


def _understood(t: Telling, source: Sequence[str], attributes: Mapping[str, str], result: str) -> str:
    """What is seen or heard, and then what is made of it."""
    joint = str(t.choose((" and here is ", " and this is ", " here is ", " so here is ")))
    return f"{t.text(source, attributes)}{joint}{result}"


def play_pictured(t: Telling) -> None:
    """A picture of an instrument is given, and a tune on it is played."""
    scene = t.new_scene(object=t.drawn_instrument())
    given = t.picture(scene)
    tune = t.new_tune(instrument=scene["object"])
    answer = _understood(t, phrases.SEEN, scene, t.tune_phrase(tune))
    t.say(t.text(REQUESTS["play_pictured"]), answer, given=given, made=t.music(tune))


def play_shown(t: Telling) -> None:
    """The instrument of the newest picture."""
    scene = t.pictures[-1]
    tune = t.new_tune(instrument=scene["object"])
    t.say(
        t.text(phrases.PLAY_SHOWN, scene), _understood(t, phrases.SEEN, scene, t.tune_phrase(tune)), made=t.music(tune)
    )


def draw_given(t: Telling) -> None:
    """A tune is given, and its instrument is drawn."""
    tune = t.new_tune(instrument=t.drawn_instrument())
    given = t.music(tune)
    scene = t.new_scene(object=tune["instrument"])
    answer = _understood(t, phrases.HEARD, tune, sentences.caption_scene(scene, t.rng, t.split, noun_phrase=True))
    t.say(t.text(REQUESTS["draw_heard"]), answer, given=given, made=t.picture(scene))


def draw_heard(t: Telling) -> None:
    """The instrument of the tune that was played before."""
    assert t.tune is not None
    scene = t.new_scene(object=t.tune["instrument"])
    answer = _understood(t, phrases.HEARD, t.tune, sentences.caption_scene(scene, t.rng, t.split, noun_phrase=True))
    t.say(t.text(phrases.DRAW_HEARD), answer, made=t.picture(scene))


def compare_heard(t: Telling) -> None:
    """A tune after the picture of an instrument: is it the same?"""
    shown = t.pictures[-1]["object"]
    same = bool(t.rng.random() < 0.5)
    tune = t.new_tune(instrument=shown if same else str(t.choose([n for n in scenes.INSTRUMENTS if n != shown])))
    heard = t.text(phrases.HEARD, tune)
    answer = f"yes {heard}" if same else f"no {heard} and the picture shows {grammar.article(shown)}"
    asked = t.text(("is it the same instrument", "does the instrument in the picture play here", "do you hear it here",
                    "is this the instrument that you see"))  # fmt: skip
    t.say(asked, answer, given=t.music(tune))


def talk(t: Telling, pairs: Sequence[tuple[str, tuple[str, ...]]]) -> None:
    """A round without media, drawn from (what is said, its answers), with the same words in the slots of both.
    After the first round "work" is the song if there is a tune and no picture, else the picture.
    """
    said, answers = pairs[int(t.rng.integers(len(pairs)))]
    values = {slot: str(t.choose(words)) for slot, words in grammar.EVERYDAY_SLOTS.items()}
    if t.turns:
        values["work"] = "song" if t.tune and not t.pictures else "picture"
    t.say(said.format(**values), str(t.choose(answers)).format(**values))


def open_talk(t: Telling) -> None:
    """Everyday talk for a first round."""
    talk(t, phrases.OPENINGS)


def close_talk(t: Telling) -> None:
    """Thanks and praise for a last round, or where nothing else is left to talk about."""
    talk(t, phrases.CLOSINGS)


def told(t: Telling, move: Callable[[Telling], None]) -> Telling:
    """The dialogue with one more round, no sentence of which is held out from training where that is the split."""
    for _ in range(TRIES):
        new = dataclasses.replace(t, turns=[*t.turns], pictures=[*t.pictures], asked={*t.asked})
        move(new)
        said = [turn.text for turn in new.turns[len(t.turns) :]]
        if t.split != TRAIN or all(split_of("sentence", text) == TRAIN for text in said if in_grammar(text)):
            return new
    raise AssertionError(f"every round of {move.__name__} is held out")


def in_grammar(text: str) -> bool:
    """Whether the world's recognizer knows this sentence."""
    transitions, accepting = sentences.recognizer()
    state: int | None = 0
    for word in text.split():
        state = transitions[state].get(word) if state is not None else None
    return state in accepting


def _about(template: str, attributes: Mapping[str, str]) -> bool:
    said = sentences.mentions(template)
    return set(said) <= set(attributes) and ("second" not in attributes or "second" in said) and bool(said)
