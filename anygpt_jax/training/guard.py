"""Steps that are not taken: a loss or a gradient that is not finite, or a gradient far larger than usual.

The verdict is one scalar on the device, and every array of the state is chosen by it element by element, in the loops
that would have written it anyway. The host reads what was decided with the step's metrics, one step late.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Bool, Float

from anygpt_jax.errors import UserError

WINDOW = 128  # good steps that the running mean of gradient norms looks back to, about

# {"norm": float32, mean gradient norm of the good steps; int32: "good" steps, "skipped" in all, "in_a_row" now}
GuardState = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class GuardSettings:
    """What is a spike, and how many bad steps in a row send a run back to its newest checkpoint."""

    factor: float  # a gradient norm above so many running means is a spike; 0: spikes are let through
    warmup: int  # good steps before any norm counts as a spike
    patience: int  # bad steps in a row; 0: a run is never sent back


def guard_settings(train: ml_collections.ConfigDict) -> GuardSettings:
    """`train.guard_factor`, `guard_warmup`, `guard_patience`. UserError if one makes no sense."""
    found = GuardSettings(
        float(train.get("guard_factor", 0.0)), int(train.get("guard_warmup", 100)), int(train.get("guard_patience", 10))
    )
    if found.factor and not found.factor > 1:
        raise UserError(f"train.guard_factor={found.factor:g} must be above 1, or 0 to let spikes through.")
    for name in ("warmup", "patience"):
        if getattr(found, name) < 0:
            raise UserError(f"train.guard_{name}={getattr(found, name)} must not be negative.")
    return found


def fresh_guard() -> GuardState:
    """The state before any step: scalars, all zero."""
    return {"norm": jnp.zeros((), jnp.float32)} | {
        name: jnp.zeros((), jnp.int32) for name in ("good", "skipped", "in_a_row")
    }


def judged(
    state: GuardState, loss: Float[Array, ""], norm: Float[Array, ""], settings: GuardSettings
) -> tuple[Bool[Array, ""], GuardState]:
    """Whether a step with this loss and gradient norm is taken, and the guard's state after it."""
    ok = jnp.isfinite(loss) & jnp.isfinite(norm)
    if settings.factor:
        # The first good step of all sets the mean.
        usual = (norm <= settings.factor * state["norm"]) | (state["good"] < max(settings.warmup, 1))
        ok = ok & usual
    good, bad = ok.astype(jnp.int32), (~ok).astype(jnp.int32)
    seen = state["good"] + good
    mean = state["norm"] + (norm.astype(jnp.float32) - state["norm"]) / jnp.clip(seen, 1, WINDOW)
    return ok, {
        "norm": jnp.where(ok, mean, state["norm"]),
        "good": seen,
        "skipped": state["skipped"] + bad,
        "in_a_row": (state["in_a_row"] + bad) * bad,
    }


def chosen(ok: Bool[Array, ""], new: Any, old: Any) -> Any:
    """`new` if `ok`, `old` otherwise. Counters (integers) go on: a learning rate is a function of the step."""

    def one(new: jax.Array, old: jax.Array) -> jax.Array:
        return new if jnp.issubdtype(new.dtype, jnp.integer) else jnp.where(ok, new, old)

    return jax.tree.map(one, new, old)
