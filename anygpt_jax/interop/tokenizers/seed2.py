"""SEED-2: `seed_quantizer.pt` of AILab-CVC/seed-tokenizer-2, and EVA-CLIP's ViT-g, which LAVIS publishes by itself.

The quantizer's file has no vision transformer: loading it reports 511 missing tensors, which are exactly the ViT's,
and 146 unexpected ones (OpenMOSS/AnyGPT issue 14). The ViT is in eva_vit_g.pth, whose names lack the prefix
"visual_encoder." that they have in SEED's network; without it some are those of an unused branch of SEED's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from anygpt_jax.errors import UserError
from anygpt_jax.interop.tokenizers.kinds import Kind
from anygpt_jax.interop.tokenizers.rules import Layout, conv2d, conv_layer, linear, made, norm, same, stacked
from anygpt_jax.modalities.codecs import seed2
from anygpt_jax.modalities.codecs.qformer import QFormerSettings
from anygpt_jax.modalities.codecs.seed2 import Seed2Settings
from anygpt_jax.modalities.codecs.vit import VitSettings

VIT = "visual_encoder."
# Which no shape tells: SEED's eva_vit.py (1408 / 88), BERT-base, SEED's qformer_quantizer.py.
VIT_HEADS, QFORMER_HEADS, DECODER_HEADS = 16, 12, 12
VIT_DEPTH = 39  # EVA has a 40th layer, which BLIP-2 leaves out
CROSS_EVERY = 2  # BLIP-2's cross_attention_freq


def prefix(names: Collection[str]) -> str:
    """What the names of one file's tensors get in front to be those of SEED's network."""
    return VIT if "cls_token" in names and "query_tokens" not in names else ""


def settings(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Of the shapes alone: no configuration is published beside the weights."""
    del config
    if f"{VIT}cls_token" not in shapes:
        raise UserError(
            "There is no vision transformer in these files; name eva_vit_g.pth (EVA-CLIP's ViT-g, of LAVIS) with "
            "--from beside seed_quantizer.pt."
        )
    bert = "Qformer.bert.encoder.layer."
    sizes = {
        f"{VIT}pos_embed": 3,
        f"{VIT}patch_embed.proj.weight": 4,
        f"{VIT}blocks.0.mlp.fc1.weight": 2,
        "query_tokens": 3,
        f"{bert}0.intermediate_query.dense.weight": 2,
        f"{bert}0.crossattention.self.key.weight": 2,
        "quantize.embedding.weight": 2,
        "blocks_image.0.mlp.fc1.weight": 2,
        **{f"image_down.{i}.weight": 2 for i in (0, 2, 4)},
        "distill_image_proj.weight": 2,
    }
    if wrong := [name for name, axes in sizes.items() if len(shapes.get(name, ())) != axes]:
        raise UserError(f"This is not SEED-2's tokenizer: it has no {', '.join(wrong)} of the right rank.")
    depth = _count(shapes, bert)
    width, _, patch, _ = shapes[f"{VIT}patch_embed.proj.weight"]
    _, queries, hidden = shapes["query_tokens"]
    return dataclasses.asdict(
        Seed2Settings(
            vit=VitSettings(
                image=patch * round((shapes[f"{VIT}pos_embed"][1] - 1) ** 0.5),
                patch=patch,
                width=width,
                depth=min(_count(shapes, f"{VIT}blocks."), VIT_DEPTH),
                heads=VIT_HEADS,
                mlp=shapes[f"{VIT}blocks.0.mlp.fc1.weight"][0],
            ),
            qformer=QFormerSettings(
                queries=queries,
                width=hidden,
                depth=depth,
                heads=QFORMER_HEADS,
                mlp=shapes[f"{bert}0.intermediate_query.dense.weight"][0],
                cross_every=CROSS_EVERY,
                context=width,
            ),
            codebook_size=shapes["quantize.embedding.weight"][0],
            code_width=shapes["quantize.embedding.weight"][1],
            decoder_depth=_count(shapes, "blocks_image."),
            decoder_heads=DECODER_HEADS,
            decoder_mlp=shapes["blocks_image.0.mlp.fc1.weight"][0],
            shrink=tuple(shapes[f"image_down.{i}.weight"][0] for i in (0, 2, 4)),
            embedding=shapes["distill_image_proj.weight"][0],
        )
    )


def _count(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    """Layers under a prefix."""
    return len({name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)})


def _query_value_bias(q: np.ndarray, v: np.ndarray) -> np.ndarray:
    """EVA's attention has no bias for keys; ours has one that is 0."""
    return np.concatenate([q, np.zeros_like(q), v])


def _vit_block(theirs: str) -> Layout:
    """A vision-transformer layer under timm's names, but for the bias of queries, keys and values."""
    return (
        norm("norm1", f"{theirs}.norm1")
        | {"qkv.kernel": linear(f"{theirs}.attn.qkv")}
        | conv_layer("out", f"{theirs}.attn.proj", kernel=linear)
        | norm("norm2", f"{theirs}.norm2")
        | conv_layer("inner", f"{theirs}.mlp.fc1", kernel=linear)
        | conv_layer("outer", f"{theirs}.mlp.fc2", kernel=linear)
    )


