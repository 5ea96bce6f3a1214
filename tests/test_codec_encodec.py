"""EnCodec against transformers' EncodecModel on random weights, under all published namings."""

import dataclasses
import functools
import math
import re

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import EncodecConfig, EncodecModel

from anygpt_jax.errors import UserError
from anygpt_jax.interop.tokenizers.encodec import KIND
from anygpt_jax.modalities.codecs import encodec, weights

TINY = {"hidden_size": 8, "num_filters": 4, "codebook_size": 32, "sampling_rate": 4000, "target_bandwidths": [3.0]}
CONFIGS = {
    # The 32 kHz network and the 24 kHz one, with an odd stride each, and what neither uses.
    "music": {"upsampling_ratios": [5, 4, 2], "use_causal_conv": False, "use_conv_shortcut": False},
    "sound": {"upsampling_ratios": [4, 5], "use_causal_conv": True, "use_conv_shortcut": True},
    "other": {
        "upsampling_ratios": [3, 2], "use_causal_conv": True, "trim_right_ratio": 0.5, "pad_mode": "constant",
        "num_residual_layers": 3, "num_lstm_layers": 1, "last_kernel_size": 3, "residual_kernel_size": 5,
        "compress": 1, "dilation_growth_rate": 3, "target_bandwidths": [10.0],
    },
    "edge": {"upsampling_ratios": [3, 2], "use_causal_conv": False, "pad_mode": "replicate", "kernel_size": 5},
}  # fmt: skip


