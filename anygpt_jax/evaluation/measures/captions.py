"""Captions against several references, as coco-caption scores them: CIDEr-D, corpus BLEU-4 and ROUGE-L.

A reference is a sequence of several str, a prediction a str; a missing prediction is an empty caption and scores 0.
CIDEr and ROUGE-L come from `pycocoevalcap`, of which only the parts that are pure Python are imported; its BLEU is not
for commercial use and so not taken. METEOR and SPICE are not offered: both run on Java, and NLTK's METEOR needs a download of WordNet.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation.measures import Measure, mean

ORDERS = 4  # n-grams of one to four words
_CLITIC = r"(?:n't|'(?:s|re|ve|ll|d|m))(?!\w)"
# Before a clitic ("dog's" is two tokens, "don't" is "do" and "n't"), and inside "cannot" and "gonna".
_CUT = re.compile(rf"(?<=\w)(?={_CLITIC})|(?<=\bcan)(?=not\b)|(?<=\bgon)(?=na\b)")
_TOKENS = re.compile(
    rf"(?<!\S){_CLITIC}"
    r"|(?<!\w)(?:(?:[^\W\d_]\.){2,}|(?:mrs?|ms|dr|jr|st|vs|ave)\.)"  # "u.s.", "st."
    r"|\d+(?:[.,:]\d+)*(?=[ap]m\b)"  # "5:30" of "5:30pm"
    r"|\w+(?:[-'/]\w+|(?<=\d)[.,:]\d\w*)*"  # whole with its hyphens, inner apostrophes, slashes and decimal marks
    r"|[^\w\s]"
)
# The marks of coco-caption, quotes as they are written, dashes and dots one by one.
_PUNCTUATION = frozenset("'\"`“”‘.?!,:;-–—…")
# Tokens to coco-caption: it removes "-LRB-" and its like in upper case, and has lower-cased them before.
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}


def caption_tokens(text: str) -> list[str]:
    """Lower-case tokens as the Penn Treebank's, without coco-caption's punctuation.

    coco-caption runs Stanford's PTBTokenizer, which is Java. Of Flickr8k's 40 460 captions these tokens differ from its
    in eight: in other abbreviations with a full stop, addresses ("statefarm.com") and "slip 'n' slide". They can also
    differ in other words that it takes apart ("gotta") and in punctuation without a space after it.
    """
    spaced = _CUT.sub(" ", text.lower().replace("’", "'"))
    return [_BRACKETS.get(token, token) for token in _TOKENS.findall(spaced) if token not in _PUNCTUATION]


def _tokenized(
    references: Sequence[Sequence[str]], predictions: Sequence[str | None]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """(references, predictions) by example as `pycocoevalcap` takes them: tokens joined by spaces."""
    truth, guesses = {}, {}
    for i, (several, prediction) in enumerate(zip(references, predictions, strict=True)):
        if not several or isinstance(several, str):
            raise UserError(f"Example {i} has no list of reference captions; give a sequence of at least one str.")
        truth[i] = [" ".join(caption_tokens(reference)) for reference in several]
        guesses[i] = [" ".join(caption_tokens(prediction or ""))]
    return truth, guesses


def _cider_rows(references: Sequence[Sequence[str]], predictions: Sequence[str | None]) -> Float[np.ndarray, "N 1"]:
    from pycocoevalcap.cider.cider import Cider

    return Cider(n=ORDERS, sigma=6.0).compute_score(*_tokenized(references, predictions))[1][:, None]


def _rouge_rows(references: Sequence[Sequence[str]], predictions: Sequence[str | None]) -> Float[np.ndarray, "N 1"]:
    from pycocoevalcap.rouge.rouge import Rouge

    return Rouge().compute_score(*_tokenized(references, predictions))[1][:, None].astype(np.float64)


def _bleu_rows(references: Sequence[Sequence[str]], predictions: Sequence[str | None]) -> Float[np.ndarray, "N 9"]:
    """For n = 1 … 4 the clipped matches, then the guesses; last the length of the reference closest in length."""
    truth, guesses = _tokenized(references, predictions)
    return np.array([_bleu_row([t.split() for t in truth[i]], guesses[i][0].split()) for i in truth], np.float64)


def _bleu_row(references: Sequence[Sequence[str]], guess: Sequence[str]) -> list[float]:
    matches, guesses = [], []
    for n in range(1, ORDERS + 1):
        most: collections.Counter[tuple[str, ...]] = collections.Counter()
        for reference in references:
            most |= _n_grams(reference, n)
        found = _n_grams(guess, n)
        matches.append((found & most).total())
        guesses.append(found.total())
    closest = min((abs(len(reference) - len(guess)), len(reference)) for reference in references)[1]
    return [*matches, *guesses, closest]


def _n_grams(tokens: Sequence[str], n: int) -> collections.Counter[tuple[str, ...]]:
    return collections.Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def _bleu(rows: Float[np.ndarray, "N 9"]) -> float:
    """Papineni et al. 2002, equations 1-3, without smoothing; coco-caption's small numbers stand against 0 / 0."""
    totals = rows.sum(0)
    matches, guesses, reference_length = totals[:ORDERS], totals[ORDERS:-1], totals[-1]
    precision = np.prod((matches + 1e-15) / (guesses + 1e-9)) ** (1 / ORDERS)
    ratio = (guesses[0] + 1e-15) / (reference_length + 1e-9)
    return float(precision * np.exp(min(0.0, 1 - 1 / ratio)))


# CIDEr-D (Vedantam et al. 2015) × 10, so in [0, 10]. The document frequencies are of the references given to `rows`:
# the rows of a part of them are not those of the whole, and those of a single example are 0.
CIDER = Measure("cider", True, _cider_rows, mean)
BLEU4 = Measure("bleu4", True, _bleu_rows, _bleu)
# Lin 2004 with beta 1.2; the best precision and the best recall may be of different references.
ROUGE_L = Measure("rouge_l", True, _rouge_rows, mean)
