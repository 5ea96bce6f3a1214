"""Vision transformers (Dosovitskiy et al. 2021, arXiv 2010.11929) with learned positions and a class token.

Layers are stacked along a leading axis and scanned: one layer is compiled however deep the network, and 39 of them
compile in the time of one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

EPSILON = 1e-6  # of every LayerNorm inside a vision transformer (timm, EVA)
M = TypeVar("M", bound=nnx.Module)


@dataclasses.dataclass(frozen=True)
class VitSettings:
    """The defaults are EVA-CLIP's ViT-g (arXiv 2211.07636) up to the last layer but one, as BLIP-2 takes it."""

    image: int = 224
    patch: int = 14
    width: int = 1408
    depth: int = 39
    heads: int = 16
    mlp: int = 6144


def layer_norm(width: int, epsilon: float, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm whose variance is that of PyTorch: the mean of squares around the mean, in float32."""
    return nnx.LayerNorm(width, epsilon=epsilon, use_fast_variance=False, rngs=rngs)


def stack(make: Callable[[nnx.Rngs], M], depth: int, *, rngs: nnx.Rngs) -> M:
    """`depth` modules of one structure as one whose variables have a leading axis of that size."""
    return nnx.vmap(make)(rngs.split(depth))


def scan(stacked: nnx.Module, apply: Callable[[Any, Array], Array], x: Array) -> Array:
    """x through each of the stacked modules in turn."""
    graph, state = nnx.split(stacked)
    return jax.lax.scan(lambda x, one: (apply(nnx.merge(graph, one), x), None), x, state)[0]


def gelu(x: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """x · Φ(x) by the error function as PyTorch has it; by erfc, as jax.nn.gelu has it, it takes XLA twice the time."""
    return x * (0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5))


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); one matrix makes queries, keys and values."""

    def __init__(self, width: int, heads: int, mlp: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.norm1 = layer_norm(width, EPSILON, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.norm2 = layer_norm(width, EPSILON, rngs=rngs)
        self.inner = nnx.Linear(width, mlp, rngs=rngs)
        self.outer = nnx.Linear(mlp, width, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Every position sees all of them."""
        qkv = self.qkv(self.norm1(x)).reshape(*x.shape[:2], 3, self.heads, -1)
        attended = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        x = x + self.out(attended.reshape(x.shape))
        return x + self.outer(gelu(self.inner(self.norm2(x))))


class VisionTransformer(nnx.Module):
    """Pictures → features of the class token and of the patches, row by row; no norm follows the last layer."""

    def __init__(self, settings: VitSettings, *, rngs: nnx.Rngs):
        self.settings = s = settings
        patch = (s.patch, s.patch)
        normal = nnx.initializers.truncated_normal(0.02)
        self.patches = nnx.Conv(3, s.width, patch, strides=patch, padding="VALID", rngs=rngs)
        self.cls = nnx.Param(normal(rngs.params(), (s.width,)))
        self.positions = nnx.Param(normal(rngs.params(), (1 + (s.image // s.patch) ** 2, s.width)))
        self.blocks = stack(lambda rngs: Block(s.width, s.heads, s.mlp, rngs=rngs), s.depth, rngs=rngs)

    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B 1+patches D"]:
        """ValueError if the pictures are not of the network's size."""
        if pixels.shape[1:] != (self.settings.image, self.settings.image, 3):
            raise ValueError(f"pictures are {self.settings.image} px squares of 3 channels, not {pixels.shape[1:]}")
        x = self.patches(pixels)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        cls = jnp.broadcast_to(self.cls[...].astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([cls, x], 1) + self.positions[...]
        return scan(self.blocks, Block.__call__, x)
