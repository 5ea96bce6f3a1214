"""Short answers: VQA accuracy over ten people's, equality, and the choice among options."""

from __future__ import annotations

import dataclasses
import re
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation.measures import Measure, mean

PEOPLE = 10  # who answered each question of VQAv2
ARTICLES = frozenset(("a", "an", "the"))
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(n) for n, word in enumerate(_NUMBER_WORDS)}
# VQA's evaluation knows these and no others: "im" and "ill" stay as they are.
# fmt: off
CONTRACTIONS = (
    "ain't", "aren't", "can't", "could've", "couldn't", "couldn't've", "didn't", "doesn't", "don't", "hadn't",
    "hadn't've", "hasn't", "haven't", "he'd", "he'd've", "he's", "how'd", "how'll", "how's", "isn't", "it'd", "it'd've",
    "it'll", "ma'am", "might've", "mightn't", "mightn't've", "must've", "mustn't", "needn't", "not've", "o'clock",
    "oughtn't", "'ow's'at", "shan't", "she'd've", "should've", "shouldn't", "shouldn't've", "somebody'd",
    "somebody'd've", "somebody'll", "somebody's", "someone'd", "someone'd've", "someone'll", "someone's", "something'd",
    "something'd've", "something'll", "that's", "there'd", "there'd've", "there're", "there's", "they'd", "they'd've",
    "they'll", "they're", "they've", "'twas", "wasn't", "we'd've", "we've", "weren't", "what'll", "what're", "what's",
    "what've", "when's", "where'd", "where's", "where've", "who'd", "who'd've", "who'll", "who's", "who've", "why'll",
    "why're", "why's", "won't", "would've", "wouldn't", "wouldn't've", "y'all", "y'all'd've", "y'all'll", "you'd",
    "you'd've", "you'll", "you're", "you've",
)
# fmt: on
# Each with one of its apostrophes left out: "dont", "couldnt've", "couldn'tve".
_MISSPELT = {word[:i] + word[i + 1 :]: word for word in CONTRACTIONS for i, c in enumerate(word) if c == "'"}
_MARKS = ';/[]"{}()=+\\_-><@`,?!'  # neither the apostrophe of a possessive nor the colon of a time
_THOUSANDS = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")


def normalize_answer(answer: str) -> str:
    """VQA's normalization (visualqa.org/evaluation), in the order and with the corners of its evaluation code.

    Punctuation becomes a space, or nothing where the mark stands beside a space anywhere in the answer, and in an
    answer with a comma between digits (100,978 is 100978); full stops go unless a digit follows; lower case; number
    words up to ten are digits; articles go, unless the answer is nothing else ("A"); contractions get an apostrophe
    that is missing. People's answers get the same, as that page has it; the code itself only takes their punctuation.
    """
    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    joined = _THOUSANDS.search(answer) is not None
    gone = {ord(m): "" if joined or f"{m} " in answer or f" {m}" in answer else " " for m in _MARKS}
    words = _FULL_STOP.sub("", answer.translate(gone)).lower().split()
    kept = [word for word in words if word not in ARTICLES] or words
    return " ".join(_MISSPELT.get(word, word) for word in (NUMBERS.get(word, word) for word in kept))


def same_answer(reference: str, prediction: str) -> bool:
    """Are they equal after normalization, and not both without a word?"""
    return normalize_answer(reference) == normalize_answer(prediction) != ""


def _row_by_row(score: Callable[[Any, str], float]) -> Callable[..., Float[np.ndarray, "N 1"]]:
    """`Measure.rows` from the score of one example; no prediction scores 0."""

    def rows(references: Sequence[Any], predictions: Sequence[str | None]) -> Float[np.ndarray, "N 1"]:
        pairs = zip(references, predictions, strict=True)
        return np.array([[0.0 if p is None else score(r, p)] for r, p in pairs], np.float64).reshape(-1, 1)

    return rows


def _vqa_accuracy(reference: Sequence[str], prediction: str) -> float:
    if isinstance(reference, str) or len(reference) != PEOPLE:
        raise UserError(f"VQA accuracy needs {PEOPLE} answers a question, got {reference!r}; use the measure 'exact'.")
    matches = sum(same_answer(person, prediction) for person in reference)
    # Leaving out one of those who agree, or one of the others.
    return (matches * min((matches - 1) / 3, 1) + (PEOPLE - matches) * min(matches / 3, 1)) / PEOPLE


def _exact(reference: str, prediction: str) -> float:
    return float(same_answer(reference, prediction))


@dataclasses.dataclass(frozen=True)
class Choice:
    """A question's options in their order, the first called A, and the right one by its letter or its index."""

    options: Sequence[str]
    answer: str | int

    @property
    def right(self) -> int:
        """The index of the right option; UserError if `answer` names none."""
        index = self.answer
        if isinstance(index, str):
            letters = list(string.ascii_uppercase[: len(self.options)])
            index = letters.index(index.strip().upper()) if index.strip().upper() in letters else -1
        if not 0 <= index < len(self.options):
            raise UserError(f"There is no option {self.answer!r} of {len(self.options)}; give its letter or index.")
        return index


# "B", "b.", "(B) a dog", "**B**: a dog", "B is right"; not "a dog", and not "A, B or C".
_LEADING = re.compile(r"[\W_]*([A-Za-z])(?:[\])*.:,]+(?!\w)(?!\W*[B-HJ-Z]\b)|\s+is\b|[\W_]*$)")
# "the answer is B", "Answer: (b)", "option C"; a small letter without brackets only at the end, as "a" is an article.
_SAID = re.compile(
    r"\b(?i:answer|option|choice)[\s:*]*(?i:is\b)?[\s:*]*(?:\(([A-Za-z])\)|([A-Z](?![\w'])|[a-z](?=\W*$)))"
)
_BRACKETED = re.compile(r"\(([A-Za-z])\)")


def chosen(answer: str, options: Sequence[str]) -> int | None:
    """The index of the option that an answer takes; None where it takes none, or more than one.

    The first of these that says anything: the letter it begins with, the one letter it calls its answer, the one
    letter in brackets, the one option whose text is in it (the longest, where "dog" and "hot dog" are options).
    """
    names = string.ascii_uppercase[: len(options)]
    leading = _LEADING.match(answer)
    said = ["".join(groups) for groups in _SAID.findall(answer)]
    for letters in ([leading[1]] if leading else [], said, _BRACKETED.findall(answer)):
        indices = {names.index(letter.upper()) for letter in letters if letter.upper() in names}
        if indices:
            return indices.pop() if len(indices) == 1 else None
    text = f" {normalize_answer(answer)} "
    texts = [f" {normalize_answer(option)} " for option in options]
    named = [i for i, option in enumerate(texts) if option.strip() and option in text]
    longest = [i for i in named if not any(texts[i] != texts[j] and texts[i] in texts[j] for j in named)]
    return longest[0] if len(longest) == 1 else None


def _multiple_choice(reference: Choice, prediction: str) -> float:
    return float(chosen(prediction, reference.options) == reference.right)


# References are ten str: the mean, over the ten ways to leave one out, of min(matches / 3, 1) (Antol et al. 2015).
VQA_ACCURACY = Measure("vqa_accuracy", True, _row_by_row(_vqa_accuracy), mean)
# A reference is a str.
EXACT = Measure("exact", True, _row_by_row(_exact), mean)
# A reference is a `Choice`.
MULTIPLE_CHOICE = Measure("multiple_choice", True, _row_by_row(_multiple_choice), mean)
