"""Weights laid out for decoding: the same model in float, and in 8 bits within what rounding can do."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from anygpt_jax.errors import UserError
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.decode_weights import for_decoding
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.model.kv_cache import init_cache
from anygpt_jax.model.transposed import Transposed, quantized

SMALL = ModelConfig(vocab_size=96, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=96, ids=90)
SHAPES = {
    "untied": SMALL,
    "tied": dataclasses.replace(SMALL, tied_embeddings=True),
    "qk-norm": dataclasses.replace(SMALL, qk_norm=True),
    "adapters": dataclasses.replace(SMALL, lora_rank=2, lora_targets="q,down"),
    "bfloat16": dataclasses.replace(SMALL, compute_dtype="bfloat16"),
}


def lively(config, seed=0):
    """Weights and norms of a fair size, adapters that are not zero."""
    graph, state = nnx.split(Decoder(config, rngs=nnx.Rngs(seed)))
    rng = np.random.default_rng(seed)
    noisy = jax.tree.map(lambda w: w + 0.05 * rng.normal(size=w.shape).astype(np.float32), nnx.to_pure_dict(state))
    return nnx.merge(graph, noisy)


def ids_of(shape, seed=1):
    return np.random.default_rng(seed).integers(0, 90, shape).astype(np.int32)


@functools.partial(nnx.jit, static_argnames="length")
def decode(decoder, ids, positions, cache, rows=None, length=None):
    return decoder.decode(ids, positions, cache, rows, length)


@functools.partial(nnx.jit, static_argnames=("new", "dtype"))
def greedy(decoder, prompts, new, dtype=None):
    """`new` ids a row of prompts int32[B, L], and the logits that chose them."""
    B, L = prompts.shape
    cache = init_cache(decoder.config, B, L + new, dtype)
    logits, cache = decoder.decode(prompts, jnp.broadcast_to(jnp.arange(L), (B, L)), cache)

    def step(carry, position):
        logits, cache = carry
        token = logits.argmax(-1)
        following, cache = decoder.decode(token[:, None], jnp.full((B, 1), position), cache)
        return (following[:, 0], cache), (token, logits)

    _, (tokens, seen) = jax.lax.scan(step, (logits[:, -1], cache), L + jnp.arange(new))
    return jnp.moveaxis(tokens, 0, 1), jnp.moveaxis(seen, 0, 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_float_form_computes_what_the_decoder_computes(shape):
    decoder = lively(SHAPES[shape])
    ids = ids_of((3, 12))
    cache = init_cache(decoder.config, 3, 16)
    positions = np.broadcast_to(np.arange(12), ids.shape)
    wanted, wanted_cache = decode(decoder, ids, positions, cache)
    found, found_cache = decode(for_decoding(decoder), ids, positions, cache)
    # In bfloat16 another order of the sums may round an activation of size 1 to its neighbour.
    tolerance = 0.06 if shape == "bfloat16" else 1e-4
    np.testing.assert_allclose(found, wanted, atol=tolerance, rtol=1e-4)
    np.testing.assert_allclose(
        found_cache.values.astype(np.float32), wanted_cache.values.astype(np.float32), atol=tolerance, rtol=1e-4
    )


def test_packed_sequences_go_through_it_too():
    decoder = lively(SMALL)
    ids, segments = ids_of((2, 10)), np.ones((2, 10), np.int32)
    positions = np.broadcast_to(np.arange(10), ids.shape)
    forward = nnx.jit(lambda decoder: decoder(ids, positions, segments))
    np.testing.assert_allclose(forward(for_decoding(decoder)), forward(decoder), atol=1e-4, rtol=1e-4)


def test_the_first_decoder_is_left_as_it_was():
    decoder = lively(SHAPES["untied"])
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(decoder)))
    for_decoding(decoder, "int8")
    after = nnx.to_pure_dict(nnx.state(decoder))
    jax.tree.map(np.testing.assert_array_equal, before, after)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_an_8_bit_product_is_the_integers_own(rows):
    """Against integers and scales made by numpy: the sums are exact, so only float32's rounding of scales is left."""
    rng = np.random.default_rng(rows)
    x, w = rng.normal(size=(rows, 40)).astype(np.float32), rng.normal(size=(40, 3, 8)).astype(np.float32)
    x_scale, w_scale = np.abs(x).max(-1, keepdims=True) / 127, np.abs(w).max(0) / 127
    integers = np.round(x / x_scale).astype(np.int64) @ np.round(w / w_scale).reshape(40, 24).astype(np.int64)
    matrix = Transposed(jnp.asarray(w), (None, None, None), 1, int8=True)
    assert matrix.rows[...].dtype == jnp.int8
    wanted = integers * x_scale * w_scale.reshape(24)
    np.testing.assert_allclose(matrix.product(jnp.asarray(x)), wanted, rtol=1e-5, atol=1e-6)


def test_8_bits_are_as_far_off_as_rounding_allows():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(50, 64)) * 10 ** rng.uniform(-6, 6, (50, 1))).astype(np.float32)
    x[7] = 0
    integers, scales = quantized(jnp.asarray(x))
    restored = np.asarray(integers, np.float64) * np.asarray(scales, np.float64)[:, None]
    half_a_scale = np.abs(x).max(-1, keepdims=True) / 127 / 2
    assert (np.abs(restored - x) <= half_a_scale * (1 + 1e-5)).all()
    assert np.abs(integers).max() == 127 and not restored[7].any()
    assert (np.abs(restored - x).max(-1) > 0.8 * half_a_scale[:, 0])[np.arange(50) != 7].all()  # the bound is close


def test_8_bit_logits_are_close_and_mostly_choose_the_same():
    """An operand is off by 1 / 127 / √12 of its row's largest value, three times its mean: 0.7 %, a product by √2 of
    that, and nine products in a row (four a layer, and the head) by three times that: 3 %. Twice that is a bug."""
    decoder = lively(SMALL)
    prompts = ids_of((16, 10))
    wanted, logits = greedy(decoder, prompts, 1)
    found, near = greedy(for_decoding(decoder, "int8"), prompts, 1)
    error = (near - logits)[..., :90]
    assert 0 < error.std() < 0.06 * logits[..., :90].std()
    assert (found == wanted).mean() >= 0.85


@pytest.mark.parametrize("weights", ["float", "int8"])
def test_a_row_does_not_depend_on_its_batch_mates(weights):
    decoder = for_decoding(lively(SMALL), weights)
    prompts = ids_of((4, 9))
    others = np.concatenate([prompts[:1], ids_of((3, 9), seed=5)])
    (written, logits), (again, logits_again) = greedy(decoder, prompts, 6), greedy(decoder, others, 6)
    np.testing.assert_array_equal(written[0], again[0])
    np.testing.assert_array_equal(logits[0], logits_again[0])


def test_unknown_weights_are_refused():
    with pytest.raises(UserError, match="int4"):
        for_decoding(lively(SMALL), "int4")
