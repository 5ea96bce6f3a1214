"""The decoder: a stock LLaMA-shaped transformer (RMSNorm, RoPE, SwiGLU, grouped queries).

Axes in names: B batch, L or T positions, D model, H query heads, G key heads, K head, F feed-forward,
V vocabulary, S cache slots. Layers are stacked along a leading axis and scanned: one layer is compiled.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from anygpt_jax.model import lora
from anygpt_jax.model.attention import MASKED, Rotation, attention, packed_attention, rotate, rotation
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.kv_cache import KVCache
from anygpt_jax.model.quantized import product
from anygpt_jax.model.remat import POLICIES, checkpointed
from anygpt_jax.model.sharding import constrain
from anygpt_jax.model.splash import splash_attention
from anygpt_jax.model.transposed import Transposed

Carry = TypeVar("Carry")


def weight(
    config: ModelConfig, rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str | None, ...], std: float
) -> nnx.Param:
    """A normal-initialised parameter that carries its logical axes (see `sharding.RULES`)."""
    value = std * jax.random.truncated_normal(rngs.params(), -3, 3, shape, jnp.float32)
    return nnx.Param(value.astype(config.param_dtype), axes=axes)


def norm_scale(config: ModelConfig, size: int) -> nnx.Param:
    """A scale for `rms_norm`, ones at first, replicated."""
    return nnx.Param(jnp.ones(size, config.param_dtype), axes=(None,))


def rms_norm(x: Float[Array, "... N"], scale: Float[Array, " N"], eps: float) -> Float[Array, "... N"]:
    """x / rms(x) · scale (arXiv 1910.07467), computed in float32."""
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (normed * scale.astype(jnp.float32)).astype(x.dtype)


def multiply(x: Array, w: nnx.Param | Transposed, config: ModelConfig, contracted: int = 1) -> Array:
    """x [B, L, *in] · w [*in, *out] → [B, L, *out], over the first `contracted` axes of w, in the compute dtype.

    As a plain matrix product of [B·L, in] and [in, out]: XLA on CPUs is 1.5 times slower at the gradient of
    the same contraction with more axes.
    """
    if isinstance(w, Transposed):
        return w.product(x.reshape(-1, math.prod(x.shape[2:]))).reshape(*x.shape[:2], *w.shape)
    lead, into, out = x.shape[:2], w.shape[:contracted], w.shape[contracted:]
    matrix = w[...].astype(config.dtype).reshape(math.prod(into), math.prod(out))
    return product(x.reshape(-1, math.prod(into)), matrix, config.quantization).reshape(*lead, *out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def apart(x: Array, forward: bool = True) -> Array:
    """x. What is before and after it is not fused into one loop, in the backward pass and, if so, in the forward one.

    XLA for TPUs fuses into a matrix product the reductions that read its result (the backward pass of
    RMSNorm, of SiLU), and the product then runs at half its speed.
    """
    return jax.lax.optimization_barrier(x) if forward else x


apart.defvjp(lambda x, forward: (apart(x, forward), None), lambda _, __, g: (jax.lax.optimization_barrier(g),))


def project(
    hidden: Float[Array, "B L D"], head: Float[Array, "D V"] | Transposed, ids: int | None = None
) -> Float[Array, "B L V"]:
    """Logits, float32; those of padding, from `ids` on, are as low as can be. Flat as in `multiply`."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    if isinstance(head, Transposed):
        flat = head.product(flat, jnp.float32)
    else:
        flat = jnp.matmul(flat, head, preferred_element_type=jnp.float32)
    logits = constrain(flat.reshape(*hidden.shape[:2], -1), "batch", "length", "vocab")
    if ids is None or ids == logits.shape[-1]:
        return logits
    return jnp.where(jnp.arange(logits.shape[-1]) < ids, logits, MASKED)


@jax.custom_vjp
def swiglu(gate: Array, up: Array) -> Array:
    """silu(gate) · up (arXiv 2002.05202). Of it only its arguments are kept for the backward pass."""
    return jax.nn.silu(gate) * up


def _swiglu_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    gate, up = saved
    sigmoid = jax.nn.sigmoid(gate)
    return g * up * sigmoid * (1 + gate * (1 - sigmoid)), g * gate * sigmoid


swiglu.defvjp(lambda gate, up: (swiglu(gate, up), (gate, up)), _swiglu_backward)


