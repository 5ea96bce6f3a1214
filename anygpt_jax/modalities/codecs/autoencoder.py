"""The convolutional encoder and decoder of latent image models: `AutoencoderKL` and the VQGAN family.

Esser et al. 2021 (VQGAN), Rombach et al. 2022: levels of ResNet blocks, each half the size of the one before, and
one attention block between two ResNet blocks at the smallest.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from anygpt_jax.modalities.codecs import resnet2d

EPSILON = 1e-6  # of every norm, in all published ones


@dataclasses.dataclass(frozen=True)
class AutoencoderSettings:
    """`widths` from the full size down, `blocks` ResNet blocks a level (one more in the decoder).

    `attention_last`: an attention block after every ResNet block of the smallest level too, as VQGANs have.
    """

    widths: tuple[int, ...]
    blocks: int
    latent: int
    groups: int = 32
    channels: int = 3
    attention_last: bool = False

    def __post_init__(self):
        if any(w % self.groups for w in self.widths):
            raise ValueError(f"the widths {self.widths} are not multiples of {self.groups} groups")

    @property
    def factor(self) -> int:
        """Pixels a latent, in each direction."""
        return 2 ** (len(self.widths) - 1)


class Level(nnx.Module):
    """ResNet blocks, each with attention after it if `attention`, then `resample` if there is one."""

    def __init__(
        self, inputs: int, outputs: int, blocks: int, groups: int, attention: bool, resample: nnx.Module | None,
        *, rngs: nnx.Rngs,
    ):  # fmt: skip
        options: dict[str, Any] = {"groups": groups, "epsilon": EPSILON, "rngs": rngs}
        self.resnets = nnx.List(
            [resnet2d.ResNetBlock(inputs if i == 0 else outputs, outputs, **options) for i in range(blocks)]
        )
        self.attentions = nnx.List(
            [resnet2d.AttentionBlock(outputs, **options) for _ in range(blocks if attention else 0)]
        )
        self.resample = resample

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B H2 W2 O"]:
        """`resample` alone changes the size: H2 and W2 are the half or the double, or H and W without it."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(x)
            if len(self.attentions):
                x = self.attentions[i](x)
        return x if self.resample is None else self.resample(x)


class Middle(nnx.Module):
    """ResNet block, attention, ResNet block."""

    def __init__(self, width: int, groups: int, *, rngs: nnx.Rngs):
        options: dict[str, Any] = {"groups": groups, "epsilon": EPSILON, "rngs": rngs}
        self.before = resnet2d.ResNetBlock(width, width, **options)
        self.attention = resnet2d.AttentionBlock(width, **options)
        self.after = resnet2d.ResNetBlock(width, width, **options)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Every pixel attends all of the picture; the shape stays."""
        return self.after(self.attention(self.before(x)))


class Encoder(nnx.Module):
    """Pixels → `outputs` channels, `factor` times smaller in each direction."""

    def __init__(self, settings: AutoencoderSettings, outputs: int, *, rngs: nnx.Rngs):
        s, last = settings, len(settings.widths) - 1
        self.conv_in = resnet2d.conv3(s.channels, s.widths[0], rngs=rngs)
        self.levels = nnx.List(
            [
                Level(
                    s.widths[max(i - 1, 0)], width, s.blocks, s.groups, s.attention_last and i == last,
                    None if i == last else resnet2d.halving(width, 0, rngs=rngs), rngs=rngs,
                )
                for i, width in enumerate(s.widths)
            ]
        )  # fmt: skip
        self.mid = Middle(s.widths[-1], s.groups, rngs=rngs)
        self.norm_out = resnet2d.group_norm(s.widths[-1], s.groups, EPSILON, rngs=rngs)
        self.conv_out = resnet2d.conv3(s.widths[-1], outputs, rngs=rngs)

    def __call__(self, pixels: Float[Array, "B H W C"]) -> Float[Array, "B h w O"]:
        """h and w are H and W divided by `factor`, rounded down. Nothing bounds the outputs."""
        x = self.conv_in(pixels)
        for level in self.levels:
            x = level(x)
        return self.conv_out(nnx.silu(self.norm_out(self.mid(x))))


class Decoder(nnx.Module):
    """Latents → pixels, `factor` times larger in each direction; level 0 is the smallest."""

    def __init__(self, settings: AutoencoderSettings, *, rngs: nnx.Rngs):
        s, widths = settings, settings.widths[::-1]
        self.conv_in = resnet2d.conv3(s.latent, widths[0], rngs=rngs)
        self.mid = Middle(widths[0], s.groups, rngs=rngs)
        self.levels = nnx.List(
            [
                Level(
                    widths[max(i - 1, 0)], width, s.blocks + 1, s.groups, s.attention_last and i == 0,
                    None if i == len(widths) - 1 else resnet2d.Doubling(width, rngs=rngs), rngs=rngs,
                )
                for i, width in enumerate(widths)
            ]
        )  # fmt: skip
        self.norm_out = resnet2d.group_norm(widths[-1], s.groups, EPSILON, rngs=rngs)
        self.conv_out = resnet2d.conv3(widths[-1], s.channels, rngs=rngs)

    def __call__(self, latents: Float[Array, "B h w latent"]) -> Float[Array, "B H W C"]:
        """Pixels as they were trained, about -1..1 in the published networks; they are not clipped."""
        x = self.mid(self.conv_in(latents))
        for level in self.levels:
            x = level(x)
        return self.conv_out(nnx.silu(self.norm_out(x)))