def _eva_block(theirs: str) -> Layout:
    return _vit_block(theirs) | {"qkv.bias": made(_query_value_bias, f"{theirs}.attn.q_bias", f"{theirs}.attn.v_bias")}


def _decoder_block(theirs: str) -> Layout:
    return _vit_block(theirs) | {"qkv.bias": same(f"{theirs}.attn.qkv.bias")}


def _attention(ours: str, theirs: str) -> Layout:
    layout = conv_layer(f"{ours}.out", f"{theirs}.output.dense", kernel=linear)
    for name in ("query", "key", "value"):
        layout |= conv_layer(f"{ours}.{name}", f"{theirs}.self.{name}", kernel=linear)
    return layout | norm(f"{ours}.norm", f"{theirs}.output.LayerNorm")


def _qformer_group(first: int, size: int) -> Layout:
    """`size` layers from `first` on, of which the first has cross-attention."""
    layout: Layout = {}
    for i in range(size):
        theirs = f"Qformer.bert.encoder.layer.{first + i}"
        layout |= _attention(f"{i}.attention", f"{theirs}.attention")
        if i == 0:
            layout |= _attention(f"{i}.cross", f"{theirs}.crossattention")
        layout |= conv_layer(f"{i}.inner", f"{theirs}.intermediate_query.dense", kernel=linear)
        layout |= conv_layer(f"{i}.outer", f"{theirs}.output_query.dense", kernel=linear)
        layout |= norm(f"{i}.norm", f"{theirs}.output_query.LayerNorm")
    return layout


def _stack(ours: str, layers: list[Layout]) -> Layout:
    return {f"{ours}.{path}": stacked([layer[path] for layer in layers]) for path in layers[0]}


def layout(settings: Mapping[str, Any]) -> Layout:
    """One name for each variable; layers are stacked as they are scanned, the Q-Former's group by group."""
    vit, qformer = settings["vit"], settings["qformer"]
    size = qformer["cross_every"]
    return (
        conv_layer("vit.patches", f"{VIT}patch_embed.proj", kernel=conv2d)
        | {"vit.cls": same(f"{VIT}cls_token").then(np.ravel)}
        | {"vit.positions": same(f"{VIT}pos_embed").then(lambda p: p[0])}
        | _stack("vit.blocks", [_eva_block(f"{VIT}blocks.{i}") for i in range(vit["depth"])])
        | norm("vit_norm", "ln_vision")
        | {"qformer.queries": same("query_tokens").then(lambda q: q[0])}
        | norm("qformer.norm", "Qformer.bert.embeddings.LayerNorm")
        | _stack("qformer.groups", [_qformer_group(i, size) for i in range(0, qformer["depth"], size)])
        | conv_layer("to_code.inner", "encode_task_layer.0", kernel=linear)
        | conv_layer("to_code.outer", "encode_task_layer.2", kernel=linear)
        | {"codebook": same("quantize.embedding.weight")}
        | conv_layer("of_code.inner", "decode_task_layer.0", kernel=linear)
        | conv_layer("of_code.outer", "decode_task_layer.2", kernel=linear)
        | {"positions": same("pos_embed_image").then(lambda p: p[0])}
        | _stack("blocks", [_decoder_block(f"blocks_image.{i}") for i in range(settings["decoder_depth"])])
        | {f"shrink.{i}.kernel": linear(f"image_down.{2 * i}") for i in range(len(settings["shrink"]))}
        | conv_layer("out", "distill_image_proj", kernel=linear)
    )


KIND = Kind(
    settings=settings,
    build=seed2.build,
    layout=layout,
    prefix=prefix,
    ignored=(
        # EVA's last layer and what follows it.
        rf"visual_encoder\.blocks\.{VIT_DEPTH}\..*",
        r"visual_encoder\.(norm|fc_norm|head)\.(weight|bias)",
        r"visual_encoder\.mask_token",
        # BERT's text side: its embeddings, its feed-forwards (the queries have their own), its head.
        r"Qformer\.bert\.embeddings\.(position_ids|(word|position)_embeddings\.weight)",
        r"Qformer\.bert\.encoder\.layer\.\d+\.(intermediate\.dense|output\.(dense|LayerNorm))\.(weight|bias)",
        r"Qformer\.cls\..*",
        # Modules of the training that neither encode nor decode (`blocks` and `pos_embed` reconstruct the queries).
        # Not all of the 146 that the published network does not expect are known by name.
        r"(?!(visual_encoder|ln_vision|query_tokens|Qformer|quantize|(en|de)code_task_layer|pos_embed_image|"
        r"blocks_image|image_down|distill_image_proj)(\.|$)).+",
    ),
)
