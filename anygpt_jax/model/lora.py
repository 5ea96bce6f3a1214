"""Low-rank adapters (LoRA, arXiv 2106.09685): x · W + alpha / rank · (x · A) · B, beside matrices of a layer.

A is [*in, rank] and B [rank, *out], B zero at first, so that a fresh adapter changes nothing. They are float32 whatever
the weights are: the weights do not change, and adapters take next to no memory. Merged, they are gone: W + alpha / rank · A · B.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from anygpt_jax.model.config import ModelConfig

Matrix = TypeVar("Matrix", jax.Array, np.ndarray)

A, B = "_lora_a", "_lora_b"  # after the name of the matrix they stand beside


def contracted(name: str) -> int:
    """How many axes of a layer's matrix the input has."""
    return 2 if name == "o" else 1


def adapter(w: nnx.Param, name: str, config: ModelConfig, rngs: nnx.Rngs) -> tuple[nnx.Param, nnx.Param]:
    """A and B for one layer's matrix, cut over the mesh as its own axes are."""
    n, axes = contracted(name), w.get_metadata("axes")
    into, out = w.shape[:n], w.shape[n:]
    a = math.prod(into) ** -0.5 * jax.random.normal(rngs.params(), (*into, config.lora_rank), jnp.float32)
    b = jnp.zeros((config.lora_rank, *out), jnp.float32)
    return nnx.Param(a, axes=(*axes[:n], None)), nnx.Param(b, axes=(None, *axes[n:]))


def adapted(x: Array, a: nnx.Param, b: nnx.Param, config: ModelConfig) -> Array:
    """alpha / rank · (x · A) · B in the compute dtype: x [B, L, *in] → [B, L, *out]."""
    into, rank, out = math.prod(a.shape[:-1]), b.shape[0], b.shape[1:]
    scale = config.lora_alpha / rank
    low = x.reshape(-1, into) @ a[...].astype(config.dtype).reshape(into, rank)
    high = (scale * low) @ b[...].astype(config.dtype).reshape(rank, -1)
    return high.reshape(*x.shape[:2], *out)


def increase(a: Matrix, b: Matrix, scale: float) -> Matrix:
    """What merging adds to a matrix: A [*in, R], B [R, *out] → [*in, *out], of NumPy or JAX."""
    rank = b.shape[0]
    product = scale * (a.reshape(-1, rank) @ b.reshape(rank, -1))
    return product.reshape(*a.shape[:-1], *b.shape[1:])


def without(config: ModelConfig) -> ModelConfig:
    """The model whose adapters are merged."""
    return dataclasses.replace(config, lora_rank=0)


def merged(params: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    """Parameters of `without(config)` that compute the same, each in its dtype, from those of `config`."""
    if not config.adapted:
        return params
    blocks = {name: w for name, w in params["blocks"].items() if not name.endswith((A, B))}
    scale = config.lora_alpha / config.lora_rank
    for name in config.adapted:
        a, b = params["blocks"][name + A], params["blocks"][name + B]
        w = blocks[name]
        change = jax.vmap(lambda a, b: increase(a, b, scale))(a, b)
        blocks[name] = (w.astype(jnp.float32) + change).astype(w.dtype)
    return params | {"blocks": blocks}
