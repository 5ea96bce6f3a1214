"""Sound encoded and decoded in windows is the sound encoded and decoded at once."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest
from flax import nnx
from test_codec_encodec import clear, decode, noise, random_codes, relative, same_codes

from anygpt_jax.modalities.codecs import chunked, encodec, quantize, seanet, weights
from anygpt_jax.modalities.codecs.encodec import EncodecSettings
from anygpt_jax.modalities.codecs.lstm import Lstm
from anygpt_jax.modalities.codecs.seanet import SeanetSettings

NETWORKS = {
    "music": SeanetSettings(latent=8, filters=4, ratios=(5, 4, 2)),
    "sound": SeanetSettings(latent=8, filters=4, ratios=(4, 5), conv_shortcut=True, causal=True),
    "conv": SeanetSettings(latent=8, filters=4, ratios=(4, 3), residual_layers=2, lstm_layers=0),
}
WINDOW = 16  # new frames


@pytest.fixture(autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


@functools.cache
def codec(name):
    return random_codec(EncodecSettings(8000, NETWORKS[name], codebooks=3, codebook_size=32))


def random_codec(settings) -> encodec.Encodec:
    """Every tensor random, and so that activations keep their size."""
    rng = np.random.default_rng(0)

    def build():
        return encodec.build(dataclasses.asdict(settings))

    def tensor(name, shape):
        x = rng.standard_normal(shape).astype(np.float32)
        return 0.2 * x if name.endswith("bias") else x if name == "vectors" else x / np.sqrt(np.prod(shape[:-1]))

    flat = nnx.to_flat_state(nnx.state(nnx.eval_shape(build)))
    names = {weights.dotted(keys): variable.shape for keys, variable in flat}
    return weights.fill(build, {name: tensor(name, shape).astype(np.float32) for name, shape in names.items()})


@nnx.jit
def latents_and_codes(module, sound, lengths):
    latents = module.latents(sound, lengths)
    return latents, quantize.residual_encode(latents, module.vectors[...])


def pieces(x, *lengths):
    """x in pieces of these lengths, over and over."""
    start = 0
    for n in itertools.cycle(lengths):
        if start >= len(x):
            return
        yield x[start : start + n]
        start += n


@pytest.mark.parametrize("name", NETWORKS)
def test_encodes_as_at_once(name):
    module = codec(name)
    context = module.encode_context
    size = context.left + WINDOW + context.right
    # Ends within the first window, at its end, just after it, in its right context, and windows later.
    frames = [3, size, WINDOW + context.left + 1, size + 1, size + WINDOW, 3 * size + 5]
    for n in [f * module.hop for f in frames] + [size * module.hop + 1, 4 * size * module.hop - 13]:
        sound = noise(n, n)
        padded, length = np.pad(sound, (0, 4 * size * module.hop - n))[None], np.array([n])
        latents, at_once = (np.asarray(x)[0, : -(-n // module.hop)] for x in latents_and_codes(module, padded, length))
        found = list(chunked.encode(module, pieces(sound, 100, 1, 999), WINDOW))
        same_codes(np.concatenate(found), at_once, clear(latents, module.vectors[...]))
        assert max(map(len, found)) <= size


@pytest.mark.parametrize("name", NETWORKS)
def test_decodes_as_at_once(name):
    module = codec(name)
    context = module.decode_context
    size = context.left + WINDOW + context.right
    for frames in (1, 3, size, size + 1, size + WINDOW, 5 * size + 3):
        codes = random_codes(module, frames, frames)
        padded = np.pad(codes, ((0, 5 * size + 3 - frames), (0, 0)))
        at_once = np.asarray(decode(module, padded[None], np.array([frames])))[0]
        found = list(chunked.decode(module, pieces(codes, 1, 7, 30), WINDOW))
        assert relative(np.concatenate(found), at_once[: frames * module.hop]) < 1e-5
        assert max(map(len, found)) <= size * module.hop


@pytest.mark.parametrize("name", NETWORKS)
def test_a_smaller_context_would_not_do(name):
    """The stated contexts are needed to the frame, or a little less where a mirrored end asks for more."""
    module = codec(name)
    n = 100
    middle = n // 2
    for side, context in (("encoder", module.encode_context), ("decoder", module.decode_context)):
        layers = getattr(module, side).layers
        without = seanet.Seanet([x for x in layers if not isinstance(x, Lstm)], getattr(module, side).reach)
        scale = module.hop if side == "encoder" else 1
        x = noise(3, 1, n * scale, layers[0].kernel.shape[1])
        lengths = np.array([n * scale])
        run = jax.jit(lambda x, without=without, lengths=lengths: without(x, lengths)[0])
        before = np.asarray(run(x))
        changed = x.copy()
        changed[:, middle * scale : (middle + 1) * scale] += 1
        hit = np.flatnonzero(np.abs(np.asarray(run(changed)) - before).max(-1)[0] > 0)
        hit = hit if side == "encoder" else hit // module.hop
        assert context.right - 1 <= middle - hit.min() <= context.right
        assert context.left - 1 <= hit.max() - middle <= context.left


def test_memory_and_delay_do_not_grow_with_the_length():
    """At most a window and a piece are asked for before something is given, and then one window a time."""
    module = codec("music")
    context = module.decode_context
    asked = 0

    def frames():
        nonlocal asked
        for _ in range(10 * WINDOW):
            asked += 1
            yield random_codes(module, asked, 1)

    seen, heard = [], 0
    for sound in chunked.decode(module, frames(), WINDOW):
        heard += len(sound)
        seen.append(asked - heard // module.hop)
    assert max(seen) <= context.right + 1
    assert heard == 10 * WINDOW * module.hop


def test_nothing_gives_nothing():
    module = codec("conv")
    assert list(chunked.encode(module, [], WINDOW)) == []
    assert list(chunked.decode(module, [np.zeros((0, 3), np.int32)], WINDOW)) == []


def test_a_bidirectional_lstm_is_given_a_long_context():
    """Not exact: with as much memory as an LSTM of random weights has, windows agree with the whole nearly always."""
    settings = SeanetSettings(latent=8, filters=4, ratios=(3, 2), bidirectional=True, conv_shortcut=True)
    module = random_codec(EncodecSettings(8000, settings, codebooks=1, codebook_size=32))
    assert module.encode_context.left >= seanet.MEMORY <= module.encode_context.right
    assert not module.encode_context.carries
    assert module.decode_context.carries
    sound = noise(5, 500 * module.hop)
    latents, at_once = (np.asarray(x)[0] for x in latents_and_codes(module, sound[None], np.array([len(sound)])))
    found = np.concatenate(list(chunked.encode(module, pieces(sound, 5000), 100)))
    same_codes(found, at_once, clear(latents, module.vectors[...]))
