"""The Q-Former (Li et al. 2023, BLIP-2, arXiv 2301.12597) with SEED's causal queries (arXiv 2310.01218).

A post-norm BERT whose input is a fixed set of learned queries. They attend each other causally, so that query i
depends on the queries up to i alone, and in every other layer they attend the features of a picture. Layers are
scanned in groups of one with cross-attention and those without that follow it.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from anygpt_jax.modalities.codecs import vit

EPSILON = 1e-12  # BERT's


@dataclasses.dataclass(frozen=True)
class QFormerSettings:
    """The defaults are BERT-base's sizes, as SEED-2 has them; cross-attention is in layers 0, `cross_every`, …"""

    queries: int = 32
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    cross_every: int = 2
    context: int = 1408

    def __post_init__(self):
        if self.depth % self.cross_every:
            raise ValueError(f"{self.depth} layers do not divide into groups of {self.cross_every}")


class Attention(nnx.Module):
    """norm(x + attention of x over a context)."""

    def __init__(self, width: int, context: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.query = nnx.Linear(width, width, rngs=rngs)
        self.key = nnx.Linear(context, width, rngs=rngs)
        self.value = nnx.Linear(context, width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.norm = vit.layer_norm(width, EPSILON, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B Q D"], context: Float[Array, "B S C"], causal: bool = False
    ) -> Float[Array, "B Q D"]:
        """`causal`: query i sees the first i + 1 vectors of the context."""
        q, k, v = self.query(x), self.key(context), self.value(context)
        q, k, v = (t.reshape(*t.shape[:2], self.heads, -1) for t in (q, k, v))
        # SEED adds -10000 to the logits of what is hidden, which in float32 leaves a probability of 0 too.
        attended = jax.nn.dot_product_attention(q, k, v, is_causal=causal)
        return self.norm(x + self.out(attended.reshape(x.shape)))


class Layer(nnx.Module):
    """Self-attention, cross-attention if `cross`, and the queries' feed-forward."""

    def __init__(self, settings: QFormerSettings, cross: bool, *, rngs: nnx.Rngs):
        s = settings
        self.attention = Attention(s.width, s.width, s.heads, rngs=rngs)
        self.cross = Attention(s.width, s.context, s.heads, rngs=rngs) if cross else None
        self.inner = nnx.Linear(s.width, s.mlp, rngs=rngs)
        self.outer = nnx.Linear(s.mlp, s.width, rngs=rngs)
        self.norm = vit.layer_norm(s.width, EPSILON, rngs=rngs)

    def __call__(self, x: Float[Array, "B Q D"], context: Float[Array, "B S C"]) -> Float[Array, "B Q D"]:
        """`context`: a picture's features, all of which every query sees; not read without cross-attention."""
        x = self.attention(x, x, causal=True)
        if self.cross is not None:
            x = self.cross(x, context)
        return self.norm(x + self.outer(vit.gelu(self.inner(x))))


class QFormer(nnx.Module):
    """Learned queries, one vector each → what they find in a picture's features of width `context`."""

    def __init__(self, settings: QFormerSettings, *, rngs: nnx.Rngs):
        self.settings = s = settings
        self.queries = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (s.queries, s.width)))
        self.norm = vit.layer_norm(s.width, EPSILON, rngs=rngs)
        self.groups = vit.stack(
            lambda rngs: nnx.List([Layer(s, i == 0, rngs=rngs) for i in range(s.cross_every)]),
            s.depth // s.cross_every,
            rngs=rngs,
        )

    def __call__(self, context: Float[Array, "B S C"]) -> Float[Array, "B Q D"]:
        """What the queries make of a picture's features."""

        def group(layers: nnx.List[Layer], x: Array) -> Array:
            for layer in layers:
                x = layer(x, context)
            return x

        queries = self.queries[...].astype(jnp.promote_types(self.queries.dtype, context.dtype))
        x = jnp.broadcast_to(self.norm(queries), (context.shape[0], *queries.shape))
        return vit.scan(self.groups, group, x)
