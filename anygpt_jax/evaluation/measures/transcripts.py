"""Transcripts: word and character error rates by jiwer, under a normalizer that the measure's name states.

A reference is a str, a prediction a str. A rate depends more on the normalizer than on most models: compare only
figures of the same one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation.measures import Measure, ratio

Normalizer = Callable[[str], str]

# In this order: the first three are not their ending's general case.
_EXPANSIONS = (
    (r"\bwon't\b", "will not"),
    (r"\bshan't\b", "shall not"),
    (r"\b(?:can't|cannot)\b", "can not"),
    (r"\blet's\b", "let us"),
    (r"(?<=\w)n't\b", " not"),
    (r"(?<=\w)'re\b", " are"),
    (r"(?<=\w)'ve\b", " have"),
    (r"(?<=\w)'ll\b", " will"),
    (r"\bi'm\b", "i am"),
    (r"(?<=\w)'d\b", " would"),
    # After other words an 's is nearly always the possessive.
    (r"\b(he|she|it|that|this|there|here|what|who|where|when|how)'s\b", r"\1 is"),
)


def paper(text: str) -> str:
    """AnyGPT's, as far as it is known: no punctuation, and contractions written out.

    The code of the paper's 8.5 % on LibriSpeech was lost; what it did is told in OpenMOSS/AnyGPT's issue 40. All is in
    lower case; apostrophes go without a trace ("john's" is "johns"), other punctuation leaves a space. "'d" is "would"
    on both sides, whatever it stands for. Numbers stay as they are written.
    """
    text = text.lower().replace("’", "'")
    for pattern, words in _EXPANSIONS:
        text = re.sub(pattern, words, text)
    return " ".join(re.sub(r"[^\w\s]|_", " ", text.replace("'", "")).split())


def whisper(text: str) -> str:
    """Whisper's for English (Radford et al. 2022, appendix C): also numbers, spelling and hesitations."""
    return " ".join(_whisper()(text).split())


@functools.cache
def _whisper() -> Normalizer:
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()


NORMALIZERS: dict[str, Normalizer] = {"paper": paper, "whisper": whisper}


def _words(reference: str, prediction: str) -> tuple[int, int]:
    import jiwer

    out = jiwer.process_words(reference, prediction)
    return out.substitutions + out.deletions + out.insertions, len(reference.split())


def _characters(reference: str, prediction: str) -> tuple[int, int]:
    import jiwer

    out = jiwer.process_characters(reference, prediction)
    return out.substitutions + out.deletions + out.insertions, len(reference)


def _measure(name: str, normalizer: str, count: Callable[[str, str], tuple[int, int]]) -> Measure:
    if normalizer not in NORMALIZERS:
        raise UserError(f"There is no transcript normalizer {normalizer!r}; take one of {', '.join(NORMALIZERS)}.")
    normalize = NORMALIZERS[normalizer]

    def rows(references: Sequence[str], predictions: Sequence[str | None]) -> Float[np.ndarray, "N 2"]:
        pairs = zip(references, predictions, strict=True)
        counted = [count(normalize(reference), normalize(prediction or "")) for reference, prediction in pairs]
        return np.array(counted, np.float64).reshape(-1, 2)

    return Measure(f"{name}_{normalizer}", False, rows, ratio)


def word_errors(normalizer: str) -> Measure:
    """The word error rate; rows are (substitutions + deletions + insertions, words of the reference).

    Without a prediction all words are deleted. A reference without words, after normalization, has the prediction's
    words as insertions over no words: they raise the rate of a set, and have none alone.
    """
    return _measure("wer", normalizer, _words)


def character_errors(normalizer: str) -> Measure:
    """The character error rate, as `word_errors`; the space between two words is a character."""
    return _measure("cer", normalizer, _characters)
