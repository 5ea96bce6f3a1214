"""The second stage of speech: semantic codes and a voice → the residual codes that restore the acoustics.

Non-autoregressive in time and one pass a level, in the spirit of SoundStorm (Borsos et al., 2023), whose first
level is refined in several passes; here every level is the most likely code of each step.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from anygpt_jax.modalities.codecs import quantize
from anygpt_jax.modalities.codecs.melcodec import CodecSettings, Trunk


@dataclasses.dataclass(frozen=True)
class AcousticSettings:
    width: int
    dilations: tuple[int, ...]


class AcousticStage(nnx.Module):
    """Predicts level q of a codec's residual codes from the latents summed up to level q - 1."""

    def __init__(self, settings: AcousticSettings, codec: CodecSettings, *, rngs: nnx.Rngs):
        self.levels, self.codes = codec.codebooks - 1, codec.codebook_size
        outputs = self.levels * self.codes
        self.trunk = Trunk(codec.latent, settings.width, outputs, tuple(settings.dilations), rngs=rngs)
        self.level = nnx.Embed(self.levels, settings.width, rngs=rngs)
        self.voice = nnx.Linear(codec.voice, settings.width, rngs=rngs)

    def __call__(
        self, partial: Float[Array, "B T D"], level: Int[Array, " B"], mask: Float[Array, "B T 1"],
        voice: Float[Array, "B V"],
    ) -> Float[Array, "B T K"]:  # fmt: skip
        """Logits of level `level` + 1, from the latents that levels 0 … `level` add up to."""
        logits = self.trunk(partial, mask, (self.level(level) + self.voice(voice))[:, None])
        logits = logits.reshape(*logits.shape[:2], self.levels, self.codes)
        return jnp.take_along_axis(logits, level[:, None, None, None], 2)[:, :, 0]

    def complete(
        self, semantic: Int[Array, "B T"], vectors: Float[Array, "Q K D"], mask: Float[Array, "B T 1"],
        voice: Float[Array, "B V"],
    ) -> Int[Array, "B T Q"]:  # fmt: skip
        """All levels of codes, the first being `semantic`."""
        codes = semantic[..., None]
        for q in range(self.levels):
            partial = quantize.residual_decode(codes, vectors)[..., -1, :]
            logits = self(partial, jnp.full(len(semantic), q), mask, voice)
            codes = jnp.concatenate([codes, jnp.argmax(logits, -1)[..., None].astype(codes.dtype)], -1)
        return codes


def loss_fn(
    stage: AcousticStage, codes: Int[Array, "B T Q"], vectors: Float[Array, "Q K D"], mask: Float[Array, "B T 1"],
    voice: Float[Array, "B V"], key: Array,
):  # fmt: skip
    """(cross-entropy of one random level an item, metrics); the levels below are the true ones."""
    level = jax.random.randint(key, (len(codes),), 0, stage.levels)
    sums = quantize.residual_decode(codes, vectors)
    partial = jnp.take_along_axis(sums, level[:, None, None, None], 2)[:, :, 0]
    truth = jnp.take_along_axis(codes, level[:, None, None] + 1, 2)[..., 0]
    logits = jax.nn.log_softmax(stage(partial, level, mask, voice))
    likelihood = jnp.take_along_axis(logits, truth[..., None], -1)
    loss = -jnp.sum(likelihood * mask) / jnp.sum(mask)
    right = (jnp.argmax(logits, -1) == truth)[..., None]
    return loss, {"cross_entropy": loss, "accuracy": jnp.sum(right * mask) / jnp.sum(mask)}
