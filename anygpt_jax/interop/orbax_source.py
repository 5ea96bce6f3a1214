"""A checkpoint of ours as a source: its parameters by rows, in Hugging Face's names and layout.

Adapters (`model/lora.py`) are merged as the rows are read: what comes out has none.
"""

from __future__ import annotations

import json
import pathlib

import numpy as np
import tensorstore as ts
from orbax.checkpoint import type_handlers

from anygpt_jax.errors import UserError
from anygpt_jax.interop.layout import Leaf, leaves
from anygpt_jax.interop.source import Source, Tensor
from anygpt_jax.model import lora
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.training.checkpoints import Checkpoints


def checkpoints_in(path: pathlib.Path) -> pathlib.Path | None:
    """`path`, or its checkpoints/, if that is where checkpoints are."""
    for folder in (path, path / "checkpoints"):
        if any(folder.glob("[0-9]*/_CHECKPOINT_METADATA")):
            return folder
    return None


def open_checkpoints(folder: pathlib.Path, *, step: int | None = None, ema: bool = False) -> Source:
    """The newest whole checkpoint, or that of `step`; with `ema` the average of its weights.

    Its embedding may have more rows than the vocabulary: padding. UserError if there is no such checkpoint.
    """
    item = "ema" if ema else "params"
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        step = checkpoints.newest_whole([item]) if step is None else step
        if step is None:
            raise UserError(f"{folder} holds no whole checkpoint; name another one.")
        checkpoints.require_whole(step, [item])
        about = checkpoints.description(step)
    finally:
        checkpoints.close()
    config, vocabulary = about.config, about.vocabulary
    model = ModelConfig.from_config(config["model"], vocabulary)
    params = folder.absolute() / str(step) / item
    layout = json.loads((params / "_METADATA").read_text(encoding="utf-8"))
    context = type_handlers.get_ts_context(use_ocdbt=layout["use_ocdbt"])

    def array(path: tuple[str, ...]) -> ts.TensorStore:
        info = type_handlers.ParamInfo(
            name=".".join(path), parent_dir=params, use_zarr3=layout["use_zarr3"], ts_context=context
        )
        spec = type_handlers.get_json_tspec_read(info, use_ocdbt=layout["use_ocdbt"])
        return ts.open(ts.Spec(spec), open=True, read=True, context=context).result()

    tensors = {}
    for leaf in leaves(model):
        stored, name = array(leaf.path), leaf.path[-1]
        beside = [array(("blocks", name + part)) for part in (lora.A, lora.B)] if name in model.adapted else []
        for i, their_name in enumerate(leaf.names()):
            tensor = _tensor(stored[i] if leaf.layers else stored, leaf)
            if beside:
                a, b = (part[i].read().result() for part in beside)
                tensor = _merged(tensor, leaf, a, model.lora_alpha / model.lora_rank * b)
            tensors[their_name] = tensor
    files = folder / "tokenizer"
    tokenizer = {f.name: f.read_bytes() for f in sorted(files.iterdir())} if files.is_dir() else {}
    positions = config.get("context", 0) or config.get("train", {}).get("seq_len", 0)
    return Source(folder, lora.without(model), tensors, vocabulary, tokenizer, positions)


def _tensor(stored: ts.TensorStore, leaf: Leaf) -> Tensor:
    def rows(start: int, stop: int) -> np.ndarray:
        where = (*(slice(None),) * leaf.axis, slice(start // leaf.unit, stop // leaf.unit))
        return leaf.to_theirs(stored[where].read().result())

    return Tensor(leaf.their_shape, np.dtype(stored.dtype.numpy_dtype), rows, leaf.unit)


def _merged(tensor: Tensor, leaf: Leaf, a: np.ndarray, b: np.ndarray) -> Tensor:
    """`tensor` + A · B, float32: A [*in, rank] and B [rank, *out] of one layer."""

    def rows(start: int, stop: int) -> np.ndarray:
        change = lora.increase(a, b[:, start // leaf.unit : stop // leaf.unit], 1.0)
        return tensor.rows(start, stop).astype(np.float32) + leaf.to_theirs(change)

    return Tensor(tensor.shape, np.dtype(np.float32), rows, tensor.unit)
