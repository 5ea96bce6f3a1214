"""Keys and values of the positions a sequence has already seen."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int8

from anygpt_jax.errors import UserError
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.sharding import spec
from anygpt_jax.model.transposed import quantized


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Slot s of a sequence holds position s. A slot beyond the current position may hold junk: it is
    overwritten before it is attended.

    The layout [layers, B, S, G, K], carried through the layers' scan, lets XLA update it in place: as the
    scan's inputs and outputs it would be copied whole at every token.

    In 8 bits a key or value is its integers times a scale, `quantized`'s. Slots are the scales' last axis: on a TPU
    a last axis takes 128 places however short it is.
    """

    keys: Float[Array, "layers B S G K"] | Int8[Array, "layers B S G K"]
    values: Float[Array, "layers B S G K"] | Int8[Array, "layers B S G K"]
    key_scales: Float[Array, "layers B G S"] | None = None  # float32; None: keys and values are floats
    value_scales: Float[Array, "layers B G S"] | None = None

    @property
    def length(self) -> int:
        """Slots of a sequence, S: the most positions it may have."""
        return self.keys.shape[2]

    def written(
        self,
        layer: int | Int[Array, ""],
        rows: Int[Array, " B"],
        positions: Int[Array, "B T"],
        keys: Float[Array, "B T G K"],
        values: Float[Array, "B T G K"],
    ) -> KVCache:
        """The cache with these of one layer. A row or position that it does not have is left out."""
        at = (layer, rows[:, None], positions)
        if self.key_scales is None or self.value_scales is None:
            return KVCache(self.keys.at[at].set(keys, mode="drop"), self.values.at[at].set(values, mode="drop"))
        heads = (layer, rows[:, None, None], jnp.arange(keys.shape[2]), positions[:, :, None])
        (k, k_scales), (v, v_scales) = quantized(keys), quantized(values)
        return KVCache(
            self.keys.at[at].set(k, mode="drop"),
            self.values.at[at].set(v, mode="drop"),
            self.key_scales.at[heads].set(k_scales, mode="drop"),
            self.value_scales.at[heads].set(v_scales, mode="drop"),
        )

    def layer(
        self, layer: int | Int[Array, ""], rows: Int[Array, " B"] | None, length: int
    ) -> tuple[Array, Array, Array | None, Array | None]:
        """Keys, values [B, length, G, K] and their scales [B, G, length] or None, of some rows or of all."""
        these = slice(None) if rows is None else rows
        k_scales, v_scales = (
            None if x is None else x[layer, these, :, :length] for x in (self.key_scales, self.value_scales)
        )
        return self.keys[layer, these, :length], self.values[layer, these, :length], k_scales, v_scales


def init_cache(config: ModelConfig, batch: int, length: int, dtype: str | None = None) -> KVCache:
    """An empty cache for `batch` sequences of at most `length` positions, in the compute dtype, or in "int8"."""
    shape = (config.n_layers, batch, length, config.n_kv_heads, config.head_dim)
    if dtype is None:
        return KVCache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))
    if dtype != "int8":
        raise UserError(f"A cache is in the compute dtype (None) or in int8, not in '{dtype}'.")
    layers, batch, length, heads, _ = shape
    return KVCache(
        jnp.zeros(shape, jnp.int8),
        jnp.zeros(shape, jnp.int8),
        jnp.zeros((layers, batch, heads, length), jnp.float32),
        jnp.zeros((layers, batch, heads, length), jnp.float32),
    )


def cache_specs(cache: KVCache) -> Any:
    """The PartitionSpec of each array, as a KVCache of them: heads as the weights' heads are cut."""
    axes = {5: (None, "kv_heads", None), 4: ("kv_heads", None)}
    return jax.tree.map(lambda x: spec(axes[x.ndim], x.ndim), cache)
