"""What the compiler is told besides the program: the same for a run and for its plan."""

from __future__ import annotations

import jax

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


def compiler_options(device: jax.Device) -> dict[str, str]:
    """Of the train step on such devices; none on anything but TPUs."""
    return dict(OVERLAP) if device.platform == "tpu" else {}
