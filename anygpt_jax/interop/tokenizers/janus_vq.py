"""Janus' and LlamaGen's image VQ → `codecs.janus_vq`: of transformers, of DeepSeek's or LlamaGen's own files.

A file with the whole of Janus serves as well: its language model and vision encoder are ignored.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from flax import nnx

from anygpt_jax.errors import UserError
from anygpt_jax.interop.tokenizers.kinds import Kind
from anygpt_jax.interop.tokenizers.rules import Layout, mirrored, same
from anygpt_jax.modalities.codecs.janus_vq import JanusVQSettings, build

# The VQ by itself; within transformers' Janus, in two of its forms; within DeepSeek's.
PREFIXES = ("", "model.vqmodel.", "vqmodel.", "gen_vision_model.")
# Ours → transformers', and ours → LlamaGen's.
TRANSFORMERS = (
    (r"^before_quantizer", "quant_conv"),
    (r"^after_quantizer", "post_quant_conv"),
    (r"^encoder\.levels\.(\d+)\.resample$", r"encoder.down.\1.downsample.conv"),
    (r"^decoder\.levels\.(\d+)\.resample\.", r"decoder.up.\1.upsample."),
    (r"^encoder\.levels", "encoder.down"),
    (r"^decoder\.levels", "decoder.up"),
    (r"\.resnets\.", ".block."),
    (r"\.attentions\.", ".attn."),
    (r"\.mid\.before", ".mid.block_1"),
    (r"\.mid\.attention", ".mid.attn_1"),
    (r"\.mid\.after", ".mid.block_2"),
    (r"\.shortcut$", ".nin_shortcut"),
    (r"\.out$", ".proj_out"),
)
LLAMAGEN = (
    (r"^before_quantizer", "quant_conv"),
    (r"^after_quantizer", "post_quant_conv"),
    (r"^encoder\.levels\.(\d+)\.resample$", r"encoder.conv_blocks.\1.downsample.conv"),
    (r"^decoder\.levels\.(\d+)\.resample\.", r"decoder.conv_blocks.\1.upsample."),
    (r"\.levels\.", ".conv_blocks."),
    (r"\.resnets\.", ".res."),
    (r"\.attentions\.", ".attn."),
    (r"\.mid\.before", ".mid.0"),
    (r"\.mid\.attention", ".mid.1"),
    (r"\.mid\.after", ".mid.2"),
    (r"\.shortcut$", ".nin_shortcut"),
    (r"\.out$", ".proj_out"),
)


def _renamed(path: str, renames: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in renames:
        path = re.sub(pattern, replacement, path)
    return path


def settings(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Of the tensors' shapes alone, since LlamaGen publishes no configuration. UserError if it is no such VQ."""
    prefix = next((p for p in PREFIXES if f"{p}quantize.embedding.weight" in shapes), None)
    if prefix is None:
        raise UserError("There is no quantize.embedding.weight; this is not a checkpoint of Janus' or LlamaGen's VQ.")
    # encoder.down.LEVEL.block.BLOCK.conv1 or encoder.conv_blocks.LEVEL.res.BLOCK.conv1
    pattern = re.compile(
        re.escape(prefix) + r"encoder\.(?:down|conv_blocks)\.(\d+)\.(?:block|res)\.(\d+)\.conv1\.weight"
    )
    convolutions = {(int(m[1]), int(m[2])): shapes[m[0]][0] for m in map(pattern.fullmatch, shapes) if m}
    if not convolutions:
        raise UserError("There are no encoder blocks; this is not a checkpoint of Janus' or LlamaGen's VQ.")
    levels, blocks = (1 + max(at[axis] for at in convolutions) for axis in (0, 1))
    codebook_size, code_width = shapes[f"{prefix}quantize.embedding.weight"]
    latent = shapes.get(f"{prefix}quant_conv.weight", (code_width, 0))[1]
    try:
        widths = tuple(convolutions[level, 0] for level in range(levels))
        return dataclasses.asdict(JanusVQSettings(widths, blocks, latent, codebook_size, code_width))
    except KeyError as e:
        raise UserError(f"The encoder has no block {e}; the checkpoint is not whole.") from e


def layout(settings: Mapping[str, Any]) -> Layout:
    """Each variable under transformers' name, then LlamaGen's, with each of `PREFIXES` in front."""

    def names(path: str) -> tuple[str, ...]:
        return _renamed(path, TRANSFORMERS), _renamed(path, LLAMAGEN)

    made = mirrored(nnx.eval_shape(lambda: build(settings)), names) | {"codebook": same("quantize.embedding.weight")}
    return {path: rule.prefixed(*PREFIXES) for path, rule in made.items()}


KIND = Kind(
    settings=settings,
    build=build,
    layout=layout,
    ignored=(
        r"(gen_vision_model\.)?quantize\.codebook_used",
        r"(model\.)?(vision_model|language_model|aligner|generation_embeddings|generation_aligner|generation_head)\..*",
        r"gen_(embed|aligner|head)\..*",
        r"lm_head\..*",
    ),
)
