"""The U-Net of Stable Diffusion 2 unCLIP: a denoiser of latents under a prompt and an image embedding.

Rombach et al. 2022 (latent diffusion, section 3.3), as diffusers' `UNet2DConditionModel` with linear projections
around its transformers and a class embedding of type "projection".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from anygpt_jax.modalities.codecs import resnet2d


@dataclasses.dataclass(frozen=True)
class UNetSettings:
    """`widths` from the full size down; `heads` and `attention` (whether there is any) for each of them.

    `context`: the width of the prompt's states. `condition`: the width of the vector the image is generated from.
    """

    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    heads: tuple[int, ...] = (5, 10, 20, 20)
    attention: tuple[bool, ...] = (True, True, True, False)
    blocks: int = 2
    channels: int = 4
    context: int = 1024
    condition: int = 2048
    groups: int = 32
    epsilon: float = 1e-5

    def __post_init__(self):
        if not len(self.widths) == len(self.heads) == len(self.attention):
            raise ValueError("widths, heads and attention have one entry a level")
        if any(w % h or w % self.groups for w, h in zip(self.widths, self.heads, strict=True)):
            raise ValueError(f"the widths {self.widths} are not multiples of the heads and of {self.groups} groups")


def sinusoids(values: Float[Array, " B"] | Int[Array, " B"], width: int) -> Float[Array, "B width"]:
    """cos(v·f), then sin(v·f), for `width`/2 frequencies f from 1 down towards 1/10000."""
    frequencies = jnp.exp(-math.log(10000) * jnp.arange(width // 2, dtype=jnp.float32) / (width // 2))
    angles = values[:, None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


class Embedding(nnx.Module):
    """Two dense layers with SiLU between them."""

    def __init__(self, inputs: int, width: int, *, rngs: nnx.Rngs):
        self.linear_1 = nnx.Linear(inputs, width, rngs=rngs)
        self.linear_2 = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "B I"]) -> Float[Array, "B width"]:
        """There is no activation at the end: the ResNet blocks that read this apply SiLU first."""
        return self.linear_2(nnx.silu(self.linear_1(x)))


class Attention(nnx.Module):
    """Multi-head attention of x over `context` (x itself in self-attention)."""

    def __init__(self, width: int, context: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.q = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.k = nnx.Linear(context, width, use_bias=False, rngs=rngs)
        self.v = nnx.Linear(context, width, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "B N C"], context: Float[Array, "B M I"]) -> Float[Array, "B N C"]:
        """Each of the N positions sees all M of the context."""

        def split(y: Float[Array, "B n C"]) -> Float[Array, "B n heads D"]:
            return y.reshape(*y.shape[:2], self.heads, -1)

        mixed = resnet2d.attend(split(self.q(x)), split(self.k(context)), split(self.v(context)))
        return self.out(mixed.reshape(x.shape))


class TransformerBlock(nnx.Module):
    """Self-attention, attention over the prompt and a GEGLU network, each on a LayerNorm of its input and added."""

    def __init__(self, width: int, context: int, heads: int, *, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(width, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.attn1 = Attention(width, width, heads, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.attn2 = Attention(width, context, heads, rngs=rngs)
        self.norm3 = nnx.LayerNorm(width, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.ff_in = nnx.Linear(width, 8 * width, rngs=rngs)
        self.ff_out = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "B N C"], context: Float[Array, "B M I"]) -> Float[Array, "B N C"]:
        """`context`: the prompt's states, M of them; x: N pixels, which all see one another."""
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        x = x + self.attn2(self.norm2(x), context)
        value, gate = jnp.split(self.ff_in(self.norm3(x)), 2, -1)
        return x + self.ff_out(value * nnx.gelu(gate, approximate=False))


class Transformer(nnx.Module):
    """x + a transformer block over all its positions, between two projections."""

    def __init__(self, width: int, context: int, heads: int, groups: int, *, rngs: nnx.Rngs):
        self.norm = resnet2d.group_norm(width, groups, 1e-6, rngs=rngs)
        self.proj_in = nnx.Linear(width, width, rngs=rngs)
        self.block = TransformerBlock(width, context, heads, rngs=rngs)
        self.proj_out = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"], context: Float[Array, "B M I"]) -> Float[Array, "B H W C"]:
        """Pixels become a sequence, row by row, whose places have no embedding; the shape stays."""
        h = self.proj_in(self.norm(x).reshape(x.shape[0], -1, x.shape[-1]))
        return x + self.proj_out(self.block(h, context)).reshape(x.shape)


