"""A residual-VQ codec on log-mels: what speech and music share.

Log-mel frames are stacked (`stack` of them become one latent), standardized, and coded by a short stack of
residual convolutions; the decoder mirrors it. Everything is masked beyond an item's own length, so padding
never changes a code. The voice of the decoder, where there is one, is a few numbers taken from the mean and
spread of a prompt's log-mels: the codes need not carry it.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from anygpt_jax.modalities.codecs import quantize


class Codebook(nnx.Variable):
    """Code vectors: they are shipped with the weights but learnt by k-means and EMA, not by gradients."""


class Constant(nnx.Variable):
    """Measured once on the training data (means, deviations, a default voice), then fixed."""


@dataclasses.dataclass(frozen=True)
class CodecSettings:
    """Sizes of the network; `voice` = 0 for a decoder without a voice, `phones` = 0 without phone supervision."""

    n_mels: int
    stack: int
    width: int
    latent: int
    codebooks: int
    codebook_size: int
    voice: int = 0
    phones: int = 0


def frame_mask(lengths: Int[Array, " B"], steps: int) -> Float[Array, "B T 1"]:
    """1 for the first lengths[b] of T = `steps`, 0 after."""
    return (jnp.arange(steps) < jnp.asarray(lengths)[:, None]).astype(jnp.float32)[..., None]


def shift(x: Float[Array, "B T D"], by: int) -> Float[Array, "B T D"]:
    """x moved by `by` steps in time, zeros coming in."""
    if by == 0:
        return x
    zeros = jnp.zeros_like(x[:, : abs(by)])
    return jnp.concatenate([zeros, x[:, :-by]] if by > 0 else [x[:, -by:], zeros], 1)


class ConvBlock(nnx.Module):
    """x + W2·gelu(conv3(norm(x))): a 3-tap dilated convolution as one matrix product of shifted copies."""

    def __init__(self, width: int, dilation: int, *, rngs: nnx.Rngs):
        self.dilation = dilation
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.taps = nnx.Linear(3 * width, width, rngs=rngs)
        self.out = nnx.Linear(width, width, kernel_init=nnx.initializers.normal(0.02), rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"], mask: Float[Array, "B T 1"]) -> Float[Array, "B T D"]:
        """Zeros where the mask is 0; what x has there is not read elsewhere."""
        h = self.norm(x) * mask
        h = self.taps(jnp.concatenate([shift(h, -self.dilation), h, shift(h, self.dilation)], -1))
        return (x + self.out(nnx.gelu(h))) * mask


class Trunk(nnx.Module):
    """A dense layer in, residual convolutions, a norm and a dense layer out."""

    def __init__(self, inputs: int, width: int, outputs: int, dilations: tuple[int, ...], *, rngs: nnx.Rngs):
        self.inward = nnx.Linear(inputs, width, rngs=rngs)
        self.blocks = nnx.List([ConvBlock(width, d, rngs=rngs) for d in dilations])
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.outward = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T I"], mask: Float[Array, "B T 1"], bias: Float[Array, "B 1 D"] | None = None
    ) -> Float[Array, "B T O"]:
        """Zeros where the mask is 0. `bias`, one vector a row, is added to every step after the first layer."""
        x = self.inward(x) if bias is None else self.inward(x) + bias
        x = x * mask
        for block in self.blocks:
            x = block(x, mask)
        return self.outward(self.norm(x)) * mask


class MelCodec(nnx.Module):
    """Log-mel [B, T·stack, M] ↔ codes [B, T, Q], with the masks [B, T, 1] of what is sound and not padding."""

    def __init__(self, settings: CodecSettings, *, rngs: nnx.Rngs):
        self.settings = s = settings
        flat = s.n_mels * s.stack
        self.encoder = Trunk(flat, s.width, s.latent, (1, 2, 1), rngs=rngs)
        self.decoder = Trunk(s.latent, s.width, flat, (1, 2, 4, 1), rngs=rngs)
        self.codebooks = Codebook(jnp.zeros((s.codebooks, s.codebook_size, s.latent)))
        self.mean = Constant(jnp.zeros(s.n_mels))
        self.std = Constant(jnp.ones(s.n_mels))
        if s.voice:
            self.voice_in = nnx.Linear(2 * s.n_mels, s.voice, rngs=rngs)
            self.voice_out = nnx.Linear(s.voice, s.width, rngs=rngs)
            self.default_voice = Constant(jnp.zeros(s.voice))
        if s.phones:
            self.phone_trunk = Trunk(s.latent, s.width, s.phones + 1, (1,), rngs=rngs)

    def standardize(self, mel: Float[Array, "B T M"]) -> Float[Array, "B T M"]:
        """Log-mel as measured → mean 0 and deviation 1 over the training data, band by band."""
        return (mel - self.mean[...]) / self.std[...]

    def latents(self, mel: Float[Array, "B N M"], mask: Float[Array, "B T 1"]) -> Float[Array, "B T D"]:
        """Standardized log-mel → latents, before quantization. N = T·stack."""
        stacked = mel.reshape(mel.shape[0], -1, self.settings.n_mels * self.settings.stack)
        return self.encoder(stacked * mask, mask)

    def voice(self, mel: Float[Array, "B N M"], mask: Float[Array, "B T 1"]) -> Float[Array, "B V"]:
        """The voice of standardized log-mels: a projection of their mean and spread over the sound."""
        per_frame = jnp.repeat(mask, self.settings.stack, 1)
        count = jnp.maximum(per_frame.sum(1), 1.0)
        mean = (mel * per_frame).sum(1) / count
        spread = jnp.sqrt((((mel - mean[:, None]) ** 2) * per_frame).sum(1) / count + 1e-6)
        return jnp.tanh(self.voice_in(jnp.concatenate([mean, spread], -1)))

    def reconstruct(
        self, quantized: Float[Array, "B T D"], mask: Float[Array, "B T 1"], voice: Float[Array, "B V"] | None = None
    ) -> Float[Array, "B N M"]:
        """Quantized latents → standardized log-mel."""
        bias = None if voice is None else self.voice_out(voice)[:, None]
        flat = self.decoder(quantized, mask, bias)
        return flat.reshape(flat.shape[0], -1, self.settings.n_mels)

    def phone_logits(self, quantized: Float[Array, "B T D"], mask: Float[Array, "B T 1"]) -> Float[Array, "B T P"]:
        """Logits over blank (0) and phones, for CTC."""
        return self.phone_trunk(quantized, mask)

    def encode(self, log_mels: Float[Array, "B N M"], mask: Float[Array, "B T 1"]) -> Int[Array, "B T Q"]:
        """Log-mel as measured → codes; where the mask is 0 they mean nothing."""
        return quantize.residual_encode(self.latents(self.standardize(log_mels), mask), self.codebooks[...])

    def decode(
        self, codes: Int[Array, "B T q"], mask: Float[Array, "B T 1"], voice: Float[Array, "B V"] | None = None
    ) -> Float[Array, "B N M"]:
        """The first q ≤ Q levels of codes → log-mel."""
        quantized = quantize.residual_decode(codes, self.codebooks[...])[..., -1, :]
        return self.reconstruct(quantized, mask, voice) * self.std[...] + self.mean[...]
