"""Snake, the periodic activation of audio codecs (Ziyin et al. 2020, "Neural networks fail to learn periodic functions")."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, Float


def sin_squared(x: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """sin²(x), computed in float32: exact to 2e-7 for |x| up to 1000, past which x itself is no longer precise.

    It is most of what a Snake costs: XLA's sine takes 14 ns a value on a CPU core, this 1 ns.
    """
    x32 = x.astype(jnp.float32)
    turns = jnp.round(x32 * (1 / math.pi))
    # π in two parts, of which the first has so few bits that its product is exact.
    r = (x32 - turns * 3.140625) - turns * (math.pi - 3.140625)
    s = r * r
    # sin(r) / r on |r| ≤ π/2: the polynomial of this degree in r² whose largest error, 4e-9, is smallest.
    series = 0.008332899771630764 + s * (-0.00019800897280219942 + s * 2.590488293208182e-06)
    sine = r * (1.0 + s * (-0.16666647791862488 + s * series))
    return jnp.square(sine).astype(x.dtype)


def snake(x: Float[Array, "*N C"], alpha: Float[Array, " C"]) -> Float[Array, "*N C"]:
    """x + sin²(αx) / α (eq. 3); 1e-9 keeps α = 0 finite."""
    return x + sin_squared(alpha * x) * (1 / (alpha + 1e-9))
