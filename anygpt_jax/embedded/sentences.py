"""Sentences drawn from the grammar, with the attributes that they mention and the split that they belong to."""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from anygpt_jax.embedded import automaton, grammar, scenes
from anygpt_jax.embedded.splits import TRAIN, split_of
from anygpt_jax.errors import UserError

SLOT = re.compile(r"\{(\w+)\}")
TRIES = 1000  # fresh draws without a new sentence before the grammar counts as exhausted


@dataclasses.dataclass(frozen=True)
class Sentence:
    """Lower-case words without punctuation. `attributes` are the ones mentioned: of an image or of music."""

    text: str
    kind: str  # a key of grammar.SPOKEN
    attributes: tuple[tuple[str, str], ...]

    @property
    def mentioned(self) -> dict[str, str]:
        """`attributes` by name; everyday sentences have none."""
        return dict(self.attributes)

    @property
    def split(self) -> str:
        """The only split in which it may be spoken: that of the held-out pair that it mentions, if it does, else by
        its own hash.
        """
        split = scenes.split(self.mentioned)
        return split_of("sentence", self.text) if split == TRAIN else split


def is_request(text: str) -> bool:
    """Whether a spoken sentence asks for a picture or for music, instead of telling about one."""
    return text.startswith(grammar.REQUEST_OPENINGS)


