"""The optimizer and its schedule, by name."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from optax.contrib import MuonDimensionNumbers, muon

from anygpt_jax.errors import UserError

# The hidden matrices that Muon orthogonalizes, stacked over layers (axis 0): which axes a matrix reduces
# over and which it writes. Everything else (embeddings, head, norms) is AdamW's.
MUON_MATRICES = {
    "q": MuonDimensionNumbers((1,), (2, 3)),
    "k": MuonDimensionNumbers((1,), (2, 3)),
    "v": MuonDimensionNumbers((1,), (2, 3)),
    "o": MuonDimensionNumbers((1, 2), (3,)),
    "gate": MuonDimensionNumbers((1,), (2,)),
    "up": MuonDimensionNumbers((1,), (2,)),
    "down": MuonDimensionNumbers((1,), (2,)),
}


def make_schedule(train: ml_collections.ConfigDict) -> optax.Schedule:
    """Linear warm-up from zero, then linear or cosine decay to zero at `train.steps`."""
    after = max(train.steps - train.warmup_steps, 1)
    if train.schedule == "linear":
        decay = optax.linear_schedule(train.learning_rate, 0.0, after)
    elif train.schedule == "cosine":
        decay = optax.cosine_decay_schedule(train.learning_rate, after)
    else:
        raise UserError(f"train.schedule '{train.schedule}' must be linear or cosine.")
    if not train.warmup_steps:
        return decay
    # The step before the first has rate 0, so that the first one already learns.
    warmup = optax.linear_schedule(
        train.learning_rate / train.warmup_steps, train.learning_rate, train.warmup_steps - 1
    )
    return optax.join_schedules([warmup, decay], [train.warmup_steps])


def _leaf_name(path: tuple) -> str:
    return str(path[-1].key)


def decayed(params: Any) -> Any:
    """True for matrices, False for the scales of norms."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not _leaf_name(path).endswith("norm"), params)


def muon_matrices(params: Any) -> Any:
    """The dimension numbers of every parameter; None for those that AdamW updates."""
    return jax.tree_util.tree_map_with_path(lambda path, _: MUON_MATRICES.get(_leaf_name(path)), params)


def clip_by_global_norm(largest: float) -> optax.GradientTransformation:
    """Gradients scaled down, if need be, to this norm over all of them (arXiv 1211.5063).

    As one factor for all: XLA computes the quotient of `optax.clip_by_global_norm` into memory, since both
    moments read it, a product it takes into the loops that read it.
    """

    def update(gradients: Any, _: Any) -> Any:
        factor = jnp.minimum(1.0, largest / optax.global_norm(gradients))
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), gradients)

    return optax.stateless(update)


def make_optimizer(train: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW; or Muon for the hidden matrices and AdamW for the rest.

    Muon's updates are scaled to AdamW's usual root mean square (0.2; arXiv 2502.16982), so that one
    learning rate serves both.
    """
    schedule = make_schedule(train)
    name = train.get("optimizer", "adamw")
    if name == "adamw":
        update = optax.adamw(schedule, train.beta1, train.beta2, weight_decay=train.weight_decay, mask=decayed)
    elif name == "muon":
        update = muon(
            schedule,
            beta=0.95,
            consistent_rms=0.2,
            weight_decay=train.weight_decay,
            weight_decay_mask=decayed,
            adam_b1=train.beta1,
            adam_b2=train.beta2,
            adam_weight_decay=train.weight_decay,
            muon_weight_dimension_numbers=muon_matrices,
        )
    else:
        raise UserError(f"train.optimizer '{name}' must be adamw or muon.")
    clip = clip_by_global_norm(train.clip_norm) if train.clip_norm else optax.identity()
    return optax.chain(clip, update)
