"""Stable unCLIP 2.1's decoder: a CLIP image embedding → an image, by diffusion in the autoencoder's latents.

Ramesh et al. 2022 (unCLIP); the steps are those of diffusers' `StableUnCLIPImg2ImgPipeline` with an empty prompt.
SEED-2's 32 codes give such an embedding.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from anygpt_jax.modalities.codecs import schedulers, weights
from anygpt_jax.modalities.codecs.autoencoder import AutoencoderSettings, Decoder
from anygpt_jax.modalities.codecs.clip_text import ClipTextSettings
from anygpt_jax.modalities.codecs.melcodec import Constant
from anygpt_jax.modalities.codecs.schedulers import NoiseSchedule, SamplerSettings
from anygpt_jax.modalities.codecs.unet import UNet, UNetSettings, sinusoids


@dataclasses.dataclass(frozen=True)
class UnclipSettings:
    """`size`: sides of the latents (height, width). `scaling`: the latents are divided by it before they are decoded.

    `text`: the network that the empty prompt's states, which are stored, were computed with.
    """

    unet: UNetSettings = dataclasses.field(default_factory=UNetSettings)
    vae: AutoencoderSettings = dataclasses.field(
        default_factory=lambda: AutoencoderSettings((128, 256, 512, 512), 2, 4)
    )
    text: ClipTextSettings = dataclasses.field(default_factory=ClipTextSettings)
    sampler: SamplerSettings = dataclasses.field(default_factory=SamplerSettings)
    embedding_noise: NoiseSchedule = dataclasses.field(
        default_factory=lambda: NoiseSchedule("squaredcos_cap_v2", 0.0001, 0.02)
    )
    size: tuple[int, int] = (96, 96)
    scaling: float = 0.18215

    def __post_init__(self):
        multiple = 2 ** (len(self.unet.widths) - 1)
        if any(side % multiple for side in self.size):
            raise ValueError(f"the latents' sides {self.size} are not multiples of {multiple}")
        if self.unet.condition % 4:
            raise ValueError("the U-Net's condition is an embedding of even width and as many sinusoids")


class Unclip(nnx.Module):
    """The U-Net, the autoencoder's decoder, and what is fixed: the embedding's statistics and the empty prompt."""

    def __init__(self, settings: UnclipSettings, *, rngs: nnx.Rngs):
        self.settings = s = settings
        self.embedding_width = s.unet.condition // 2
        self.unet = UNet(s.unet, rngs=rngs)
        self.before_decoder = nnx.Linear(s.vae.latent, s.vae.latent, rngs=rngs)
        self.decoder = Decoder(s.vae, rngs=rngs)
        self.mean = Constant(jnp.zeros(self.embedding_width))
        self.std = Constant(jnp.ones(self.embedding_width))
        self.prompt = Constant(jnp.zeros((s.text.positions, s.text.width)))

    def condition(
        self, embedding: Float[Array, "B E"], noise: Float[Array, "B E"], level: int = 0
    ) -> Float[Array, "B 2*E"]:
        """The embedding with noise of a level from 0 to the noise schedule's last, and the level as sinusoids."""
        signal = float(self.settings.embedding_noise.signal()[level])
        mean, std = self.mean[...], self.std[...]
        noised = (embedding - mean) / std * signal**0.5 + noise * (1 - signal) ** 0.5
        levels = jnp.full(len(embedding), level)
        return jnp.concatenate([noised * std + mean, sinusoids(levels, self.embedding_width)], -1)

    def decode_latents(self, latents: Float[Array, "B h w C"]) -> Float[Array, "B H W 3"]:
        """Latents as they are sampled → pixels in 0..1."""
        dtype = self.before_decoder.kernel.dtype
        pixels = self.decoder(self.before_decoder((latents / self.settings.scaling).astype(dtype)))
        return jnp.clip(pixels.astype(jnp.float32) / 2 + 0.5, 0, 1)

    def generate(
        self,
        embedding: Float[Array, "B E"],
        key: Key[Array, ""] | None = None,
        steps: int = 20,
        guidance: float = 10.0,
        scheduler: str = "ddim",
        noise_level: int = 0,
        embedding_noise: Float[Array, "B E"] | None = None,
        latents: Float[Array, "B h w C"] | None = None,
    ) -> Float[Array, "B H W 3"]:
        """Image embeddings → pixels in 0..1, as one compiled program a combination of the other arguments.

        Noise comes from `key` unless both `embedding_noise` and `latents` are given. `guidance` (≥ 1, 1 for none) is
        how far to go from the prediction without the embedding to that with it (Ho and Salimans 2022).
        """
        (height, width), channels = self.settings.size, self.settings.unet.channels
        if embedding_noise is None or latents is None:
            if key is None:
                raise ValueError("generation needs a key, or both kinds of noise")
            for_embedding, for_latents = jax.random.split(key)
            if embedding_noise is None:
                embedding_noise = jax.random.normal(for_embedding, embedding.shape)
            if latents is None:
                latents = jax.random.normal(for_latents, (len(embedding), height, width, channels))
        graph, state = nnx.split(self)
        plan_of = (scheduler, steps, noise_level)
        return _generate(graph, plan_of, state, embedding, embedding_noise, latents, jnp.float32(guidance))


@functools.partial(jax.jit, static_argnames=("graph", "plan_of"))
def _generate(
    graph: nnx.GraphDef,
    plan_of: tuple[str, int, int],
    state: nnx.State,
    embedding: Float[Array, "B E"],
    embedding_noise: Float[Array, "B E"],
    latents: Float[Array, "B h w C"],
    guidance: Float[Array, ""],
) -> Float[Array, "B H W 3"]:
    model: Unclip = nnx.merge(graph, state)
    scheduler, steps, noise_level = plan_of
    plan = schedulers.plan(scheduler, model.settings.sampler, steps)
    dtype, batch = model.unet.conv_in.kernel.dtype, len(latents)
    condition = model.condition(embedding, embedding_noise, noise_level)
    # Without the embedding: zeros in its place and in that of its noise level. Interleaved, so that a batch that is
    # sharded over devices stays where it is.
    condition = jnp.stack([jnp.zeros_like(condition), condition], 1).reshape(2 * batch, -1).astype(dtype)
    prompt = jnp.broadcast_to(model.prompt[...].astype(dtype), (2 * batch, *model.prompt.shape))

    def network(x: Float[Array, "B h w C"], time: Array) -> Float[Array, "B h w C"]:
        twice = jnp.repeat(x, 2, 0).astype(dtype)
        predicted = model.unet(twice, jnp.full(2 * batch, time), prompt, condition).astype(jnp.float32)
        without, given = predicted[0::2], predicted[1::2]
        return without + guidance * (given - without)

    return model.decode_latents(schedulers.sample(plan, network, latents.astype(jnp.float32)))


def build(settings: Mapping[str, Any]) -> Unclip:
    """The network of JSON settings."""

    def tuples(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}

    sampler = tuples(settings["sampler"])
    parts = {
        "unet": UNetSettings(**tuples(settings["unet"])),
        "vae": AutoencoderSettings(**tuples(settings["vae"])),
        "text": ClipTextSettings(**tuples(settings["text"])),
        "sampler": SamplerSettings(**{**sampler, "noise": NoiseSchedule(**sampler["noise"])}),
        "embedding_noise": NoiseSchedule(**settings["embedding_noise"]),
    }
    return Unclip(UnclipSettings(**{**tuples(settings), **parts}), rngs=weights.rngs())
