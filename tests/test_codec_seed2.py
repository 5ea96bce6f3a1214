"""SEED-2 against Transformers' BLIP-2 (vision transformer, Q-Former) and a NumPy derivation of the rest."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from anygpt_jax.errors import UserError
from anygpt_jax.interop.tokenizers import convert
from anygpt_jax.interop.tokenizers.seed2 import KIND, prefix
from anygpt_jax.modalities.codecs import seed2, weights

torch = pytest.importorskip("torch")
blip_2 = pytest.importorskip("transformers.models.blip_2")

# Two numbers a head, so that their order and the scale of the logits show.
WIDTH, HIDDEN, QUERIES, CODES, CODE_WIDTH, SHRINK, EMBEDDING = 32, 24, 5, 600, 4, (8, 6, 3), 7
DECODER_HEADS = 12
SIZE = {"image_size": 28, "patch_size": 14}


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@torch.no_grad()
def randomized(model, generator):
    """No scale at 1, no bias at 0."""
    for name, value in model.named_parameters():
        spread = 0.3 if value.ndim == 1 or "embedding" in name else 1.2 / math.sqrt(value[0].numel())
        value.copy_(torch.randn(value.shape, generator=generator) * spread + ("norm.weight" in name.lower()))
        if "layer_norm" in name and name.endswith("weight"):
            value.add_(1)
        if name.endswith("qkv.bias"):
            value[len(value) // 3 : 2 * len(value) // 3] = 0  # EVA has no bias for keys
    return model.eval()


@functools.cache
def references():
    """(vision transformer with SEED's last norm, Q-Former)."""
    generator = torch.Generator().manual_seed(0)
    vision = blip_2.Blip2VisionModel(
        blip_2.Blip2VisionConfig(
            hidden_size=WIDTH, intermediate_size=44, num_hidden_layers=3, num_attention_heads=16, **SIZE,
            attn_implementation="eager",
        )
    )  # fmt: skip
    vision.post_layernorm.eps = 1e-5
    qformer = blip_2.Blip2QFormerModel(
        blip_2.Blip2QFormerConfig(
            hidden_size=HIDDEN, num_hidden_layers=4, num_attention_heads=12, intermediate_size=28,
            cross_attention_frequency=2, encoder_hidden_size=WIDTH, layer_norm_eps=1e-12,
            use_qformer_text_input=False, attn_implementation="eager",
        )
    )  # fmt: skip
    return randomized(vision, generator), randomized(qformer, generator)


def vision_names():
    """Those of eva_vit_g.pth and of SEED's ln_vision, by Transformers'."""
    named = {
        "embeddings.class_embedding": "cls_token",
        "embeddings.position_embedding": "pos_embed",
        "embeddings.patch_embedding": "patch_embed.proj",
        "layer_norm": "norm",
        "self_attn.projection": "attn.proj",
        "self_attn.qkv.weight": "attn.qkv.weight",
        "encoder.layers": "blocks",
    }

    def rename(name):
        for theirs, ours in named.items():
            name = name.replace(theirs, ours)
        return name

    return rename


@functools.cache
def official():
    """A published pair of files as one dictionary, float32, without what is ignored."""
    vision, qformer = references()
    rename, found = vision_names(), {}
    for name, value in vision.state_dict().items():
        if name.startswith("post_layernorm"):
            found[name.replace("post_layernorm", "ln_vision")] = value
        elif name.endswith("qkv.bias"):
            q, _, v = value.chunk(3)
            layer = "visual_encoder." + rename(name).replace("self_attn.qkv.bias", "attn.")
            found |= {f"{layer}q_bias": q, f"{layer}v_bias": v}
        else:
            found["visual_encoder." + rename(name)] = value
    for name, value in qformer.state_dict().items():
        name = name.replace("attention.attention.", "attention.self.")
        found["Qformer.bert." + ("embeddings.LayerNorm" + name[9:] if name.startswith("layernorm") else name)] = value
    found = {name: value.numpy() for name, value in found.items()}
    rng = np.random.default_rng(1)

    def dense(name, inputs, outputs, bias=True):
        found[f"{name}.weight"] = rng.standard_normal((outputs, inputs)) / math.sqrt(inputs)
        if bias:
            found[f"{name}.bias"] = 0.3 * rng.standard_normal(outputs)

    found["query_tokens"] = rng.standard_normal((1, QUERIES, HIDDEN))
    found["pos_embed_image"] = rng.standard_normal((1, QUERIES, HIDDEN))
    found["quantize.embedding.weight"] = rng.standard_normal((CODES, CODE_WIDTH))
    dense("encode_task_layer.0", HIDDEN, HIDDEN)
    dense("encode_task_layer.2", HIDDEN, CODE_WIDTH)
    dense("decode_task_layer.0", CODE_WIDTH, CODE_WIDTH)
    dense("decode_task_layer.2", CODE_WIDTH, HIDDEN)
    for i in range(2):
        block = f"blocks_image.{i}."
        for norm in ("norm1", "norm2"):
            found[f"{block}{norm}.weight"] = 1 + 0.3 * rng.standard_normal(HIDDEN)
            found[f"{block}{norm}.bias"] = 0.3 * rng.standard_normal(HIDDEN)
        dense(f"{block}attn.qkv", HIDDEN, 3 * HIDDEN)
        dense(f"{block}attn.proj", HIDDEN, HIDDEN)
        dense(f"{block}mlp.fc1", HIDDEN, 40)
        dense(f"{block}mlp.fc2", 40, HIDDEN)
    for i, (inputs, outputs) in enumerate(zip((HIDDEN, *SHRINK), SHRINK, strict=False)):
        dense(f"image_down.{2 * i}", inputs, outputs, bias=False)
    dense("distill_image_proj", QUERIES * SHRINK[-1], EMBEDDING)
    return {name: np.asarray(value, np.float32) for name, value in found.items()}


@functools.cache
def network():
    settings = KIND.settings({}, {name: value.shape for name, value in official().items()})
    chosen = convert.choose(KIND.layout(settings), official(), KIND.ignored, "a test")
    tensors = {path: how.make(*(official()[n] for n in how.names)) for path, how in chosen.items()}
    return weights.fill(lambda: KIND.build(settings), tensors)


def pixels(batch=3, seed=0):
    return np.random.default_rng(seed).standard_normal((batch, 28, 28, 3)).astype(np.float32)


@torch.no_grad()
def reference_queries(images):
    """Of the torch classes: features before the last norm, features, what the queries make of them."""
    vision, qformer = references()
    seen = []
    with vision.post_layernorm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        features = vision(torch.from_numpy(images).permute(0, 3, 1, 2)).last_hidden_state
    queries = torch.from_numpy(official()["query_tokens"]).expand(len(images), -1, -1)
    causal = torch.full((QUERIES, QUERIES), -10000.0).triu(1).expand(len(images), 1, -1, -1)
    found = qformer(queries, attention_mask=causal, encoder_hidden_states=features).last_hidden_state
    return seen[0].numpy(), features.numpy(), found.numpy()


def dense(x, name):
    w = official()
    return x @ w[f"{name}.weight"].T.astype(np.float64) + w.get(f"{name}.bias", 0)


def layer_norm(x, name):
    w, centred = official(), x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * w[f"{name}.weight"] + w[f"{name}.bias"]


def reference_embedding(codes):
    """One picture's codes → its image embedding, in NumPy."""
    w = official()
    x = dense(np.tanh(dense(w["quantize.embedding.weight"][codes], "decode_task_layer.0")), "decode_task_layer.2")
    x = x + w["pos_embed_image"][0]
    for i in range(2):
        block, y = f"blocks_image.{i}", []
        q, k, v = np.split(dense(layer_norm(x, f"{block}.norm1"), f"{block}.attn.qkv"), 3, axis=-1)
        size = HIDDEN // DECODER_HEADS
        for h in range(DECODER_HEADS):
            part = slice(h * size, (h + 1) * size)
            odds = np.exp(q[:, part] @ k[:, part].T / math.sqrt(size))
            y.append(odds @ v[:, part] / odds.sum(-1, keepdims=True))
        x = x + dense(np.concatenate(y, -1), f"{block}.attn.proj")
        hidden = dense(layer_norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
        hidden = hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2))) / 2
        x = x + dense(hidden, f"{block}.mlp.fc2")
    for i in range(len(SHRINK)):
        x = dense(np.maximum(x, 0) if i else x, f"image_down.{2 * i}")
    return dense(x.ravel(), "distill_image_proj")


