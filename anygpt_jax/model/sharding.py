"""The whole sharding policy: one table from logical axes to the axes of the device mesh."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from anygpt_jax.errors import UserError

# slice: data parallel over slices, whose network is slow (DCN); the others lie within a slice (ICI).
MESH_AXES = ("slice", "data", "fsdp", "context", "tensor")

# The axes over which the layers' weights are whole: every index along them is a replica with rows of its own, and
# replicas meet once a step, when their gradients are summed.
REPLICAS = ("slice", "data")
BATCH_AXES = (*REPLICAS, "fsdp")  # the axes that cut a batch

# logical axis -> mesh axis (or axes). What is not named here is replicated.
RULES: dict[str, str] = {
    "batch": "fsdp",
    "length": "context",
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
}


def _grid(shape: tuple[int, ...], devices: Sequence[jax.Device], split: bool) -> np.ndarray:
    """Devices by MESH_AXES; slices along the first axis if there are several. `split` allows parts of a dimension."""
    if shape[0] > 1 and len({getattr(device, "slice_index", 0) for device in devices}) > 1:
        within, across = (1, *shape[1:]), (shape[0], *[1] * (len(shape) - 1))
        return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=split)
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=split)


def mesh_shape(axes: Mapping[str, int]) -> dict[str, int]:
    """The size of every axis; one that is not named has 1."""
    return {axis: int(axes.get(axis, 1)) for axis in MESH_AXES}


def mesh_problems(axes: Mapping[str, int], devices: int) -> list[str]:
    """What is wrong with a config's mesh on so many devices, a sentence each."""
    shape = mesh_shape(axes)
    found = [f"Unknown mesh axis '{axis}'; the mesh has {', '.join(MESH_AXES)}." for axis in set(axes) - set(MESH_AXES)]
    found += [f"mesh.{axis}={size} must be at least 1." for axis, size in shape.items() if size < 1]
    wanted = math.prod(shape.values())
    if wanted > devices:
        found.append(f"The mesh {shape} needs {wanted} devices and there are {devices}; change config.mesh.")
    return found


def make_mesh(axes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of the first slice × data × fsdp × context × tensor devices. UserError if there are too few.

    Devices of a TPU are ordered so that the inner axes' neighbours are neighbours on the torus.
    """
    devices = list(jax.devices() if devices is None else devices)
    problems = mesh_problems(axes, len(devices))
    if problems:
        raise UserError("\n".join(problems))
    shape = tuple(mesh_shape(axes).values())
    wanted = math.prod(shape)
    # Axes that are whole dimensions of the torus keep its rings; any other divisor shape splits one.
    try:
        grid = _grid(shape, devices[:wanted], split=False)
    except NotImplementedError:
        grid = _grid(shape, devices[:wanted], split=True)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def spec(axes: tuple[str | None, ...], ndim: int | None = None) -> P:
    """The partition of an array with these logical axes; leading axes without a name (stacked layers) stay whole."""
    unnamed = 0 if ndim is None else ndim - len(axes)
    return P(*[None] * unnamed, *[RULES.get(axis) if axis else None for axis in axes])


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Fixes an activation's layout under the active mesh (`jax.set_mesh`); without one it does nothing."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes))


def param_shardings(params: Any, mesh: Mesh) -> Any:
    """The sharding in a step of every nnx.Param of a (possibly abstract) nnx.State, as a pure nested dict.

    Every Param names its logical axes in its metadata `axes`.
    """

    def walk(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {key: walk(child) for key, child in node.items()}
        return NamedSharding(mesh, spec(node.get_metadata("axes"), len(node.shape)))

    return walk(params)


def between_steps(shapes: Any, shardings: Any) -> Any:
    """Shardings of the parameters and the optimizer's state while no step uses them: cut over `data` as well.

    Along the first divided axis that divides further, since a part of the leading axes is one piece of memory;
    a parameter of which none does stays as it is.
    """

    def one(x: jax.ShapeDtypeStruct, sharding: NamedSharding) -> NamedSharding:
        mesh, partition = sharding.mesh, list(sharding.spec)
        for i, axis in enumerate(partition):
            if axis and x.shape[i] % (mesh.shape[axis] * mesh.shape["data"]) == 0:
                partition[i] = (axis, "data")
                break
        return NamedSharding(mesh, P(*partition))

    return jax.tree.map(one, shapes, shardings)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Arrays [B, L]: rows over the replicas and within each, positions over the context axis."""
    return NamedSharding(mesh, P(BATCH_AXES, "context"))


def rows_by_replica(batch: Any, mesh: Mesh, parts: int) -> Any:
    """Arrays [B, L] as [parts, replicas, B / (parts · replicas), L]. Every part takes rows of every device."""
    replicas = math.prod(mesh.shape[axis] for axis in REPLICAS)
    rows_on = NamedSharding(mesh, P(None, REPLICAS, *spec(("batch", "length"))))

    def one(x: jax.Array) -> jax.Array:
        split = x.reshape(replicas, -1, parts, *x.shape[1:])
        return jax.lax.with_sharding_constraint(jnp.moveaxis(split, 2, 0), rows_on)

    return jax.tree.map(one, batch)


def by_replica(function: Callable) -> Callable:
    """`function(weights, rows)` on every replica's rows [replicas, …]; its results with a leading axis of replicas.

    What it returns is not summed over the replicas, so that within a loop over layers they need not talk.
    """
    on_all = jax.vmap(function, in_axes=(None, 0), spmd_axis_name=REPLICAS)

    def call(weights: Any, rows: Any) -> Any:
        if jax.tree.leaves(rows)[0].shape[0] > 1:
            return on_all(weights, rows)
        # XLA on CPUs copies the stacked gradients once more for a map over one.
        return jax.tree.map(lambda x: x[None], function(weights, jax.tree.map(lambda x: x[0], rows)))

    return call


def sum_within_slices(x: Any, shardings: Any, mesh: Mesh) -> Any:
    """Sums [replicas, …] over the replicas of each slice, laid out as `shardings` say of a sum: [slices, …].

    Slices are another network, where sums wait until the end of a step.
    """

    def one(x: jax.Array, sharding: NamedSharding) -> jax.Array:
        summed = x.reshape(mesh.shape["slice"], -1, *x.shape[1:]).sum(1)
        return jax.lax.with_sharding_constraint(summed, NamedSharding(mesh, P("slice", *sharding.spec)))

    return jax.tree.map(one, x, shardings)


def like_params(tree: Any, shardings: Any, mesh: Mesh) -> Any:
    """Shardings for a tree that holds copies of the parameters (an optimizer's state): a leaf whose path ends
    in a parameter's path lies where that parameter lies, everything else is replicated."""
    by_path = {path: sharding for path, sharding in jax.tree_util.tree_leaves_with_path(shardings)}
    longest = max(map(len, by_path))

    def one(path: tuple, leaf: Any) -> NamedSharding:
        found = (by_path.get(path[-n:]) for n in range(longest, 0, -1))
        sharding = next((s for s in found if s is not None and len(s.spec) <= len(leaf.shape)), None)
        return sharding or NamedSharding(mesh, P())

    return jax.tree_util.tree_map_with_path(one, tree)
