"""Vector quantization against brute force in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anygpt_jax.modalities.codecs import quantize


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def brute_force(x, vectors):
    codes, partial = [], []
    left, total = x.copy(), np.zeros_like(x)
    for book in vectors:
        distance = ((left[:, None] - book[None]) ** 2).sum(-1)
        code = distance.argmin(1)
        left, total = left - book[code], total + book[code]
        codes.append(code)
        partial.append(total.copy())
    return np.stack(codes, -1), np.stack(partial, 1)


def test_residual_codes_are_the_nearest_ones(rng):
    x = rng.normal(size=(200, 8)).astype(np.float32)
    vectors = rng.normal(size=(3, 32, 8)).astype(np.float32) * np.array([1, 0.5, 0.25])[:, None, None].astype(
        np.float32
    )
    codes, partial = brute_force(x, vectors)
    found = quantize.residual_encode(jnp.asarray(x), jnp.asarray(vectors))
    np.testing.assert_array_equal(found, codes)
    np.testing.assert_allclose(quantize.residual_decode(found, jnp.asarray(vectors)), partial, atol=1e-5)


def test_fewer_levels_decode_to_a_prefix_of_the_sums(rng):
    vectors = jnp.asarray(rng.normal(size=(4, 16, 5)), jnp.float32)
    codes = jnp.asarray(rng.integers(16, size=(7, 4)))
    whole = quantize.residual_decode(codes, vectors)
    np.testing.assert_array_equal(quantize.residual_decode(codes[:, :2], vectors), whole[:, :2])


def test_a_tie_takes_the_lowest_code():
    assert int(quantize.nearest(jnp.zeros((1, 2)), jnp.array([[1.0, 0.0], [0.0, 1.0]]))[0]) == 0


def test_kmeans_finds_separated_clusters(rng):
    centres = rng.normal(size=(20, 6)) * 10
    x = np.repeat(centres, 30, 0) + rng.normal(size=(600, 6)) * 0.01
    found = np.asarray(quantize.kmeans(jax.random.key(0), jnp.asarray(x, jnp.float32), 20))
    distance = np.linalg.norm(centres[:, None] - found[None], axis=-1).min(1)
    assert distance.max() < 0.05


def test_kmeans_survives_more_centres_than_distinct_points():
    x = jnp.tile(jnp.eye(3), (10, 1))
    found = np.asarray(quantize.kmeans(jax.random.key(0), x, 8))
    assert np.isfinite(found).all()
    assert np.linalg.norm(np.eye(3)[:, None] - found[None], axis=-1).min(1).max() < 1e-6


def test_ema_moves_a_code_to_the_mean_of_its_latents():
    books = quantize.Codebooks(jnp.array([[[0.0], [10.0]]]), jnp.ones((1, 2)), jnp.array([[[0.0], [10.0]]]))
    x = jnp.array([[1.0], [3.0], [11.0], [99.0]])
    codes = jnp.array([[0], [0], [1], [0]])
    valid = jnp.array([True, True, True, False])  # the last one is padding
    new = quantize.update(books, jax.random.key(0), x, codes, valid, decay=0.5)
    # counts: (1 + 2)/2, (1 + 1)/2; sums: (0 + 4)/2, (10 + 11)/2
    np.testing.assert_allclose(new.vectors[0, :, 0], [2.0 / 1.5, 10.5 / 1.0], rtol=1e-6)


def test_a_dead_code_restarts_from_a_valid_latent():
    books = quantize.Codebooks(jnp.array([[[0.0], [50.0]]]), jnp.array([[5.0, 0.01]]), jnp.array([[[0.0], [0.5]]]))
    x = jnp.array([[1.0], [1.0], [7.0]])
    new = quantize.update(books, jax.random.key(0), x, jnp.zeros((3, 1), jnp.int32), jnp.array([True, True, False]))
    assert float(new.vectors[0, 1, 0]) == 1.0
    assert float(new.counts[0, 1]) == 1.0


def test_straight_through_passes_the_gradient_and_the_quantized_value():
    x = jnp.array([0.2, 0.9])
    value, gradient = jax.value_and_grad(
        lambda x: (quantize.straight_through(x, jnp.round(x)) * jnp.array([2.0, 3.0])).sum()
    )(x)
    assert float(value) == 3.0
    np.testing.assert_array_equal(gradient, [2.0, 3.0])


def test_usage_of_a_uniform_and_of_a_constant_code():
    assert quantize.usage(jnp.arange(8), 16) == (8, pytest.approx(8.0, rel=1e-5))
    assert quantize.usage(jnp.zeros(8, jnp.int32), 16) == (1, pytest.approx(1.0))
