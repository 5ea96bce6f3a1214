"""Texts brought to one form before they are tokenized: Unicode, white space, control characters, case, markup."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import tensorflow as tf

from anygpt_jax.templates import TEXT

CASES = ("keep", "lower", "sentence")
Form = Literal["NFC", "NFD", "NFKC", "NFKD"]

# Characters without width that come with copied text: soft hyphen, zero-width space and no-break space, word joiner,
# directional marks, embeddings and isolates. Joiners (U+200C, U+200D) belong to scripts and emoji and stay.
INVISIBLE = re.compile("[\u00ad\u200b\ufeff\u2060\u200e\u200f\u202a-\u202e\u2066-\u2069]")
SPACES = re.compile(r"[^\S\n]+")  # what Unicode calls white space

# GigaSpeech's marks in text_tn (github.com/SpeechColab/GigaSpeech, README): punctuation, and what is no speech.
MARKS = {" <COMMA>": ",", " <PERIOD>": ".", " <QUESTIONMARK>": "?", " <EXCLAMATIONPOINT>": "!"}
NO_SPEECH = ("<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>")


def normalize(text: str, *, form: Form = "NFC", case: str = "keep", lines: bool = False) -> str:
    """One Unicode form, no control or invisible characters, single spaces; with `lines`, line breaks stay.

    `case` "lower" is for transcripts in capitals such as LibriSpeech's; "sentence" gives a text without any lower case
    letter a capital at the start of every sentence and to the word I, and leaves every other text as it is.
    """
    if case not in CASES:
        raise ValueError(f"case must be one of {', '.join(CASES)}, not {case!r}")
    text = INVISIBLE.sub("", unicodedata.normalize(form, text)).replace("\r\n", "\n").replace("\r", "\n")
    if not lines:
        text = text.replace("\n", " ")
    text = SPACES.sub(" ", text)
    text = "".join(c for c in text if c == "\n" or unicodedata.category(c) != "Cc")
    text = re.sub(r" ?\n ?", "\n", text)
    text = re.sub(r"\n{3,}", "\n\n", re.sub(" {2,}", " ", text)).strip()
    if case == "lower":
        return text.lower()
    return _sentences(text) if case == "sentence" else text


def _sentences(text: str) -> str:
    if text != text.upper() or text == text.lower():
        return text
    text = re.sub(r"\bi\b(?=$|[ ',.?!’])", "I", text.lower())
    return re.sub(r"(^|[.?!]\s+)(\w)", lambda found: found[1] + found[2].upper(), text)


def gigaspeech(text: str, *, case: str = "sentence") -> str:
    """text_tn with its punctuation; empty if it is no speech, so that the length filter or the job refuses it."""
    if any(mark in text for mark in NO_SPEECH):
        return ""
    for mark, sign in MARKS.items():
        text = text.replace(mark, sign)
    return normalize(text, case=case)


def texts(
    *fields: str, by: Callable[..., str] = normalize, **settings: object
) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
    """The step that normalizes fields: `texts("caption", case="lower")`, or `texts("text", by=gigaspeech)`.

    Of "content" it takes what "modality" calls text. What is not UTF-8 is left alone, and the job rejects it.
    """
    step = functools.partial(_normalized, fields=fields, by=functools.partial(by, **settings))
    by("", **settings)  # a wrong setting is reported where it is written
    return step


def _normalized(dataset: tf.data.Dataset, fields: Sequence[str], by: Callable[[str], str]) -> tf.data.Dataset:
    def one(data: bytes) -> bytes:
        try:
            return by(data.decode("utf-8")).encode("utf-8")
        except UnicodeError:
            return data

    def several(modalities: np.ndarray, contents: np.ndarray) -> np.ndarray:
        pairs = zip(modalities, contents, strict=True)
        return np.array([one(c) if m == TEXT.encode() else c for m, c in pairs], object)

    @tf.autograph.experimental.do_not_convert
    def mapped(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        changed = dict(example)
        for name in fields:
            value = example[name]
            if value.shape.rank:
                made = tf.numpy_function(several, [example["modality"], value], tf.string)
            else:
                made = tf.numpy_function(one, [value], tf.string)
            changed[name] = tf.ensure_shape(made, value.shape)
        return changed

    return dataset.map(mapped, num_parallel_calls=tf.data.AUTOTUNE)
