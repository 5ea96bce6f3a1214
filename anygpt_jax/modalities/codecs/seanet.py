"""SEANet, the convolutional encoder and decoder of EnCodec, SpeechTokenizer and Mimi.

Tagliasacchi et al. 2020 (SEANet), Défossez et al. 2022 (EnCodec, section 3.1). The encoder is a convolution, blocks
of residual units and a strided convolution that doubles the width, an LSTM, and a convolution to the latents; the
decoder mirrors it. `layers` are numbered as in the published implementations, activations included.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from anygpt_jax.modalities.codecs.chunked import Context
from anygpt_jax.modalities.codecs.conv1d import Conv, ConvTransposed
from anygpt_jax.modalities.codecs.lstm import Lstm
from anygpt_jax.modalities.codecs.snake import snake

ACTIVATIONS = ("elu", "snake")
# Frames on both sides of a window for a bidirectional LSTM, whose states cannot be carried.
MEMORY = 100


@dataclasses.dataclass(frozen=True)
class SeanetSettings:
    """Sizes of an encoder and its decoder. `ratios` are the decoder's strides, the encoder's in reverse."""

    latent: int  # width of what is quantized
    filters: int  # width at the sample rate; it doubles with each stride
    ratios: tuple[int, ...]
    residual_layers: int = 1
    kernel: int = 7
    last_kernel: int = 7
    residual_kernel: int = 3
    dilation_base: int = 2  # residual layer j of a block has dilation dilation_base**j
    compress: int = 2  # a residual unit is so many times narrower inside
    lstm_layers: int = 2
    bidirectional: bool = False  # the encoder's LSTM; the decoder's never is
    conv_shortcut: bool = False  # a pointwise layer beside each residual unit instead of the identity
    activation: str = "elu"
    causal: bool = False
    pad_mode: str = "reflect"
    trim_right_ratio: float = 1.0  # of what a causal transposed convolution makes too many, this share on the right

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"the activation is one of {', '.join(ACTIVATIONS)}, not {self.activation!r}")
        if self.bidirectional and not self.lstm_layers:
            raise ValueError("a bidirectional LSTM has at least one layer")


class Activation(nnx.Module):
    """ELU, or Snake with one α a channel."""

    def __init__(self, name: str, width: int):
        self.alpha = nnx.Param(jnp.ones(width)) if name == "snake" else None

    def __call__(self, x: Float[Array, "B T C"], lengths: Int[Array, " B"]) -> tuple[Array, Int[Array, " B"]]:
        """(steps, their number in each row, as it came): the form of every layer of a `Seanet`."""
        return (nnx.elu(x) if self.alpha is None else snake(x, self.alpha[...])), lengths

    def reads(self, low: int, high: int) -> tuple[int, int]:
        """The range itself: an activation reads no neighbours."""
        return low, high


class Unit(nnx.Module):
    """The input, or a pointwise layer of it, plus a pointwise layer of a dilated convolution, each after an
    activation."""

    def __init__(self, s: SeanetSettings, width: int, dilation: int, *, rngs: nnx.Rngs):
        inner = width // s.compress
        self.activation1 = Activation(s.activation, width)
        self.conv = Conv(
            width, inner, s.residual_kernel, dilation=dilation, causal=s.causal, pad_mode=s.pad_mode, rngs=rngs
        )
        self.activation2 = Activation(s.activation, inner)
        self.out = nnx.Linear(inner, width, rngs=rngs)
        self.shortcut = nnx.Linear(width, width, rngs=rngs) if s.conv_shortcut else None

    def __call__(self, x: Float[Array, "B T C"], lengths: Int[Array, " B"]) -> tuple[Array, Int[Array, " B"]]:
        """(steps, their number in each row): as many as x has, of the same width."""
        h, _ = self.conv(self.activation1(x, lengths)[0], lengths)
        h = self.out(self.activation2(h, lengths)[0])
        return h + (x if self.shortcut is None else self.shortcut(x)), lengths

    def reads(self, low: int, high: int) -> tuple[int, int]:
        """The first and last input step that output steps low..high depend on: those of the convolution."""
        return self.conv.reads(low, high)


class Carry(NamedTuple):
    """What one window hands to the next: the LSTM's states before frame `start` of the next window."""

    states: Float[Array, "layers 2 B C"]
    start: Int[Array, ""]


