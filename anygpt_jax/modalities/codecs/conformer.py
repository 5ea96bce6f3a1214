"""The Conformer (Gulati et al. 2020, arXiv 2005.08100) as SoundStorm has it, on rows of unequal length.

Half a feed-forward, self-attention with rotary positions, a convolution module, half a feed-forward, a LayerNorm.
What a layer leaves beyond a row's length is undefined; within it nothing depends on what lies beyond.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from anygpt_jax.modalities.codecs import conv1d, vit
from anygpt_jax.model.attention import Rotation, rotate, rotation

EPSILON = 1e-5  # PyTorch's default, of every LayerNorm here
THETA = 10_000.0  # of the rotary positions


@dataclasses.dataclass(frozen=True)
class ConformerSettings:
    """`conv`: channels of the convolution module; `kernel`: its taps, an odd number."""

    width: int = 1024
    depth: int = 12
    heads: int = 8
    head_dim: int = 128
    mlp: int = 4096
    conv: int = 2048
    kernel: int = 31

    def __post_init__(self):
        if self.kernel % 2 == 0:
            raise ValueError(f"the convolution's kernel is odd, not {self.kernel}")


def depthwise(x: Float[Array, "B T C"], kernel: Float[Array, "k 1 C"]) -> Float[Array, "B T C"]:
    """Each channel convolved with its own taps, zeros around. As a sum of shifted products, which XLA fuses into one
    loop: its depthwise convolution is slower on every backend."""
    half = kernel.shape[0] // 2
    padded = jnp.pad(x, ((0, 0), (half, half), (0, 0)))
    return sum(padded[:, i : i + x.shape[1]] * taps for i, taps in enumerate(kernel))


class FeedForward(nnx.Module):
    """LayerNorm, dense layer to `mlp`, SiLU, dense layer back. Its input is not added here."""

    def __init__(self, width: int, mlp: int, *, rngs: nnx.Rngs):
        self.norm = vit.layer_norm(width, EPSILON, rngs=rngs)
        self.inner = nnx.Linear(width, mlp, rngs=rngs)
        self.outer = nnx.Linear(mlp, width, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Each step by itself."""
        return self.outer(jax.nn.silu(self.inner(self.norm(x))))


class Attention(nnx.Module):
    """LayerNorm, then attention of all steps over all; the last layer alone has a bias. Its input is not added here."""

    def __init__(self, width: int, heads: int, head_dim: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.norm = vit.layer_norm(width, EPSILON, rngs=rngs)
        self.query = nnx.Linear(width, heads * head_dim, use_bias=False, rngs=rngs)
        self.key_value = nnx.Linear(width, 2 * heads * head_dim, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(heads * head_dim, width, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"], lengths: Int[Array, " B"], by: Rotation) -> Float[Array, "B T D"]:
        """Steps from lengths[b] on are not attended; `by` rotates queries and keys."""
        x = self.norm(x)
        q = self.query(x).reshape(*x.shape[:2], self.heads, -1)
        kv = self.key_value(x).reshape(*x.shape[:2], 2, self.heads, -1)
        heard = (jnp.arange(x.shape[1]) < lengths[:, None])[:, None, None]
        attended = jax.nn.dot_product_attention(rotate(q, by), rotate(kv[:, :, 0], by), kv[:, :, 1], mask=heard)
        return self.out(attended.reshape(*x.shape[:2], -1))


class Convolution(nnx.Module):
    """Gated dense layer, depthwise convolution, SiLU, a norm over channels without a bias, dense layer."""

    def __init__(self, width: int, conv: int, kernel: int, *, rngs: nnx.Rngs):
        self.norm = vit.layer_norm(width, EPSILON, rngs=rngs)
        self.inner = nnx.Linear(width, 2 * conv, rngs=rngs)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (kernel, 1, conv)) * kernel**-0.5)
        self.bias = nnx.Param(jnp.zeros(conv))
        self.scale = nnx.Param(jnp.ones(conv))
        self.outer = nnx.Linear(conv, width, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"], lengths: Int[Array, " B"]) -> Float[Array, "B T D"]:
        """The convolution reads zeros from lengths[b] on, the norm is in float32. x is not added here."""
        gated = jax.nn.glu(self.inner(self.norm(x)))
        x = depthwise(conv1d.zero_beyond(gated, lengths), self.kernel[...]) + self.bias[...]
        x = jax.nn.silu(x).astype(jnp.float32)
        # The variance is bounded from below, not increased: 1e-6 is the bound.
        x = x - jnp.mean(x, -1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.maximum(jnp.mean(jnp.square(x), -1, keepdims=True), 1e-6))
        return self.outer((x * self.scale[...]).astype(gated.dtype))


class Block(nnx.Module):
    """One layer: each of its parts is added to its input (the feed-forwards by half), and a LayerNorm ends it."""

    def __init__(self, settings: ConformerSettings, *, rngs: nnx.Rngs):
        s = settings
        self.before = FeedForward(s.width, s.mlp, rngs=rngs)
        self.attention = Attention(s.width, s.heads, s.head_dim, rngs=rngs)
        self.convolution = Convolution(s.width, s.conv, s.kernel, rngs=rngs)
        self.after = FeedForward(s.width, s.mlp, rngs=rngs)
        self.norm = vit.layer_norm(s.width, EPSILON, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"], lengths: Int[Array, " B"], by: Rotation) -> Float[Array, "B T D"]:
        """`by` is the rotation for the positions of all T steps."""
        x = x + 0.5 * self.before(x)
        x = x + self.attention(x, lengths, by)
        x = x + self.convolution(x, lengths)
        return self.norm(x + 0.5 * self.after(x))


class Conformer(nnx.Module):
    """`depth` layers, scanned as one. Each ends with a LayerNorm, so that none follows the last."""

    def __init__(self, settings: ConformerSettings, *, rngs: nnx.Rngs):
        self.settings = settings
        self.blocks = vit.stack(lambda rngs: Block(settings, rngs=rngs), settings.depth, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"], lengths: Int[Array, " B"]) -> Float[Array, "B T D"]:
        """Positions count from 0 in every row. Steps from lengths[b] on are undefined."""
        by = rotation(jnp.arange(x.shape[1])[None], self.settings.head_dim, THETA, in_memory=True)
        return vit.scan(self.blocks, lambda block, x: block(x, lengths, by), x)