class Level(nnx.Module):
    """ResNet blocks with these inputs, each followed by a transformer if there are `heads`."""

    def __init__(
        self, s: UNetSettings, inputs: Sequence[int], width: int, heads: int | None, resample: nnx.Module | None,
        *, rngs: nnx.Rngs,
    ):  # fmt: skip
        options: dict[str, Any] = {"groups": s.groups, "epsilon": s.epsilon, "time": 4 * s.widths[0], "rngs": rngs}
        self.resnets = nnx.List([resnet2d.ResNetBlock(i, width, **options) for i in inputs])
        self.attentions = nnx.List(
            [Transformer(width, s.context, heads, s.groups, rngs=rngs) for _ in inputs] if heads else []
        )
        self.resample = resample

    def layer(
        self, i: int, x: Float[Array, "B H W I"], time: Float[Array, "B E"], context: Float[Array, "B M D"]
    ) -> Float[Array, "B H W C"]:
        """ResNet block i and its transformer."""
        x = self.resnets[i](x, time)
        return self.attentions[i](x, context) if len(self.attentions) else x


class Middle(nnx.Module):
    """ResNet block, transformer, ResNet block."""

    def __init__(self, s: UNetSettings, *, rngs: nnx.Rngs):
        width = s.widths[-1]
        options: dict[str, Any] = {"groups": s.groups, "epsilon": s.epsilon, "time": 4 * s.widths[0], "rngs": rngs}
        self.before = resnet2d.ResNetBlock(width, width, **options)
        self.attention = Transformer(width, s.context, s.heads[-1], s.groups, rngs=rngs)
        self.after = resnet2d.ResNetBlock(width, width, **options)

    def __call__(
        self, x: Float[Array, "B H W C"], time: Float[Array, "B E"], context: Float[Array, "B M D"]
    ) -> Float[Array, "B H W C"]:
        """`time`: the embedding of diffusion time; `context`: the prompt's states. The shape stays."""
        return self.after(self.attention(self.before(x, time), context), time)


class UNet(nnx.Module):
    """Noised latents → the model's prediction (of the noise or the velocity), of the same shape.

    Its sides must be multiples of 2^(levels - 1).
    """

    def __init__(self, settings: UNetSettings, *, rngs: nnx.Rngs):
        self.settings = s = settings
        last, time = len(s.widths) - 1, 4 * s.widths[0]
        heads = [h if there else None for h, there in zip(s.heads, s.attention, strict=True)]
        self.conv_in = resnet2d.conv3(s.channels, s.widths[0], rngs=rngs)
        self.time_embedding = Embedding(s.widths[0], time, rngs=rngs)
        self.class_embedding = Embedding(s.condition, time, rngs=rngs)
        skips = [s.widths[0]]  # widths of what the way down leaves for the way up
        down, width = [], s.widths[0]
        for i, outputs in enumerate(s.widths):
            inputs = [width] + [outputs] * (s.blocks - 1)
            halving = None if i == last else resnet2d.halving(outputs, 1, rngs=rngs)
            down.append(Level(s, inputs, outputs, heads[i], halving, rngs=rngs))
            width = outputs
            skips += [outputs] * (s.blocks + (i != last))
        self.down = nnx.List(down)
        self.mid = Middle(s, rngs=rngs)
        up = []
        for i in range(last, -1, -1):
            inputs = []
            for _ in range(s.blocks + 1):
                inputs.append(width + skips.pop())
                width = s.widths[i]
            doubling = None if i == 0 else resnet2d.Doubling(width, rngs=rngs)
            up.append(Level(s, inputs, width, heads[i], doubling, rngs=rngs))
        self.up = nnx.List(up)
        self.norm_out = resnet2d.group_norm(width, s.groups, s.epsilon, rngs=rngs)
        self.conv_out = resnet2d.conv3(width, s.channels, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        time: Int[Array, " B"],
        context: Float[Array, "B M D"],
        condition: Float[Array, "B I"],
    ) -> Float[Array, "B H W C"]:
        """`time`: training steps; `context`: the prompt's states; `condition`: the noised image embedding."""
        embedded = self.time_embedding(sinusoids(time, self.settings.widths[0]).astype(x.dtype))
        embedded = embedded + self.class_embedding(condition)
        x = self.conv_in(x)
        skips = [x]
        for level in self.down:
            for i in range(len(level.resnets)):
                x = level.layer(i, x, embedded, context)
                skips.append(x)
            if level.resample is not None:
                x = level.resample(x)
                skips.append(x)
        x = self.mid(x, embedded, context)
        for level in self.up:
            for i in range(len(level.resnets)):
                x = level.layer(i, jnp.concatenate([x, skips.pop()], -1), embedded, context)
            if level.resample is not None:
                x = level.resample(x)
        return self.conv_out(nnx.silu(self.norm_out(x)))
