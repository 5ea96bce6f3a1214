"""Matrix products of 8-bit numbers, forward and backward, by qwix: for chips whose matrix units have them.

Every row of the left matrix and every column of the right one has a scale, by its largest magnitude; products are
added up in 32 bits. In the backward pass the incoming gradient is quantized too, and meets the forward pass's own
8-bit operands. Master weights and the optimizer stay as they are.
"""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

# name -> (number format of activations and weights, number format of gradients)
QUANTIZATIONS: dict[str, tuple[Any, Any] | None] = {
    "none": None,
    "int8": (jnp.int8, jnp.int8),
    "fp8": (jnp.float8_e4m3fn, jnp.float8_e5m2),  # gradients need range more than digits (arXiv 2209.05433)
}


def product(x: Float[Array, "N I"], w: Float[Array, "I O"], quantization: str) -> Float[Array, "N O"]:
    """x · w in a number format of `QUANTIZATIONS`, in x's dtype. ImportError without qwix (extra `quantize`)."""
    formats = QUANTIZATIONS[quantization]
    if formats is None:
        return x @ w
    return _qwix_product(*formats)(x, w).astype(x.dtype)


@functools.cache
def _qwix_product(forward: Any, gradient: Any):
    # qwix's public entry rewrites a module's calls by name as they run, which a scan over stacked layers does not
    # go through one by one; this is the function that it puts in their place. The version is pinned.
    from qwix._src.core.dot_general_qt import DotGeneralQtConfig, dot_general_qt

    config = DotGeneralQtConfig(
        lhs_qtype=forward, rhs_qtype=forward, dlhs_grad_qtype=gradient, drhs_grad_qtype=gradient
    )
    return functools.partial(dot_general_qt, dimension_numbers=(((1,), (0,)), ((), ())), config=config)
