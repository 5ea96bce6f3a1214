"""Mimi as it is published: transformers' `MimiModel`, with the names of its hub files and those of its newest class,
and Kyutai's tokenizer-….safetensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from anygpt_jax.errors import UserError
from anygpt_jax.interop.tokenizers.kinds import Kind
from anygpt_jax.interop.tokenizers.rules import (
    Alternative,
    Layout,
    Rule,
    conv1d,
    conv1d_transposed,
    linear,
    made,
    same,
    stacked,
)
from anygpt_jax.modalities.codecs.mimi import MimiSettings, build, parse
from anygpt_jax.modalities.codecs.mimi_transformer import TransformerSettings
from anygpt_jax.modalities.codecs.seanet import SeanetSettings

USED = 8  # codebooks in the released speech models (Moshi), of the 32 that are stored
LEAST_USAGE = 1e-5  # what a code's usage counts at least, in both implementations
QUANTIZERS = {
    "semantic": ("semantic_residual_vector_quantizer", "rvq_first"),
    "acoustic": ("acoustic_residual_vector_quantizer", "rvq_rest"),
}
# transformers' configuration: what it must be where the network has no choice.
FIXED = {
    "audio_channels": 1, "use_causal_conv": True, "hidden_act": "gelu", "attention_bias": False,
}  # fmt: skip


def settings(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Of transformers' configuration; the release's where there is none, with as many codebooks as the file has.
    UserError for another network."""
    c = config if str(config.get("model_type", "")).startswith("mimi") else {}
    for key, value in FIXED.items():
        if c.get(key, value) != value:
            raise UserError(f"Mimi with {key} = {c[key]} is not supported; it must be {value}.")
    width, heads = c.get("hidden_size", 512), c.get("num_attention_heads", 8)
    kept = {
        "num_key_value_heads": heads, "head_dim": width // heads, "upsample_groups": width,
    }  # fmt: skip
    for key, value in kept.items():
        if (c.get(key) or value) != value:
            raise UserError(f"Mimi with {key} = {c[key]} is not supported; it must be {value}.")
    rope = c.get("rope_parameters") or {"rope_theta": c.get("rope_theta", 10_000.0)}
    if rope.get("rope_type", "default") != "default":
        raise UserError(f"Mimi with rotary positions of type {rope['rope_type']} is not supported.")
    code_width = c.get("vector_quantization_hidden_dimension", 256)
    if code_width == width:
        raise UserError("Mimi whose quantizer has no projections is not supported.")
    semantic = c.get("num_semantic_quantizers", 1)
    acoustic = sum(name.startswith("quantizer.rvq_rest.") and name.endswith(".embedding_sum") for name in shapes)
    stored = c.get("num_quantizers") or (semantic + acoustic if acoustic else 32)
    found = MimiSettings(
        sample_rate=c.get("sampling_rate", 24000),
        network=SeanetSettings(
            latent=width,
            filters=c.get("num_filters", 64),
            ratios=tuple(c.get("upsampling_ratios") or (8, 6, 5, 4)),
            residual_layers=c.get("num_residual_layers", 1),
            kernel=c.get("kernel_size", 7),
            last_kernel=c.get("last_kernel_size", 3),
            residual_kernel=c.get("residual_kernel_size", 3),
            dilation_base=c.get("dilation_growth_rate", 2),
            compress=c.get("compress", 2),
            lstm_layers=0,
            conv_shortcut=c.get("use_conv_shortcut", False),
            causal=True,
            pad_mode=c.get("pad_mode", "constant"),
            trim_right_ratio=c.get("trim_right_ratio", 1.0),
        ),
        transformer=TransformerSettings(
            layers=c.get("num_hidden_layers", 8),
            heads=heads,
            mlp=c.get("intermediate_size", 2048),
            window=c.get("sliding_window", 250),
            theta=float(rope["rope_theta"]),
            epsilon=c.get("norm_eps", 1e-5),
        ),
        semantic=semantic,
        stored=stored,
        codebooks=min(USED, stored),
        codebook_size=c.get("codebook_size", 2048),
        codebook_width=code_width,
    )
    return dataclasses.asdict(found)


def layout(settings: Mapping[str, Any]) -> Layout:
    """Each variable under its names in transformers' newest class, in its hub files and in Kyutai's, in this order."""
    s = parse(settings)
    found = _seanet("encoder", s.network, s.network.ratios[::-1])
    found |= _seanet("decoder", s.network, s.network.ratios)
    for side in ("encoder", "decoder"):
        for i in range(s.transformer.layers):
            found |= _transformer_layer(side, i, s.transformer.heads)
    found["down.kernel"] = conv1d("").prefixed(
        "encoder.downsample.conv", "downsample.conv", "downsample.conv.conv.conv"
    )
    found["up.kernel"] = conv1d_transposed("", groups=s.network.latent).prefixed(
        "decoder.upsample.conv", "upsample.conv", "upsample.convtr.convtr.convtr"
    )
    for part, levels in (("semantic", s.semantic), ("acoustic", s.stored - s.semantic)):
        theirs, original = (f"quantizer.{name}" for name in QUANTIZERS[part])
        for ours, name in (("inward", "input_proj"), ("outward", "output_proj")):
            found[f"{part}.{ours}.kernel"] = linear("").prefixed(f"{theirs}.{name}", f"{original}.{name}")
        found[f"{part}.vectors"] = stacked([_codebook(theirs, original, q) for q in range(levels)])
    return found


