"""What the compiler is told besides the program: the same for a run and for its plan."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

# On TPUs gathers and scatters of weights run beside the matrix products instead of before them (the set that
# MaxText's benchmarks name "continuation fusion" and "data parallel overlap").
OVERLAP = {
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
    "xla_enable_async_all_gather": "true",
    "xla_tpu_enable_data_parallel_all_reduce_opt": "true",
    "xla_tpu_data_parallel_opt_different_sized_ops": "true",
}

# Where a matrix is cut over `tensor` too, or over `fsdp` on all devices of 32 or fewer, the compiler would gather it piece by
# piece, and write and read the whole result for every piece: v5p, fsdp=32 × tensor=2, 4.4 s a step instead of 2.8; v5p,
# fsdp=32, 18.9 s instead of 10.5. With replicas (data × fsdp) only the gradients' sums go by pieces, which hides them: v5e,
# data=16 × fsdp=16, 1.22 s, and 1.40 with whole products.
WHOLE_PRODUCTS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


# On CPUs: vectors as wide as the machine's, where XLA takes 256 bits of 512.
CPU = {"xla_cpu_prefer_vector_width": 512}


def compiler_options(mesh: Mesh) -> dict[str, Any]:
    """Of the train step on a mesh."""
    platform = mesh.devices.flat[0].platform
    if platform != "tpu":
        return CPU if platform == "cpu" else {}
    by_pieces = mesh.shape["tensor"] > 1 or mesh.shape["fsdp"] == mesh.size
    return OVERLAP | (WHOLE_PRODUCTS if by_pieces else {})


def keep_compiled(folder: pathlib.Path, train: ml_collections.ConfigDict) -> None:
    """Programs are kept on disk, so that a run that starts again need not compile: `train.compilation_cache`.

    It names a folder, for instance one that all hosts share; "run" is the run's own, `folder`, and "" none.
    """
    where = train.get("compilation_cache", "run")
    where = {True: "run", False: ""}.get(where, where)  # as configs said it before
    if where and not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(folder) if where == "run" else where)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)  # of small ones there are many
