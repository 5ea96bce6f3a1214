"""Writing an Orbax checkpoint from tensors that are read by rows: what the trainer saves, without the model in memory.

Orbax asks a type handler to write each leaf of a tree. Ours writes a leaf slab by slab, one slab being a chunk of
the stored array, so that no chunk is written twice and at most a few slabs are in memory. The files are those that
Orbax writes for any array: it restores them on any mesh.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from orbax.checkpoint import future, type_handlers
from tqdm import tqdm

from anygpt_jax.errors import UserError
from anygpt_jax.interop.layout import Leaf, leaves
from anygpt_jax.interop.source import DTYPES, SLAB_BYTES, Source, Tensor
from anygpt_jax.training import checksums, folders

CHUNK_BYTES = 16 << 20  # a chunk that is read alone when a host restores its shard


@dataclasses.dataclass(frozen=True)
class StreamedLeaf:
    """A parameter of ours, made of theirs when it is written: one tensor, or one a layer."""

    leaf: Leaf
    tensors: tuple[Tensor, ...]
    dtype: np.dtype

    @property
    def slab_shape(self) -> tuple[int, ...]:
        """What is written at once: several layers, or a part of one along the leaf's axis."""
        shape, axis = self.leaf.shape, self.leaf.axis
        whole = math.prod(shape) * self.dtype.itemsize
        if whole <= SLAB_BYTES:
            layers = (_divisor(self.leaf.layers, SLAB_BYTES // whole),) if self.leaf.layers else ()
            return (*layers, *shape)
        steps = _divisor(shape[axis], max(1, shape[axis] * SLAB_BYTES // whole))
        slab = (*shape[:axis], steps, *shape[axis + 1 :])
        return (1, *slab) if self.leaf.layers else slab

    def slabs(self) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
        """(where, values) over the whole array, in ours' layout and dtype."""
        leaf = self.leaf
        steps = self.slab_shape[leaf.axis + bool(leaf.layers)]
        layers = self.slab_shape[0] if leaf.layers else 1
        everything = (slice(None),) * leaf.axis
        for first in range(0, len(self.tensors), layers):
            for start in range(0, leaf.shape[leaf.axis], steps):
                stop = min(start + steps, leaf.shape[leaf.axis])
                parts = [
                    leaf.to_ours(tensor.rows(start * leaf.unit, stop * leaf.unit))
                    for tensor in self.tensors[first : first + layers]
                ]
                where = (*everything, slice(start, stop))
                if leaf.layers:
                    yield (slice(first, first + len(parts)), *where), np.stack(parts).astype(self.dtype, copy=False)
                else:
                    yield where, parts[0].astype(self.dtype, copy=False)


def _divisor(n: int, limit: int) -> int:
    """The largest divisor of n up to `limit`, so that slabs tile the array; the limit if all are far below it."""
    best = next(d for d in range(max(1, min(n, limit)), 0, -1) if n % d == 0)
    return best if 4 * best >= min(n, limit) else min(n, limit)


class StreamedHandler(type_handlers.TypeHandler):
    """Writes `StreamedLeaf`s one after another. It never reads: Orbax restores what it wrote as ordinary arrays."""

    def __init__(self, progress: tqdm):
        self._progress = progress

    def typestr(self) -> str:
        """That of ordinary arrays. Orbax keeps it beside each leaf and chooses by it what restores the leaf."""
        return type_handlers.ArrayHandler().typestr()

    async def serialize(
        self,
        values: Sequence[StreamedLeaf],
        infos: Sequence[type_handlers.ParamInfo],
        args: Sequence[type_handlers.SaveArgs] | None = None,
    ) -> Sequence[Any]:
        """One future, done when all leaves are written. `args` is not asked: chunks have `CHUNK_BYTES`."""
        return [future.CommitFutureAwaitingContractedSignals(self._write(values, infos), name="streamed_leaves")]

    async def _write(self, values: Sequence[StreamedLeaf], infos: Sequence[type_handlers.ParamInfo]) -> None:
        for value, info in zip(values, infos, strict=True):
            await info.await_path_creation()
            spec = type_handlers.get_json_tspec_write(
                info,
                use_ocdbt=bool(info.is_ocdbt_checkpoint),
                global_shape=value.leaf.full_shape,
                local_shape=value.slab_shape,
                dtype=value.dtype,
                process_index=jax.process_index(),
                arg=type_handlers.SaveArgs(chunk_byte_size=CHUNK_BYTES),
            )
            array = await ts.open(ts.Spec(spec), create=True, open=True, context=info.ts_context)
            for where, values_here in value.slabs():
                await array[where].write(values_here)
                self._progress.update(values_here.nbytes)

    async def deserialize(self, infos: Any, args: Any = None) -> Any:
        """Always NotImplementedError."""
        raise NotImplementedError("streamed leaves are restored as arrays")

    async def metadata(self, infos: Any) -> Any:
        """Always NotImplementedError."""
        raise NotImplementedError("streamed leaves are restored as arrays")


def _parameter_tree(source: Source, dtype: str) -> dict[str, Any]:
    """The decoder's parameters as `StreamedLeaf`s, nested as its state is."""
    tree: dict[str, Any] = {}
    for leaf in leaves(source.model):
        streamed = StreamedLeaf(leaf, tuple(source.tensors[name] for name in leaf.names()), DTYPES[dtype])
        node = tree
        for key in leaf.path[:-1]:
            node = node.setdefault(key, {})
        node[leaf.path[-1]] = streamed
    return tree


# What the numbers depend on; how they are computed is the run's own choice.
SHAPE = (
    "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff", "rope_theta", "norm_eps", "tied_embeddings",
    "qk_norm",
)  # fmt: skip


def _run_config(source: Source, dtype: str, multiple: int) -> dict[str, Any]:
    """The config that `restore_model` and the trainer read beside the weights."""
    model = {name: getattr(source.model, name) for name in SHAPE}
    model |= {"vocab_multiple": multiple, "param_dtype": dtype, "compute_dtype": dtype}
    if source.model.rope_scaling is not None:
        model["rope_scaling"] = dataclasses.asdict(source.model.rope_scaling)
    return {"kind": "decoder", "model": model, "converted_from": source.path.name, "context": source.context}


def save(source: Source, directory: pathlib.Path, dtype: str, multiple: int) -> None:
    """Writes checkpoint 0 into `directory`, whole or not at all. UserError if there is one already."""
    if folders.final_steps(folders.absolute(directory)):
        raise UserError(f"{directory} holds checkpoints already; name an empty folder with --to.")
    nbytes = sum(math.prod(leaf.full_shape) for leaf in leaves(source.model)) * DTYPES[dtype].itemsize
    with tqdm(total=nbytes, unit="B", unit_scale=True, desc="writing", disable=None) as progress:
        registry = type_handlers.create_type_handler_registry(
            (StreamedLeaf, StreamedHandler(progress)), (jax.Array, type_handlers.ArrayHandler())
        )
        writing = folders.temporary(folders.absolute(directory) / "0").get()
        manager = ocp.CheckpointManager(
            directory.absolute(),
            item_handlers={
                "params": ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
                "config": ocp.JsonCheckpointHandler(),
                "vocabulary": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                create=True,
                cleanup_tmp_directories=True,
                save_root_metadata=False,
                async_options=ocp.AsyncOptions(post_finalization_callback=lambda: checksums.write(writing)),
            ),
        )
        try:
            manager.save(
                0,
                args=ocp.args.Composite(
                    params=ocp.args.PyTreeSave(_parameter_tree(source, dtype)),
                    config=ocp.args.JsonSave(_run_config(source, dtype, multiple)),
                    vocabulary=ocp.args.JsonSave(json.loads(source.vocabulary.to_json())),
                ),
                custom_metadata={"checksums": True},
            )
            manager.wait_until_finished()
        finally:
            manager.close()
    write_files(source.tokenizer, directory / "tokenizer")


def write_files(files: Mapping[str, bytes], directory: pathlib.Path) -> None:
    """Contents by file name → files in a folder, which is made if there are any; what has their names is replaced."""
    if files:
        directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
