"""The cache in 8 bits beside the float one, with a bound that follows from rounding alone."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_model_decode_weights import SMALL, decode, greedy, ids_of, lively

from anygpt_jax.errors import UserError
from anygpt_jax.model.attention import attention
from anygpt_jax.model.kv_cache import KVCache, init_cache

B, T, S, H, G, K = 2, 3, 24, 6, 3, 16


def keys_and_values(seed=0):
    rng = np.random.default_rng(seed)
    size = 10 ** rng.uniform(-2, 1, (B, S, G, 1))  # a head of a position may be far smaller than another
    return ((rng.normal(size=(B, S, G, K)) * size).astype(np.float32) for _ in range(2))


def filled(keys, values, config=None) -> KVCache:
    """One layer's keys and values, written into an 8-bit cache at once."""
    config = config or type(SMALL)(32, 32, 1, H, G, K, 32)
    empty = init_cache(config, B, S, "int8")
    positions = jnp.broadcast_to(jnp.arange(S), (B, S))
    return empty.written(0, jnp.arange(B), positions, jnp.asarray(keys), jnp.asarray(values))


def test_attention_errs_no_more_than_rounding_allows():
    """Weights are off by at most a factor exp(2 d), d the largest error of a score: a sum over K of |q| half a scale.

    Then |out' - out| ≤ (exp(2 d) - 1) · Σ w |v| + exp(2 d) · Σ w · half a scale of v, per query head.
    """
    keys, values = keys_and_values()
    q = np.random.default_rng(1).normal(size=(B, T, H, K)).astype(np.float32)
    positions = np.array([[5, 11, 23], [0, 7, 20]])
    mask = np.arange(S) <= positions[:, :, None]
    k, v, k_scales, v_scales = filled(keys, values).layer(0, None, S)
    assert k.dtype == v.dtype == jnp.int8
    found = attention(jnp.asarray(q), k, v, jnp.asarray(mask), k_scales, v_scales)
    for b in range(B):
        for t in range(T):
            for h in range(H):
                seen, g = mask[b, t], h // (H // G)
                ks, vs = keys[b, seen, g].astype(np.float64), values[b, seen, g].astype(np.float64)
                scores = ks @ q[b, t, h] / K**0.5
                w = np.exp(scores - scores.max())
                w /= w.sum()
                half_k, half_v = (np.abs(x).max(-1) / 254 for x in (ks, vs))
                d = np.max(half_k * np.abs(q[b, t, h]).sum() / K**0.5)
                bound = np.expm1(2 * d) * (w @ np.abs(vs)) + np.exp(2 * d) * (w @ half_v)
                error = np.abs(np.asarray(found)[b, t, h] - w @ vs)
                assert (error <= bound + 1e-5).all()
    exact = attention(jnp.asarray(q), jnp.asarray(keys), jnp.asarray(values), jnp.asarray(mask))
    assert 0 < np.abs(np.asarray(found - exact)).max() < 0.05 * np.abs(exact).max()


def test_what_is_written_is_where_it_belongs_and_nothing_else_changes():
    keys, values = keys_and_values()
    cache = filled(keys, values)
    rng = np.random.default_rng(3)
    new = rng.normal(size=(2, 2, 1, G, K)).astype(np.float32)
    # The first row is the cache's second at position 4; the second row is past its last, and is left out.
    after = cache.written(0, jnp.array([1, 2]), jnp.array([[4], [4]]), jnp.asarray(new[0]), jnp.asarray(new[1]))
    changed = np.zeros((B, S), bool)
    changed[1, 4] = True
    scales = np.abs(new[:, 0, 0]).max(-1) / 127
    np.testing.assert_allclose(after.key_scales[0, 1, :, 4], scales[0], rtol=1e-6)
    np.testing.assert_allclose(after.value_scales[0, 1, :, 4], scales[1], rtol=1e-6)
    np.testing.assert_array_equal(after.keys[0, 1, 4], np.round(new[0, 0, 0] / scales[0][:, None]))
    np.testing.assert_array_equal(after.values[0, 1, 4], np.round(new[1, 0, 0] / scales[1][:, None]))
    for name in ("keys", "values"):
        np.testing.assert_array_equal(getattr(after, name)[0][~changed], getattr(cache, name)[0][~changed])
        kept = np.moveaxis(getattr(after, f"{name[:-1]}_scales")[0], 1, 2)
        before = np.moveaxis(getattr(cache, f"{name[:-1]}_scales")[0], 1, 2)
        np.testing.assert_array_equal(kept[~changed], before[~changed])


def test_a_random_model_writes_mostly_the_same():
    decoder, prompts = lively(SMALL), ids_of((16, 10))
    wanted, logits = greedy(decoder, prompts, 4)
    found, near = greedy(decoder, prompts, 4, "int8")
    assert (found[:, 0] == wanted[:, 0]).mean() >= 0.9  # later ones follow other prefixes once one differs
    assert (found == wanted).mean() >= 0.7
    assert 0 < np.abs(near[:, 0] - logits[:, 0])[:, :90].max() < 0.1 * logits[:, 0, :90].std()


def test_rows_of_a_larger_8_bit_cache_are_as_alone():
    decoder, ids = lively(SMALL), ids_of((2, 6))
    positions = np.broadcast_to(np.arange(6), ids.shape)
    alone, _ = decode(decoder, ids, positions, init_cache(SMALL, 2, 8, "int8"))
    large = init_cache(SMALL, 5, 32, "int8")
    among, cache = decode(decoder, ids, positions, large, jnp.array([3, 1]), length=8)
    np.testing.assert_allclose(among, alone, atol=1e-4, rtol=1e-4)
    assert np.asarray(cache.key_scales)[:, [1, 3], :, :6].all() and not np.asarray(cache.key_scales)[:, [0, 2, 4]].any()


def test_a_row_does_not_depend_on_its_batch_mates():
    decoder, prompts = lively(SMALL), ids_of((4, 9))
    others = np.concatenate([prompts[:1], ids_of((3, 9), seed=5)])
    np.testing.assert_array_equal(greedy(decoder, prompts, 6, "int8")[0][0], greedy(decoder, others, 6, "int8")[0][0])


def test_an_unknown_format_is_refused():
    with pytest.raises(UserError, match="int4"):
        init_cache(SMALL, 1, 8, "int4")
