"""Janus' image VQ against transformers' JanusVQVAE on a tiny random network."""

import dataclasses
import json
import math
import re

import codec_world
import jax
import numpy as np
import pytest
from flax import nnx

from anygpt_jax.errors import UserError
from anygpt_jax.interop.tokenizers import janus_vq as official
from anygpt_jax.modalities.codecs import janus_vq, weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# The norms have 32 groups, so that widths are multiples of 32.
CONFIG = {
    "base_channels": 32, "channel_multiplier": [1, 1, 2], "num_res_blocks": 1, "latent_channels": 12,
    "embed_dim": 4, "num_embeddings": 40, "num_patches": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def reference():
    model = transformers.models.janus.modeling_janus.JanusVQVAE(
        transformers.models.janus.configuration_janus.JanusVQVAEConfig(**CONFIG)
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = math.prod(parameter.shape[1:]) if parameter.ndim > 2 else 1
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / math.sqrt(fan_in) if parameter.ndim > 1 else 0.3 * noise + 0.2)
        # Code vectors amid the latents of other pixels, so that many of them are the nearest somewhere.
        latents = model.quant_conv(model.encoder(pixels_of(4, 16, 16, seed=9))).permute(0, 2, 3, 1).reshape(-1, 4)
        model.quantize.embedding.weight.copy_(latents[:40] * torch.linspace(0.8, 1.2, 40)[:, None])
    return model.eval()


def pixels_of(batch, height, width, seed=1):
    return 2 * torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)) - 1


@pytest.fixture(scope="module")
def tensors(reference):
    return {name: x for name, x in reference.state_dict().items()}


def shapes(tensors):
    return {name: tuple(x.shape) for name, x in tensors.items()}


@pytest.fixture(autouse=True)
def _precise():
    with jax.default_matmul_precision("highest"):
        yield


def channels_last(x):
    return x.numpy().transpose(0, 2, 3, 1)


def close(ours, theirs):
    error = np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()
    assert error < 1e-5, error


def clear_codes(latents, codebook):
    """Codes by brute force, and where the nearest is nearer than the second by more than rounding."""
    distances = ((latents[..., None, :].astype(np.float64) - codebook) ** 2).sum(-1)
    best = np.sort(distances, -1)
    return distances.argmin(-1), best[..., 1] - best[..., 0] > 1e-4 * distances.mean()


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 28)])
def test_codes_and_latents_are_those_of_transformers(reference, tensors, height, width):
    pixels = pixels_of(3, height, width)
    model = codec_world.converted(official.KIND, tensors, {}, normalize_on_encode=False)
    encoded = reference.encode(pixels)
    theirs = channels_last(reference.quant_conv(encoded.last_hidden_state))
    close(jax.jit(model.latents)(channels_last(pixels)), theirs)
    _, clear = clear_codes(theirs.reshape(3, -1, 4), tensors["quantize.embedding.weight"].numpy())
    assert clear.mean() > 0.9
    codes = np.asarray(jax.jit(model.encode)(channels_last(pixels)))
    expected = encoded.image_tokens.reshape(3, -1).numpy()
    assert codes.shape == (3, height * width // 16)
    np.testing.assert_array_equal(codes[clear], expected[clear])
    assert len(np.unique(codes)) > 5


@torch.no_grad()
def test_normalized_codes_are_nearest_on_the_sphere(reference, tensors):
    pixels = pixels_of(2, 16, 16)
    latents = channels_last(reference.quant_conv(reference.encoder(pixels))).reshape(2, -1, 4)
    codebook = tensors["quantize.embedding.weight"].numpy()
    latents, codebook = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (latents, codebook))
    expected, clear = clear_codes(latents, codebook)
    codes, plain = (
        np.asarray(
            jax.jit(codec_world.converted(official.KIND, tensors, {}, normalize_on_encode=normalize).encode)(
                channels_last(pixels)
            )
        )
        for normalize in (True, False)
    )
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(codes[clear], expected[clear])
    assert (codes != plain).any()


