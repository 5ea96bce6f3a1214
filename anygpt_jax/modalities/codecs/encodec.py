"""EnCodec (Défossez et al. 2022, "High Fidelity Neural Audio Compression"): SEANet and a residual quantizer.

32 kHz for music (MusicGen's): 4 codebooks of 2048, 50 frames a second. 24 kHz: causal, 75 frames a second, as many
of its 32 codebooks of 1024 as the bandwidth allows.
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
from anygpt_jax.modalities.codecs.conv1d import zero_beyond
from anygpt_jax.modalities.codecs.melcodec import Codebook


@dataclasses.dataclass(frozen=True)
class EncodecSettings:
    """`sample_rate` in Hz; each codebook has `codebook_size` vectors of the network's latent width."""

    sample_rate: int
    network: seanet.SeanetSettings
    codebooks: int
    codebook_size: int


MUSIC_32KHZ = EncodecSettings(
    32000, seanet.SeanetSettings(latent=128, filters=64, ratios=(8, 5, 4, 4)), codebooks=4, codebook_size=2048
)
SOUND_24KHZ = EncodecSettings(
    24000,
    seanet.SeanetSettings(latent=128, filters=32, ratios=(8, 5, 4, 2), conv_shortcut=True, causal=True),
    codebooks=32,
    codebook_size=1024,
)


def parse(settings: Mapping[str, Any]) -> EncodecSettings:
    """From JSON."""
    network = {**settings["network"], "ratios": tuple(settings["network"]["ratios"])}
    return EncodecSettings(**{**settings, "network": seanet.SeanetSettings(**network)})


def build(settings: Mapping[str, Any]) -> Encodec:
    """The network with random weights and empty codebooks."""
    return Encodec(parse(settings), rngs=weights.rngs())


class Encodec(nnx.Module):
    """Sound [B, T] at `sample_rate` ↔ codes [B, F, Q], a frame every `hop` samples; rows end where they end."""

    def __init__(self, settings: EncodecSettings, *, rngs: nnx.Rngs):
        self.settings = settings
        self.sample_rate, self.hop = settings.sample_rate, math.prod(settings.network.ratios)
        self.codebooks, self.codebook_size = settings.codebooks, settings.codebook_size
        self.encoder = seanet.encoder(settings.network, rngs=rngs)
        self.vectors = Codebook(jnp.zeros((settings.codebooks, settings.codebook_size, settings.network.latent)))
        self.decoder = seanet.decoder(settings.network, rngs=rngs)
        self.encode_context = self.encoder.context()
        self.decode_context = self.decoder.context()

    def frames(self, lengths: Int[Array, " B"]) -> Int[Array, " B"]:
        """The frames of so many samples; the last may be partial."""
        return -(-lengths // self.hop)

    def latents(self, sound: Float[Array, "B T"], lengths: Int[Array, " B"]) -> Float[Array, "B F D"]:
        """What is quantized."""
        return self.encoder(sound[..., None], lengths)[0]

    def encode(
        self, sound: Float[Array, "B T"], lengths: Int[Array, " B"], levels: int | None = None
    ) -> Int[Array, "B F levels"]:
        """Codes of the first `levels` codebooks, of all by default. The first frames(lengths[b]) codes of row b are
        those of its own samples, the others mean nothing."""
        return quantize.residual_encode(self.latents(sound, lengths), self.vectors[:levels])

    def decode(self, codes: Int[Array, "B F q"], lengths: Int[Array, " B"]) -> Float[Array, "B F*hop"]:
        """The first q ≤ Q levels of codes, lengths[b] frames of row b; zeros beyond."""
        sound, samples = self.decoder(self._quantized(codes), lengths)
        return zero_beyond(sound, samples)[..., 0]

    def _quantized(self, codes: Int[Array, "B F q"]) -> Float[Array, "B F D"]:
        return quantize.residual_decode(codes, self.vectors[...])[..., -1, :]

    def initial_encode(self, batch: int) -> seanet.Carry:
        """What the first window of `batch` rows takes as its carry; only where `encode_context` carries."""
        return self.encoder.initial(batch)

    def initial_decode(self, batch: int) -> seanet.Carry:
        """What the first window of `batch` rows takes as its carry; only where `decode_context` carries."""
        return self.decoder.initial(batch)

    def encode_window(
        self, sound: Float[Array, "B T"], lengths: Int[Array, " B"], carry: seanet.Carry
    ) -> tuple[Int[Array, "B F Q"], seanet.Carry]:
        """One window of `chunked.encode`."""
        latents, _, carry = self.encoder.window(sound[..., None], lengths, carry)
        return quantize.residual_encode(latents, self.vectors[...]), carry

    def decode_window(
        self, codes: Int[Array, "B F q"], lengths: Int[Array, " B"], carry: seanet.Carry
    ) -> tuple[Float[Array, "B F*hop"], seanet.Carry]:
        """One window of `chunked.decode`."""
        sound, _, carry = self.decoder.window(self._quantized(codes), lengths, carry)
        return sound[..., 0], carry
