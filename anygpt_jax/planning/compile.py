"""Compiles the real train step for TPUs that are not there, and remembers the result by the program's hash."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from anygpt_jax.cache import write_atomically
from anygpt_jax.errors import UserError
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.sharding import MESH_AXES, make_mesh
from anygpt_jax.planning.chips import GIB, Topology
from anygpt_jax.training import step as train_step

# So that libtpu looks neither for a TPU nor for a metadata server, says nothing, and shares the machine.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",  # any: it only spares a look-up
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


FORMAT = 2  # of what is stored


@dataclasses.dataclass(frozen=True)
class Memory:
    """What the compiler allocates on one device, bytes."""

    arguments: int = 0  # the state and the batch
    outputs: int = 0
    aliased: int = 0  # outputs that take an argument's place
    temporaries: int = 0  # everything in between, reused buffers once
    program: int = 0
    host: int = 0  # offloaded
    peak: int = 0  # the most that is in use at one time; allocation rounds and fragments

    @property
    def hbm(self) -> int:
        """All that is allocated on the chip: an output in an argument's place counts once, `host` not at all."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.program


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A train step compiled for a topology."""

    key: str  # the program's hash
    text: str  # the optimized program; empty if it does not fit
    memory: Memory
    refused: str  # the compiler's words if it does not fit into HBM, else empty
    seconds: float  # that compiling took
    from_cache: bool
    parameters: int
    state: Mapping[str, int]  # bytes a device: "params", "optimizer"
    whole_state: Mapping[str, int] = dataclasses.field(default_factory=dict)  # bytes of it all, as checkpoints hold it


def compiler_version() -> str:
    """libtpu's version. UserError if it is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "The TPU compiler (libtpu) is not installed; it needs no TPU: "
            "pip install -c constraints/py311.txt -e '.[tpu]' (Linux on x86-64)."
        )
    return importlib.metadata.version("libtpu")


def default_cache() -> pathlib.Path:
    """Where compiled programs are kept: anygpt/plan in $XDG_CACHE_HOME or ~/.cache. It need not be there yet."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "anygpt" / "plan"


def topology_devices(topology: Topology) -> list[jax.Device]:
    """Devices that can be compiled for and nothing else. UserError if the compiler knows no such slice."""
    compiler_version()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(topology.name, platform="tpu", **topology.arguments())
    except jax.errors.JaxRuntimeError as e:
        reason = str(e).splitlines()[0]
        raise UserError(f"The TPU compiler knows no topology {topology.name} ({reason}); try another shape.") from e
    if len(described.devices) != topology.devices:
        raise UserError(
            f"The TPU compiler sees {len(described.devices)} devices in {topology.name} and the table of chips "
            f"{topology.devices}; is libtpu {compiler_version()} the tested one (constraints/)?"
        )
    return list(described.devices)


def mesh_axes(mesh: Mapping[str, int], topology: Topology) -> dict[str, int]:
    """The config's mesh, if it is of this topology's size; a mesh of one device becomes FSDP within every slice."""
    axes = {axis: int(mesh.get(axis, 1)) for axis in MESH_AXES} | {axis: int(n) for axis, n in mesh.items()}
    size = int(np.prod(list(axes.values())))
    if size == 1:
        axes |= {"slice": topology.slices, "fsdp": topology.slice_devices}
    elif size != topology.devices or axes["slice"] != topology.slices:
        given = ", ".join(f"{axis}={n}" for axis, n in axes.items() if n > 1)
        raise UserError(
            f"config.mesh ({given}) is {size} devices in {axes['slice']} slices, {topology.name} × {topology.slices} "
            f"is {topology.devices} in {topology.slices}; set --config.mesh.AXIS so that they agree."
        )
    return axes


def compile_step(
    model: ModelConfig,
    train: ml_collections.ConfigDict,
    mesh: Mapping[str, int],
    modalities: int,
    topology: Topology,
    cache: pathlib.Path | None = None,
) -> Compiled:
    """`training.step.build`'s step on `mesh` (axis → size), compiled for `topology`, or read from `cache`."""
    program = train_step.build(model, train, make_mesh(mesh, topology_devices(topology)), modalities)
    lowered = program.lower_step(train.batch_size, train.seq_len)
    key = _key(lowered, topology, program.compiler_options)
    path = None if cache is None else cache / f"{key}.json.gz"
    stored = _load(path) if path else None
    if stored is None:
        began = time.perf_counter()
        stored = _compile(lowered) | {"seconds": time.perf_counter() - began}
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, gzip.compress(json.dumps(stored).encode(), 6))
        from_cache = False
    else:
        from_cache = True
    state = {part: bytes_on_device(tree) for part, tree in program.abstract_state.items()}
    whole = {part: bytes_of(tree) for part, tree in program.abstract_state.items()}
    memory = Memory(**stored["memory"])
    return Compiled(
        key, stored["text"], memory, stored["refused"], stored["seconds"], from_cache, program.parameters, state, whole
    )


def _compile(lowered: jax.stages.Lowered) -> dict[str, Any]:
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        return {"text": "", "refused": str(e).splitlines()[0], "memory": {"temporaries": _needed(str(e))}}
    stats = compiled.memory_analysis()
    assert stats is not None
    memory = Memory(
        stats.argument_size_in_bytes,
        stats.output_size_in_bytes,
        stats.alias_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.generated_code_size_in_bytes,
        stats.host_temp_size_in_bytes + stats.host_argument_size_in_bytes,
        stats.peak_memory_in_bytes,
    )
    return {"text": compiled.as_text() or "", "refused": "", "memory": dataclasses.asdict(memory)}


def _needed(message: str) -> int:
    """Bytes a refused program wanted, by the compiler's message: `Used 19.61G of 15.75G hbm` or `(300.00G) exceeds`."""
    found = re.search(r"Used ([\d.]+)([KMG]) of", message) or re.search(r"\(([\d.]+)([KMG])\) exceeds", message)
    return int(float(found[1]) * {"K": 2**10, "M": 2**20, "G": GIB}[found[2]]) if found else 0


def _key(lowered: jax.stages.Lowered, topology: Topology, options: Mapping[str, Any]) -> str:
    """SHA-256 of everything that decides the compiled program."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "libtpu")}
    settings = [
        FORMAT,
        topology.name,
        repr(topology.arguments()),
        sorted(options.items()),
        sorted(versions.items()),
    ]
    return hashlib.sha256((json.dumps(settings) + lowered.as_text()).encode()).hexdigest()


def _load(path: pathlib.Path) -> dict[str, Any] | None:
    return json.loads(gzip.decompress(path.read_bytes())) if path.is_file() else None


def bytes_on_device(tree: Any) -> int:
    """Of the part that each device holds of abstract arrays with shardings."""
    return sum(int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def bytes_of(tree: Any) -> int:
    """Of abstract arrays, whole."""
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
