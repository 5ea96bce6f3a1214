"""The decoder against an independent numpy transcription of LLaMA, and the properties packing relies on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic
from flax import nnx

from anygpt_jax.errors import UserError
from anygpt_jax.model.attention import attention, packed_attention, rotation
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.decoder import Decoder, swiglu
from anygpt_jax.model.kv_cache import init_cache

TINY = ModelConfig(vocab_size=48, d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=40, qk_norm=True)
SHAPES = {
    "gqa, qk-norm": TINY,
    "tied": dataclasses.replace(TINY, tied_embeddings=True),
    "mha": dataclasses.replace(TINY, n_kv_heads=4, qk_norm=False),
    "odd width": dataclasses.replace(TINY, head_dim=6, d_model=20),
}


def params_of(decoder):
    return nnx.to_pure_dict(nnx.state(decoder, nnx.Param))


def lively(config, seed=0):
    """A decoder whose every part matters: norms that differ from one, logits of a fair size."""
    decoder = Decoder(config, rngs=nnx.Rngs(seed))
    graph, state = nnx.split(decoder)
    rng = np.random.default_rng(seed)
    noisy = jax.tree.map(lambda w: w + 0.2 * rng.normal(size=w.shape).astype(np.float32), nnx.to_pure_dict(state))
    return nnx.merge(graph, noisy)


def tokens_of(shape, seed=1, vocab=48):
    return np.random.default_rng(seed).integers(0, vocab, shape).astype(np.int32)


# Compiled whole: operation by operation, XLA would compile each one for each length.
forward = nnx.jit(lambda decoder, tokens, positions, segment_ids: decoder(tokens, positions, segment_ids))


def alone(decoder, tokens):
    """Logits [n, V] of one sequence without any packing."""
    n = len(tokens)
    return forward(decoder, tokens[None], np.arange(n)[None], np.ones((1, n), np.int32))[0]


def numpy_llama(p, c, tokens):
    """Float64, one sequence, loops over heads: written from the papers, sharing no code with the decoder."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), p)

    def norm(x, scale):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + c.norm_eps) * scale

    def rope(x):  # [n, K], pairs (i, i + K/2), as Hugging Face's rotate_half
        half = c.head_dim // 2
        angles = np.arange(len(x))[:, None] * c.rope_theta ** (-np.arange(half) / half)
        cos, sin = np.concatenate([np.cos(angles)] * 2, -1), np.concatenate([np.sin(angles)] * 2, -1)
        return x * cos + np.concatenate([-x[:, half:], x[:, :half]], -1) * sin

    x = p["embedding"][tokens]
    n = len(tokens)
    for i in range(c.n_layers):
        w = {name: value[i] for name, value in p["blocks"].items()}
        y, added = norm(x, w["attention_norm"]), np.zeros_like(x)
        for h in range(c.n_heads):
            g = h // (c.n_heads // c.n_kv_heads)
            q, k, v = y @ w["q"][:, h], y @ w["k"][:, g], y @ w["v"][:, g]
            if c.qk_norm:
                q, k = norm(q, w["q_norm"]), norm(k, w["k_norm"])
            scores = rope(q) @ rope(k).T / np.sqrt(c.head_dim)
            scores[np.triu_indices(n, 1)] = -np.inf
            e = np.exp(scores - scores.max(-1, keepdims=True))
            added += (e / e.sum(-1, keepdims=True)) @ v @ w["o"][h]
        x = x + added
        y = norm(x, w["mlp_norm"])
        gate = y @ w["gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w["up"])) @ w["down"]
    return norm(x, p["norm"]) @ (p["embedding"].T if c.tied_embeddings else p["head"])


@pytest.mark.parametrize("name", SHAPES)
def test_logits_equal_an_independent_reference(name):
    config = SHAPES[name]
    decoder, tokens = lively(config), tokens_of(21)
    expected = numpy_llama(params_of(decoder), config, tokens)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(alone(decoder, tokens), expected, atol=2e-5, rtol=2e-5)


def test_a_token_depends_on_no_later_one():
    """By gradients: d logits[t] / d embedding of position s is zero exactly for s > t."""
    decoder = lively(TINY)
    tokens, n = tokens_of(9), 9

    def logits_at(inputs, t):
        graph, state = nnx.split(decoder)
        state["embedding"] = state["embedding"].replace(inputs)
        ones = jnp.ones((1, n), jnp.int32)
        return nnx.merge(graph, state)(jnp.arange(n)[None], jnp.arange(n)[None], ones)[0, t].sum()

    # Every position gets its own row of the embedding, so that its gradient is the position's.
    inputs = jnp.asarray(decoder.embedding[...])[tokens]
    gradient = jax.jit(jax.grad(logits_at))
    for t in range(n):
        size = np.abs(gradient(inputs, t)).sum(-1)
        assert (size[t + 1 :] == 0).all()
        assert (size[: t + 1] > 0).all()


def pack(sequences, length):
    """Rows written by hand: tokens, positions, segment ids [1, length]."""
    tokens, positions, segments = (np.zeros((1, length), np.int32) for _ in range(3))
    start = 0
    for i, sequence in enumerate(sequences):
        stop = start + len(sequence)
        tokens[0, start:stop], positions[0, start:stop], segments[0, start:stop] = (
            sequence,
            np.arange(len(sequence)),
            i + 1,
        )
        start = stop
    return tokens, positions, segments


def test_packed_sequences_do_not_see_each_other():
    decoder = lively(TINY)
    parts = [tokens_of(n, seed=n) for n in (5, 140, 1, 17)]  # 140 crosses a block of the attention
    logits = forward(decoder, *pack(parts, 180))[0]
    start = 0
    for part in parts:
        np.testing.assert_allclose(logits[start : start + len(part)], alone(decoder, part), atol=2e-5)
        start += len(part)
    changed = [parts[0], tokens_of(140, seed=99), *parts[2:]]
    again = forward(decoder, *pack(changed, 180))[0]
    np.testing.assert_array_equal(again[:5], logits[:5])
    np.testing.assert_array_equal(again[145:163], logits[145:163])
    assert np.abs(again[5:145] - logits[5:145]).max() > 0.1


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("length", [7, 128, 300])
def test_attention_by_blocks_equals_plain_attention(kv_heads, length):
    """Values and gradients, on lengths below, at and across the block."""
    rng = np.random.default_rng(0)
    q = rng.normal(size=(2, length, 4, 8)).astype(np.float32)
    k, v = (rng.normal(size=(2, length, kv_heads, 8)).astype(np.float32) for _ in range(2))
    segments = np.sort(rng.integers(0, 4, (2, length)))
    mask = np.tril(np.ones((length, length), bool)) & (segments[:, :, None] == segments[:, None, :])
    weights = rng.normal(size=q.shape)

    def plain(q, k, v):
        return jnp.sum(attention(q, k, v, mask) * weights)

    def by_blocks(q, k, v):
        return jnp.sum(packed_attention(q, k, v, segments) * weights)

    np.testing.assert_allclose(packed_attention(q, k, v, segments), attention(q, k, v, mask), atol=1e-5)
    for ours, expected in zip(
        jax.jit(jax.grad(by_blocks, (0, 1, 2)))(q, k, v), jax.jit(jax.grad(plain, (0, 1, 2)))(q, k, v), strict=True
    ):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_decoding_with_a_cache_equals_the_whole_forward(name):
    """Prompts of different lengths, padded on the right, then token by token."""
    config = SHAPES[name]
    decoder, lengths, total = lively(config), np.array([3, 6, 1]), 12
    tokens = tokens_of((3, total))
    expected = np.stack([alone(decoder, row) for row in tokens])
    decode = nnx.jit(lambda d, *a: d.decode(*a))
    prompt = np.where(np.arange(6) < lengths[:, None], tokens[:, :6], 47)
    logits, cache = decode(decoder, prompt, np.tile(np.arange(6), (3, 1)), init_cache(config, 3, total))
    for row, n in enumerate(lengths):
        np.testing.assert_allclose(logits[row, :n], expected[row, :n], atol=1e-5, rtol=1e-5)
    for i in range(total - 6):
        at = (lengths + i)[:, None]
        logits, cache = decode(decoder, np.take_along_axis(tokens, at, 1), at, cache)
        np.testing.assert_allclose(logits[:, 0], expected[np.arange(3), at[:, 0]], atol=1e-5, rtol=1e-5)


def test_a_position_past_the_cache_writes_nothing():
    decoder, cache = lively(TINY), init_cache(TINY, 1, 4)
    _, after = decoder.decode(np.array([[1]]), np.array([[4]]), cache)
    np.testing.assert_array_equal(after.keys, cache.keys)


@pytest.mark.parametrize("change", [{"remat": "full"}, {"remat": "minimal"}, {"unroll": 3}])
def test_remat_and_unrolling_change_no_gradient(change):
    tokens, positions, segments = pack([tokens_of(9), tokens_of(6)], 16)
    state = nnx.split(lively(TINY))[1]

    def gradients(config):
        def loss(state):
            decoder = nnx.merge(nnx.split(Decoder(config, rngs=nnx.Rngs(0)))[0], state)
            return jax.nn.logsumexp(decoder(tokens, positions, segments)).sum()

        return jax.jit(jax.grad(loss))(nnx.to_pure_dict(state))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        gradients(TINY),
        gradients(dataclasses.replace(TINY, **change)),
    )


