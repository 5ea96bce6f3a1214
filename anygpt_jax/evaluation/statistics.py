"""How sure a score is, and what it would be by chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from anygpt_jax.tasks.metrics.scores import main_score
from anygpt_jax.tasks.metrics.text import words

MetricFn = Callable[[Sequence[dict], Sequence[Any]], dict[str, float]]
RESAMPLES = 1000
PERMUTATIONS = 8


def example_scores(metric: MetricFn, targets: Sequence[dict], predictions: Sequence[Any]) -> np.ndarray:
    """float[n, 2]: every example's main score and its weight in the main score of all.

    A word error rate is over the words of the corpus, so its examples weigh as many words as they have.
    """
    rows = []
    for target, prediction in zip(targets, predictions, strict=True):
        name, value, _ = main_score(metric([target], [prediction]))
        rows.append((value, len(words(target["text"])) if name == "wer" else 1))
    return np.array(rows, np.float64)


def resamples(n: int, seed: int = 0) -> Int[np.ndarray, "R N"]:
    """Which of n examples each of RESAMPLES samples has: as many, drawn with repetition."""
    return np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))


def middle(values: Float[np.ndarray, " R"]) -> tuple[float, float]:
    """The middle 95 % of the samples that have a value; NaN where fewer than half do, as of a kind that is rare."""
    finite = values[np.isfinite(values)]
    if 2 * len(finite) < len(values):
        return math.nan, math.nan
    low, high = np.quantile(finite, [0.025, 0.975])
    return float(low), float(high)


def bootstrap_interval(scores: Float[np.ndarray, "N 2"], seed: int = 0) -> tuple[float, float]:
    """Percentile interval of 95 % of the weighted mean of `example_scores` under resampling of the examples."""
    values, weights = scores[resamples(len(scores), seed)].transpose(2, 0, 1)
    return middle((values * weights).sum(1) / weights.sum(1))


def chance_scores(
    metric: MetricFn,
    targets: Sequence[dict],
    keys: Sequence[str],
    answers: Sequence[tuple[str, Any]],
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> dict[str, float]:
    """The mean result when every example is answered with another example's right answer.

    `answers` are (key, medium); an example never gets the answer of its own key if there is any other.
    """
    rng = np.random.default_rng(seed)
    results = []
    for _ in range(permutations):
        order = np.resize(rng.permutation(len(answers)), len(targets))
        for i, key in enumerate(keys):
            others = [j for j in range(len(answers)) if answers[j][0] != key]
            if answers[order[i]][0] == key and others:
                order[i] = others[rng.integers(len(others))]
        results.append(metric(targets, [answers[int(j)][1] for j in order]))
    return {name: float(np.mean([result[name] for result in results])) for name in results[0]}