def _choose(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def fill(template: str, attributes: Mapping[str, str], rng: np.random.Generator) -> str:
    """The template's text for these attributes, in a random wording."""

    def phrase(match: re.Match[str]) -> str:
        phrases = grammar.slot_phrases(match[1])
        attribute = grammar.slot_attribute(match[1])
        value = attributes[attribute] if attribute else _choose(rng, list(phrases))
        return _choose(rng, phrases[value])

    return SLOT.sub(phrase, template)


def mentions(template: str) -> tuple[str, ...]:
    """The attributes that a template mentions."""
    return tuple(a for a in map(grammar.slot_attribute, SLOT.findall(template)) if a)


def _caption(templates: Sequence[str], attributes: Mapping[str, str], rng: np.random.Generator, split: str) -> str:
    # A training caption may not happen to be a held-out sentence either.
    for _ in range(TRIES):
        text = fill(_choose(rng, templates), attributes, rng)
        if split != TRAIN or split_of("sentence", text) == TRAIN:
            return text
    raise UserError(f"No training caption is left for {dict(attributes)}; give the grammar more templates.")


def caption_scene(
    attributes: Mapping[str, str],
    rng: np.random.Generator,
    split: str = TRAIN,
    *,
    noun_phrase: bool = False,
) -> str:
    """A written caption with all four attributes of a scene; a `noun_phrase` can follow "please draw"."""
    if "second" in attributes:
        templates = grammar.TWO_OBJECT_NOUN_PHRASES if noun_phrase else grammar.TWO_OBJECT_CAPTIONS
        if rng.random() < 0.5:
            attributes = reverse(attributes)
        return _caption(templates, attributes, rng, split)
    templates = grammar.IMAGE_NOUN_PHRASES if noun_phrase else grammar.IMAGE_CAPTIONS
    return _caption(templates, attributes, rng, split)


def reverse(attributes: Mapping[str, str]) -> dict[str, str]:
    """The words for a scene of two objects as seen from the second one: a tree right of a fox."""
    first, second = attributes["object"], attributes["second"]
    return {**attributes, "object": second, "second": first, "relation": grammar.REVERSED[attributes["relation"]]}


def caption_music(attributes: Mapping[str, str], rng: np.random.Generator, split: str = TRAIN) -> str:
    """A written caption with instrument, tempo, dance and key."""
    return _caption(grammar.MUSIC_CAPTIONS, attributes, rng, split)


def _spoken_about(attributes: Mapping[str, str], kind: str, rng: np.random.Generator) -> Sentence:
    """A sentence of a kind, a key of `grammar.SPOKEN`; it mentions some of the attributes, or none."""
    template = _choose(rng, grammar.SPOKEN[kind])
    said = {name: attributes[name] for name in mentions(template)}
    words = reverse(said) if "second" in said and rng.random() < 0.5 else said
    return Sentence(fill(template, words, rng), kind, tuple(sorted(said.items())))


def _draw(kind: str, rng: np.random.Generator, objects: Sequence[str], naming: Sequence[str] = ()) -> Sentence:
    attributes = {name: _choose(rng, list(phrases)) for name, phrases in grammar.MUSIC_SLOTS.values()}
    attributes |= {name: _choose(rng, list(phrases)) for name, phrases in grammar.IMAGE_SLOTS.values()}
    attributes["object"], attributes["second"] = (objects[i] for i in rng.choice(len(objects), 2, replace=False))
    attributes["relation"] = _choose(rng, scenes.RELATIONS)
    if naming:
        attributes["object"] = _choose(rng, naming)
    return _spoken_about(attributes, kind, rng)


def sample(
    split: str,
    count: int,
    rng: np.random.Generator,
    objects: Sequence[str] = scenes.OBJECTS,
    *,
    kind: str | None = None,
    naming: Sequence[str] = (),
) -> list[Sentence]:
    """`count` distinct sentences of a split, of one kind or of every kind by `grammar.SPOKEN_SHARES`, in random order.

    They name no object of `scenes.UNSPOKEN`; with `naming`, those about a picture name one of these objects.
    Raises UserError if the grammar has not that many.
    """
    spoken = [name for name in objects if name not in scenes.UNSPOKEN]
    counts = {kind: count} if kind else _counts(count)
    found: dict[str, Sentence] = {}
    for kind, wanted in counts.items():
        have, misses = 0, 0
        while have < wanted:
            sentence = _draw(kind, rng, spoken, naming)
            if sentence.split == split and sentence.text not in found:
                found[sentence.text] = sentence
                have, misses = have + 1, 0
            elif (misses := misses + 1) > TRIES:
                raise UserError(
                    f"The grammar has only {have} different spoken '{kind}' sentences in the {split} split, "
                    f"not {wanted}; ask for fewer sentences or add templates to anygpt_jax/embedded/grammar.py."
                )
    order = list(found.values())
    return [order[i] for i in rng.permutation(len(order))]


def _counts(count: int) -> dict[str, int]:
    """Sentences of every kind among so many."""
    counts = {
        k: min(int(count * share), grammar.SPOKEN_MOST.get(k, count)) for k, share in grammar.SPOKEN_SHARES.items()
    }
    return {**counts, "image": counts["image"] + count - sum(counts.values())}


def _words(templates: Iterable[str]) -> set[str]:
    words: set[str] = set()
    for template in templates:
        words.update(SLOT.sub(" ", template).split())
        for slot in SLOT.findall(template):
            for phrases in grammar.slot_phrases(slot).values():
                words.update(" ".join(phrases).split())
    return words


def spoken_words() -> list[str]:
    """Every word that can be spoken, sorted."""
    return sorted(_words(t for templates in grammar.SPOKEN.values() for t in templates))


def written_words() -> list[str]:
    """Every word of the captions, sorted."""
    return sorted(_words((*grammar.IMAGE_CAPTIONS, *grammar.TWO_OBJECT_CAPTIONS, *grammar.MUSIC_CAPTIONS)))


@functools.cache
def recognizer() -> automaton.Automaton:
    """The automaton of every sentence that can be spoken, and of nothing else."""
    templates = [template for of_kind in grammar.SPOKEN.values() for template in of_kind]
    slots = {slot for template in templates for slot in SLOT.findall(template)}
    phrases = {slot: [p for said in grammar.slot_phrases(slot).values() for p in said] for slot in slots}
    return automaton.build(templates, phrases)


def word_counts(sentences: Iterable[Sentence]) -> collections.Counter[str]:
    """How often each word is said in all of these sentences together."""
    return collections.Counter(word for s in sentences for word in s.text.split())
