"""A matrix by outputs, [out, in], in float or in 8 bits: what `decode_weights` makes of a layer's matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int8

FEWEST_ROWS = 2  # XLA on CPUs has fast products of 8-bit numbers for matrices, not for one row
_BY_OUTPUTS = (((1,), (1,)), ((), ()))  # the contraction of [N, in] and [out, in]


class Transposed(nnx.Module):
    """rows [out, in]; with 8 bits, `scales` float32 [out]: the matrix is rows · scales."""

    def __init__(self, w: Float[Array, "*in_and_out"], axes: Sequence[str | None], contracted: int, int8: bool):
        """Of a matrix [*in, *out] with these logical axes, whose first `contracted` ones are summed over."""
        into, self.shape = w.shape[:contracted], w.shape[contracted:]
        rows = w.reshape(math.prod(into), math.prod(self.shape)).T
        out_axis, in_axis = axes[contracted], axes[0]  # what is cut is the first of several
        if int8:
            rows, scales = quantized(rows)
            self.scales = nnx.Param(scales, axes=(out_axis,))
        self.int8 = int8
        self.rows = nnx.Param(rows, axes=(out_axis, in_axis))

    def product(self, x: Float[Array, "N in"], dtype: Any = None) -> Float[Array, "N out"]:
        """x · rowsᵀ in `dtype`, by default x's. With 8 bits x is quantized too, and what is added up is int32."""
        dtype = x.dtype if dtype is None else dtype
        if not self.int8:
            # As rows · xᵀ, which XLA would turn round: its products for CPUs are up to 1.8 times faster with the
            # larger matrix first. The barrier keeps them so.
            return jax.lax.optimization_barrier(
                jax.lax.dot_general(self.rows[...], x, _BY_OUTPUTS, preferred_element_type=dtype)
            ).T
        n = x.shape[0]
        values, scales = quantized(jnp.pad(x, ((0, max(FEWEST_ROWS - n, 0)), (0, 0))))
        sums = jax.lax.dot_general(values, self.rows[...], _BY_OUTPUTS, preferred_element_type=jnp.int32)
        return (sums.astype(jnp.float32) * scales[:, None] * self.scales[...])[:n].astype(dtype)


def quantized(x: Float[Array, "*rows D"]) -> tuple[Int8[Array, "*rows D"], Float[Array, "*rows"]]:
    """Integers -127..127 and a float32 scale a row, its largest magnitude / 127.

    x ≈ integers · scale, nowhere more than half a scale off, but for float32's own rounding.
    """
    x = x.astype(jnp.float32)
    scales = jnp.maximum(jnp.max(jnp.abs(x), axis=-1) / 127, jnp.finfo(jnp.float32).tiny)
    return jnp.round(x * (1 / scales[..., None])).astype(jnp.int8), scales
