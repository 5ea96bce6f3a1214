"""CLIP's text transformer, for the prompts of diffusion models (Radford et al. 2021; OpenCLIP's ViT-H in SD 2)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

ACTIVATIONS = ("gelu", "quick_gelu")
BEGIN, END = 49406, 49407  # of CLIP's vocabulary
PAD = 0  # "!": Stable Diffusion 2's tokenizer pads with it, not with END as Stable Diffusion 1's


@dataclasses.dataclass(frozen=True)
class ClipTextSettings:
    """`inner`: the width within the feed-forward layers; `activation`: "gelu" or CLIP's own "quick_gelu"."""

    vocabulary: int = 49408
    positions: int = 77
    width: int = 1024
    layers: int = 23
    heads: int = 16
    inner: int = 4096
    activation: str = "gelu"
    epsilon: float = 1e-5

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"the activation is one of {', '.join(ACTIVATIONS)}, not {self.activation!r}")


def empty_prompt(positions: int) -> Int[Array, "1 positions"]:
    """The ids that Stable Diffusion 2's tokenizer gives an empty text."""
    return jnp.asarray([[BEGIN, END] + [PAD] * (positions - 2)], jnp.int32)


class Layer(nnx.Module):
    """Causal self-attention and a feed-forward network, each on a LayerNorm of its input and added."""

    def __init__(self, settings: ClipTextSettings, *, rngs: nnx.Rngs):
        self.settings = s = settings
        self.norm1 = nnx.LayerNorm(s.width, epsilon=s.epsilon, use_fast_variance=False, rngs=rngs)
        self.q = nnx.Linear(s.width, s.width, rngs=rngs)
        self.k = nnx.Linear(s.width, s.width, rngs=rngs)
        self.v = nnx.Linear(s.width, s.width, rngs=rngs)
        self.out = nnx.Linear(s.width, s.width, rngs=rngs)
        self.norm2 = nnx.LayerNorm(s.width, epsilon=s.epsilon, use_fast_variance=False, rngs=rngs)
        self.fc1 = nnx.Linear(s.width, s.inner, rngs=rngs)
        self.fc2 = nnx.Linear(s.inner, s.width, rngs=rngs)

    def __call__(self, x: Float[Array, "B N W"]) -> Float[Array, "B N W"]:
        """Position i depends on positions up to i alone."""
        h = self.norm1(x)
        q, k, v = (y.reshape(*y.shape[:2], self.settings.heads, -1) for y in (self.q(h), self.k(h), self.v(h)))
        x = x + self.out(jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape))
        h = self.fc1(self.norm2(x))
        h = nnx.gelu(h, approximate=False) if self.settings.activation == "gelu" else h * nnx.sigmoid(1.702 * h)
        return x + self.fc2(h)


class ClipText(nnx.Module):
    """Token ids → states after the last norm."""

    def __init__(self, settings: ClipTextSettings, *, rngs: nnx.Rngs):
        s = settings
        self.tokens = nnx.Embed(s.vocabulary, s.width, rngs=rngs)
        self.positions = nnx.Embed(s.positions, s.width, rngs=rngs)
        self.layers = nnx.List([Layer(s, rngs=rngs) for _ in range(s.layers)])
        self.norm = nnx.LayerNorm(s.width, epsilon=s.epsilon, use_fast_variance=False, rngs=rngs)

    def __call__(self, ids: Int[Array, "B N"]) -> Float[Array, "B N W"]:
        """N is at most the number of positions."""
        x = self.tokens(ids) + self.positions.embedding[...][: ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)
