"""The exponential moving average of the parameters: smoother than the last ones, for evaluation and generation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from anygpt_jax.errors import UserError


def ema_decay(train: ml_collections.ConfigDict) -> float:
    """`train.ema_decay` a step; 0 is no average. UserError if it is none between 0 and 1."""
    decay = float(train.get("ema_decay") or 0.0)
    if not 0 <= decay < 1:
        raise UserError(f"train.ema_decay={decay:g} must be below 1, and 0 for none.")
    return decay


def averaged(ema: Any, params: Any, decay: float) -> Any:
    """decay · ema + (1 - decay) · params in float32, written so that what does not change does not change here."""
    return jax.tree.map(lambda e, p: e + (1 - decay) * (p.astype(jnp.float32) - e), ema, params)
