"""Fréchet distances against closed forms and scipy's matrix root, and cosines by hand."""

import numpy as np
import pytest
import scipy.linalg

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation import scoring
from anygpt_jax.evaluation.measures.distributions import (
    cosine_rows,
    frechet_distance,
    frechet_to_originals,
    similarity,
)


def _by_scipy(a, b):
    """The formula as it is written, with the root of a product that is not symmetric."""
    x, y = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(x @ y).real
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(x + y - 2 * root)


def _exactly(mean, deviations):
    """2 D points with this mean and exactly this diagonal covariance."""
    d = len(deviations)
    corners = np.diag(deviations) * np.sqrt((2 * d - 1) / 2)
    return np.concatenate([corners, -corners]) + mean


def test_diagonal_gaussians_have_a_closed_form():
    rng = np.random.default_rng(0)
    for _ in range(5):
        (m, n), (s, t) = rng.normal(size=(2, 6)), rng.uniform(0.1, 3, size=(2, 6))
        expected = np.sum((m - n) ** 2) + np.sum((s - t) ** 2)
        assert frechet_distance(_exactly(m, s), _exactly(n, t)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("d", [1, 2, 16])
def test_random_ones_by_scipy(d):
    rng = np.random.default_rng(d)
    a = rng.normal(size=(200, d)) @ rng.normal(size=(d, d))
    b = rng.normal(size=(150, d)) @ rng.normal(size=(d, d)) + 1
    if d == 1:
        expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    else:
        expected = _by_scipy(a, b)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-7)


def test_fewer_members_than_dimensions():
    """Singular covariances, by the sum of the singular values of A Bᵀ, which needs no root."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 40)), rng.normal(size=(8, 40)) + 0.5
    x, y = (a - a.mean(0)) / 2, (b - b.mean(0)) / np.sqrt(7)
    shared = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.sum(x**2) + np.sum(y**2) - 2 * shared
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(a[:2], a[:2]) == pytest.approx(0, abs=1e-5)


def test_half_precision_is_taken_as_it_is():
    a, b = np.random.default_rng(0).normal(size=(2, 50, 4)).astype(np.float16)
    assert frechet_distance(a, b) == pytest.approx(_by_scipy(a.astype(float), b.astype(float)), rel=1e-7)


def test_sets_that_have_no_distance_are_refused():
    with pytest.raises(UserError, match=r"at least 2 embeddings, got shape \(1, 3\)"):
        frechet_distance(np.zeros((1, 3)), np.zeros((4, 3)))
    with pytest.raises(UserError, match="of 3 and 2 numbers"):
        frechet_distance(np.zeros((4, 3)), np.zeros((4, 2)))


def test_a_shifted_set_is_further_from_its_originals():
    """By the closed form: only means differ, so the distance is the square of the shift."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5))
    measure = frechet_to_originals("fid", 5, np.stack, np.stack)
    assert measure.name == "fid" and not measure.higher_is_better
    for shift in (0.0, 0.5, 3.0):
        rows = measure.rows(list(truth), list(truth + shift))
        assert rows.shape == (60, 10)
        assert measure.score(rows) == pytest.approx(5 * shift**2, rel=1e-9, abs=1e-9)
    made = rng.normal(size=(60, 5)) * 2 + 1
    rows = measure.rows(list(truth), list(made))
    assert measure.score(rows) == pytest.approx(_by_scipy(made, truth), rel=1e-7)
    drawn = rng.integers(60, size=60)
    assert measure.score(rows[drawn]) == pytest.approx(_by_scipy(made[drawn], truth[drawn]), rel=1e-7)


