"""Judges of text: the attributes that a sentence states, and the word error rate."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence

from anygpt_jax.tasks.metrics.scores import IMAGE_ATTRIBUTES, MUSIC_ATTRIBUTES, attribute_scores, instrument_scores

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
    found: dict[str, set[str]] = {}
    for attribute, phrases in lexicon.items():
        by_words = {tuple(words(phrase)): value for phrase, value in phrases.items()}
        longest = max(map(len, by_words), default=0)
        i = 0
        while i < len(heard):
            for n in range(min(longest, len(heard) - i), 0, -1):
                value = by_words.get(tuple(heard[i : i + n]))
                if value is not None:
                    found.setdefault(attribute, set()).add(value)
                    i += n
                    break
            else:
                i += 1
    return {attribute: values.pop() for attribute, values in found.items() if len(values) == 1}


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
    """`parse` with the embedded world's phrases for these attributes."""
    return parse(text, {name: lexicon()[name] for name in names})


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
