"""DAC, Descript's audio codec (Kumar et al. 2023, "High-Fidelity Audio Compression with Improved RVQGAN").

Strided convolutions with residual units and the periodic Snake activation, a residual quantizer with factorized
codes, and the mirror image back to sound. 44.1 kHz: 9 codebooks of 1024, 86 frames a second of 512 samples.

There is no recurrence and no attention, so a frame depends on a few neighbours only: in the published networks on 8
frames on each side for its codes, and on 10 on each side for its samples (`encode_context`, `decode_context`). Frames
of a window that have that many neighbours in it are those of the whole sound.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from anygpt_jax.modalities.codecs import quantize, weights
from anygpt_jax.modalities.codecs.chunked import Context
from anygpt_jax.modalities.codecs.conv1d import Conv, ConvTransposed, zero_beyond
from anygpt_jax.modalities.codecs.melcodec import Codebook
from anygpt_jax.modalities.codecs.snake import snake

DILATIONS = (1, 3, 9)  # of a block's residual units
KERNEL = 7  # taps of a residual unit's first convolution, and of the first and last layer on sound


@dataclasses.dataclass(frozen=True)
class DacSettings:
    """`ratios` are the encoder's strides, the decoder's in reverse; a layer after a stride is twice as wide."""

    sample_rate: int = 44100
    ratios: tuple[int, ...] = (2, 4, 8, 8)
    encoder_width: int = 64
    decoder_width: int = 1536
    latent: int = 1024
    codebooks: int = 9
    codebook_size: int = 1024
    codebook_width: int = 8


def build(settings: Mapping[str, Any]) -> Dac:
    """The network with random weights."""
    return Dac(DacSettings(**{**settings, "ratios": tuple(settings["ratios"])}), rngs=weights.rngs())


class Snake(nnx.Module):
    """`snake` with one α a channel."""

    def __init__(self, width: int):
        self.alpha = nnx.Param(jnp.ones(width))

    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        """Elementwise: what lies beyond the end of a row stays there."""
        return snake(x, self.alpha[...])


class ResidualUnit(nnx.Module):
    """x + a pointwise layer of a dilated convolution, each after a Snake."""

    def __init__(self, width: int, dilation: int, *, rngs: nnx.Rngs):
        self.snake1 = Snake(width)
        self.conv = Conv(width, width, KERNEL, dilation=dilation, pad_mode="constant", rngs=rngs)
        self.snake2 = Snake(width)
        self.out = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "B T C"], lengths: Int[Array, " B"]) -> Float[Array, "B T C"]:
        """As many steps as x has, in every row."""
        h, _ = self.conv(self.snake1(x), lengths)
        return x + self.out(self.snake2(h))

    def reads(self, low: int, high: int) -> tuple[int, int]:
        """The first and last input step that output steps low..high depend on: those of the convolution."""
        return self.conv.reads(low, high)


def _units(width: int, rngs: nnx.Rngs) -> nnx.List[ResidualUnit]:
    return nnx.List([ResidualUnit(width, dilation, rngs=rngs) for dilation in DILATIONS])


class EncoderBlock(nnx.Module):
    """Residual units, then a strided convolution to twice the width."""

    def __init__(self, width: int, stride: int, *, rngs: nnx.Rngs):
        self.units = _units(width, rngs)
        self.snake = Snake(width)
        self.down = Conv(width, 2 * width, 2 * stride, stride=stride, pad_mode="constant", rngs=rngs)

    def __call__(self, x: Float[Array, "B T C"], lengths: Int[Array, " B"]) -> tuple[Array, Int[Array, " B"]]:
        """(steps, their number in each row): length / stride, rounded up."""
        for unit in self.units:
            x = unit(x, lengths)
        return self.down(self.snake(x), lengths)


class Encoder(nnx.Module):
    """Sound of whole frames → latents."""

    def __init__(self, s: DacSettings, *, rngs: nnx.Rngs):
        widths = [s.encoder_width * 2**i for i in range(len(s.ratios) + 1)]
        self.inward = Conv(1, widths[0], KERNEL, pad_mode="constant", rngs=rngs)
        self.blocks = nnx.List([EncoderBlock(w, r, rngs=rngs) for w, r in zip(widths, s.ratios, strict=False)])
        self.snake = Snake(widths[-1])
        self.outward = Conv(widths[-1], s.latent, 3, pad_mode="constant", rngs=rngs)

    def __call__(self, x: Float[Array, "B T 1"], lengths: Int[Array, " B"]) -> Float[Array, "B F D"]:
        """T and all lengths are multiples of the product of the strides; F is T divided by it."""
        x, lengths = self.inward(x, lengths)
        for block in self.blocks:
            x, lengths = block(x, lengths)
        return self.outward(self.snake(x), lengths)[0]

    def reads(self, low: int, high: int) -> tuple[int, int]:
        """The first and last sample that latents low..high depend on."""
        layers = [self.inward, *(layer for block in self.blocks for layer in (*block.units, block.down)), self.outward]
        return _reads(layers, low, high)


class DecoderBlock(nnx.Module):
    """A transposed convolution to half the width, then residual units."""

    def __init__(self, width: int, stride: int, *, rngs: nnx.Rngs):
        self.snake = Snake(width)
        self.up = ConvTransposed(width, width // 2, 2 * stride, stride=stride, rngs=rngs)
        self.units = _units(width // 2, rngs)

    def __call__(self, x: Float[Array, "B T C"], lengths: Int[Array, " B"]) -> tuple[Array, Int[Array, " B"]]:
        """(steps, their number in each row): length · stride, less one where the stride is odd."""
        x, lengths = self.up(self.snake(x), lengths)
        # The published decoder trims an odd stride by one step more than it can spare: a row is one step short.
        lengths = jnp.maximum(lengths - self.up.stride % 2, 0)
        for unit in self.units:
            x = unit(x, lengths)
        return x, lengths


class Decoder(nnx.Module):
    """Quantized latents → (sound, the samples of each row)."""

    def __init__(self, s: DacSettings, *, rngs: nnx.Rngs):
        widths = [s.decoder_width // 2**i for i in range(len(s.ratios) + 1)]
        self.inward = Conv(s.latent, widths[0], KERNEL, pad_mode="constant", rngs=rngs)
        self.blocks = nnx.List([DecoderBlock(w, r, rngs=rngs) for w, r in zip(widths, s.ratios[::-1], strict=False)])
        self.snake = Snake(widths[-1])
        self.outward = Conv(widths[-1], 1, KERNEL, pad_mode="constant", rngs=rngs)

    def __call__(self, x: Float[Array, "B F D"], lengths: Int[Array, " B"]) -> tuple[Array, Int[Array, " B"]]:
        """The sound [B, F·hop, 1] is bounded to -1..1 by tanh; beyond the samples of a row it is undefined."""
        x, lengths = self.inward(x, lengths)
        for block in self.blocks:
            x, lengths = block(x, lengths)
        x, lengths = self.outward(self.snake(x), lengths)
        return jnp.tanh(x), lengths

    def reads(self, low: int, high: int) -> tuple[int, int]:
        """The first and last latent that samples low..high depend on."""
        layers = [self.inward, *(layer for block in self.blocks for layer in (block.up, *block.units)), self.outward]
        return _reads(layers, low, high)


def _reads(layers: list[Any], low: int, high: int) -> tuple[int, int]:
    for layer in reversed(layers):
        low, high = layer.reads(low, high)
    return low, high


class Level(nnx.Module):
    """One codebook: latents are projected to a few dimensions, and the code of the nearest direction is taken."""

    def __init__(self, s: DacSettings, *, rngs: nnx.Rngs):
        self.inward = nnx.Linear(s.latent, s.codebook_width, rngs=rngs)
        self.codebook = Codebook(jnp.zeros((s.codebook_size, s.codebook_width)))
        self.outward = nnx.Linear(s.codebook_width, s.latent, rngs=rngs)

    def encode(self, x: Float[Array, "*N D"]) -> Int[Array, "*N"]:
        """The code of largest cosine to the projected latent: both are compared at length 1."""
        return quantize.nearest(quantize.unit(self.inward(x)), quantize.unit(self.codebook[...]))

    def decode(self, codes: Int[Array, "*N"]) -> Float[Array, "*N D"]:
        """The codes' vectors as they are stored, not at length 1, projected to the latents' width."""
        return self.outward(self.codebook[...][codes])


class Dac(nnx.Module):
    """Sound [B, T] at `sample_rate` ↔ codes [B, F, Q], a frame every `hop` samples; rows end where they end."""

    def __init__(self, settings: DacSettings, *, rngs: nnx.Rngs):
        self.settings = s = settings
        self.sample_rate, self.hop = s.sample_rate, math.prod(s.ratios)
        self.codebooks, self.codebook_size = s.codebooks, s.codebook_size
        self.encoder = Encoder(s, rngs=rngs)
        self.levels = nnx.List([Level(s, rngs=rngs) for _ in range(s.codebooks)])
        self.decoder = Decoder(s, rngs=rngs)
        low, high = self.encoder.reads(0, 0)
        self.encode_context = Context(-(low // self.hop), high // self.hop)
        low, high = self.decoder.reads(0, self.hop - 1)
        self.decode_context = Context(-low, high)

    def frames(self, lengths: Int[Array, " B"]) -> Int[Array, " B"]:
        """The frames of so many samples; the last may be partial."""
        return -(-lengths // self.hop)

    def samples(self, lengths: Int[Array, " B"]) -> Int[Array, " B"]:
        """The samples that so many frames decode to: lengths · hop, less a few where a stride is odd."""
        for ratio in self.settings.ratios[::-1]:
            lengths = jnp.maximum(lengths * ratio - ratio % 2, 0)
        return lengths

    def latents(self, sound: Float[Array, "B T"], lengths: Int[Array, " B"]) -> Float[Array, "B F D"]:
        """What is quantized. Sound is continued by silence to whole frames."""
        x = zero_beyond(sound[..., None], lengths)
        x = jnp.pad(x, ((0, 0), (0, -sound.shape[1] % self.hop), (0, 0)))
        return self.encoder(x, self.frames(lengths) * self.hop)

    def encode(
        self, sound: Float[Array, "B T"], lengths: Int[Array, " B"], levels: int | None = None
    ) -> Int[Array, "B F levels"]:
        """Codes of the first `levels` codebooks, of all by default. The first frames(lengths[b]) codes of row b are
        those of its own samples, the others mean nothing."""
        x, codes = self.latents(sound, lengths), []
        for level in self.levels[:levels]:
            codes.append(level.encode(x))
            x = x - level.decode(codes[-1])
        return jnp.stack(codes, -1)

    def decode(self, codes: Int[Array, "B F q"], lengths: Int[Array, " B"]) -> Float[Array, "B F*hop"]:
        """The first q ≤ Q levels of codes, lengths[b] frames of row b; zeros from samples(lengths[b]) on."""
        x = self.levels[0].decode(codes[..., 0])
        for q in range(1, codes.shape[-1]):
            x = x + self.levels[q].decode(codes[..., q])
        sound, samples = self.decoder(x, lengths)
        return zero_beyond(sound, samples)[..., 0]
