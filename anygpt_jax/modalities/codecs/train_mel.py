"""The recipe of the mel codecs: speech (whole utterances, phones by CTC) and music (crops).

Latents are trained unquantized first; then every codebook starts from k-means and follows by EMA. Quantizer
dropout decodes a share of the items from the first codebook alone, so that it is decodable by itself.
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

from anygpt_jax.modalities.audio import SAMPLE_RATE
from anygpt_jax.modalities.codecs import mel, quantize
from anygpt_jax.modalities.codecs.melcodec import CodecSettings, MelCodec, frame_mask
from anygpt_jax.modalities.codecs.progress import steps_with_progress


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Log-mels float32[N, F, M] padded to F frames, with each item's latent steps and phones (0 is padding)."""

    log_mels: np.ndarray
    lengths: np.ndarray  # int32[N]
    phones: np.ndarray  # int32[N, P], 1 … phones

    def __len__(self) -> int:
        return len(self.lengths)


def corpus(
    sounds: list[np.ndarray], phones: list[list[int]], settings: mel.MelSettings, stack: int, steps: int
) -> Corpus:
    """Sounds longer than `steps` latents are left out: padding everything to a rare length costs more."""
    unit = settings.hop * stack
    kept = [i for i, sound in enumerate(sounds) if -(-len(sound) // unit) <= steps]
    transform = jax.jit(lambda x: mel.log_mel(x, settings))
    log_mels = np.empty((len(kept), steps * stack, settings.n_mels), np.float32)
    for start in range(0, len(kept), 32):
        batch = np.zeros((32, steps * unit), np.float32)
        rows = kept[start : start + 32]
        for row, i in enumerate(rows):
            batch[row, : len(sounds[i])] = sounds[i]
        log_mels[start : start + len(rows)] = np.asarray(transform(batch))[: len(rows)]
    labels = np.zeros((len(kept), max([1, *(len(phones[i]) for i in kept)])), np.int32)
    for row, i in enumerate(kept):
        labels[row, : len(phones[i])] = phones[i]
    return Corpus(log_mels, np.array([-(-len(sounds[i]) // unit) for i in kept], np.int32), labels)


def standardization(data: Corpus, stack: int) -> tuple[np.ndarray, np.ndarray]:
    """(mean[M], deviation[M]) of the log-mels over sound, not padding."""
    sounding = np.arange(data.log_mels.shape[1]) < data.lengths[:, None] * stack
    frames = data.log_mels[sounding]
    return frames.mean(0), frames.std(0) + 1e-2


def loss_fn(
    codec: MelCodec, vectors: jax.Array, batch: Mapping[str, jax.Array], key: jax.Array, quantized: bool,
    config: ml_collections.ConfigDict,
):  # fmt: skip
    """(loss, (latents[B, T, D], codes[B, T, Q], metrics))."""
    mask = frame_mask(batch["lengths"], batch["log_mels"].shape[1] // codec.settings.stack)
    target = codec.standardize(batch["log_mels"])
    # Quantizer dropout, drawn for every item: the first codebook alone, or all of them.
    alone = jax.random.bernoulli(key, config.first_only, (len(target), 1, 1))
    heard = target
    if config.warp:
        # The first codebook alone hears another voice than it must give back: it learns not to hold the voice.
        factors = jnp.exp(jax.random.uniform(jax.random.fold_in(key, 1), (len(target),), minval=-1.0) * config.warp)
        heard = jnp.where(alone, warp_frequency(target, factors, SAMPLE_RATE), target)
    latents = codec.latents(heard, mask)
    codes = quantize.residual_encode(latents, vectors)
    metrics = {}
    if quantized:
        partial = quantize.residual_decode(codes, vectors)
        chosen = jnp.where(alone, partial[..., 0, :], partial[..., -1, :])
        first = quantize.straight_through(latents, partial[..., 0, :])
        used = quantize.straight_through(latents, chosen)
        metrics["commitment"] = _mean((latents - jax.lax.stop_gradient(chosen)) ** 2, mask)
    else:
        first = used = latents
    voice = codec.voice(target, mask) if codec.settings.voice else None
    error = codec.reconstruct(used, mask, voice) - target
    frames = jnp.repeat(mask, codec.settings.stack, 1)
    metrics["l1"] = _mean(jnp.abs(error), frames)
    loss = metrics["l1"] + 0.5 * _mean(error**2, frames) + config.commitment * metrics.get("commitment", 0.0)
    if codec.settings.phones:
        logits = codec.phone_logits(first, mask)
        ctc = optax.ctc_loss(logits, 1 - mask[..., 0], batch["phones"], (batch["phones"] == 0).astype(jnp.float32))
        count = jnp.maximum((batch["phones"] > 0).sum(-1), 1)
        metrics["ctc"] = jnp.mean(ctc / count)
        loss += config.ctc * metrics["ctc"]
    return loss, (latents, codes, {"loss": loss, **metrics})


def warp_frequency(mel_frames: jax.Array, factors: jax.Array, sample_rate: int) -> jax.Array:
    """Mel frames float32[B, F, M] as if every frequency of item b were multiplied by `factors[b]`.

    Interpolated between bands; beyond the outermost band the value there is kept.
    """
    bands = mel_frames.shape[-1]
    step = mel.hz_to_mel(sample_rate / 2) / (bands + 1)
    centres = mel.mel_to_hz(step * np.arange(1, bands + 1))
    # The band that a centre comes from; mel(f) is written out because the formula there is numpy's.
    sources = 2595.0 * jnp.log10(1.0 + centres / factors[:, None] / 700.0) / step - 1.0
    sources = jnp.clip(sources, 0.0, bands - 1.0)[:, None]
    low = jnp.minimum(sources.astype(jnp.int32), bands - 2)
    weight = sources - low
    below, above = (jnp.take_along_axis(mel_frames, low + i, -1) for i in (0, 1))
    return (1 - weight) * below + weight * above


def _mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.sum(x * mask) / (jnp.sum(mask) * x.shape[-1])


def train(config: ml_collections.ConfigDict, data: Corpus, name: str) -> MelCodec:
    """A trained codec. `config.crop` steps of every item are taken a step (0: whole items)."""
    settings = CodecSettings(**config.codec)
    codec = MelCodec(settings, rngs=nnx.Rngs(config.seed))
    mean, std = standardization(data, settings.stack)
    codec.mean[...], codec.std[...] = jnp.asarray(mean), jnp.asarray(std)
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, 50, config.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-3))
    graph, params, rest = nnx.split(codec, nnx.Param, ...)  # type: ignore[misc]
    key = jax.random.key(config.seed)

    @functools.partial(jax.jit, static_argnames="quantized")
    def step(params, opt, books, batch, key, quantized):
        def wrapped(params):
            return loss_fn(nnx.merge(graph, params, rest), books.vectors, batch, key, quantized, config)

        (_, (latents, codes, metrics)), grads = jax.value_and_grad(wrapped, has_aux=True)(params)
        updates, opt = optimizer.update(grads, opt, params)
        if quantized:
            valid = frame_mask(batch["lengths"], latents.shape[1]).reshape(-1) > 0
            books = quantize.update(
                books, key, latents.reshape(-1, settings.latent), codes.reshape(-1, settings.codebooks), valid
            )
        return optax.apply_updates(params, updates), opt, books, metrics

    rng = np.random.default_rng(config.seed)
    opt = optimizer.init(params)
    size = (settings.codebooks, settings.codebook_size, settings.latent)
    books = quantize.Codebooks(jnp.zeros(size), jnp.ones(size[:2]), jnp.zeros(size))
    for i, report in steps_with_progress(config.steps, name, config.log_every):
        if i == config.warmup_steps:
            x = _sample_latents(nnx.merge(graph, params, rest), data, config, rng)
            books = quantize.init_codebooks(jax.random.fold_in(key, 1), x, *size[:2])
        batch = draw(data, config.batch_size, config.crop, settings.stack, rng)
        quantized = i >= config.warmup_steps
        params, opt, books, metrics = step(params, opt, books, batch, jax.random.fold_in(key, 2 + i), quantized)
        report(metrics)
    codec = nnx.merge(graph, params, rest)
    codec.codebooks[...] = books.vectors
    return codec


def draw(data: Corpus, count: int, crop: int, stack: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A random batch; with `crop`, that many latent steps from a random one on."""
    rows = rng.integers(len(data), size=count)
    if not crop:
        return {"log_mels": data.log_mels[rows], "lengths": data.lengths[rows], "phones": data.phones[rows]}
    starts = [rng.integers(max(1, data.lengths[r] - crop + 1)) for r in rows]
    log_mels = np.stack([data.log_mels[r, s * stack : (s + crop) * stack] for r, s in zip(rows, starts, strict=True)])
    lengths = np.array([min(crop, data.lengths[r] - s) for r, s in zip(rows, starts, strict=True)], np.int32)
    return {"log_mels": log_mels, "lengths": lengths, "phones": data.phones[rows]}


def _sample_latents(codec: MelCodec, data: Corpus, config: ml_collections.ConfigDict, rng: np.random.Generator):
    """About 12,000 latents of sound, for k-means."""

    @jax.jit
    def latents(batch):
        mask = frame_mask(batch["lengths"], batch["log_mels"].shape[1] // codec.settings.stack)
        return codec.latents(codec.standardize(batch["log_mels"]), mask), mask[..., 0] > 0

    found: list[np.ndarray] = []
    while sum(map(len, found)) < 12_000:
        x, valid = latents(draw(data, config.batch_size, config.crop, codec.settings.stack, rng))
        found.append(np.asarray(x)[np.asarray(valid)])
    return jnp.asarray(np.concatenate(found))
