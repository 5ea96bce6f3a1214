"""Keys and values of the positions a sequence has already seen."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from anygpt_jax.model.config import ModelConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Slot s of a sequence holds position s. A slot beyond the current position may hold junk: it is
    overwritten before it is attended.

    The layout [layers, B, S, G, K], carried through the layers' scan, lets XLA update it in place: as the
    scan's inputs and outputs it would be copied whole at every token.
    """

    keys: Float[Array, "layers B S G K"]
    values: Float[Array, "layers B S G K"]

    @property
    def length(self) -> int:
        return self.keys.shape[2]


def init_cache(config: ModelConfig, batch: int, length: int) -> KVCache:
    """An empty cache for `batch` sequences of at most `length` positions, in the compute dtype."""
    shape = (config.n_layers, batch, length, config.n_kv_heads, config.head_dim)
    return KVCache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))
