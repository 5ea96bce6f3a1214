"""EnCodec against transformers' EncodecModel on random weights, under all published namings."""

import dataclasses
import functools
import math
import re

import codec_world
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
    "edge": {"upsampling_ratios": [3, 2], "use_causal_conv": False, "pad_mode": "replicate", "kernel_size": 5,
             "target_bandwidths": [10.0]},
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


@functools.cache
def pair(name):
    config = EncodecConfig(**{**TINY, **CONFIGS[name]})
    model = EncodecModel(config).eval()
    randomize(model, lambda: model.encoder(torch.from_numpy(noise(0, 1, 1, 400))))
    return model, codec_world.converted(KIND, numpy_state(model), config.to_dict())


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
@torch.no_grad()
def test_encodes_as_the_reference(name):
    """Rows of a batch, with noise beyond their ends, as the reference each row alone."""
    model, ours = pair(name)
    lengths = np.array([1, 7, 240, 1001, 40, 333])
    sound = noise(1, len(lengths), 1010)
    frames = np.asarray(ours.frames(lengths))
    found, codes = np.asarray(latents_of(ours, sound, lengths)), np.asarray(encode(ours, sound, lengths))
    compared, expected = [], []
    for row, (n, f) in enumerate(zip(lengths, frames, strict=True)):
        alone = torch.from_numpy(sound[row, :n])[None, None]
        theirs = model.encoder(alone)[0].T.numpy()
        assert f == len(theirs) == -(-n // ours.hop)
        assert relative(found[row, :f], theirs) < 1e-5
        compared.append(clear(theirs, ours.vectors[...]))
        expected.append(model.encode(alone).audio_codes[0, 0].T.numpy())
    same_codes(in_a_row(codes, frames), np.concatenate(expected), np.concatenate(compared))


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_decodes_as_the_reference(name):
    """Rows of a batch, with random codes beyond their ends, as the reference each row alone."""
    model, ours = pair(name)
    frames = np.array([1, 2, 5, 37, 20])
    codes = random_codes(ours, 2, len(frames), 40)
    heard = np.asarray(decode(ours, codes, frames))
    assert heard.shape == (len(frames), 40 * ours.hop)
    for row, f in enumerate(frames):
        alone = torch.from_numpy(codes[row, :f]).T[None, None]
        theirs = model.decode(alone, [None]).audio_values[0, 0]
        assert relative(heard[row, : f * ours.hop], theirs) < 1e-5
        assert not heard[row, f * ours.hop :].any()


def in_a_row(batch, lengths) -> np.ndarray:
    """What belongs to the rows, one after the other."""
    return np.concatenate([row[:n] for row, n in zip(batch, lengths, strict=True)])


def test_fewer_levels_are_the_first_ones():
    model, ours = pair("sound")
    sound, lengths = noise(3, 1, 500), np.array([500])
    some = np.asarray(encode(ours, sound, lengths, levels=2))
    np.testing.assert_array_equal(some, np.asarray(encode(ours, sound, lengths))[..., :2])
    with torch.no_grad():
        theirs = model.decode(torch.from_numpy(some).permute(0, 2, 1)[None], [None]).audio_values[:, 0]
    assert relative(decode(ours, some, ours.frames(lengths)), theirs) < 1e-5


@pytest.mark.parametrize("name", ["music", "sound"])
def test_a_row_of_a_batch_is_the_row_alone(name):
    """In arrays of its very length, which no layer's stride divides."""
    _, ours = pair(name)
    lengths = np.array([121, 333, 7])
    sound = noise(4, 3, 400)
    in_batch = np.asarray(latents_of(ours, sound, lengths))[0, : -(-121 // ours.hop)]
    alone = np.asarray(latents_of(ours, sound[:1, :121], lengths[:1]))[0]
    assert relative(in_batch, alone) < 1e-6
    codes = random_codes(ours, 5, 3, 9)
    alone = np.asarray(decode(ours, codes[:1, :4], np.array([4])))[0]
    assert relative(np.asarray(decode(ours, codes, np.array([4, 9, 2])))[0, : 4 * ours.hop], alone) < 1e-6


def old_weight_norm(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    ends = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    return {re.sub("parametrizations.*", lambda end: ends[end[0]], n): t for n, t in state.items()}


def original(model) -> dict[str, np.ndarray]:
    """The names of facebookresearch/encodec and audiocraft."""
    renamed = {}
    for name, tensor in old_weight_norm(numpy_state(model)).items():
        if name.startswith("quantizer"):
            name = re.sub(r"layers\.(\d+)\.codebook\.", r"vq.layers.\1._codebook.", name)
        elif ".conv." in name:
            layer = model.get_submodule(name[: name.index(".conv.") + len(".conv")])
            kind = "convtr" if isinstance(layer, torch.nn.ConvTranspose1d) else "conv"
            name = name.replace(".conv.", f".{kind}.{kind}.")
        renamed[re.sub(r"^(encoder|decoder)\.layers", r"\1.model", name)] = tensor
    return renamed


@pytest.mark.parametrize("name", ["music", "sound"])
def test_every_published_naming_gives_the_same_network(name):
    model, ours = pair(name)
    state, config = numpy_state(model), model.config.to_dict()
    folded = {n: t for n, t in state.items() if "parametrizations" not in n}
    for n, module in model.named_modules():
        if isinstance(module, (torch.nn.Conv1d, torch.nn.ConvTranspose1d)):
            folded[f"{n}.weight"] = module.weight.detach().numpy()
    expected = weights.flatten(ours)
    named_originally = original(model)
    assert "decoder.model.3.convtr.convtr.weight_g" in named_originally
    assert "decoder.model.4.block.1.conv.conv.bias" in named_originally
    for other in (old_weight_norm(state), folded, named_originally):
        found = weights.flatten(codec_world.converted(KIND, other, config))
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
    with pytest.raises(UserError, match=r"config\.json"):
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
