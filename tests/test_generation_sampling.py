"""Sampling against sorting, closed-form probabilities and counting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from anygpt_jax.errors import UserError
from anygpt_jax.generation.sampling import Sampling, SamplingTable, draw, keep_top_k, keep_top_p, restrict, sample


def table(temperature=1.0, top_p=1.0, top_k=0, rows=1) -> SamplingTable:
    return SamplingTable.build([Sampling(temperature, top_p, top_k)] * rows)


def sorted_nucleus(probs: np.ndarray, top_p: float) -> set[int]:
    """The textbook: sort, add up, stop when top_p is reached."""
    order = np.argsort(-probs, kind="stable")
    reached = np.cumsum(probs[order].astype(np.float64))
    return set(order[: int(np.searchsorted(reached, top_p)) + 1].tolist())


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.5, 0.9, 0.95, 0.999])
def test_top_p_is_the_smallest_set_of_likeliest_tokens(top_p):
    logits = jax.random.normal(jax.random.key(1), (40, 300)) * jnp.linspace(0.1, 6, 40)[:, None]
    probs = jax.nn.softmax(logits, axis=1)
    kept = np.asarray(keep_top_p(probs, jnp.full(40, top_p)))
    for row, p in zip(kept, np.asarray(probs), strict=True):
        assert set(np.flatnonzero(row)) == sorted_nucleus(p, top_p)


def test_top_p_closed_form_and_ties():
    probs = jnp.array([[0.5, 0.25, 0.125, 0.125]] * 5)
    kept = keep_top_p(probs, jnp.array([0.25, 0.5, 0.75, 0.8, 1.0]))
    expected = [[1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]  # the last two tie
    np.testing.assert_array_equal(np.asarray(kept).astype(int), expected)


@pytest.mark.parametrize("k", [1, 2, 7, 299, 300, 1000])
def test_top_k_against_sorting(k):
    logits = jax.random.normal(jax.random.key(2), (10, 300)) * 5 - 3
    logits = logits.at[:, 50:60].set(-jnp.inf)
    kept = np.asarray(keep_top_k(logits, jnp.full(10, k)))
    for row, x in zip(kept, np.asarray(logits), strict=True):
        assert set(np.flatnonzero(row)) == set(np.argsort(-x)[:k].tolist()) | (
            set(range(50, 60)) if k >= 290 else set()
        )


def test_rows_have_their_own_settings():
    logits = jnp.broadcast_to(jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1])), (6, 4))
    settings = SamplingTable.build(
        [
            Sampling(), Sampling(0.5), Sampling(top_p=0.65), Sampling(top_p=0.5, top_k=3), Sampling(min_p=0.5),
            Sampling(0.5, min_p=0.5),
        ]
    )  # fmt: skip
    probs = np.asarray(jax.nn.softmax(restrict(logits, settings), axis=1))
    squares = np.array([0.16, 0.09, 0.04, 0.01])
    expected = [
        [0.4, 0.3, 0.2, 0.1],
        squares / squares.sum(),  # temperature 1/2 squares the probabilities
        [4 / 7, 3 / 7, 0, 0],
        [4 / 7, 3 / 7, 0, 0],  # the three likeliest are 4/9, 3/9, 2/9: half is reached by two
        [4 / 9, 3 / 9, 2 / 9, 0],  # half of the likeliest, and more
        [16 / 25, 9 / 25, 0, 0],  # after the temperature
    ]
    np.testing.assert_allclose(probs, expected, atol=1e-6)


def test_draw_inverts_the_cumulative_distribution():
    probs = jax.nn.softmax(jax.random.normal(jax.random.key(3), (1, 1000)) * 3, axis=1)
    probs = probs.at[:, 100:200].set(0)
    uniform = jnp.linspace(0, 1 - 1e-6, 4001)
    token = np.asarray(draw(jnp.broadcast_to(probs, (4001, 1000)), uniform))
    cumulative = np.cumsum(np.asarray(probs[0], np.float64))
    expected = np.searchsorted(cumulative, np.asarray(uniform, np.float64) * cumulative[-1], side="right")
    assert np.mean(token == expected) > 0.999  # float32 may differ at a boundary
    assert np.asarray(probs)[0, token].min() > 0
    assert draw(jnp.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]), jnp.array([0.0, 1 - 2**-24])).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k", "power", "kept"),
    [(1.0, 1.0, 0, 1.0, 6), (0.5, 1.0, 0, 2.0, 6), (2.0, 1.0, 3, 0.5, 3), (1.0, 0.6, 0, 1.0, 3)],
)
def test_frequencies_of_sampled_tokens(temperature, top_p, top_k, power, kept):
    probs = np.array([0.3, 0.25, 0.2, 0.1, 0.1, 0.05])
    shuffled = np.array([5, 0, 3, 1, 4, 2])  # so that order in the vocabulary says nothing
    # A seventh, forbidden token would be by far the likeliest.
    logits = jnp.append(jnp.log(jnp.asarray(probs[shuffled], jnp.float32)), 9.0)
    n = 20_000
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(7), jnp.arange(n))
    mask = jnp.arange(7) < 6
    drawn = sample(
        jnp.broadcast_to(logits, (n, 7)), jnp.broadcast_to(mask, (n, 7)), table(temperature, top_p, top_k, n), keys
    )
    counts = np.bincount(np.asarray(drawn), minlength=7)
    expected = np.where(np.arange(6) < kept, probs**power, 0)
    expected = np.append(expected[shuffled] / expected.sum(), 0)
    assert counts[expected == 0].sum() == 0
    result = scipy.stats.chisquare(counts[expected > 0], n * expected[expected > 0])
    assert result.pvalue > 1e-3


def test_temperature_zero_is_greedy_beside_others():
    logits = jax.random.normal(jax.random.key(4), (64, 50))
    mask = jax.random.bernoulli(jax.random.key(5), 0.5, (64, 50))
    temperature = jnp.where(jnp.arange(64) % 2 == 0, 0.0, 5.0)
    settings = table(rows=64)._replace(temperature=temperature)
    keys = jax.vmap(jax.random.key)(jnp.arange(64))
    token = np.asarray(sample(logits, mask, settings, keys))
    greedy = np.where(np.asarray(mask), np.asarray(logits), -np.inf).argmax(1)
    np.testing.assert_array_equal(token[::2], greedy[::2])
    assert (token[1::2] != greedy[1::2]).sum() > 16
    assert np.asarray(mask)[np.arange(64), token].all()


def test_a_row_does_not_see_its_batch_mates():
    logits = jax.random.normal(jax.random.key(6), (8, 100))
    keys = jax.vmap(jax.random.key)(jnp.arange(8))
    every = sample(logits, jnp.ones((8, 100), bool), table(0.8, 0.9, 40, 8), keys)
    alone = [
        sample(logits[b : b + 1], jnp.ones((1, 100), bool), table(0.8, 0.9, 40), keys[b : b + 1])[0] for b in range(8)
    ]
    assert every.tolist() == [int(t) for t in alone]


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_k": -1}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(UserError):
        Sampling(**bad)
