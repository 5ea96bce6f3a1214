"""A VQ codec for pictures of things on flat grounds: one code for the ground, one for each patch.

Codes of patches that mix a thing with its ground are specific to the pair, and then a language model cannot
draw a known thing on a ground it never saw there. So the ground (the border's median colour) is a code of its
own, the encoder is trained to give a patch the same latent on every ground, and the decoder predicts
premultiplied colour and opacity, composited on the ground's code. The flat ground and the patch grid that
things are aligned to are built-in assumptions.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from anygpt_jax.modalities.codecs import quantize
from anygpt_jax.modalities.codecs.melcodec import Codebook, Constant


@dataclasses.dataclass(frozen=True)
class PatchSettings:
    """Pixels of the square picture and of a patch; codes of grounds and of patches."""

    size: int
    patch: int
    grounds: int
    codes: int
    latent: int
    width: int
    threshold: float = 0.06  # a pixel that differs from the ground by more (of 0..1, in any channel) is the thing's

    @property
    def patches(self) -> int:
        """Patches of a picture, N: codes of a picture but for the ground's."""
        return (self.size // self.patch) ** 2

    @property
    def pixels(self) -> int:
        """Pixels of a patch, P."""
        return self.patch * self.patch


def split(images: Float[Array, "B S S C"], patch: int) -> Float[Array, "B N P C"]:
    """N patches in reading order, each P = patch² pixels in reading order."""
    batch, size, _, channels = images.shape
    n = size // patch
    grid = images.reshape(batch, n, patch, n, patch, channels).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(batch, n * n, patch * patch, channels)


def join(patches: Float[Array, "B N P C"], patch: int) -> Float[Array, "B S S C"]:
    """The inverse of `split`."""
    batch, count, _, channels = patches.shape
    n = int(count**0.5)
    grid = patches.reshape(batch, n, n, patch, patch, channels).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(batch, n * patch, n * patch, channels)


def ground(images: Float[Array, "B S S 3"]) -> Float[Array, "B 3"]:
    """The median colour of the outermost ring of pixels."""
    ring = jnp.concatenate([images[:, 0], images[:, -1], images[:, 1:-1, 0], images[:, 1:-1, -1]], 1)
    return jnp.median(ring, 1)


class PatchCodec(nnx.Module):
    """Pictures float32[B, S, S, 3] in 0..1 ↔ codes int32[B, 1 + N].

    Encoder and decoder are a linear map (its start: principal components) plus a two-layer perceptron that
    starts at zero and learns what is not linear: how a blended edge would look without its ground.
    """

    def __init__(self, settings: PatchSettings, *, rngs: nnx.Rngs):
        self.settings = s = settings
        flat = 4 * s.pixels
        zeros = nnx.initializers.zeros
        self.mean = Constant(jnp.zeros(flat))
        self.project = nnx.Linear(flat, s.latent, use_bias=False, rngs=rngs)
        self.encode_hidden = nnx.Linear(flat + 3, s.width, rngs=rngs)
        self.encode_out = nnx.Linear(s.width, s.latent, kernel_init=zeros, rngs=rngs)
        self.expand = nnx.Linear(s.latent, flat, use_bias=False, rngs=rngs)
        self.decode_hidden = nnx.Linear(s.latent, s.width, rngs=rngs)
        self.decode_out = nnx.Linear(s.width, flat, kernel_init=zeros, rngs=rngs)
        self.codebook = Codebook(jnp.zeros((s.codes, s.latent)))
        self.palette = Codebook(jnp.zeros((s.grounds, 3)))

    def features(self, patches: Float[Array, "*B P 3"], ground: Float[Array, "*B 3"]) -> Float[Array, "*B F"]:
        """What is the thing's: its pixels' colours, zero elsewhere, and which pixels they are."""
        distance = jnp.max(jnp.abs(patches - ground[..., None, :]), -1, keepdims=True)
        mask = (distance > self.settings.threshold).astype(patches.dtype)
        return jnp.concatenate([patches * mask, mask], -1).reshape(*patches.shape[:-2], -1)

    def latents(self, features: Float[Array, "*B F"], ground: Float[Array, "*B 3"]) -> Float[Array, "*B D"]:
        """`features` on their grounds → what is quantized."""
        centred = features - self.mean[...]
        # An empty patch looks the same on every ground, by construction and not by training.
        is_thing = jnp.max(jnp.abs(features), -1, keepdims=True) > 0
        hidden = nnx.gelu(self.encode_hidden(jnp.concatenate([features, jnp.where(is_thing, ground, 0.0)], -1)))
        return self.project(centred) + self.encode_out(hidden)

    def paint(self, latents: Float[Array, "*B D"], ground: Float[Array, "*B 3"]) -> Float[Array, "*B P 3"]:
        """Latents → patches on a ground."""
        flat = self.expand(latents) + self.decode_out(nnx.gelu(self.decode_hidden(latents))) + self.mean[...]
        rgba = flat.reshape(*flat.shape[:-1], self.settings.pixels, 4)
        return rgba[..., :3] + (1 - rgba[..., 3:]) * ground[..., None, :]

    def encode(self, images: Float[Array, "B S S 3"]) -> Int[Array, "B N"]:
        """Code 0 ≤ c < grounds first, then N codes grounds ≤ c < grounds + codes in reading order."""
        s = self.settings
        flat_ground = ground(images)
        patches = split(images, s.patch)
        grounds = jnp.broadcast_to(flat_ground[:, None], (*patches.shape[:2], 3))
        codes = quantize.nearest(self.latents(self.features(patches, grounds), grounds), self.codebook[...])
        first = quantize.nearest(flat_ground, self.palette[...])
        return jnp.concatenate([first[:, None], codes + s.grounds], 1)

    def decode(self, codes: Int[Array, "B N"]) -> Float[Array, "B S S 3"]:
        """Codes in the order of `encode` → pictures, clipped to 0..1."""
        s = self.settings
        latents = self.codebook[...][codes[:, 1:] - s.grounds]
        flat_ground = self.palette[...][codes[:, 0]]
        grounds = jnp.broadcast_to(flat_ground[:, None], (*latents.shape[:2], 3))
        return jnp.clip(join(self.paint(latents, grounds), s.patch), 0.0, 1.0)
