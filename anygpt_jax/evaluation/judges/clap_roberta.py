"""RoBERTa (Liu et al. 2019, arXiv 1907.11692): a text → the state of its first token, pooled."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from anygpt_jax.modalities.codecs import vit


@dataclasses.dataclass(frozen=True)
class RobertaSettings:
    """`positions`: rows of the table, of which those up to `pad` are of no token; `inner`: of the feed-forward layers."""

    vocabulary: int
    positions: int
    width: int
    layers: int
    heads: int
    inner: int
    epsilon: float
    pad: int
    begin: int
    end: int

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"a width of {self.width} is no multiple of {self.heads} heads")

    @property
    def longest(self) -> int:
        """Tokens of a text."""
        return self.positions - self.pad - 1


class Layer(nnx.Module):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(self, settings: RobertaSettings, *, rngs: nnx.Rngs):
        self.settings = s = settings
        self.qkv = nnx.Linear(s.width, 3 * s.width, rngs=rngs)
        self.out = nnx.Linear(s.width, s.width, rngs=rngs)
        self.norm1 = vit.layer_norm(s.width, s.epsilon, rngs=rngs)
        self.fc1 = nnx.Linear(s.width, s.inner, rngs=rngs)
        self.fc2 = nnx.Linear(s.inner, s.width, rngs=rngs)
        self.norm2 = vit.layer_norm(s.width, s.epsilon, rngs=rngs)

    def __call__(self, x: Float[Array, "B N D"], seen: Bool[Array, "B N"]) -> Float[Array, "B N D"]:
        """`seen` is true of tokens and false of padding, which no token attends to."""
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.settings.heads, -1)
        attended = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], mask=seen[:, None, None])
        x = self.norm1(x + self.out(attended.reshape(x.shape)))
        return self.norm2(x + self.fc2(vit.gelu(self.fc1(x))))


class Roberta(nnx.Module):
    """Ids with padding after their end → tanh of a dense layer on the first token's state."""

    def __init__(self, settings: RobertaSettings, *, rngs: nnx.Rngs):
        self.settings = s = settings
        self.tokens = nnx.Embed(s.vocabulary, s.width, rngs=rngs)
        self.positions = nnx.Param(jnp.zeros((s.positions, s.width)))
        self.norm = vit.layer_norm(s.width, s.epsilon, rngs=rngs)
        self.layers = vit.stack(lambda rngs: Layer(s, rngs=rngs), s.layers, rngs=rngs)
        self.pooler = nnx.Linear(s.width, s.width, rngs=rngs)

    def __call__(self, ids: Int[Array, "B N"]) -> Float[Array, "B D"]:
        """N is at most `settings.longest`. Positions are counted from the number after the padding's id."""
        first, seen = self.settings.pad + 1, ids != self.settings.pad
        x = self.norm(self.tokens(ids) + self.positions[...][first : first + ids.shape[1]])
        x = vit.scan(self.layers, lambda layer, x: layer(x, seen), x)
        return jnp.tanh(self.pooler(x[:, 0]))