def compare(what, ours, theirs, relative=3e-6):
    difference = np.abs(np.asarray(ours) - theirs).max()
    print(f"{what}: max difference {difference:.2e} of {np.abs(theirs).max():.2f}")
    assert difference <= relative * np.abs(theirs).max()


def test_features_queries_and_codes():
    model, images = network(), pixels()
    raw, normed, queries = reference_queries(images)
    vit, norm, qformer = (
        nnx.jit(lambda m, x, part=part: getattr(m, part)(x)) for part in ("vit", "vit_norm", "qformer")
    )
    compare("vision transformer", vit(model, images), raw)
    compare("its last norm", norm(model, raw), normed)
    compare("Q-Former", qformer(model, normed), queries)

    latents = dense(np.tanh(dense(queries, "encode_task_layer.0")), "encode_task_layer.2")
    compare("latents", nnx.jit(seed2.Seed2.latents)(model, images), latents, 1e-5)
    book = official()["quantize.embedding.weight"].astype(np.float64)
    distance = ((latents[:, :, None] - book) ** 2).sum(-1)
    near = np.sort(distance, -1)
    assert (near[..., 1] - near[..., 0]).min() > 1e-4, "choose another seed: a code is within rounding"
    codes = np.asarray(nnx.jit(seed2.Seed2.encode)(model, images))
    np.testing.assert_array_equal(codes, distance.argmin(-1))
    assert len(np.unique(codes)) > 5