def test_examples_with_several_embeddings_stay_together():
    """Every embedding counts alike, however many its example has, and samples of examples are exact."""
    rng = np.random.default_rng(1)
    truth = [rng.normal(size=(n, 3)) for n in rng.integers(1, 5, size=25)]
    made = [rng.normal(size=(n, 3)) * [1, 2, 3] + 1 for n in rng.integers(1, 8, size=25)]
    measure = frechet_to_originals("fad", 3, list, list)
    rows = measure.rows(truth, made)
    assert rows.shape == (25, 2 * 7 * 3)
    for drawn in (np.arange(25), rng.integers(25, size=25), np.array([4, 4, 9])):
        expected = frechet_distance(np.concatenate([made[i] for i in drawn]), np.concatenate([truth[i] for i in drawn]))
        assert measure.score(rows[drawn]) == pytest.approx(expected, rel=1e-9)
    shorter = measure.rows(truth, [x[:1] + 5 for x in made])
    assert shorter.shape[1] < rows.shape[1]
    found = scoring.difference(measure, shorter, rows)
    assert found.value == pytest.approx(measure.score(rows) - measure.score(shorter))
    assert np.isnan([found.low, found.high, found.p]).all()


def test_a_missing_prediction_is_infinitely_far_from_its_original():
    measure = frechet_to_originals("fad", 2, list, list)
    truth = [np.eye(2), np.ones((3, 2)), np.zeros((1, 2))]
    rows = measure.rows(truth, [np.eye(2), None, np.ones((1, 2))])
    assert measure.score(rows) == np.inf and np.isfinite(measure.score(rows[[0, 2]]))
    assert measure.score(measure.rows(truth, [None] * 3)) == np.inf
    assert measure.score(measure.rows(truth, [np.eye(2), np.zeros((0, 2)), np.eye(2)])) == np.inf
    with pytest.raises(UserError, match="of 3 and 2 numbers"):
        measure.rows(truth, [np.eye(3)] * 3)
    with pytest.raises(UserError, match="at least 2 embeddings"):
        measure.score(measure.rows(truth[2:], [np.ones((1, 2))]))


def test_a_measure_without_samples_has_no_interval():
    measure = frechet_to_originals("fid", 2, np.stack, np.stack)
    truth = np.random.default_rng(0).normal(size=(9, 2))
    first, second = (measure.rows(list(truth), list(truth + shift)) for shift in (2, 1))
    score, difference = scoring.measured(measure, first), scoring.difference(measure, first, second)
    assert score.value == pytest.approx(8) and np.isnan([score.low, score.high]).all()
    assert difference.value == pytest.approx(2 - 8)
    assert np.isnan([difference.low, difference.high, difference.p]).all()


def test_cosines_by_hand():
    a = np.array([[1, 0], [1, 1], [3, 4], [0, 0], [2, 0]], np.float32)
    b = np.array([[0, 5], [2, 0], [4, 3], [1, 1], [-1, 0]], np.float32)
    np.testing.assert_allclose(cosine_rows(a, b), [[0], [0.5**0.5], [24 / 25], [0], [-1]], atol=1e-12)
    np.testing.assert_allclose(cosine_rows(a, 7 * b), cosine_rows(a, b))
    large = np.full((1, 8), 300, np.float16)  # whose squares are beyond half precision
    np.testing.assert_allclose(cosine_rows(large, large), [[1]], rtol=1e-12)
    with pytest.raises(UserError, match="no pairs"):
        cosine_rows(a, b[:, :1])


def test_similarity():
    """Texts and "pictures" that are embedded in different ways into one plane."""
    angles = {"right": 0.0, "up": np.pi / 2, "left": np.pi}
    asked = []

    def embed_texts(texts):
        asked.append(list(texts))
        return np.array([[np.cos(angles[t]), np.sin(angles[t])] for t in texts])

    measure = similarity("clip_t", embed_texts, lambda pictures: 3 * np.stack(pictures))
    assert measure.name == "clip_t" and measure.higher_is_better
    right, up = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    rows = measure.rows(["right", "up", "left", "up"], [right, None, right, right])
    np.testing.assert_allclose(rows, [[1], [0], [-1], [0]], atol=1e-12)
    assert asked == [["right", "left", "up"]]  # nothing is embedded for a prediction that is missing
    assert measure.score(rows) == pytest.approx(0) and measure.score(rows[[0, 0, 1]]) == pytest.approx(2 / 3)
    assert measure.score(measure.rows(["right", "up"], [right, up])) == pytest.approx(1)
    np.testing.assert_array_equal(measure.rows(["up"] * 2, [None] * 2), [[0], [0]])
