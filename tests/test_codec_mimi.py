"""Mimi against transformers' MimiModel on random weights, under the three published namings."""

import functools
import re

import codec_world
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from anygpt_jax.errors import UserError
from anygpt_jax.interop.tokenizers.mimi import KIND
from anygpt_jax.modalities.codecs import chunked, mimi, mimi_transformer, weights
from anygpt_jax.model import attention

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")
transformers = pytest.importorskip("transformers")

TINY = {
    "hidden_size": 16, "num_filters": 4, "upsampling_ratios": [4, 3], "num_residual_layers": 2, "sampling_rate": 480,
    "codebook_size": 32, "codebook_dim": 8, "vector_quantization_hidden_dimension": 8, "num_quantizers": 5,
    "upsample_groups": 16, "num_hidden_layers": 2, "intermediate_size": 24, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 7, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0},
}  # fmt: skip
HOP = 24


@pytest.fixture(autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


def reference(**changes) -> transformers.MimiModel:
    """Every tensor random: codebooks, usages and scales too, which the class starts as constants."""
    torch.manual_seed(0)
    model = transformers.MimiModel(transformers.MimiConfig(**{**TINY, **changes})).eval()
    with torch.no_grad():
        for name, t in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("embed_sum"):
                t.copy_(torch.randn_like(t))
            elif name.endswith("cluster_usage"):
                t.copy_(0.5 + torch.rand_like(t))
                t[0] = 1e-7  # a dead code: its usage counts as 1e-5
            elif name.endswith("scale"):
                t.copy_(0.3 + 0.5 * torch.rand_like(t))
            elif name.endswith("layernorm.weight"):
                t.copy_(0.5 + torch.rand_like(t))
            elif name.endswith("bias"):
                t.copy_(0.1 * torch.randn_like(t))
            elif t.ndim > 1:
                t.copy_(1.2 * torch.randn_like(t) / np.sqrt(t[0].numel()))
    return model


@functools.cache
def pair():
    model = reference()
    return model, codec_world.converted(KIND, model.state_dict(), model.config.to_dict())


@nnx.jit
def latents_and_codes(module, sound, lengths):
    return module.latents(sound, lengths), module.encode(sound, lengths), module.encode(sound, lengths, levels=2)


@nnx.jit
def encode(module, sound, lengths):
    return module.encode(sound, lengths)


@nnx.jit
def decode(module, codes, lengths):
    return module.decode(codes, lengths)


def noise(seed, *shape):
    return 0.5 * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def relative(ours, theirs) -> float:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def clear(quantizer, latents, levels) -> np.ndarray:
    """[F, levels]: where the reference's two nearest codes of every level so far differ by more than rounding."""
    margins, residual = [], quantizer.input_proj(latents)
    for layer in quantizer.layers[:levels]:
        distance = torch.cdist(residual[0].T, layer.codebook.embed).topk(2, largest=False).values
        margins.append((distance[:, 1] - distance[:, 0]) > 1e-5)
        residual = residual - layer.decode(layer.encode(residual))
    return torch.cumprod(torch.stack(margins, -1).int(), -1).bool().numpy()


@pytest.mark.parametrize("samples", [1, 1001])  # 1001 samples are 84 steps, many windows of 7
@torch.no_grad()
def test_encodes_as_the_reference(samples):
    model, ours = pair()
    sound, lengths = noise(1, 1, samples), jnp.array([samples])
    theirs = model.encoder(torch.from_numpy(sound[None])).latents
    latents, codes, fewer = (np.asarray(y)[0] for y in latents_and_codes(ours, sound, lengths))
    assert relative(latents.T, theirs[0]) < 1e-5
    expected = model.encode(torch.from_numpy(sound[None])).audio_codes[0].T.numpy()
    assert codes.shape == expected.shape == (int(ours.frames(lengths)[0]), 5)
    quantizer = model.quantizer
    sure = np.concatenate(
        [
            clear(quantizer.semantic_residual_vector_quantizer, theirs, 1),
            clear(quantizer.acoustic_residual_vector_quantizer, theirs, 4),
        ],
        -1,
    )
    assert sure.mean() > 0.98
    np.testing.assert_array_equal(codes[sure], expected[sure])
    np.testing.assert_array_equal(fewer, codes[:, :2])


@torch.no_grad()
def test_the_semantic_codes_alone_are_the_references():
    model, ours = pair()
    sound, lengths = noise(4, 1, 1001), jnp.array([1001])
    expected = model.encode(torch.from_numpy(sound[None]), num_quantizers=1).audio_codes[0].T.numpy()
    latents = model.encoder(torch.from_numpy(sound[None])).latents
    sure = clear(model.quantizer.semantic_residual_vector_quantizer, latents, 1)
    codes = np.asarray(ours.encode(sound, lengths, levels=1))[0]
    assert codes.shape == expected.shape
    np.testing.assert_array_equal(codes[sure], expected[sure])
    with pytest.raises(ValueError, match="at least one"):
        ours.encode(sound, lengths, levels=0)


@pytest.mark.parametrize(("frames", "levels"), [(1, 1), (41, 5)])
@torch.no_grad()
def test_decodes_as_the_reference(frames, levels):
    model, ours = pair()
    codes = np.random.default_rng(2).integers(1, 32, (1, frames, levels))
    theirs = model.decode(torch.from_numpy(codes.transpose(0, 2, 1))).audio_values[0]
    sound = decode(ours, codes, jnp.array([frames]))
    assert sound.shape == (1, frames * HOP)
    assert relative(sound, theirs) < 2e-5


@pytest.mark.slow
def test_rows_of_unequal_length_are_as_if_alone():
    _, ours = pair()
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
            np.testing.assert_allclose(sounds[row, : f * HOP], single, rtol=1e-5, atol=1e-5 * np.abs(single).max())
        assert not sounds[row, f * HOP :].any()


KYUTAI = {
    "semantic_residual_vector_quantizer": "rvq_first", "acoustic_residual_vector_quantizer": "rvq_rest",
    ".codebook.": "._codebook.", "initialized": "_initialized", "embed_sum": "embedding_sum",
    "encoder.layers": "encoder.model", "decoder.layers": "decoder.model",
    "coder_transformer.": "coder_transformer.transformer.", "mlp.fc1": "linear1", "mlp.fc2": "linear2",
    "self_attn.o_proj": "self_attn.out_proj", "input_layernorm": "norm1", "post_attention_layernorm": "norm2",
    "self_attn_layer_scale": "layer_scale_1", "mlp_layer_scale": "layer_scale_2",
}  # fmt: skip


def kyutai_names(state, heads):
    """The hub's names → those of Kyutai's file, which has its rotated dimensions interleaved."""
    renamed, joint = {}, {}
    for name, t in state.items():
        for theirs, original in KYUTAI.items():
            name = name.replace(theirs, original)
        if name.startswith("quantizer") and ".layers." in name:
            name = name.replace(".layers.", ".vq.layers.")
        if match := re.fullmatch(r"(.*self_attn\.)([qkv])_proj\.weight", name):
            if match[2] != "v":
                t = t.reshape(heads, 2, -1, t.shape[1]).transpose(1, 2).reshape(t.shape)
            joint.setdefault(match[1], {})[match[2]] = t
            continue
        if name.startswith("downsample"):
            name = name.replace(".conv.", ".conv.conv.conv.")
        elif name.startswith("upsample"):
            name = name.replace(".conv.", ".convtr.convtr.convtr.")
        elif re.match(r"decoder\.model\.(2|6)\.", name):
            name = name.replace(".conv.", ".convtr.convtr.")
        elif ".model." in name:
            name = name.replace(".conv.", ".conv.conv.")
        renamed[name] = t
    return renamed | {f"{p}in_proj_weight": torch.cat([parts[k] for k in "qkv"]) for p, parts in joint.items()}


def test_reads_every_published_naming(tmp_path):
    model, ours = pair()
    model.save_pretrained(tmp_path)
    hub = safetensors_torch.load_file(tmp_path / "model.safetensors")
    assert {"encoder.layers.0.conv.weight", "encoder_transformer.layers.0.mlp.fc1.weight", "downsample.conv.weight"} < (
        hub.keys()
    )
    kyutai = kyutai_names(hub, 2)
    assert {
        "encoder.model.1.block.1.conv.conv.weight", "decoder.model.2.convtr.convtr.bias",
        "decoder_transformer.transformer.layers.1.self_attn.in_proj_weight",
        "quantizer.rvq_rest.vq.layers.3._codebook.embedding_sum", "quantizer.rvq_first.input_proj.weight",
    } < kyutai.keys()  # fmt: skip
    newer = {
        n.replace("in_proj_weight", "in_projs.0.weight").replace("out_proj.", "out_projs.0."): t
        for n, t in kyutai.items()
    }
    expected = weights.flatten(ours)
    for state in (hub, kyutai, newer):
        for path, array in weights.flatten(codec_world.converted(KIND, state, model.config.to_dict())).items():
            np.testing.assert_array_equal(array, expected[path], err_msg=path)


def test_counts_the_codebooks_where_no_configuration_does():
    names = [f"quantizer.rvq_rest.vq.layers.{q}._codebook.embedding_sum" for q in range(15)]
    found = KIND.settings({"model_type": "moshi", "hidden_size": 4096}, dict.fromkeys(names, (2048, 256)))
    assert (found["stored"], found["codebooks"], found["network"]["latent"]) == (16, 8, 512)


def test_a_missing_tensor_is_noticed():
    model, _ = pair()
    state = model.state_dict()
    layout = KIND.layout(KIND.settings(model.config.to_dict(), {}))
    for lost in (
        "quantizer.acoustic_residual_vector_quantizer.layers.2.codebook.cluster_usage",
        "decoder.upsample.conv.weight",
        "encoder.encoder_transformer.layers.1.mlp_layer_scale.scale",
    ):
        left = {name: t for name, t in state.items() if name != lost}
        assert sum(rule.choose(left) is None for rule in layout.values()) == 1


@pytest.mark.parametrize(
    "change", [{"num_key_value_heads": 1}, {"hidden_act": "relu"}, {"audio_channels": 2}, {"upsample_groups": 1}]
)
def test_other_networks_are_refused(change):
    with pytest.raises(UserError, match=next(iter(change))):
        KIND.settings({**transformers.MimiConfig().to_dict(), **change}, {})


def test_full_size():
    with torch.device("meta"):
        model = transformers.MimiModel(transformers.MimiConfig())
    settings = KIND.settings({}, {})
    assert settings == KIND.settings(transformers.MimiConfig().to_dict(), {})
    ours = nnx.eval_shape(lambda: mimi.build(settings))
    count = sum(x.size for x in jax.tree.leaves(nnx.state(ours, nnx.Param)))
    assert count == sum(p.numel() for p in model.parameters())
    assert 79.2e6 < count < 79.4e6
    assert (ours.hop, ours.sample_rate, ours.codebooks, ours.codebook_size) == (1920, 24000, 8, 2048)
    layout = KIND.layout(settings)
    assert all(rule.choose(model.state_dict()) for rule in layout.values())
    assert sorted(layout) == sorted(weights.dotted(keys) for keys, _ in nnx.to_flat_state(nnx.state(ours)))


@pytest.mark.parametrize("steps", [6, 7, 30])
def test_windowed_attention_in_blocks(steps):
    q, k, v = (jnp.asarray(noise(seed, 2, steps, 3, 4)) for seed in (1, 2, 3))
    behind = np.arange(steps)[:, None] - np.arange(steps)
    scores = np.einsum("bthk,bshk->bhts", q, k) / 2
    scores = np.where((behind >= 0) & (behind < 7), scores, -np.inf)
    expected = np.einsum("bhts,bshk->bthk", jax.nn.softmax(scores), v)
    np.testing.assert_allclose(mimi_transformer.windowed_attention(q, k, v, 7), expected, atol=2e-6)


@pytest.mark.slow
def test_piece_by_piece_is_as_the_whole():
    _, ours = pair()
    n = 61 * HOP - 11
    sound = noise(6, n)
    codes = np.asarray(encode(ours, sound[None], jnp.array([n])))[0]
    pieces = list(chunked.encode(ours, np.array_split(sound, 7), window=2))
    assert len(pieces) > 3
    np.testing.assert_array_equal(np.concatenate(pieces), codes)
    whole = np.asarray(decode(ours, codes[None], jnp.array([len(codes)])))[0]
    parts = list(chunked.decode(ours, np.array_split(codes, 5), window=2))
    assert len(parts) > 3
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=2e-5 * np.abs(whole).max())


