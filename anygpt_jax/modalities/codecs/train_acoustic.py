"""The recipe of speech's second stage, over the codes of a trained codec."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx

from anygpt_jax.modalities.codecs import acoustic
from anygpt_jax.modalities.codecs.melcodec import MelCodec, frame_mask
from anygpt_jax.modalities.codecs.progress import steps_with_progress
from anygpt_jax.modalities.codecs.train_mel import Corpus, draw


def train(config: ml_collections.ConfigDict, codec: MelCodec, data: Corpus) -> acoustic.AcousticStage:
    """A stage trained on whole items of the corpus, drawn at random; the codec is not changed."""
    settings = acoustic.AcousticSettings(config.width, tuple(config.dilations))
    stage = acoustic.AcousticStage(settings, codec.settings, rngs=nnx.Rngs(config.seed))
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, min(50, config.steps // 4), config.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-2))
    graph, params, rest = nnx.split(stage, nnx.Param, ...)  # type: ignore[misc]

    @jax.jit
    def step(params, opt, batch):
        mask = frame_mask(batch["lengths"], batch["log_mels"].shape[1] // codec.settings.stack)
        target = codec.standardize(batch["log_mels"])

        def wrapped(params):
            return acoustic.loss_fn(nnx.merge(graph, params, rest), codec, target, mask, config.cross_entropy)

        (_, metrics), grads = jax.value_and_grad(wrapped, has_aux=True)(params)
        updates, opt = optimizer.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt, metrics

    rng = np.random.default_rng(config.seed)
    opt = optimizer.init(params)
    for _, report in steps_with_progress(config.steps, "acoustic stage", config.log_every):
        batch = draw(data, config.batch_size, 0, codec.settings.stack, rng)
        params, opt, metrics = step(params, opt, batch)
        report(metrics)
    return nnx.merge(graph, params, rest)


def mean_voice(codec: MelCodec, data: Corpus, rows: np.ndarray) -> np.ndarray:
    """float32[V]: the mean voice of some items of the corpus."""

    def voices(log_mels, lengths):
        mask = frame_mask(lengths, log_mels.shape[1] // codec.settings.stack)
        return codec.voice(codec.standardize(log_mels), mask)

    rows = rows[:64]
    return np.asarray(jnp.mean(voices(jnp.asarray(data.log_mels[rows]), data.lengths[rows]), 0))