@pytest.fixture(autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


@torch.no_grad()
def randomize(model, latents) -> None:
    """Every tensor random, and so that activations keep their size; codebooks are as large as `latents()` says."""
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        if name.endswith(("original0", "weight_g")):
            p.copy_(0.7 + 0.6 * torch.rand_like(p))
        elif name.endswith("alpha"):
            p.copy_(0.3 + torch.rand_like(p))
        elif "bias" in name:
            p.copy_(0.2 * torch.randn_like(p))
        else:
            p.copy_(torch.randn_like(p) / math.sqrt(p.shape[-1] if "lstm" in name else p[0].numel()))
    size = latents().std()
    for q, book in enumerate(b for n, b in model.named_buffers() if n.endswith("embed")):
        book.copy_(size * 0.8**q * torch.randn_like(book))


def numpy_state(model) -> dict[str, np.ndarray]:
    return {name: t.detach().float().numpy() for name, t in model.state_dict().items()}


def shapes(state):
    return {name: t.shape for name, t in state.items()}


def converted(kind, state, config) -> encodec.Encodec:
    """By way of the layout; every official tensor must be used or ignored, and every one of ours made."""
    settings = kind.settings(config, shapes(state))
    chosen = {path: rule.choose(state) for path, rule in kind.layout(settings).items()}
    used = {name for alternative in chosen.values() for name in alternative.names}
    assert {n for n in state if not any(re.fullmatch(p, n) for p in kind.ignored)} == used
    tensors = {path: a.make(*(state[n] for n in a.names)) for path, a in chosen.items()}
    module = weights.fill(lambda: kind.build(settings), tensors)
    assert sorted(tensors) == sorted(weights.flatten(module))
    return module


@functools.cache
def pair(name):
    config = EncodecConfig(**{**TINY, **CONFIGS[name]})
    model = EncodecModel(config).eval()
    randomize(model, lambda: model.encoder(torch.from_numpy(noise(0, 1, 1, 400))))
    return model, converted(KIND, numpy_state(model), config.to_dict())


@nnx.jit
def latents_of(module, sound, lengths):
    return module.latents(sound, lengths)


@nnx.jit(static_argnames="levels")
def encode(module, sound, lengths, levels=None):
    return module.encode(sound, lengths, levels)


@nnx.jit
def decode(module, codes, lengths):
    return module.decode(codes, lengths)


def noise(seed, *shape):
    return 0.5 * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def random_codes(module, seed, *shape):
    return np.random.default_rng(seed).integers(0, module.codebook_size, (*shape, module.codebooks), dtype=np.int32)


def relative(ours, theirs) -> float:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def clear(latents, vectors) -> np.ndarray:
    """[F, Q]: where the two nearest codes of every level so far differ by more than rounding."""
    margins, residual = [], np.asarray(latents, np.float64)
    for book in np.asarray(vectors, np.float64):
        distance = np.square(residual[:, None] - book).sum(-1)
        nearest = np.sort(distance, -1)
        margins.append(nearest[:, 1] - nearest[:, 0] > 1e-4 * nearest[:, 0])
        residual = residual - book[distance.argmin(-1)]
    return np.cumprod(np.stack(margins, -1), -1).astype(bool)


def same_codes(ours, theirs, compared) -> None:
    """Equal wherever they are compared, which is nearly everywhere."""
    assert ours.shape == theirs.shape == compared.shape
    assert compared.mean() > 0.97
    np.testing.assert_array_equal(np.where(compared, ours, -1), np.where(compared, theirs, -1))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("samples", [1, 7, 240, 1001])
@torch.no_grad()
def test_encodes_as_the_reference(name, samples):
    model, ours = pair(name)
    sound, lengths = noise(1, 1, samples), np.array([samples])
    theirs = model.encoder(torch.from_numpy(sound)[None])[0].T.numpy()
    found = latents_of(ours, sound, lengths)[0]
    assert relative(found, theirs) < 1e-5
    assert int(ours.frames(lengths)[0]) == len(theirs) == -(-samples // ours.hop)
    codes = model.encode(torch.from_numpy(sound)[None]).audio_codes[0, 0].T.numpy()
    same_codes(np.asarray(encode(ours, sound, lengths))[0], codes, clear(theirs, ours.vectors[...]))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("frames", [1, 2, 5, 37])
@torch.no_grad()
def test_decodes_as_the_reference(name, frames):
    model, ours = pair(name)
    codes = random_codes(ours, 2, 1, frames)
    theirs = model.decode(torch.from_numpy(codes).permute(0, 2, 1)[None], [None]).audio_values[:, 0]
    found = decode(ours, codes, np.array([frames]))
    assert found.shape == (1, frames * ours.hop)
    assert relative(found, theirs) < 1e-5


def test_fewer_levels_are_the_first_ones():
    model, ours = pair("sound")
    sound, lengths = noise(3, 1, 500), np.array([500])
    some = np.asarray(encode(ours, sound, lengths, levels=2))
    np.testing.assert_array_equal(some, np.asarray(encode(ours, sound, lengths))[..., :2])
    with torch.no_grad():
        theirs = model.decode(torch.from_numpy(some).permute(0, 2, 1)[None], [None]).audio_values[:, 0]
    assert relative(decode(ours, some, ours.frames(lengths)), theirs) < 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_do_not_depend_on_the_batch(name):
    """Nor on what lies beyond their end."""
    _, ours = pair(name)
    lengths = np.array([1, 333, 7, 600, 40, 121])
    sound = noise(4, 6, 640)
    codes = np.asarray(encode(ours, sound, lengths))
    frames = np.asarray(ours.frames(lengths))
    scrambled = random_codes(ours, 5, *codes.shape[:2])
    heard = np.asarray(decode(ours, scrambled, frames))
    for row, (n, f) in enumerate(zip(lengths, frames, strict=True)):
        alone = np.asarray(latents_of(ours, sound[row : row + 1, :n], np.array([n])))[0]
        np.testing.assert_allclose(np.asarray(latents_of(ours, sound, lengths))[row, :f], alone, rtol=0, atol=3e-5)
        compared = clear(alone, ours.vectors[...])
        same_codes(codes[row, :f], np.asarray(encode(ours, sound[row : row + 1, :n], np.array([n])))[0], compared)
        assert relative(heard[row, : f * ours.hop], decode(ours, scrambled[row : row + 1, :f], np.array([f]))[0]) < 1e-5
        assert not heard[row, f * ours.hop :].any()


def original(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The names of facebookresearch/encodec and audiocraft."""
    renamed = {}
    for name, tensor in state.items():
        name = name.replace("parametrizations.weight.original0", "weight_g")
        name = name.replace("parametrizations.weight.original1", "weight_v")
        name = re.sub(r"^quantizer\.layers\.(\d+)\.codebook\.", r"quantizer.vq.layers.\1._codebook.", name)
        transposed = tensor.ndim == 3 and name.startswith("decoder.layers") and state_is_transposed(name, state)
        conv = "convtr.convtr" if transposed or bias_is_transposed(name, state) else "conv.conv"
        name = re.sub(r"\.conv\.(?=weight|bias)", f".{conv}.", name)
        renamed[re.sub(r"^(encoder|decoder)\.layers", r"\1.model", name)] = tensor
    return renamed


def transposed_layers(state) -> set[str]:
    """A transposed convolution's weights are [in, out, k], its gains [in]: only there they differ from the bias."""
    return {
        name.removesuffix("conv.bias")
        for name, bias in state.items()
        if name.endswith(".conv.bias")
        and len(bias) != len(state[name.replace("bias", "parametrizations.weight.original0")])
    }


def state_is_transposed(name, state) -> bool:
    return any(name.startswith(prefix) for prefix in transposed_layers(state))


bias_is_transposed = state_is_transposed


@pytest.mark.parametrize("name", ["music", "sound"])
def test_every_published_naming_gives_the_same_network(name):
    model, ours = pair(name)
    state, config = numpy_state(model), model.config.to_dict()
    gains = {
        n.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): t
        for n, t in state.items()
    }
    folded = {n: t for n, t in state.items() if "parametrizations" not in n}
    for n, module in model.named_modules():
        if isinstance(module, (torch.nn.Conv1d, torch.nn.ConvTranspose1d)):
            folded[f"{n}.weight"] = module.weight.detach().numpy()
    expected = weights.flatten(ours)
    named_originally = original(state)
    assert "decoder.model.3.convtr.convtr.weight_g" in named_originally
    assert "decoder.model.4.block.1.conv.conv.bias" in named_originally
    for other in (gains, folded, named_originally):
        found = weights.flatten(converted(KIND, other, config))
        for path, tensor in expected.items():
            np.testing.assert_allclose(found[path], tensor, rtol=0, atol=1e-6, err_msg=path)


def test_a_missing_tensor_is_noticed():
    model, _ = pair("music")
    state = numpy_state(model)
    layout = KIND.layout(KIND.settings(model.config.to_dict(), shapes(state)))
    needed = [n for n in state if not any(re.fullmatch(p, n) for p in KIND.ignored)]
    for name in needed:
        available = {n: t for n, t in state.items() if n != name}
        assert any(rule.choose(available) is None for rule in layout.values()), name


def test_networks_of_another_kind_are_refused():
    model, _ = pair("music")
    state = shapes(numpy_state(model))
    with pytest.raises(UserError, match="config.json"):
        KIND.settings({}, state)
    with pytest.raises(UserError, match="stereo"):
        KIND.settings({**model.config.to_dict(), "audio_channels": 2}, state)
    with pytest.raises(UserError, match="group norms"):
        KIND.settings({}, {**state, "encoder.model.0.conv.norm.weight": (4,)})
    with pytest.raises(UserError, match="not of EnCodec"):
        KIND.settings({}, {"weight": (4,)})


@pytest.mark.parametrize(
    ("settings", "config"),
    [
        (encodec.SOUND_24KHZ, {}),
        (
            encodec.MUSIC_32KHZ,
            {
                "target_bandwidths": [2.2], "sampling_rate": 32000, "num_filters": 64, "codebook_size": 2048,
                "upsampling_ratios": [8, 5, 4, 4], "use_causal_conv": False, "use_conv_shortcut": False,
            },
        ),
    ],
)  # fmt: skip
def test_published_sizes(settings, config):
    """Parameters as many as the reference's, weight norm's gains aside, and every tensor of the reference's shape."""
    with torch.device("meta"):
        model = EncodecModel(EncodecConfig(**config))
    state = shapes(model.state_dict())
    for found in (KIND.settings(model.config.to_dict(), state), KIND.settings({}, state)):
        assert found == dataclasses.asdict(settings)
    ours = nnx.eval_shape(lambda: encodec.build(dataclasses.asdict(settings)))
    gains = sum(p.numel() for n, p in model.named_parameters() if n.endswith("original0"))
    second_biases = sum(p.numel() for n, p in model.named_parameters() if "bias_hh" in n)
    total = sum(p.numel() for p in model.parameters()) - gains - second_biases
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(ours, nnx.Param))) == total
    assert (ours.hop, ours.codebooks) == (model.config.hop_length, model.config.num_quantizers)
    chosen = [rule.choose(state) for rule in KIND.layout(found).values()]
    assert None not in chosen