def test_a_step_reaches_as_far_as_it_is_said_to():
    """Twice a window less one step, through two layers; of the convolutions, within the context in frames."""
    _, ours = pair()
    x = jnp.asarray(noise(4, 1, 40, 16))
    slope = jax.jit(jax.grad(lambda x: jnp.sum(ours.encoder_transformer(x)[0, 30] ** 2)))(x)
    assert np.flatnonzero(np.abs(slope[0]).max(-1)).tolist() == list(range(30 - 2 * 6, 31))
    for network, shape, at in ((ours.encoder, (1, 40 * 12, 1), 30), (ours.decoder, (1, 40, 16), slice(360, 372))):
        left = network.context().left
        y = jnp.asarray(noise(5, *shape))
        lengths = jnp.array([shape[1]])
        slope = jax.jit(jax.grad(lambda y, n=network, a=at, m=lengths: jnp.sum(n(y, m)[0][0, a] ** 2)))(y)
        moved = np.flatnonzero(np.abs(slope[0]).max(-1).reshape(40, -1).max(-1))
        assert 30 - left <= moved.min() <= 31 - left
        assert moved.max() == 30


def test_kyutais_interleaved_rotation_is_ours():
    """Scores of their queries and keys, rotated as complex numbers of neighbours, are those of our matrices' halves."""
    rng = np.random.default_rng(7)
    heads, size, theta = 2, 8, 50.0
    joint, x = rng.standard_normal((3 * 16, 16)).astype(np.float32), rng.standard_normal((9, 16)).astype(np.float32)
    turn = np.exp(1j * np.arange(9)[:, None, None] * theta ** (-np.arange(0, size, 2) / size))
    q, k, v = (x @ w.T for w in np.split(joint, 3))
    q, k = ((y.reshape(9, heads, -1, 2) @ [1, 1j]) * turn for y in (q, k))
    expected = np.einsum("thk,shk->hts", q, k.conj()).real

    rules = KIND.layout(KIND.settings(transformers.MimiConfig(**TINY).to_dict(), {}))
    name = "encoder_transformer.transformer.layers.0.self_attn.in_proj_weight"
    ours = [
        rules[f"encoder_transformer.layers.0.{part}.kernel"].choose({name: joint}) for part in ("query", "key", "value")
    ]
    q, k, values = ((x @ rule.make(joint)).reshape(1, 9, heads, size) for rule in ours)
    by = attention.rotation(jnp.arange(9)[None], size, theta)
    scores = np.einsum("thk,shk->hts", attention.rotate(q, by)[0], attention.rotate(k, by)[0])
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    np.testing.assert_allclose(values.reshape(9, 16), v, atol=1e-5)


def test_the_transformer_goes_on_while_its_window_is_not_full():
    """Windows of 6 steps, 4 of them new, where a step sees 20."""
    settings = mimi_transformer.TransformerSettings(layers=2, heads=2, mlp=24, window=20, theta=50.0, epsilon=1e-5)
    network = mimi_transformer.Transformer(16, settings, rngs=nnx.Rngs(0))
    for layer in network.layers:
        layer.scale1[...], layer.scale2[...] = jnp.ones(16), jnp.ones(16)
    x = jnp.asarray(noise(8, 1, 42, 16))
    past, parts = network.initial(1), []
    step = nnx.jit(lambda network, x, past: network.continued(x, past, start=2, stop=6))
    for at in range(0, 37, 4):
        y, past = step(network, x[:, at : at + 6], past)
        parts.append(y[:, 2 if at else 0 :])
    np.testing.assert_allclose(np.concatenate(parts, 1), network(x), atol=1e-5)
