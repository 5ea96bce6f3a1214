"""Chance, intervals and per-example scores, against what can be worked out by hand."""

import numpy as np
import pytest

from anygpt_jax.evaluation.statistics import bootstrap_interval, chance_scores, example_scores
from anygpt_jax.tasks.metrics import word_error_rate


def same(targets, predictions):
    """A metric whose answers are right when equal to the target's name."""
    return {"attributes": float(np.mean([t["name"] == p for t, p in zip(targets, predictions, strict=True)]))}


def test_weighted_example_scores_give_the_corpus_rate():
    targets = [{"text": "one two three four"}, {"text": "five"}]
    scores = example_scores(word_error_rate, targets, ["one two three", "six"])
    np.testing.assert_allclose(scores, [[0.25, 4], [1.0, 1]])
    corpus = word_error_rate(targets, ["one two three", "six"])["wer"]
    assert (scores[:, 0] * scores[:, 1]).sum() / scores[:, 1].sum() == pytest.approx(corpus)


def test_interval_covers_the_mean_as_the_normal_approximation_does():
    rng = np.random.default_rng(0)
    hits = (rng.random(400) < 0.7).astype(float)
    low, high = bootstrap_interval(np.stack([hits, np.ones(400)], 1))
    half = 1.96 * np.sqrt(hits.mean() * (1 - hits.mean()) / 400)
    assert low == pytest.approx(hits.mean() - half, abs=0.012)
    assert high == pytest.approx(hits.mean() + half, abs=0.012)
    assert bootstrap_interval(np.ones((5, 2))) == (1.0, 1.0)


def test_chance_is_the_share_of_coinciding_answers():
    # Eight names, evenly: another example's answer is right for 49 of 399 others.
    names = [str(i % 8) for i in range(400)]
    keys = [f"k{i}" for i in range(400)]
    chance = chance_scores(same, [{"name": n} for n in names], keys, list(zip(keys, names, strict=True)))
    assert chance["attributes"] == pytest.approx(49 / 399, abs=0.02)


def test_nobody_is_answered_with_their_own_truth():
    keys = [f"k{i}" for i in range(30)]
    answers = list(zip(keys, keys, strict=True))
    assert chance_scores(same, [{"name": k} for k in keys], keys, answers) == {"attributes": 0.0}
    # More targets than answers, and answers of other keys.
    assert chance_scores(same, [{"name": "a"}] * 5, keys[:5], [("x", "a")]) == {"attributes": 1.0}
