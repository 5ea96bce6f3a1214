"""AnyGPT's SoundStorm: a bare state dict, `fnlp/AnyGPT-speech-modules`' soundstorm/speechtokenizer_soundstorm_mls.pt."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from anygpt_jax.errors import UserError
from anygpt_jax.interop.tokenizers.kinds import Kind
from anygpt_jax.interop.tokenizers.rules import Layout, Rule, conv1d, conv_layer, linear, norm, same, stacked
from anygpt_jax.modalities.codecs import soundstorm
from anygpt_jax.modalities.codecs.conformer import ConformerSettings
from anygpt_jax.modalities.codecs.soundstorm import SoundStormSettings

HEADS = 8  # AnyGPT's voice_clone.py; no shape tells


def settings(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Of the shapes alone: no configuration is published beside the weights."""
    del config
    first = "net.conformer.layers.0"
    sizes = {
        "semantic_token_emb.weight": 2,
        "net.to_logits.2.weight": 3,
        f"{first}.attn.fn.to_q.weight": 2,
        f"{first}.ff1.fn.fn.net.0.weight": 2,
        f"{first}.conv.ds_conv.conv.weight": 3,
    }
    if wrong := [name for name, axes in sizes.items() if len(shapes.get(name, ())) != axes]:
        raise UserError(f"This is not AnyGPT's SoundStorm: it has no {', '.join(wrong)} of the right rank.")
    semantic, width = shapes["semantic_token_emb.weight"]
    levels, _, codebook_size = shapes["net.to_logits.2.weight"]
    inner = shapes[f"{first}.attn.fn.to_q.weight"][0]
    if inner % (2 * HEADS):
        raise UserError(f"{first}.attn.fn.to_q.weight has {inner} rows, which {HEADS} heads of even size do not share.")
    conv, _, kernel = shapes[f"{first}.conv.ds_conv.conv.weight"]
    conformer = ConformerSettings(
        width=width,
        depth=len({name.split(".")[3] for name in shapes if name.startswith("net.conformer.layers.")}),
        heads=HEADS,
        head_dim=inner // HEADS,
        mlp=shapes[f"{first}.ff1.fn.fn.net.0.weight"][0],
        conv=conv,
        kernel=kernel,
    )
    return dataclasses.asdict(SoundStormSettings(conformer, semantic, levels, codebook_size))


def _block(layer: str) -> Layout:
    def feed_forward(ours: str, theirs: str) -> Layout:
        return (
            norm(f"{ours}.norm", f"{theirs}.fn.norm")
            | conv_layer(f"{ours}.inner", f"{theirs}.fn.fn.net.0", kernel=linear)
            | conv_layer(f"{ours}.outer", f"{theirs}.fn.fn.net.3", kernel=linear)
        )

    attention, conv = f"{layer}.attn", f"{layer}.conv"
    return (
        feed_forward("before", f"{layer}.ff1")
        | norm("attention.norm", f"{attention}.norm")
        | {"attention.query.kernel": linear(f"{attention}.fn.to_q")}
        | {"attention.key_value.kernel": linear(f"{attention}.fn.to_kv")}
        | conv_layer("attention.out", f"{attention}.fn.to_out", kernel=linear)
        | norm("convolution.norm", f"{conv}.net1.0")
        | conv_layer("convolution.inner", f"{conv}.net1.2", kernel=linear)
        | {"convolution.kernel": conv1d(f"{conv}.ds_conv.conv"), "convolution.bias": same(f"{conv}.ds_conv.conv.bias")}
        | {"convolution.scale": same(f"{conv}.net2.1.gamma").then(lambda gamma: gamma.reshape(-1))}
        | conv_layer("convolution.outer", f"{conv}.net2.2", kernel=linear)
        | feed_forward("after", f"{layer}.ff2")
        | norm("norm", f"{layer}.post_norm")
    )


def layout(settings: Mapping[str, Any]) -> Layout:
    """One name for each variable; the conformer's layers are stacked as they are scanned."""
    blocks = [_block(f"net.conformer.layers.{i}") for i in range(settings["conformer"]["depth"])]
    layers: dict[str, Rule] = {
        f"conformer.blocks.{path}": stacked([block[path] for block in blocks]) for path in blocks[0]
    }
    return (
        layers
        | {"semantic.embedding": same("semantic_token_emb.weight"), "codes.embedding": same("net.code_embeds.weight")}
        | conv_layer("heads", "net.heads.0", kernel=linear)
        | norm("norm", "net.to_logits.0")
        | {"kernel": same("net.to_logits.2.weight")}
        | {"bias": same("net.to_logits.2.bias").then(lambda b: b.reshape(b.shape[-2:]))}
    )


KIND = Kind(
    settings=settings,
    build=soundstorm.build,
    layout=layout,
    # Not stored by the published code, which makes them anew; a copy saved otherwise may hold them.
    ignored=(
        r"net\.conformer\.rotary_emb\.inv_freq",
        r"net\.(quantizer_offsets|mask_tokens)",
    ),
)