def _seanet(side: str, s: SeanetSettings, ratios: tuple[int, ...]) -> Layout:
    """The layers have the same numbers everywhere, activations among them."""
    found: Layout = {}

    def conv(ours: str, theirs: str, kernel: Rule, wrapped: str = "conv.conv") -> None:
        """`theirs` within its list of layers; Kyutai wraps a convolution once more."""
        names = (
            f"{side}.{side}_seanet.layers.{theirs}.conv",
            f"{side}.layers.{theirs}.conv",
            f"{side}.model.{theirs}.{wrapped}",
        )
        found[f"{side}.layers.{ours}.kernel"] = kernel.prefixed(*names)
        found[f"{side}.layers.{ours}.bias"] = same(*(f"{name}.bias" for name in names))

    def unit(i: int) -> None:
        conv(f"{i}.conv", f"{i}.block.1", conv1d(""))
        conv(f"{i}.out", f"{i}.block.3", linear(""))
        if s.conv_shortcut:
            conv(f"{i}.shortcut", f"{i}.shortcut", linear(""))

    conv("0", "0", conv1d(""))
    at = 1
    for _ in ratios:
        if side == "decoder":
            conv(f"{at + 1}", f"{at + 1}", conv1d_transposed(""), wrapped="convtr.convtr")
            at += 2
        for _ in range(s.residual_layers):
            unit(at)
            at += 1
        if side == "encoder":
            conv(f"{at + 1}", f"{at + 1}", conv1d(""))
            at += 2
    conv(f"{at + 1}", f"{at + 1}", conv1d(""))
    return found


def _transformer_layer(side: str, i: int, heads: int) -> Layout:
    ours = f"{side}_transformer.layers.{i}"
    huggingface = (f"{side}.{side}_transformer.layers.{i}", f"{side}_transformer.layers.{i}")
    original = f"{side}_transformer.transformer.layers.{i}"
    found: Layout = {}
    for name, theirs, kyutai in (
        ("norm1.scale", "input_layernorm.weight", "norm1.weight"),
        ("norm1.bias", "input_layernorm.bias", "norm1.bias"),
        ("norm2.scale", "post_attention_layernorm.weight", "norm2.weight"),
        ("norm2.bias", "post_attention_layernorm.bias", "norm2.bias"),
        ("scale1", "self_attn_layer_scale.scale", "layer_scale_1.scale"),
        ("scale2", "mlp_layer_scale.scale", "layer_scale_2.scale"),
    ):
        found[f"{ours}.{name}"] = same(*(f"{prefix}.{theirs}" for prefix in huggingface), f"{original}.{kyutai}")
    for name, theirs, *originals in (
        ("inner", "mlp.fc1", "linear1"),
        ("outer", "mlp.fc2", "linear2"),
        ("out", "self_attn.o_proj", "self_attn.out_proj", "self_attn.out_projs.0"),
    ):
        names = [*(f"{prefix}.{theirs}" for prefix in huggingface), *(f"{original}.{k}" for k in originals)]
        found[f"{ours}.{name}.kernel"] = linear("").prefixed(*names)
    for part, name in enumerate(("query", "key", "value")):
        alternatives = linear("").prefixed(*(f"{p}.self_attn.{name[0]}_proj" for p in huggingface)).alternatives
        for joint in ("in_proj_weight", "in_projs.0.weight", "in_proj.weight"):
            make = _part_of_joint(part, heads)
            alternatives += (Alternative((f"{original}.self_attn.{joint}",), make),)
        found[f"{ours}.{name}.kernel"] = Rule(alternatives)
    return found


def _part_of_joint(part: int, heads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Kyutai has queries, keys and values in one matrix, and rotates neighbours (2i, 2i + 1) of a head where we rotate
    its halves (i, i + K/2)."""

    def make(joint: np.ndarray) -> np.ndarray:
        w = np.split(joint, 3)[part]
        if part < 2:
            w = w.reshape(heads, -1, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)
        return w.T

    return make


def _codebook(theirs: str, original: str, q: int) -> Rule:
    """A code is the mean of what was assigned to it: a sum and a count."""

    def mean(total: np.ndarray, usage: np.ndarray) -> np.ndarray:
        return total / np.maximum(usage, LEAST_USAGE)[:, None]

    a = made(mean, f"{theirs}.layers.{q}.codebook.embed_sum", f"{theirs}.layers.{q}.codebook.cluster_usage")
    vq = f"{original}.vq.layers.{q}._codebook"
    b = made(mean, f"{vq}.embedding_sum", f"{vq}.cluster_usage")
    return Rule(a.alternatives + b.alternatives)


KIND = Kind(settings=settings, build=build, layout=layout, ignored=(r"quantizer\..*codebook\._?initialized",))