class Block(nnx.Module):
    """One layer: attention and feed-forward, each normalised before and added back."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        D, H, G, K, F = config.d_model, config.n_heads, config.n_kv_heads, config.head_dim, config.d_ff
        into, out_of = D**-0.5, (2 * config.n_layers) ** -0.5
        self.config = config
        self.attention_norm = norm_scale(config, D)
        self.q = weight(config, rngs, (D, H, K), ("embed", "heads", None), into)
        self.k = weight(config, rngs, (D, G, K), ("embed", "kv_heads", None), into)
        self.v = weight(config, rngs, (D, G, K), ("embed", "kv_heads", None), into)
        # What writes to the residual stream starts small, so that its variance does not grow with depth.
        self.o = weight(config, rngs, (H, K, D), ("heads", None, "embed"), (H * K) ** -0.5 * out_of)
        if config.qk_norm:
            self.q_norm = norm_scale(config, K)
            self.k_norm = norm_scale(config, K)
        self.mlp_norm = norm_scale(config, D)
        self.gate = weight(config, rngs, (D, F), ("embed", "mlp"), into)
        self.up = weight(config, rngs, (D, F), ("embed", "mlp"), into)
        self.down = weight(config, rngs, (F, D), ("mlp", "embed"), F**-0.5 * out_of)
        for name in config.adapted:
            a, b = lora.adapter(getattr(self, name), name, config, rngs)
            setattr(self, name + lora.A, a)
            setattr(self, name + lora.B, b)

    def _product(self, x: Array, name: str) -> Array:
        """x times the matrix of this name, and what its adapter adds."""
        product = multiply(x, getattr(self, name), self.config, lora.contracted(name))
        if name not in self.config.adapted:
            return product
        return product + lora.adapted(x, getattr(self, name + lora.A), getattr(self, name + lora.B), self.config)

    def _apart(self, x: Array, gated: bool = False) -> Array:
        """x, and in the backward pass its gradient, as the matrix products left it, if the config wants barriers."""
        barriers = self.config.matmul_barriers
        return x if barriers == "none" else apart(x, not gated or barriers == "all")

    def queries_keys_values(self, x_BLD: Float[Array, "B L D"], by: Rotation) -> tuple[Array, Array, Array]:
        """q [B, L, H, K], k and v [B, L, G, K], rotated by their positions."""
        config, eps = self.config, self.config.norm_eps
        y_BLD = self._apart(rms_norm(x_BLD, self.attention_norm[...], eps))
        q, k, v = (self._product(y_BLD, name) for name in ("q", "k", "v"))
        if config.qk_norm:
            q, k = rms_norm(q, self.q_norm[...], eps), rms_norm(k, self.k_norm[...], eps)
        return tuple(checkpoint_name(x, name) for x, name in ((rotate(q, by), "q"), (rotate(k, by), "k"), (v, "v")))

    def finish(self, x_BLD: Float[Array, "B L D"], attended_BLHK: Float[Array, "B L H K"]) -> Float[Array, "B L D"]:
        """Adds what was attended, then the feed-forward's answer."""
        config = self.config
        x_BLD = checkpoint_name(x_BLD + self._product(self._apart(attended_BLHK), "o"), "mid")
        y_BLD = self._apart(rms_norm(x_BLD, self.mlp_norm[...], config.norm_eps))
        gate_BLF = checkpoint_name(self._apart(self._product(y_BLD, "gate"), gated=True), "gate")
        up_BLF = checkpoint_name(self._apart(self._product(y_BLD, "up"), gated=True), "up")
        hidden_BLF = self._apart(swiglu(gate_BLF, up_BLF))
        x_BLD = x_BLD + self._product(hidden_BLF, "down")
        return constrain(x_BLD, "batch", "length", None)