def test_bfloat16_compute_keeps_float32_parameters_and_logits():
    config = dataclasses.replace(TINY, compute_dtype="bfloat16")
    decoder, tokens = lively(config), tokens_of(30)
    assert {leaf.dtype for leaf in jax.tree.leaves(params_of(decoder))} == {jnp.dtype("float32")}
    logits = alone(decoder, tokens)
    assert logits.dtype == jnp.float32
    exact = alone(lively(TINY), tokens)
    assert np.abs(logits - exact).max() < 0.05 * np.abs(exact).max()


def test_an_impossible_config_lists_everything_that_is_wrong():
    with pytest.raises(UserError) as error:
        dataclasses.replace(TINY, n_kv_heads=3, head_dim=7, remat="some", compute_dtype="float16")
    for word in ("n_kv_heads", "head_dim", "remat", "compute_dtype"):
        assert word in str(error.value)


def test_the_config_of_a_vocabulary_is_padded_and_checked():
    vocabulary = synthetic.vocabulary()
    settings = synthetic.config("unused").model
    config = ModelConfig.from_config(settings, vocabulary)
    assert config.vocab_size % 8 == 0
    assert 0 <= config.vocab_size - vocabulary.size < 8
    with pytest.raises(UserError, match="dropout"):
        ModelConfig.from_config({**settings, "dropout": 0.1}, vocabulary)


def test_swiglu_and_its_gradients_are_those_of_the_formula():
    gate, up, g = jax.random.normal(jax.random.key(0), (3, 5, 7)) * 3
    found, pull = jax.vjp(swiglu, gate, up)
    expected, pull_expected = jax.vjp(lambda gate, up: gate / (1 + jnp.exp(-gate)) * up, gate, up)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(pull(g), pull_expected(g), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_rotations_kept_in_memory_are_the_same():
    positions = jnp.array([[0, 1, 5000, 131071]])
    for kept, plain in zip(rotation(positions, 64, 5e5, in_memory=True), rotation(positions, 64, 5e5), strict=True):
        np.testing.assert_allclose(kept, plain, atol=1e-6)
