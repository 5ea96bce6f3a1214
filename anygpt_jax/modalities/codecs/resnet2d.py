"""The 2-D blocks of latent diffusion's networks, height × width × channels: ResNet blocks, attention, resampling.

Rombach et al. 2022 (latent diffusion); the U-Net, its autoencoder and LlamaGen's image VQ are made of them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

QUERY_BLOCK = 128  # queries whose scores are in memory at a time


def conv3(inputs: int, outputs: int, *, rngs: nnx.Rngs) -> nnx.Conv:
    """3 × 3, the size kept."""
    return nnx.Conv(inputs, outputs, (3, 3), padding=((1, 1), (1, 1)), rngs=rngs)


def halving(width: int, before: int, *, rngs: nnx.Rngs) -> nnx.Conv:
    """3 × 3 with stride 2 and zeros: `before` rows above and columns to the left, one below and to the right."""
    return nnx.Conv(width, width, (3, 3), strides=2, padding=((before, 1), (before, 1)), rngs=rngs)


def group_norm(width: int, groups: int, epsilon: float, *, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """GroupNorm without the fast variance, E[x²] - E[x]², which cancels where the mean is large."""
    return nnx.GroupNorm(width, groups, epsilon=epsilon, use_fast_variance=False, rngs=rngs)


def doubled(x: Float[Array, "B H W C"]) -> Float[Array, "B 2*H 2*W C"]:
    """Every pixel four times: the nearest neighbour."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


class Doubling(nnx.Module):
    """Twice the size by the nearest neighbour, then a 3 × 3 convolution."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.conv = conv3(width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B 2*H 2*W C"]:
        """The number of channels stays."""
        return self.conv(doubled(x))


class ResNetBlock(nnx.Module):
    """x + conv(silu(norm(conv(silu(norm(x))) + time))); x by a 1 × 1 convolution if the width changes.

    `time`: the width of the embedding of diffusion time, None for networks without one.
    """

    def __init__(
        self, inputs: int, outputs: int, *, groups: int, epsilon: float, time: int | None = None, rngs: nnx.Rngs
    ):
        self.norm1 = group_norm(inputs, groups, epsilon, rngs=rngs)
        self.conv1 = conv3(inputs, outputs, rngs=rngs)
        self.time = None if time is None else nnx.Linear(time, outputs, rngs=rngs)
        self.norm2 = group_norm(outputs, groups, epsilon, rngs=rngs)
        self.conv2 = conv3(outputs, outputs, rngs=rngs)
        self.shortcut = nnx.Linear(inputs, outputs, rngs=rngs) if inputs != outputs else None

    def __call__(self, x: Float[Array, "B H W I"], time: Float[Array, "B E"] | None = None) -> Float[Array, "B H W O"]:
        """ValueError if a network with an embedding of time gets none."""
        h = self.conv1(nnx.silu(self.norm1(x)))
        if self.time is not None:
            if time is None:
                raise ValueError("this block needs an embedding of time")
            h = h + self.time(nnx.silu(time))[:, None, None]
        h = self.conv2(nnx.silu(self.norm2(h)))
        return h + (x if self.shortcut is None else self.shortcut(x))


def attend(
    q: Float[Array, "B N heads D"], k: Float[Array, "B M heads D"], v: Float[Array, "B M heads D"]
) -> Float[Array, "B N heads D"]:
    """softmax(q·kᵀ / √D)·v, the softmax in float32, for `QUERY_BLOCK` queries at a time where there are many keys.

    A 768 px image has 96² positions, whose scores for all queries at once would take gigabytes. A small block is
    fast too: its scores stay in the cache.
    """
    b, n, heads, d = q.shape
    # The layouts that both products want, made once and not in every block.
    q, k, v = q.transpose(0, 2, 1, 3), k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)

    def block(q: Float[Array, "B heads n D"]) -> Float[Array, "B heads n D"]:
        scores = jnp.einsum("bhnd,bhdm->bhnm", q, k, preferred_element_type=jnp.float32)
        shares = jnp.exp((scores - scores.max(-1, keepdims=True)) * d**-0.5)
        mixed = jnp.einsum("bhnm,bhmd->bhnd", shares.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return (mixed / shares.sum(-1, keepdims=True)).astype(q.dtype)

    blocks = -(-n // QUERY_BLOCK)
    if blocks == 1 or k.shape[-1] <= 2 * QUERY_BLOCK:
        return block(q).transpose(0, 2, 1, 3)
    size = -(-n // blocks)
    q = jnp.pad(q, ((0, 0), (0, 0), (0, blocks * size - n), (0, 0)))
    parts = jax.lax.map(block, q.reshape(b, heads, blocks, size, d).transpose(2, 0, 1, 3, 4))
    return parts.transpose(1, 0, 3, 2, 4).reshape(b, blocks * size, heads, d)[:, :n]


class AttentionBlock(nnx.Module):
    """x + one head of attention over all positions of norm(x)."""

    def __init__(self, width: int, *, groups: int, epsilon: float, rngs: nnx.Rngs):
        self.norm = group_norm(width, groups, epsilon, rngs=rngs)
        self.q = nnx.Linear(width, width, rngs=rngs)
        self.k = nnx.Linear(width, width, rngs=rngs)
        self.v = nnx.Linear(width, width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Every pixel attends all H · W of them; places have no embedding."""
        h = self.norm(x).reshape(x.shape[0], -1, 1, x.shape[-1])
        return x + self.out(attend(self.q(h), self.k(h), self.v(h))).reshape(x.shape)
