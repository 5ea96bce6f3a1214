"""Words to phones, from the CMU pronouncing dictionary that the package pocketsphinx holds. Training only."""

from __future__ import annotations

import functools

from anygpt_jax.errors import UserError

# ARPABET without stress; index + 1 is the label, 0 is CTC's blank.
PHONES = (
    "AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY", "F", "G", "HH", "IH", "IY", "JH",
    "K", "L", "M", "N", "NG", "OW", "OY", "P", "R", "S", "SH", "T", "TH", "UH", "UW", "V", "W", "Y", "Z", "ZH",
)  # fmt: skip


@functools.cache
def dictionary() -> dict[str, tuple[int, ...]]:
    """word -> labels of its first pronunciation."""
    try:
        import pocketsphinx
    except ImportError as e:
        raise UserError(
            "The speech tokenizer learns phones from pocketsphinx's dictionary; `pip install pocketsphinx`."
        ) from e
    labels = {phone: i + 1 for i, phone in enumerate(PHONES)}
    words = {}
    with open(pocketsphinx.get_model_path("en-us/cmudict-en-us.dict"), encoding="utf-8") as lines:
        for line in lines:
            word, *phones = line.split()
            if "(" not in word:  # later pronunciations are written word(2)
                words[word] = tuple(labels[p.rstrip("012")] for p in phones)
    return words


def to_phones(text: str) -> list[int]:
    """Labels of a lower-case text; UserError for a word the dictionary lacks."""
    words = dictionary()
    for word in text.split():
        if word not in words:
            raise UserError(f"The word '{word}' is not in the CMU dictionary, so its phones are unknown; reword it.")
    return [label for word in text.split() for label in words[word]]
