"""How many floating-point operations training needs, and how many the machine could do.

Convention: model FLOPs a non-padding token are 6·N for the matrices (N counts every parameter that
multiplies, the output head once, the embedding look-up not at all) plus 12·layers·heads·head_dim for each key
the token attends, itself included (forward 4, backward 8). Recomputation and padding count as nothing, and a
parameter that is frozen has no gradient: 4 in the place of 6. Adapters (LoRA) are left out.
"""

from __future__ import annotations

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from anygpt_jax.data.loader import Batch
from anygpt_jax.model.config import ModelConfig

# Dense bfloat16 FLOP/s of one device, from the vendors' data sheets, by what jax calls the device.
PEAK = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


def matrix_parameters(config: ModelConfig) -> int:
    """N: parameters that multiply a token on its way, norms and the embedding look-up left out."""
    D, K = config.d_model, config.head_dim
    attention = D * K * (2 * config.n_heads + 2 * config.n_kv_heads)
    return config.n_layers * (attention + 3 * D * config.d_ff) + D * config.vocab_size


def batch_flops(config: ModelConfig, batch: Batch, frozen: int = 0) -> float:
    """Model FLOPs of one training step on (this process's rows of) a packed batch; `frozen` parameters of N do not change."""
    real = batch["segment_ids"] > 0
    attended = float(np.sum((batch["positions"] + 1) * real))
    attention = 12.0 * config.n_layers * config.n_heads * config.head_dim * attended
    of_matrices = 6.0 * matrix_parameters(config) - 2.0 * min(frozen, matrix_parameters(config))
    return of_matrices * float(real.sum()) + attention


@functools.cache
def peak_flops(devices: int) -> tuple[float, str]:
    """FLOP/s of `devices` devices together, and where the figure comes from."""
    kind = jax.devices()[0].device_kind
    if kind in PEAK:
        return PEAK[kind] * devices, f"{kind} data sheet, bfloat16"
    # A CPU's fake devices share its cores: they are measured as one.
    alone = jax.devices()[0].platform != "cpu"
    size, best = 1024, float("inf")
    matrix = jnp.ones((size, size), jnp.float32)
    multiply = jax.jit(jnp.matmul)
    multiply(matrix, matrix).block_until_ready()
    for _ in range(8):
        begun = time.perf_counter()
        multiply(matrix, matrix).block_until_ready()
        best = min(best, time.perf_counter() - begun)
    rate = 2.0 * size**3 / best * (devices if alone else 1)
    return rate, f"best of 8 float32 matmuls of {size} on {'each' if alone else 'this'} {kind}"