class Seanet(nnx.Module):
    """Layers that each map (steps, the number of them in each row) to the same; at most one is an LSTM.

    `at` is the LSTM's place, the end without one. `reach` says what the layers before and after it need,
    ((left, right), (left, right)) in frames.
    """

    def __init__(self, layers: list[Any], reach: tuple[tuple[int, int], tuple[int, int]]):
        self.layers = nnx.List(layers)
        self.at = next((i for i, layer in enumerate(layers) if isinstance(layer, Lstm)), len(layers))
        self.reach = reach

    def __call__(self, x: Float[Array, "B T C"], lengths: Int[Array, " B"]) -> tuple[Array, Int[Array, " B"]]:
        """(steps, the number of them in each row)."""
        return _run(self.layers, x, lengths)

    def context(self) -> Context:
        """What windows need. The states of an LSTM that is not bidirectional are carried."""
        (left, right), (more_left, more_right) = self.reach
        recurrent = self.at < len(self.layers)
        both_ways = recurrent and bool(self.layers[self.at].backward)
        memory = MEMORY if both_ways else 0
        return Context(left + more_left + memory, right + more_right + memory, recurrent and not both_ways)

    def initial(self, batch: int) -> Carry:
        """For the first window."""
        return Carry(self.layers[self.at].initial(batch), jnp.zeros((), jnp.int32))

    def window(
        self, x: Float[Array, "B T C"], lengths: Int[Array, " B"], carry: Carry
    ) -> tuple[Array, Int[Array, " B"], Carry]:
        """A window of a row, after others that handed on `carry`; see `chunked` for how windows lie."""
        x, lengths = _run(self.layers[: self.at], x, lengths)
        context = self.context()
        start = self.reach[0][0]
        new = x.shape[1] - context.left - context.right
        x, states = self.layers[self.at].window(x, carry.states, carry.start, start + new)
        x, lengths = _run(self.layers[self.at + 1 :], x, lengths)
        return x, lengths, Carry(states, jnp.full_like(carry.start, start))


def _run(layers: Iterable[Any], x: Array, lengths: Array) -> tuple[Array, Array]:
    for layer in layers:
        x, lengths = layer(x, lengths)
    return x, lengths


def _reads(layers: list[Any], low: int, high: int) -> tuple[int, int]:
    """The first and last step of the input that steps low..high of the output depend on."""
    for layer in reversed(layers):
        low, high = layer.reads(low, high)
    return low, high


def encoder(s: SeanetSettings, *, rngs: nnx.Rngs) -> Seanet:
    """Sound [B, T, 1] → latents [B, F, latent]."""
    same: dict[str, Any] = {"causal": s.causal, "pad_mode": s.pad_mode, "rngs": rngs}
    width = s.filters
    before: list[Any] = [Conv(1, width, s.kernel, **same)]
    for ratio in s.ratios[::-1]:
        before += [Unit(s, width, s.dilation_base**j, rngs=rngs) for j in range(s.residual_layers)]
        before += [Activation(s.activation, width), Conv(width, 2 * width, 2 * ratio, stride=ratio, **same)]
        width *= 2
    recurrent = [Lstm(width, s.lstm_layers, bidirectional=s.bidirectional, rngs=rngs)] if s.lstm_layers else []
    width *= 1 + s.bidirectional
    after = [Activation(s.activation, width), Conv(width, s.latent, s.last_kernel, **same)]
    hop = math.prod(s.ratios)
    low, high = _reads(before, 0, 0)
    frames_low, frames_high = _reads(after, 0, 0)
    return Seanet(before + recurrent + after, ((-(low // hop), high // hop), (-frames_low, frames_high)))


def decoder(s: SeanetSettings, *, rngs: nnx.Rngs) -> Seanet:
    """Quantized latents [B, F, latent] → sound [B, F·hop, 1]."""
    same: dict[str, Any] = {"causal": s.causal, "pad_mode": s.pad_mode, "rngs": rngs}
    width = s.filters * 2 ** len(s.ratios)
    before: list[Any] = [Conv(s.latent, width, s.kernel, **same)]
    recurrent = [Lstm(width, s.lstm_layers, rngs=rngs)] if s.lstm_layers else []
    after: list[Any] = []
    for ratio in s.ratios:
        up = ConvTransposed(
            width, width // 2, 2 * ratio, stride=ratio, causal=s.causal, trim_right_ratio=s.trim_right_ratio, rngs=rngs
        )
        width //= 2
        after += [Activation(s.activation, 2 * width), up]
        after += [Unit(s, width, s.dilation_base**j, rngs=rngs) for j in range(s.residual_layers)]
    after += [Activation(s.activation, width), Conv(width, 1, s.last_kernel, **same)]
    low, high = _reads(before, 0, 0)
    frames_low, frames_high = _reads(after, 0, math.prod(s.ratios) - 1)
    return Seanet(before + recurrent + after, ((-low, high), (-frames_low, frames_high)))
