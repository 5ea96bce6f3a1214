"""Judges of text: the attributes that a sentence states, and the word error rate."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence

from anygpt_jax.tasks.metrics.scores import IMAGE_ATTRIBUTES, MUSIC_ATTRIBUTES, attribute_scores, instrument_scores

REVERSED = {"right of": "left of", "below": "above"}

# attribute -> phrase -> value: "huge" -> "large", "upper left corner" -> "top left"
Lexicon = Mapping[str, Mapping[str, str]]


def words(text: str) -> list[str]:
    """Lower-case words without punctuation; "an" counts as "a", as the ear hardly tells them apart."""
    return ["a" if word == "an" else word for word in re.findall(r"[a-z0-9']+", text.lower())]


def parse(text: str, lexicon: Lexicon) -> dict[str, str]:
    """The attributes that a text states, by the longest known phrases from left to right.

    "top left" is one place and not "top" and "left". A text that states two different values for one
    attribute states none: naming everything must not score.
    """
    heard = words(text)
    found = {attribute: {value for _, _, value in spans(heard, phrases)} for attribute, phrases in lexicon.items()}
    return {attribute: values.pop() for attribute, values in found.items() if len(values) == 1}


def spans(heard: Sequence[str], phrases: Mapping[str, str]) -> list[tuple[int, int, str]]:
    """(first word, word after the last, value) of every phrase in a text, the longest ones from left to right."""
    by_words = {tuple(words(phrase)): value for phrase, value in phrases.items()}
    longest = max(map(len, by_words), default=0)
    found, i = [], 0
    while i < len(heard):
        sizes = range(min(longest, len(heard) - i), 0, -1)
        n = next((n for n in sizes if tuple(heard[i : i + n]) in by_words), 0)
        if n:
            found.append((i, i + n, by_words[tuple(heard[i : i + n])]))
        i += max(n, 1)
    return found


@functools.cache
def lexicon() -> Lexicon:
    """The phrases of the embedded world by attribute, without the prepositions before a place."""
    from anygpt_jax.embedded import grammar

    slots = {**grammar.IMAGE_SLOTS, **grammar.MUSIC_SLOTS}
    phrases = {
        attribute: {p: value for value, said in by_value.items() for p in said}
        for attribute, by_value in slots.values()
    }
    phrases["place"] = {re.sub(r"^(in|at|on) the ", "", p): value for p, value in phrases["place"].items()}
    return phrases


def parse_attributes(text: str, names: Sequence[str]) -> dict[str, str]:
    """`parse` with the embedded world's phrases for these attributes, and what stands where in a scene of two.

    "A tree to the right of a fox" states the object fox, left of the second, a tree. Two objects without a
    relation between them state neither.
    """
    known = lexicon()
    plain = [name for name in names if name not in ("object", "second", "relation")]
    if "object" not in names:
        return parse(text, {name: known[name] for name in plain})
    heard = words(text)
    scene, said = _objects(heard)
    # The words of a relation are no place: "left of a tree" is not "on the left".
    rest = " ".join("" if any(a <= i < b for a, b in said) else word for i, word in enumerate(heard))
    return parse(rest, {name: known[name] for name in plain}) | {n: v for n, v in scene.items() if n in names}


def _objects(heard: Sequence[str]) -> tuple[dict[str, str], list[tuple[int, int]]]:
    """What a text says of its objects in canonical form, and where its relations stand (first word, word after)."""
    known = lexicon()
    objects = spans(heard, known["object"])
    between = set(words(" ".join(["a", "the", *known["size"], *known["colour"]])))
    stated, said, bound = set(), [], 0
    for start, end, relation in spans(heard, known["relation"]):
        following = [o for o in objects if o[0] >= end]
        if following and set(heard[end : following[0][0]]) <= between:
            # The one before the relation, or that after its object: "left of a tree there is a fox".
            others = [o for o in objects if o[1] <= start][-1:] or following[1:2]
            if others:
                pair = (others[0][2], following[0][2])
                stated.add((REVERSED[relation], *pair[::-1]) if relation in REVERSED else (relation, *pair))
                bound += 1
        elif start and heard[start - 1] in ("the", "top", "bottom"):
            continue  # "on the left of a red picture" is a place
        said.append((start, end))
    named = {value for _, _, value in objects}
    if len(stated) == 1 and bound == len(said):
        relation, first, second = stated.pop()
        if named == {first, second}:
            return {"object": first, "second": second, "relation": relation}, said
    elif not stated and len(named) == 1:
        return {"object": named.pop()}, said
    return {}, said


def caption_attributes(targets: Sequence[dict], predictions: Sequence[str]) -> dict[str, float]:
    """Image captions: the share of the reference's attributes that the text states."""
    return attribute_scores(targets, [parse_attributes(p, IMAGE_ATTRIBUTES) for p in predictions], IMAGE_ATTRIBUTES)


def music_caption_attributes(targets: Sequence[dict], predictions: Sequence[str]) -> dict[str, float]:
    """Music captions: the share that names the right instrument; tempo, dance and key beside it."""
    return instrument_scores(targets, [parse_attributes(p, MUSIC_ATTRIBUTES) for p in predictions])


def corpus_word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Substitutions, deletions and insertions over all reference words of the corpus (not a mean of rates)."""
    import jiwer

    spoken = [" ".join(words(r)) for r in references]
    if not any(spoken):
        return 0.0
    return float(jiwer.wer(spoken, [" ".join(words(h)) for h in hypotheses]))


def word_error_rate(targets: Sequence[dict], predictions: Sequence[str]) -> dict[str, float]:
    """Transcripts against the targets' "text"."""
    return {"wer": corpus_word_error_rate([t["text"] for t in targets], predictions)}


def unspoken_word_recall(targets: Sequence[dict], texts: Sequence[str]) -> dict[str, float]:
    """Share of the words in the targets' "unspoken" (never heard in training) that the texts have.

    Nothing if no target has such words.
    """
    found = [
        set(words(word)) <= set(words(text))
        for target, text in zip(targets, texts, strict=True)
        for word in target.get("unspoken") or ()
    ]
    return {"unspoken_recall": sum(found) / len(found)} if found else {}
