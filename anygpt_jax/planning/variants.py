"""The same training elsewhere, or in less memory: the batch of a step stays what it is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import ml_collections

from anygpt_jax.errors import UserError
from anygpt_jax.model.sharding import BATCH_AXES, mesh_shape
from anygpt_jax.planning.accelerators import Accelerator
from anygpt_jax.planning.chips import Topology
from anygpt_jax.planning.estimate import Estimate

STRICTER = ("all_but_mlp", "attention", "full")  # remat policies that are tried, each with less memory than before
# Bytes that a policy keeps of a layer and token follow this order, from the least (model/remat.py).
BY_MEMORY = ("full", "attention", "qkv", "qkv_attention", "all_but_mlp", "mlp", "most", "minimal", "none")
MOST_CHUNKS = 16  # of the logits: beyond, the head's products get too small
MOST_CONTEXT = 8  # parts of a row: beyond, moving keys and values takes longer than attending to them


@dataclasses.dataclass(frozen=True)
class Change:
    """What is set, as on the command line, and what came of it."""

    settings: str
    estimate: Estimate


def mesh_for(topology: Topology, batch_size: int, tensor: int = 1, context: int = 1) -> dict[str, int]:
    """FSDP over a slice, or over one ring of a closed square with replicas beside it; UserError if the rows do not divide.

    Where there are more devices than rows, context grows: positions are cut as well.
    """
    while True:
        left = topology.slice_devices // (tensor * context)
        if left and batch_size % (topology.slices * left) == 0:
            break
        context *= 2
        if context > MOST_CONTEXT:
            raise UserError(
                f"No mesh of {topology.name} × {topology.slices} divides train.batch_size={batch_size}; "
                f"try a multiple of {topology.devices}."
            )
    axes = {"slice": topology.slices, "fsdp": left, "context": context, "tensor": tensor}
    ring = topology.shape[-1]
    if len(topology.shape) == 2 and all(topology.wrap) and left % ring == 0:
        axes |= {"data": left // ring, "fsdp": ring}
    return mesh_shape(axes)


def rows_a_device(config: ml_collections.ConfigDict, mesh: Mapping[str, int]) -> float:
    """That are in memory at once."""
    return config.train.batch_size / math.prod(mesh[axis] for axis in BATCH_AXES) / config.train.microbatches


def on(
    config: ml_collections.ConfigDict, mesh: Mapping[str, int], here: Topology, there: Topology
) -> ml_collections.ConfigDict:
    """The config on another slice: as many rows at once as before, in proportion to the memory; the rest in microbatches."""
    changed = ml_collections.ConfigDict(config.to_dict())
    axes = mesh_for(there, config.train.batch_size, mesh["tensor"], mesh["context"])
    rows = config.train.batch_size // math.prod(axes[axis] for axis in BATCH_AXES)
    room = rows_a_device(config, mesh) * there.chip.hbm / here.chip.hbm
    changed.mesh = ml_collections.ConfigDict(axes)
    changed.train.microbatches = next(
        (parts for parts in range(1, rows + 1) if rows % parts == 0 and rows / parts <= room), rows
    )
    return changed


def lighter(
    config: ml_collections.ConfigDict, mesh: Mapping[str, int]
) -> Iterator[tuple[str, ml_collections.ConfigDict]]:
    """(settings, config), each with less memory and slower than the one before; changes add up.

    First half the rows at once, then stricter remat, then one row at once, then the logits in more parts.
    """
    changed, settings = ml_collections.ConfigDict(config.to_dict()), {}

    def change(key: str, value: object) -> tuple[str, ml_collections.ConfigDict]:
        section, _, name = key.partition(".")
        changed[section][name] = value
        settings[key] = value
        text = " ".join(f"--config.{k}={v}" for k, v in settings.items())
        return text, ml_collections.ConfigDict(changed.to_dict())

    most = config.train.batch_size // math.prod(mesh[axis] for axis in BATCH_AXES)
    parts = config.train.microbatches
    if parts < most and most % (2 * parts) == 0:
        parts *= 2
        yield change("train.microbatches", parts)
    held = config.model.remat
    for policy in STRICTER:
        if held.startswith("offload") or BY_MEMORY.index(policy) < BY_MEMORY.index(held):
            yield change("model.remat", policy)
    if parts < most:
        yield change("train.microbatches", most)
    if config.train.loss_chunks < MOST_CHUNKS and config.train.seq_len % MOST_CHUNKS == 0:
        yield change("train.loss_chunks", MOST_CHUNKS)


def first_that_fits(
    candidates: Iterable[tuple[str, ml_collections.ConfigDict]], plan: Callable[[ml_collections.ConfigDict], Estimate]
) -> tuple[Change | None, tuple[str, ...]]:
    """The first candidate that compiles into the memory, and those before it that did not."""
    tried: list[str] = []
    for settings, config in candidates:
        found = plan(config)
        if found.fits:
            return Change(settings, found), tuple(tried)
        tried.append(settings)
    return None, tuple(tried)


def larger(accelerator: Accelerator) -> Iterator[Accelerator]:
    """The slices of the same kind above this one, the next first."""
    here = accelerator.slice_chips
    for other in accelerator.sizes():
        if other.slice_chips > here:
            yield other
