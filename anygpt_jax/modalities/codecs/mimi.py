"""Mimi, Kyutai's streaming speech codec (Défossez et al. 2024, "Moshi", section 3.3): 24 kHz, 12.5 frames a second.

Causal SEANet convolutions to 25 steps a second, a causal transformer, a strided convolution to 12.5, and a residual
quantizer in two: one semantic codebook, and acoustic ones beside it (not after it). The way back mirrors it.

Sound that ends within a frame is continued as transformers' `MimiModel` continues it, by zeros at every layer;
Kyutai's own code continues the sound itself. The two differ in that last frame alone.

Everything is causal. Through the transformers' windows a frame depends on the 80 seconds before it (8 layers of 250
steps), so that in piecewise work the states of their last 249 steps are carried, and the convolutions' context, 3
frames to encode and 5 to decode, is computed again (`encode_context`, `decode_context`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from anygpt_jax.modalities.codecs import quantize, seanet, weights
from anygpt_jax.modalities.codecs.chunked import Context
from anygpt_jax.modalities.codecs.conv1d import Conv, ConvTransposed, zero_beyond
from anygpt_jax.modalities.codecs.melcodec import Codebook
from anygpt_jax.modalities.codecs.mimi_transformer import Past, Transformer, TransformerSettings

STEPS = 2  # of the transformers a frame


@dataclasses.dataclass(frozen=True)
class MimiSettings:
    """Of the `stored` codebooks, the first `semantic` ones and then acoustic ones, the first `codebooks` are used."""

    sample_rate: int
    network: seanet.SeanetSettings
    transformer: TransformerSettings
    semantic: int
    stored: int
    codebooks: int
    codebook_size: int
    codebook_width: int

    def __post_init__(self):
        if not self.semantic < self.codebooks <= self.stored:
            raise ValueError(f"{self.codebooks} codebooks of {self.stored}, {self.semantic} semantic, cannot be used")


def parse(settings: Mapping[str, Any]) -> MimiSettings:
    """From JSON."""
    network = {**settings["network"], "ratios": tuple(settings["network"]["ratios"])}
    parts = {
        "network": seanet.SeanetSettings(**network),
        "transformer": TransformerSettings(**settings["transformer"]),
    }
    return MimiSettings(**{**settings, **parts})


def build(settings: Mapping[str, Any]) -> Mimi:
    """The network with random weights and empty codebooks."""
    return Mimi(parse(settings), rngs=weights.rngs())


class ResidualQuantizer(nnx.Module):
    """Levels of codes in a space of their own, narrower than the latents'."""

    def __init__(self, levels: int, s: MimiSettings, *, rngs: nnx.Rngs):
        self.inward = nnx.Linear(s.network.latent, s.codebook_width, use_bias=False, rngs=rngs)
        self.vectors = Codebook(jnp.zeros((levels, s.codebook_size, s.codebook_width)))
        self.outward = nnx.Linear(s.codebook_width, s.network.latent, use_bias=False, rngs=rngs)

    def encode(self, x: Float[Array, "*N D"], levels: int) -> Int[Array, "*N levels"]:
        """Codes of the first `levels` codebooks; latents are projected to their width before."""
        return quantize.residual_encode(self.inward(x), self.vectors[:levels])

    def decode(self, codes: Int[Array, "*N q"]) -> Float[Array, "*N D"]:
        """The first q levels' vectors added up, projected to the latents' width."""
        return self.outward(quantize.residual_decode(codes, self.vectors[...])[..., -1, :])