def test_last_norm_at_small_deviations():
    """Where 1e-5 and 1e-6 under the root differ by much."""
    x = 1e-3 * np.random.default_rng(2).standard_normal((2, 3, WIDTH)).astype(np.float32)
    with torch.no_grad():
        theirs = references()[0].post_layernorm(torch.from_numpy(x)).numpy()
    compare("last norm", network().vit_norm(x), theirs)


def test_embedding():
    codes = np.random.default_rng(3).integers(CODES, size=(3, QUERIES))
    ours = np.asarray(nnx.jit(seed2.Seed2.embedding)(network(), codes))
    compare("image embedding", ours, np.stack([reference_embedding(row) for row in codes]))


def test_rows_are_independent_and_sharded_over_devices():
    model, images = network(), pixels(4)
    encode, embedding = nnx.jit(seed2.Seed2.encode), nnx.jit(seed2.Seed2.embedding)
    codes = encode(model, images)
    np.testing.assert_array_equal(encode(model, images[::-1])[::-1], codes)
    vectors = embedding(model, codes)
    mesh = Mesh(np.array(jax.devices()[:2]), ("batch",))
    rows = NamedSharding(mesh, PartitionSpec("batch"))
    graph, state = nnx.split(model)
    model = nnx.merge(graph, jax.device_put(state, NamedSharding(mesh, PartitionSpec())))
    sharded = encode(model, jax.device_put(images, rows))
    assert sharded.sharding.is_equivalent_to(rows, 2)
    np.testing.assert_array_equal(sharded, codes)
    np.testing.assert_allclose(embedding(model, sharded), vectors, atol=1e-5)


def test_wrong_picture_size():
    with pytest.raises(ValueError, match="28 px squares"):
        network().encode(jnp.zeros((1, 28, 42, 3)))


def test_preprocess():
    rng = np.random.default_rng(4)
    # Within a range that overshooting does not leave: PIL clips between its passes over rows and columns, torch after.
    shapes = ((40, 91, 3), (224, 224, 3), (500, 300, 3))
    pictures = [rng.integers(80, 176, size=shape, dtype=np.uint8) for shape in shapes]
    found = seed2.preprocess(pictures)
    assert found.shape == (3, 224, 224, 3) and found.dtype == np.float32
    mean, std = (torch.tensor(v) for v in (seed2.MEAN, seed2.STD))
    for ours, picture in zip(found, pictures, strict=True):
        chw = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
        theirs = torch.nn.functional.interpolate(chw, (224, 224), mode="bicubic", antialias=True, align_corners=False)
        theirs = theirs.round().clamp(0, 255)[0].permute(1, 2, 0)
        levels = (torch.from_numpy(ours) * std + mean) * 255
        assert (levels - levels.round()).abs().max() < 1e-3
        assert (levels - theirs).abs().max() < 1.5  # PIL rounds between its passes too
        assert (levels - theirs).abs().mean() < 0.3
    resized = np.asarray(Image.fromarray(pictures[0]).resize((224, 224), Image.Resampling.BICUBIC))
    exact = (torch.from_numpy(resized.copy()).float() / 255 - mean) / std
    np.testing.assert_array_equal(found[0], exact.numpy())


def unused():
    """Names that are in published files and take no part: of EVA, BERT's text side, and SEED's training."""
    names = [f"visual_encoder.blocks.39.{n}" for n in ("norm1.weight", "attn.q_bias", "mlp.fc2.bias")]
    names += ["visual_encoder.norm.weight", "visual_encoder.head.bias", "pos_embed", "blocks.3.attn.qkv.bias"]
    names += [f"Qformer.bert.embeddings.{n}" for n in ("position_ids", "word_embeddings.weight")]
    layer = "Qformer.bert.encoder.layer.11."
    names += [f"{layer}intermediate.dense.weight", f"{layer}output.dense.bias", f"{layer}output.LayerNorm.weight"]
    return [*names, "Qformer.cls.predictions.transform.dense.weight", "vision_proj.weight", "temp"]