@torch.no_grad()
def test_decoded_pixels_are_those_of_transformers(reference, tensors):
    codes = torch.randint(CONFIG["num_embeddings"], (3, 16), generator=torch.Generator().manual_seed(2))
    model = codec_world.converted(official.KIND, tensors, {})
    decode = jax.jit(model.decode)
    pixels = decode(codes.numpy())
    assert pixels.shape == (3, 16, 16, 3)
    close(pixels, channels_last(reference.decode(codes)))
    close(decode(codes[1:2].numpy()), np.asarray(pixels)[1:2])


def test_sides_that_do_not_fit_are_refused(tensors):
    model = codec_world.converted(official.KIND, tensors, {})
    with pytest.raises(ValueError, match="multiples of 4"):
        model.encode(np.zeros((1, 16, 18, 3), np.float32))
    with pytest.raises(ValueError, match="12 codes"):
        model.decode(np.zeros((1, 12), np.int32))


def test_every_official_tensor_is_used(tensors):
    layout = official.KIND.layout(official.KIND.settings({}, shapes(tensors)))
    assert layout.keys() == weights.flatten(codec_world.converted(official.KIND, tensors, {})).keys()
    used = {n for rule in layout.values() for n in rule.choose(tensors).names}
    assert used == tensors.keys()
    for lost in used:
        assert any(rule.choose({n: x for n, x in tensors.items() if n != lost}) is None for rule in layout.values())


def llamagen(name):
    """transformers' name → that of LlamaGen's vq_model.py (also janus/models/vq_model.py)."""
    name = re.sub(r"^(encoder)\.down\.|^(decoder)\.up\.", lambda m: f"{m[1] or m[2]}.conv_blocks.", name)
    name = name.replace(".block.", ".res.")
    for ours, theirs in {"block_1": "0", "attn_1": "1", "block_2": "2"}.items():
        name = name.replace(f".mid.{ours}.", f".mid.{theirs}.")
    return name


@pytest.mark.parametrize("prefix", official.PREFIXES)
@pytest.mark.parametrize("rename", [str, llamagen])
def test_other_names_of_the_same_tensors(tensors, prefix, rename):
    other = {prefix + rename(name): x for name, x in tensors.items()}
    settings = official.KIND.settings({}, shapes(other))
    assert settings == official.KIND.settings({}, shapes(tensors))
    layout = official.KIND.layout(settings)
    expected = official.KIND.layout(settings)
    for path, rule in layout.items():
        found = rule.choose(other)
        assert found is not None, path
        assert found.names == tuple(prefix + rename(n) for n in expected[path].choose(tensors).names)


def test_the_rest_of_janus_is_ignored_and_other_files_are_refused(tensors):
    for name in (
        "lm_head.weight", "model.language_model.layers.0.mlp.up_proj.weight", "model.vision_model.x.bias",
        "model.generation_embeddings.weight", "model.generation_aligner.fc1.weight", "model.generation_head.vision_head.bias",
        "gen_vision_model.quantize.codebook_used", "quantize.codebook_used", "gen_embed.weight",
        "gen_aligner.layers.0.weight", "aligner.layers.0.weight", "language_model.lm_head.weight",
    ):  # fmt: skip
        assert any(re.fullmatch(p, name) for p in official.KIND.ignored), name
    assert not any(re.fullmatch(p, name) for name in tensors for p in official.KIND.ignored)
    with pytest.raises(UserError, match="quantize"):
        official.KIND.settings({}, {"model.weight": (3, 4)})
    with pytest.raises(UserError, match="no encoder blocks"):
        official.KIND.settings({}, {"quantize.embedding.weight": (3, 4)})


def test_settings_survive_json_and_have_the_published_size():
    settings = json.loads(json.dumps(dataclasses.asdict(janus_vq.JanusVQSettings())))
    ours = nnx.eval_shape(lambda: janus_vq.build(settings))
    assert ours.settings == janus_vq.JanusVQSettings()
    assert ours.factor == 16
    with torch.device("meta"):
        theirs = transformers.models.janus.modeling_janus.JanusVQVAE(
            transformers.models.janus.configuration_janus.JanusVQVAEConfig()
        )
    count = sum(math.prod(x.shape) for _, x in nnx.to_flat_state(nnx.state(ours)))
    assert count == sum(p.numel() for p in theirs.parameters())
    assert official.KIND.settings({}, shapes(theirs.state_dict())) == dataclasses.asdict(ours.settings)
