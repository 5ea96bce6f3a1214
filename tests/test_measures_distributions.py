"""Fréchet distances against closed forms and scipy's matrix root, and cosines by hand."""

import numpy as np
import pytest
import scipy.linalg

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation.measures.distributions import cosine_rows, frechet, frechet_distance, similarity


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
    measure = frechet("fid", lambda images: np.zeros((len(images), 1)), np.eye(3))
    with pytest.raises(UserError, match="of 1 and 3 numbers"):
        measure.rows([None] * 2, ["image"] * 2)


def test_the_measure_of_a_set():
    rng = np.random.default_rng(0)
    truth, made = rng.normal(size=(40, 3)), rng.normal(size=(30, 3)) * 2
    measure = frechet("fid", lambda images: np.stack(images), truth)
    assert measure.name == "fid" and not measure.higher_is_better
    rows = measure.rows([None] * 30, list(made))
    np.testing.assert_array_equal(rows, made)
    assert measure.score(rows) == pytest.approx(frechet_distance(made, truth))
    assert measure.score(measure.rows([None] * 40, list(truth))) == pytest.approx(0, abs=1e-9)
    assert measure.score(rows + 10) > measure.score(rows) + 250
    drawn = rng.integers(30, size=30)
    assert measure.score(rows[drawn]) == pytest.approx(frechet_distance(made[drawn], truth))
    missing = measure.rows([None] * 3, [made[0], None, made[1]])
    np.testing.assert_array_equal(missing[[0, 2]], made[:2])
    assert measure.score(missing) == np.inf
    assert measure.score(measure.rows([None] * 2, [None] * 2)) == np.inf


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
