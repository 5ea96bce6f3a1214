"""Scores of predictions, each in two steps: rows, one an example, and the score of any set of rows.

Rows are all that a score needs to know of an example, so that a corpus score (a word error rate, BLEU, a Fréchet
distance) can be resampled for its interval and compared example by example without judging anything twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class Measure:
    """`rows(references, predictions)` is float64[N, D]; `score(rows)` a number, of all rows or of a sample of them.

    What a reference is, the measure says: a str, several, an image; a prediction is None where there is none, and that
    counts as the worst there is.
    """

    name: str
    higher_is_better: bool
    rows: Callable[[Sequence[Any], Sequence[Any]], Float[np.ndarray, "N D"]]
    score: Callable[[Float[np.ndarray, "N D"]], float]
    resampled: bool = True  # whether samples of the rows give an interval


def mean(rows: Float[np.ndarray, "N 1"]) -> float:
    """The score of a measure whose rows have one number."""
    return float(rows[:, 0].mean())


def ratio(rows: Float[np.ndarray, "N 2"]) -> float:
    """The first column's sum over the second's."""
    return float(rows[:, 0].sum() / max(rows[:, 1].sum(), 1e-12))
