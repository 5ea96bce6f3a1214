"""Janus' and LlamaGen's image VQ: a code of 16384 for every 16 × 16 pixels, and a decoder without diffusion.

Sun et al. 2024 (LlamaGen, section 3.1): a VQGAN whose 8-dimensional codes are compared on the unit sphere.
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
from anygpt_jax.modalities.codecs.autoencoder import AutoencoderSettings, Decoder, Encoder
from anygpt_jax.modalities.codecs.melcodec import Codebook


@dataclasses.dataclass(frozen=True)
class JanusVQSettings:
    """`normalize_on_encode`: latents and code vectors are compared at length 1, as LlamaGen and Janus do.

    transformers' JanusVQVAE compares them as they are, though it decodes normalized ones too: False gives its codes.
    """

    widths: tuple[int, ...] = (128, 128, 256, 256, 512)
    blocks: int = 2
    latent: int = 256
    codebook_size: int = 16384
    code_width: int = 8
    normalize_on_encode: bool = True


class JanusVQ(nnx.Module):
    """Pixels [B, H, W, 3] in -1..1 ↔ codes [B, H/factor · W/factor], row by row."""

    def __init__(self, settings: JanusVQSettings, *, rngs: nnx.Rngs):
        self.settings = s = settings
        network = AutoencoderSettings(s.widths, s.blocks, s.latent, attention_last=True)
        self.factor, self.codebook_size = network.factor, s.codebook_size
        self.encoder = Encoder(network, s.latent, rngs=rngs)
        self.before_quantizer = nnx.Linear(s.latent, s.code_width, rngs=rngs)
        self.codebook = Codebook(jnp.zeros((s.codebook_size, s.code_width)))
        self.after_quantizer = nnx.Linear(s.code_width, s.latent, rngs=rngs)
        self.decoder = Decoder(network, rngs=rngs)

    def latents(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B h w D"]:
        """What codes are chosen for. ValueError if the sides are not multiples of `factor`."""
        if pixels.shape[1] % self.factor or pixels.shape[2] % self.factor:
            raise ValueError(f"an image of {pixels.shape[1:3]} pixels: both sides must be multiples of {self.factor}")
        return self.before_quantizer(self.encoder(pixels))

    def encode(self, pixels: Float[Array, "B H W 3"]) -> Int[Array, "B N"]:
        """Pixels in -1..1 → codes. ValueError if the sides are not multiples of `factor`."""
        x, codebook = self.latents(pixels), self.codebook[...]
        if self.settings.normalize_on_encode:
            x, codebook = quantize.unit(x), quantize.unit(codebook)
        return quantize.nearest(x, codebook).reshape(len(pixels), -1)

    def decode(self, codes: Int[Array, "B N"]) -> Float[Array, "B H W 3"]:
        """Codes of square images → pixels, about -1..1 (not clipped). ValueError if N is not a square."""
        side = math.isqrt(codes.shape[1])
        if side * side != codes.shape[1]:
            raise ValueError(f"{codes.shape[1]} codes are not those of a square image")
        vectors = quantize.unit(self.codebook[...][codes]).reshape(len(codes), side, side, -1)
        return self.decoder(self.after_quantizer(vectors))


def build(settings: Mapping[str, Any]) -> JanusVQ:
    """The network of JSON settings."""
    return JanusVQ(JanusVQSettings(**{**settings, "widths": tuple(settings["widths"])}), rngs=weights.rngs())
