"""Cross entropy over the tokens that are trained, and its parts by modality."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from anygpt_jax.model.decoder import Decoder


class LossSums(NamedTuple):
    """Weighted sums over a batch; sums of several batches may be added. float32[modalities], nats."""

    nll: Float[Array, " modalities"]
    weight: Float[Array, " modalities"]
    squared_log_z: Float[Array, " modalities"]

    def mean(self) -> Float[Array, ""]:
        """Nats a trained token. A batch without any trained token has loss 0, not NaN."""
        return self.nll.sum() / jnp.maximum(self.weight.sum(), 1.0)


@jax.custom_vjp
def token_losses(
    logits: Float[Array, "B L V"], targets: Int[Array, "B L"]
) -> tuple[Float[Array, "B L"], Float[Array, "B L"]]:
    """(-log p(target), log Σ exp(logits)), float32.

    The derivative is written out, (softmax - one-hot) in one pass over the logits: that of the gather costs
    memory on TPUs, that of a masked sum time on CPUs.
    """
    return _losses_forward(logits, targets)[0]


def _losses_forward(logits: Array, targets: Array) -> tuple[tuple[Array, Array], tuple]:
    log_z = jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0].astype(jnp.float32)
    return (log_z - chosen, log_z), (logits, targets, log_z)


def _losses_backward(saved: tuple, gradients: tuple[Array, Array]) -> tuple[Array, None]:
    logits, targets, log_z = saved
    d_nll, d_log_z = (g[..., None] for g in gradients)
    chosen = jnp.arange(logits.shape[-1]) == targets[..., None]
    softmax = jnp.exp(logits.astype(jnp.float32) - log_z[..., None])
    return ((d_nll + d_log_z) * softmax - jnp.where(chosen, d_nll, 0.0)).astype(logits.dtype), None


token_losses.defvjp(_losses_forward, _losses_backward)


def loss_sums(decoder: Decoder, batch: Mapping[str, Array], modalities: int) -> LossSums:
    """Runs the decoder on a packed batch; `batch["modality"]` (of the target) is below `modalities`."""
    logits = decoder(batch["tokens"], batch["positions"], batch["segment_ids"])
    nll, log_z = token_losses(logits, batch["targets"])
    weights_BLM = batch["loss_weights"][..., None] * jax.nn.one_hot(batch["modality"], modalities)

    def by_modality(x_BL: Array) -> Array:
        return jnp.einsum("BL,BLM->M", x_BL, weights_BLM)

    return LossSums(by_modality(nll), by_modality(jnp.ones_like(nll)), by_modality(jnp.square(log_z)))


def training_loss(sums: LossSums, z_loss: float, weight: Array | None = None) -> Float[Array, ""]:
    """Mean cross entropy + z_loss · mean (log Z)², which keeps logits from drifting (PaLM, arXiv 2204.02311).

    The mean is over `weight`, by default that of `sums`; the losses of a batch's parts over the weight of the
    whole add up to the whole's.
    """
    weight = sums.weight.sum() if weight is None else weight
    return (sums.nll.sum() + z_loss * sums.squared_log_z.sum()) / jnp.maximum(weight, 1.0)