def test_layout_is_whole_and_refuses_what_is_not():
    shapes = {name: value.shape for name, value in official().items()}
    settings = KIND.settings({}, shapes)
    layout = KIND.layout(settings)
    assert set(layout) == set(weights.flatten(network()))
    assert {n for rule in layout.values() for n in rule.choose(shapes).names} == set(shapes)
    for name in shapes:
        left = {n: shape for n, shape in shapes.items() if n != name}
        assert any(rule.choose(left) is None for rule in layout.values())
        with pytest.raises(UserError, match=r"no vision transformer|right rank|does not fit"):
            convert.choose(KIND.layout(KIND.settings({}, left)), left, KIND.ignored, "")
    convert.choose(layout, dict.fromkeys([*shapes, *unused()]), KIND.ignored, "")
    for strange in (
        "visual_encoder.blocks.1.gamma_1",
        "visual_encoder.rel_pos_bias.relative_position_bias_table",
        "Qformer.bert.encoder.layer.1.crossattention.self.query.weight",
        "quantize.used",
        "blocks_image.0.attn.q_bias",
        "image_down.6.weight",
    ):
        with pytest.raises(UserError, match=rf"Unexpected \(1\): {strange}"):
            convert.choose(layout, dict.fromkeys([*shapes, strange]), KIND.ignored, "")


def test_the_two_published_files():
    """eva_vit_g.pth gets the prefix, seed_quantizer.pt does not; some of their own names are the same."""
    vit = {n.removeprefix("visual_encoder.") for n in official() if n.startswith("visual_encoder.")}
    quantizer = {n for n in official() if not n.startswith("visual_encoder.")} | {"pos_embed", "blocks.0.norm1.weight"}
    assert vit & quantizer
    assert {prefix(vit) + n for n in vit} | {prefix(quantizer) + n for n in quantizer} >= set(official())
    assert not {prefix(vit) + n for n in vit} & quantizer
    with pytest.raises(UserError, match=r"eva_vit_g\.pth"):
        KIND.settings({}, {n: official()[n].shape for n in quantizer & set(official())})


@pytest.mark.parametrize("together", [True, False])
def test_conversion_of_the_published_files(together, tmp_path):
    vit = {n.removeprefix("visual_encoder."): v for n, v in official().items() if n.startswith("visual_encoder.")}
    rest = {n: v for n, v in official().items() if not n.startswith("visual_encoder.")}
    rest |= {"pos_embed": np.zeros((1, 4, 8)), "blocks.0.norm1.weight": np.zeros(8)}
    for name, tensors in (("eva_vit_g.pth", vit), ("seed_quantizer.pt", rest)):
        torch.save({n: torch.from_numpy(np.array(v, np.float32)) for n, v in tensors.items()}, tmp_path / name)
    paths = [tmp_path] if together else [tmp_path / "seed_quantizer.pt", tmp_path / "eva_vit_g.pth"]
    convert.convert(paths, "seed2", tmp_path / "seed2.safetensors")
    expected = weights.flatten(network())
    found, _ = weights.read(tmp_path / "seed2.safetensors")
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_full_size():
    settings = dataclasses.asdict(seed2.Seed2Settings())
    module = nnx.eval_shape(lambda: KIND.build(settings))
    with torch.device("meta"):
        vision = blip_2.Blip2VisionModel(blip_2.Blip2VisionConfig())
        qformer = blip_2.Blip2QFormerModel(
            blip_2.Blip2QFormerConfig(
                cross_attention_frequency=2, encoder_hidden_size=1408, use_qformer_text_input=False
            )
        )

    def size(model):
        return sum(p.numel() for p in model.parameters())

    assert weights.count(module.vit) + weights.count(module.vit_norm) == size(vision) == 985_952_256
    assert weights.count(module.qformer) == size(qformer) + 32 * 768
    assert module.codebook.shape == (8192, 32)
    assert weights.count(module) == 1_121_415_232
    # What the published code reports missing from seed_quantizer.pt: OpenMOSS/AnyGPT issue 14.
    names = {n for rule in KIND.layout(settings).values() for n in rule.alternatives[0].names}
    assert sum(n.startswith("visual_encoder.") for n in names) == 511