class Decoder(nnx.Module):
    """Tokens to logits of the next token, over one vocabulary for all modalities.

    Logits are float32 [B, L, V] with V = `config.vocab_size`, the padded size: ids past the vocabulary's own
    are never targets, and no softmax counts them.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        V, D = config.vocab_size, config.d_model
        self.config = config
        self.embedding = weight(config, rngs, (V, D), ("vocab", "embed"), 0.02)
        self.blocks = nnx.vmap(lambda keys: Block(config, rngs=keys))(rngs.split(config.n_layers))
        self.norm = norm_scale(config, D)
        if not config.tied_embeddings:
            self.head = weight(config, rngs, (D, V), ("embed", "vocab"), 0.02)

    def __call__(
        self, tokens: Int[Array, "B L"], positions: Int[Array, "B L"], segment_ids: Int[Array, "B L"]
    ) -> Float[Array, "B L V"]:
        """Packed sequences: a token sees the earlier ones of its own segment. Segment 0 is padding."""
        return project(self.hidden(tokens, positions, segment_ids), self.head_matrix(), self.config.ids)

    def hidden(
        self, tokens: Int[Array, "B L"], positions: Int[Array, "B L"], segment_ids: Int[Array, "B L"]
    ) -> Float[Array, "B L D"]:
        """What `project` with `head_matrix` makes logits of."""

        def layer(block: Block, x_BLD: Array, by: Rotation, _: Array | int) -> Array:
            q, k, v = block.queries_keys_values(x_BLD, by)
            return block.finish(x_BLD, attend(q, k, v, segment_ids))

        attend = splash_attention if self.config.attention == "splash" else packed_attention
        x_BLD = self._through_layers(layer, self._embed(tokens), positions)
        return rms_norm(x_BLD, self.norm[...], self.config.norm_eps)

    def head_matrix(self) -> Float[Array, "D V"] | Transposed:
        """What `project` multiplies by, in the compute dtype: the embedding, transposed, if they are tied.

        Of a model from `decode_weights.for_decoding` it may be the `Transposed` that was made there.
        """
        own = getattr(self, "head", None)
        if isinstance(own, Transposed):
            return own
        head = self.embedding[...].T if self.config.tied_embeddings else self.head[...]
        return head.astype(self.config.dtype)

    def decode(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        cache: KVCache,
        rows: Int[Array, " B"] | None = None,
        length: int | None = None,
    ) -> tuple[Float[Array, "B T V"], KVCache]:
        """One sequence a row: writes the T new keys and values at slot = position, attends slots ≤ position.

        A position past the cache's length is not written. A right-padded prompt may be given whole: the
        padding's slots are overwritten by the positions to come before anything attends them.

        `rows` says which row of a larger cache each sequence has; by default the i-th has the i-th. A row past the
        cache's last is not written, and its logits mean nothing. `length` (static) is how many slots are attended:
        all positions must be smaller; by default the cache's whole length.
        """
        rows_B = jnp.arange(tokens.shape[0]) if rows is None else rows
        length = cache.length if length is None else length
        mask_BTS = jnp.arange(length) <= positions[:, :, None]

        def layer(block: Block, carry: tuple[Array, KVCache], by: Rotation, i: Array | int) -> tuple[Array, KVCache]:
            x_BTD, cache = carry
            q, k, v = block.queries_keys_values(x_BTD, by)
            cache = cache.written(i, rows_B, positions, k, v)
            keys, values, *scales = cache.layer(i, rows, length)
            return block.finish(x_BTD, attention(q, keys, values, mask_BTS, *scales)), cache

        x_BTD, cache = self._through_layers(layer, (self._embed(tokens), cache), positions)
        y_BTD = rms_norm(x_BTD, self.norm[...], self.config.norm_eps)
        return project(y_BTD, self.head_matrix(), self.config.ids), cache

    def _embed(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        return constrain(self.embedding[...].astype(self.config.dtype)[tokens], "batch", "length", None)

    def _through_layers(
        self, layer: Callable[[Block, Carry, Rotation, Array | int], Carry], carry: Carry, positions: Int[Array, "B L"]
    ) -> Carry:
        """Scans `layer` over the stacked blocks, recomputing in the backward pass what the remat policy says."""
        c = self.config
        by = rotation(positions, c.head_dim, c.rope_theta, c.rope_scaling, in_memory=c.attention == "xla")
        if isinstance(self.blocks, nnx.List):  # `decode_weights.for_decoding`
            for i, block in enumerate(self.blocks):
                carry = layer(block, carry, by, i)
            return carry
        graph, stacked = nnx.split(self.blocks)

        def body(carry: Carry, block_and_index: tuple) -> tuple[Carry, None]:
            block, i = block_and_index
            return layer(nnx.merge(graph, block), carry, by, i), None

        body = checkpointed(body, POLICIES[self.config.remat])
        indices = jnp.arange(self.config.n_layers)
        return jax.lax.scan(body, carry, (stacked, indices), unroll=min(self.config.unroll, self.config.n_layers))[0]
