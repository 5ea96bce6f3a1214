"""DAC against transformers' DacModel on random weights, under both published namings."""

import functools
import re

import codec_world
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from anygpt_jax.errors import UserError
from anygpt_jax.interop.tokenizers.dac import KIND
from anygpt_jax.modalities.codecs import chunked, dac, snake, weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TINY = {
    "encoder_hidden_size": 4, "decoder_hidden_size": 32, "n_codebooks": 3, "codebook_size": 32, "codebook_dim": 4,
}  # fmt: skip
RATIOS = [(2, 4), (2, 5, 3)]  # the second has odd strides, as the releases at 16 and 24 kHz have


@pytest.fixture(autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


def reference(ratios) -> transformers.DacModel:
    """Every tensor random; what residual units add is small beside what they are given, as in a trained network."""
    torch.manual_seed(0)
    model = transformers.DacModel(transformers.DacConfig(**{**TINY, "downsampling_ratios": list(ratios)})).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("alpha"):
                p.copy_(0.2 + torch.rand_like(p))
            elif name.endswith("bias"):
                p.copy_(0.1 * torch.randn_like(p))
            elif "codebook" in name:
                p.copy_(torch.randn_like(p) * (0.5 + torch.rand(len(p), 1)))
            else:
                fan_in = p.shape[0] * 2 if "conv_t1" in name else p[0].numel()
                p.copy_((0.4 if "res_unit" in name else 1.0) * torch.randn_like(p) / np.sqrt(fan_in))
        model.decoder.conv2.weight *= 0.3
    return model


def shapes(state):
    return {name: tuple(t.shape) for name, t in state.items()}


@functools.cache
def pair(ratios):
    model = reference(ratios)
    return model, codec_world.converted(KIND, model.state_dict(), model.config.to_dict())


@nnx.jit
def latents_and_codes(module, sound, lengths):
    return module.latents(sound, lengths), module.encode(sound, lengths)


@nnx.jit
def encode(module, sound, lengths):
    return module.encode(sound, lengths)


@nnx.jit
def decode(module, codes, lengths):
    return module.decode(codes, lengths)


def noise(seed, *shape):
    return 0.5 * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def whole(sound, hop):
    """As transformers' feature extractor pads: silence up to a whole frame."""
    return torch.from_numpy(np.pad(sound, (0, -len(sound) % hop)))[None, None]


def relative(ours, theirs) -> float:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def clear(model, latents) -> np.ndarray:
    """[F, Q]: where the reference's two nearest codes of every level so far differ by more than rounding."""
    margins, residual = [], latents
    for level in model.quantizer.quantizers:
        quantized, _, _, _, projected = level(residual)
        unit = torch.nn.functional.normalize(projected[0].T)
        best = (unit @ torch.nn.functional.normalize(level.codebook.weight).T).topk(2).values
        margins.append((best[:, 0] - best[:, 1]) > 1e-5)
        residual = residual - quantized
    return torch.cumprod(torch.stack(margins, -1).int(), -1).bool().numpy()


@pytest.mark.parametrize("ratios", RATIOS)
@pytest.mark.parametrize("samples", [7, 1001])
@torch.no_grad()
def test_encodes_as_the_reference(ratios, samples):
    model, ours = pair(ratios)
    sound = noise(1, samples)
    padded = whole(sound, ours.hop)
    theirs = model.encoder(padded)
    latents, codes = (np.asarray(y)[0] for y in latents_and_codes(ours, sound[None], jnp.array([samples])))
    assert relative(latents.T, theirs[0]) < 1e-5
    expected = model.encode(padded).audio_codes[0].T.numpy()
    sure = clear(model, theirs)
    assert len(codes) == int(ours.frames(jnp.array([samples]))[0]) == len(expected)
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(codes[sure], expected[sure])


@pytest.mark.parametrize("ratios", RATIOS)
@pytest.mark.parametrize("levels", [1, 3])
@torch.no_grad()
def test_decodes_as_the_reference(ratios, levels):
    model, ours = pair(ratios)
    codes = np.random.default_rng(2).integers(0, 32, (1, 23, levels))
    theirs = model.decode(audio_codes=torch.from_numpy(codes.transpose(0, 2, 1))).audio_values
    sound = np.asarray(decode(ours, codes, jnp.array([23])))
    assert sound.shape == (1, 23 * ours.hop)
    assert theirs.shape[1] == int(ours.samples(jnp.array([23]))[0])
    assert np.abs(theirs.numpy()).mean() < 0.9  # not all in the flat ends of tanh
    assert relative(sound[:, : theirs.shape[1]], theirs) < 1e-4
    assert not sound[:, theirs.shape[1] :].any()


@pytest.mark.slow
def test_rows_of_unequal_length_are_as_if_alone():
    _, ours = pair((2, 5, 3))
    lengths = [301, 1, 97, 0]
    sound = noise(3, len(lengths), 311)  # noise beyond the rows' ends too
    codes = encode(ours, sound, jnp.array(lengths))
    frames = [int(f) for f in ours.frames(jnp.array(lengths))]
    sounds = np.asarray(decode(ours, codes, jnp.array(frames)))
    for row, (n, f) in enumerate(zip(lengths, frames, strict=True)):
        if 0 < n < 300:
            alone = encode(ours, sound[row : row + 1, :n], jnp.array([n]))
            np.testing.assert_array_equal(codes[row, :f], alone[0])
            single = np.asarray(decode(ours, alone, jnp.array([f])))[0]
            np.testing.assert_allclose(sounds[row, : f * ours.hop], single, atol=1e-5)
        assert not sounds[row, f * ours.hop :].any()


def original_names(state, blocks):
    """transformers' names → those of descript-audio-codec's weights.pth, its modules being nested Sequentials."""
    inner = {
        "encoder": {"res_unit1": "0.block", "res_unit2": "1.block", "res_unit3": "2.block", "snake1": "3", "conv1": "4"},
        "decoder": {"snake1": "0", "conv_t1": "1", "res_unit1": "2.block", "res_unit2": "3.block", "res_unit3": "4.block"},
    }  # fmt: skip
    unit = {"snake1": "0", "conv1": "1", "snake2": "2", "conv2": "3"}
    outer = {"conv1": "0", "snake1": str(blocks + 1), "conv2": str(blocks + 2)}
    renamed = {}
    for name, tensor in state.items():
        side, *rest = name.split(".")
        if side != "quantizer":
            sequence = {"encoder": "encoder.block", "decoder": "decoder.model"}[side]
            if rest[0] != "block":
                name = ".".join([sequence, outer[rest[0]], *rest[1:]])
            else:
                path = [sequence, str(int(rest[1]) + 1), "block", inner[side][rest[2]]]
                if rest[2].startswith("res_unit"):
                    path.append(unit[rest.pop(3)])
                name = ".".join([*path, *rest[3:]])
        renamed[name] = tensor
    return renamed


def test_reads_every_published_naming():
    model = reference((2, 4))
    config = model.config.to_dict()
    folded = weights.flatten(codec_world.converted(KIND, model.state_dict(), config))
    renamed = original_names(model.state_dict(), 2)
    assert {
        "encoder.block.1.block.0.block.0.alpha",
        "encoder.block.4.bias",
        "decoder.model.2.block.4.block.3.weight",
    } < (renamed.keys())
    model.apply_weight_norm()
    normed = model.state_dict()
    old = {
        re.sub(r"parametrizations\.weight\.original([01])", lambda m: "weight_" + "gv"[int(m[1])], name): t
        for name, t in normed.items()
    }
    for state in (renamed, normed, old, original_names(old, 2)):
        for path, array in weights.flatten(codec_world.converted(KIND, state, config)).items():
            np.testing.assert_allclose(array, folded[path], rtol=2e-6, atol=1e-7, err_msg=path)


def test_a_missing_tensor_is_noticed():
    state = reference((2, 4)).state_dict()
    layout = KIND.layout(KIND.settings({"sampling_rate": 8000}, shapes(state)))
    for lost in (
        "encoder.block.1.res_unit2.snake2.alpha",
        "quantizer.quantizers.2.out_proj.bias",
        "decoder.conv2.weight",
    ):
        left = {name: t for name, t in state.items() if name != lost}
        assert sum(rule.choose(left) is None for rule in layout.values()) == 1
    with pytest.raises(UserError, match=r"encoder\.conv1\.weight"):
        KIND.settings({"sampling_rate": 8000}, {n: s for n, s in shapes(state).items() if n != "encoder.conv1.weight"})


def test_settings_of_the_releases_without_a_configuration():
    for ratios, codebooks, rate in (((2, 4, 8, 8), 9, 44100), ((2, 4, 5, 8), 32, 24000), ((2, 4, 5, 8), 12, 16000)):
        with torch.device("meta"):
            model = transformers.DacModel(
                transformers.DacConfig(downsampling_ratios=list(ratios), n_codebooks=codebooks)
            )
        found = KIND.settings({}, shapes(original_names(model.state_dict(), 4)))
        assert found == {
            "sample_rate": rate, "ratios": ratios, "encoder_width": 64, "decoder_width": 1536, "latent": 1024,
            "codebooks": codebooks, "codebook_size": 1024, "codebook_width": 8,
        }  # fmt: skip
    with pytest.raises(UserError, match="sampling_rate"):
        KIND.settings({}, shapes(reference((2, 4)).state_dict()))


def test_full_size():
    ours = nnx.eval_shape(lambda: dac.build({"ratios": [2, 4, 8, 8]}))
    with torch.device("meta"):
        model = transformers.DacModel(transformers.DacConfig())
    count = sum(x.size for x in jax.tree.leaves(nnx.state(ours)))
    assert count == sum(p.numel() for p in model.parameters())
    assert 76.5e6 < count < 76.7e6
    assert (ours.hop, ours.sample_rate) == (512, 44100)
    layout = KIND.layout(KIND.settings({}, shapes(model.state_dict())))
    assert all(rule.choose(model.state_dict()) for rule in layout.values())
    assert sorted(layout) == sorted(weights.dotted(keys) for keys, _ in nnx.to_flat_state(nnx.state(ours)))


@pytest.mark.parametrize("ratios", RATIOS[1:])
def test_the_context_is_what_a_frame_depends_on(ratios):
    _, ours = pair(ratios)
    hop, n = ours.hop, 60
    at = n // 2
    # What each frame of sound or latent moves the middle frame by, from the derivative: zero outside the context.
    sound = jnp.asarray(noise(4, 1, n * hop))
    slope = jax.jit(jax.grad(lambda s: jnp.sum(ours.latents(s, jnp.array([n * hop]))[0, at] ** 2)))(sound)
    moved = np.flatnonzero(np.abs(slope.reshape(n, hop)).max(-1))
    assert (at - moved.min(), moved.max() - at) == (ours.encode_context.left, ours.encode_context.right)
    latents = jnp.asarray(noise(5, 1, n, ours.settings.latent))
    window = slice(at * hop, (at + 1) * hop)
    slope = jax.jit(jax.grad(lambda x: jnp.sum(ours.decoder(x, jnp.array([n]))[0][0, window] ** 2)))(latents)
    moved = np.flatnonzero(np.abs(slope[0]).max(-1))
    assert (at - moved.min(), moved.max() - at) == (ours.decode_context.left, ours.decode_context.right)


def test_piece_by_piece_is_as_the_whole():
    _, ours = pair((2, 5, 3))
    n = 63 * ours.hop - 11
    sound = noise(6, n)
    codes = np.asarray(encode(ours, sound[None], jnp.array([n])))[0]
    pieces = list(chunked.encode(ours, np.array_split(sound, 7), window=9))
    assert len(pieces) > 2
    np.testing.assert_array_equal(np.concatenate(pieces), codes)
    whole = np.asarray(decode(ours, codes[None], jnp.array([len(codes)])))[0]
    parts = list(chunked.decode(ours, np.array_split(codes, 5), window=4))
    assert len(parts) > 2
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)


def test_sin_squared():
    x = np.concatenate([np.linspace(-9, 9, 20_001), np.linspace(-1000, 1000, 20_001)]).astype(np.float32)
    expected = np.sin(x.astype(np.float64)) ** 2
    np.testing.assert_allclose(jax.jit(snake.sin_squared)(x), expected, atol=2e-7)
    slope = jax.vmap(jax.grad(snake.sin_squared))(x[::101])
    np.testing.assert_allclose(slope, np.sin(2 * x[::101].astype(np.float64)), atol=2e-6)
