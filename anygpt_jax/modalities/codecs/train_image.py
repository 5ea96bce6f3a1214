"""The recipe of the image tokenizer: patches whose codes do not know the ground they stand on.

Scenes that show the same thing at the same place on different grounds are trained as pairs: what one's
latents decode to must match both, each on its own ground, and both must have the same latents.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx

from anygpt_jax.modalities.codecs import patches, quantize
from anygpt_jax.modalities.codecs.progress import steps_with_progress

KMEANS_PATCHES = 50_000  # that the codes start from


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Patches twice: of scene a and of its partner b, which differs in nothing but the ground."""

    a: np.ndarray  # float32[N, P, 3]
    b: np.ndarray
    ground_a: np.ndarray  # float32[N, 3]
    ground_b: np.ndarray


def _make_pairs(
    settings: patches.PatchSettings, images: np.ndarray, layouts: list[str], rng: np.random.Generator
) -> Pairs:
    """Every patch that shows something, with that of one random partner of its scene (itself, if its layout
    occurs on one ground only); one patch in sixteen more is empty.
    """
    scaled = images.astype(np.float32) / 255
    grounds = np.asarray(patches.ground(jnp.asarray(scaled)))
    members: dict[str, list[int]] = {}
    for i, layout in enumerate(layouts):
        members.setdefault(layout, []).append(i)
    partner = np.empty(len(images), np.int64)
    for i, layout in enumerate(layouts):
        others = [j for j in members[layout] if (grounds[j] != grounds[i]).any()]
        partner[i] = rng.choice(others) if others else i
    grid = np.asarray(patches.split(jnp.asarray(scaled), settings.patch))
    shown = np.abs(grid - grounds[:, None, None]).max((-1, -2)) > settings.threshold
    scene, place = np.nonzero(shown | shown[partner])
    empty = rng.integers(len(images), size=len(scene) // 16)
    row = np.argmin(shown[empty] | shown[partner[empty]], 1)
    scene, place = np.concatenate([scene, empty]), np.concatenate([place, row])
    other = partner[scene]
    return Pairs(grid[scene, place], grid[other, place], grounds[scene], grounds[other])


def _principal_components(features: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(mean[F], components[F, count])."""
    mean = features.mean(0)
    _, vectors = np.linalg.eigh(np.cov(features - mean, rowvar=False))
    return mean, vectors[:, ::-1][:, :count].astype(np.float32)


def initialize(codec: patches.PatchCodec, pairs: Pairs, images: np.ndarray, key: jax.Array) -> None:
    """Linear maps from principal components; the ground's palette by k-means."""
    features = np.asarray(codec.features(jnp.asarray(pairs.a), jnp.asarray(pairs.ground_a)))
    mean, components = _principal_components(features, codec.settings.latent)
    codec.mean[...] = jnp.asarray(mean)
    codec.project.kernel[...] = jnp.asarray(components)
    codec.expand.kernel[...] = jnp.asarray(components.T)
    grounds = patches.ground(jnp.asarray(images, jnp.float32) / 255)
    codec.palette[...] = quantize.kmeans(key, grounds, codec.settings.grounds)


def loss_fn(codec: patches.PatchCodec, codebook: jax.Array, batch: Mapping[str, jax.Array], quantized: bool):
    """(loss, (latents[2, N, D], metrics)); the batch holds both members of every pair."""
    latent_a = codec.latents(codec.features(batch["a"], batch["ground_a"]), batch["ground_a"])
    latent_b = codec.latents(codec.features(batch["b"], batch["ground_b"]), batch["ground_b"])
    latents = jnp.stack([latent_a, latent_b])
    commitment = jnp.zeros(())
    used = latents
    if quantized:
        chosen = codebook[quantize.nearest(latents, codebook)]
        commitment = jnp.mean(jnp.sum((latents - jax.lax.stop_gradient(chosen)) ** 2, -1))
        used = quantize.straight_through(latents, chosen)
    # Each latent is painted on both grounds: this is what teaches it opacity.
    wrong = jnp.zeros(())
    for target, ground in ((batch["a"], batch["ground_a"]), (batch["b"], batch["ground_b"])):
        painted = codec.paint(used, jnp.stack([ground, ground]))
        wrong += jnp.mean(jnp.sum((painted - target) ** 2, (-1, -2)))
    apart = jnp.mean(jnp.sum((latent_a - latent_b) ** 2, -1))
    loss = wrong / 2 + 4 * apart + 0.25 * commitment
    return loss, (latents, {"loss": loss, "painting": wrong / 2, "apart": apart, "commitment": commitment})


def train(config: ml_collections.ConfigDict, images: np.ndarray, layouts: list[str]) -> patches.PatchCodec:
    """images uint8[N, S, S, 3]; layouts name what a scene shows, and where, but not its ground."""
    settings = patches.PatchSettings(**config.codec)
    codec = patches.PatchCodec(settings, rngs=nnx.Rngs(config.seed))
    rng = np.random.default_rng(config.seed)
    key = jax.random.key(config.seed)
    pairs = _make_pairs(settings, images, layouts, rng)
    initialize(codec, pairs, images, key)
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    graph, params, rest = nnx.split(codec, nnx.Param, ...)  # type: ignore[misc]

    @functools.partial(jax.jit, static_argnames="quantized")
    def step(params, rest, opt, books, batch, key, quantized):
        def wrapped(params):
            return loss_fn(nnx.merge(graph, params, rest), books.vectors[0], batch, quantized)

        (_, (latents, metrics)), grads = jax.value_and_grad(wrapped, has_aux=True)(params)
        updates, opt = optimizer.update(grads, opt, params)
        if quantized:
            x = latents.reshape(-1, latents.shape[-1])
            codes = quantize.nearest(x, books.vectors[0])[:, None]
            books = quantize.update(books, key, x, codes, jnp.ones(len(x), bool), dead=0.01)
        return optax.apply_updates(params, updates), opt, books, metrics

    opt = optimizer.init(params)
    size = (1, settings.codes, settings.latent)
    books = quantize.Codebooks(jnp.zeros(size), jnp.ones(size[:2]), jnp.zeros(size))
    for i, report in steps_with_progress(config.steps, "image tokenizer", config.log_every):
        if i == config.warmup_steps:
            module = nnx.merge(graph, params, rest)
            some = rng.permutation(len(pairs.a))[:KMEANS_PATCHES]
            x = module.latents(module.features(pairs.a[some], pairs.ground_a[some]), pairs.ground_a[some])
            books = quantize.init_codebooks(jax.random.fold_in(key, 1), x, 1, settings.codes)
        chosen = rng.integers(len(pairs.a), size=config.batch_size)
        batch = {f.name: getattr(pairs, f.name)[chosen] for f in dataclasses.fields(pairs)}
        quantized = i >= config.warmup_steps
        params, opt, books, metrics = step(params, rest, opt, books, batch, jax.random.fold_in(key, 2 + i), quantized)
        report(metrics)
    codec = nnx.merge(graph, params, rest)
    codec.codebook[...] = books.vectors[0]
    return codec