class Mimi(nnx.Module):
    """Sound [B, T] at `sample_rate` ↔ codes [B, F, Q], a frame every `hop` samples; rows end where they end."""

    def __init__(self, settings: MimiSettings, *, rngs: nnx.Rngs):
        self.settings = s = settings
        self.sample_rate, self.hop = s.sample_rate, STEPS * math.prod(s.network.ratios)
        self.codebooks, self.codebook_size = s.codebooks, s.codebook_size
        width, taps = s.network.latent, 2 * STEPS
        self.encoder = seanet.encoder(s.network, rngs=rngs)
        self.encoder_transformer = Transformer(width, s.transformer, rngs=rngs)
        self.down = Conv(width, width, taps, stride=STEPS, causal=True, pad_mode="replicate", use_bias=False, rngs=rngs)
        self.semantic = ResidualQuantizer(s.semantic, s, rngs=rngs)
        self.acoustic = ResidualQuantizer(s.stored - s.semantic, s, rngs=rngs)
        # Each channel by itself.
        self.up = ConvTransposed(width, width, taps, stride=STEPS, groups=width, causal=True, use_bias=False, rngs=rngs)
        self.decoder_transformer = Transformer(width, s.transformer, rngs=rngs)
        self.decoder = seanet.decoder(s.network, rngs=rngs)
        # Where in a window the transformers go on, in steps: after what the layers before them need. The strided
        # layers need one frame before theirs.
        self.encode_start = -(-self.encoder.context().left // STEPS) * STEPS
        self.decode_start = STEPS
        self.encode_context = Context(self.encode_start // STEPS + 1, 0, carries=True)
        self.decode_context = Context(1 - (-self.decoder.context().left // STEPS), 0, carries=True)

    def frames(self, lengths: Int[Array, " B"]) -> Int[Array, " B"]:
        """The frames of so many samples; the last may be partial."""
        return -(-lengths // self.hop)

    def latents(self, sound: Float[Array, "B T"], lengths: Int[Array, " B"]) -> Float[Array, "B F D"]:
        """What is quantized."""
        x, lengths = self.encoder(sound[..., None], lengths)
        return self.down(self.encoder_transformer(x), lengths)[0]

    def encode(
        self, sound: Float[Array, "B T"], lengths: Int[Array, " B"], levels: int | None = None
    ) -> Int[Array, "B F levels"]:
        """Codes of the first `levels` codebooks, at least one; by default of the settings' `codebooks`.
        The first frames(lengths[b]) codes of row b are those of its own samples, the others mean nothing."""
        return self._codes(self.latents(sound, lengths), self.codebooks if levels is None else levels)

    def decode(self, codes: Int[Array, "B F q"], lengths: Int[Array, " B"]) -> Float[Array, "B F*hop"]:
        """The first q levels of codes, at least one and at most the stored ones; lengths[b] frames of row b, zeros
        beyond."""
        x, lengths = self.up(self._quantized(codes), lengths)
        sound, samples = self.decoder(self.decoder_transformer(x), lengths)
        return zero_beyond(sound, samples)[..., 0]

    def initial_encode(self, batch: int) -> Past:
        """What the first window of `batch` rows takes as its carry."""
        return self.encoder_transformer.initial(batch)

    def initial_decode(self, batch: int) -> Past:
        """What the first window of `batch` rows takes as its carry."""
        return self.decoder_transformer.initial(batch)

    def encode_window(
        self, sound: Float[Array, "B T"], lengths: Int[Array, " B"], carry: Past
    ) -> tuple[Int[Array, "B F Q"], Past]:
        """One window of `chunked.encode`."""
        x, lengths = self.encoder(sound[..., None], lengths)
        stop = self.encode_start + x.shape[1] - STEPS * self.encode_context.left
        x, carry = self.encoder_transformer.continued(x, carry, self.encode_start, stop)
        return self._codes(self.down(x, lengths)[0], self.codebooks), carry

    def decode_window(
        self, codes: Int[Array, "B F q"], lengths: Int[Array, " B"], carry: Past
    ) -> tuple[Float[Array, "B F*hop"], Past]:
        """One window of `chunked.decode`."""
        x, lengths = self.up(self._quantized(codes), lengths)
        stop = self.decode_start + x.shape[1] - STEPS * self.decode_context.left
        x, carry = self.decoder_transformer.continued(x, carry, self.decode_start, stop)
        return self.decoder(x, lengths)[0][..., 0], carry

    def _codes(self, x: Float[Array, "B F D"], levels: int) -> Int[Array, "B F levels"]:
        semantic = self.settings.semantic
        codes = self.semantic.encode(x, min(levels, semantic))
        if levels <= semantic:
            return codes
        return jnp.concatenate([codes, self.acoustic.encode(x, levels - semantic)], -1)

    def _quantized(self, codes: Int[Array, "B F q"]) -> Float[Array, "B F D"]:
        semantic = self.settings.semantic
        x = self.semantic.decode(codes[..., :semantic])
        return x + self.acoustic.decode(codes[..., semantic:]) if codes.shape[-1] > semantic else x
