"""The second stage of speech: semantic codes and a voice → the residual codes that restore the acoustics.

Non-autoregressive in time and one pass a level, in the spirit of SoundStorm (Borsos et al., 2023), whose first
level is refined in several passes; here every level is chosen once, for the least expected squared error.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from anygpt_jax.modalities.codecs import quantize
from anygpt_jax.modalities.codecs.melcodec import CodecSettings, MelCodec, Trunk


@dataclasses.dataclass(frozen=True)
class AcousticSettings:
    """The trunk's width, and the dilation of each of its residual convolutions."""

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

    def choose(
        self, partial: Float[Array, "B T D"], level: int, codebook: Float[Array, "K D"], mask: Float[Array, "B T 1"],
        voice: Float[Array, "B V"],
    ) -> tuple[Float[Array, "B T K"], Float[Array, "B T D"], Int[Array, "B T"]]:  # fmt: skip
        """(log-probabilities, expected vector, code) of level `level` + 1.

        The code is the one nearest to the expected vector: of all codes it has the least expected squared error,
        which the most likely one has not.
        """
        likelihood = jax.nn.log_softmax(self(partial, jnp.full(len(partial), level), mask, voice))
        expected = jnp.exp(likelihood) @ codebook
        return likelihood, expected, quantize.nearest(expected, codebook)

    def complete(
        self, semantic: Int[Array, "B T"], vectors: Float[Array, "Q K D"], mask: Float[Array, "B T 1"],
        voice: Float[Array, "B V"],
    ) -> Int[Array, "B T Q"]:  # fmt: skip
        """All levels of codes, the first being `semantic`."""
        codes, partial = [semantic], vectors[0][semantic]
        for level in range(self.levels):
            code = self.choose(partial, level, vectors[level + 1], mask, voice)[2]
            codes.append(code.astype(semantic.dtype))
            partial = partial + vectors[level + 1][code]
        return jnp.stack(codes, -1)


def loss_fn(
    stage: AcousticStage, codec: MelCodec, target: Float[Array, "B N M"], mask: Float[Array, "B T 1"],
    cross_entropy: float,
):  # fmt: skip
    """(loss, metrics) of standardized log-mels completed from their semantic codes by the stage's own choices.

    The loss is the decoder's L1 plus `cross_entropy` times that of the codes, in nats; the true code of a level is the
    nearest to what the stage's own levels below left over, so that it learns to mend its mistakes. The decoder's
    gradient reaches the probabilities through the expected vectors (straight through the choice).
    """
    vectors, voice = codec.codebooks[...], codec.voice(target, mask)
    latents = codec.latents(target, mask)
    partial = vectors[0][quantize.nearest(latents, vectors[0])]
    nats = right = jnp.zeros(())
    for level in range(stage.levels):
        codebook = vectors[level + 1]
        truth = quantize.nearest(latents - jax.lax.stop_gradient(partial), codebook)
        likelihood, expected, code = stage.choose(partial, level, codebook, mask, voice)
        nats -= jnp.sum(jnp.take_along_axis(likelihood, truth[..., None], -1) * mask) / jnp.sum(mask) / stage.levels
        right += jnp.sum((code == truth)[..., None] * mask) / jnp.sum(mask) / stage.levels
        partial = partial + quantize.straight_through(expected, codebook[code])
    frames = jnp.repeat(mask, codec.settings.stack, 1)
    error = jnp.abs(codec.reconstruct(partial, mask, voice) - target) * frames
    l1 = jnp.sum(error) / (jnp.sum(frames) * target.shape[-1])
    return l1 + cross_entropy * nats, {"l1": l1, "cross_entropy": nats, "accuracy": right}
