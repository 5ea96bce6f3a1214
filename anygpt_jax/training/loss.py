"""Cross entropy over the tokens that are trained, and its parts by modality."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float, Int

from anygpt_jax.errors import UserError
from anygpt_jax.model.decoder import Decoder, project
from anygpt_jax.model.sharding import constrain
from anygpt_jax.vocabulary import Vocabulary


class LossSums(NamedTuple):
    """Weighted sums over a batch; sums of several batches may be added. float32[modalities], nats."""

    nll: Float[Array, " modalities"]
    weight: Float[Array, " modalities"]
    squared_log_z: Float[Array, " modalities"]

    def mean(self) -> Float[Array, ""]:
        """Nats a trained token. A batch without any trained token has loss 0, not NaN."""
        return self.nll.sum() / jnp.maximum(self.weight.sum(), 1.0)


def token_losses(
    logits: Float[Array, "B L V"], targets: Int[Array, "B L"]
) -> tuple[Float[Array, "B L"], Float[Array, "B L"]]:
    """(-log p(target), log Σ exp(logits)), float32."""
    log_z = jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0].astype(jnp.float32)
    return log_z - chosen, log_z


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def head_loss(
    hidden: Float[Array, "B L D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B L"],
    weights: Float[Array, "B L"],
    z_loss: float,
    chunks: int = 1,
    ids: int | None = None,
) -> tuple[Float[Array, ""], tuple[Float[Array, "B L"], Float[Array, "B L"]]]:
    """Σ weights · (nll + z_loss · log_z²), and each token's nll and log_z, which have no derivative.

    The z-loss keeps logits from drifting (PaLM, arXiv 2204.02311). The logits of only one of `chunks` parts of
    every row exist at a time. A loss that is a sum has its gradient with its value: where one is asked for,
    a part's logits turn into their own gradient, in the matrices' dtype, at once, and nothing is computed again.
    Columns of the head from `ids` on are padding.
    """
    return _head_loss(hidden, head, targets, weights, z_loss, chunks, ids, with_gradient=False)[0]


def _head_loss(
    hidden: Array,
    head: Array,
    targets: Array,
    weights: Array,
    z_loss: float,
    chunks: int,
    ids: int | None,
    with_gradient: bool,
) -> tuple[tuple, Array | None]:
    """What `head_loss` returns, and the gradient by the logits [B, L, V], if asked for."""
    head = constrain(head, None, "vocab")  # gathered here, and not for every part

    def one(hidden: Array, targets: Array, weights: Array) -> tuple[Array, Array, Array | None]:
        logits = project(hidden, head, ids)
        nll, log_z = token_losses(logits, targets)
        if not with_gradient:
            return nll, log_z, None
        softmax = jnp.exp(logits - log_z[..., None])
        chosen = jnp.arange(logits.shape[-1]) == targets[..., None]
        gradient = weights[..., None] * ((1 + 2 * z_loss * log_z[..., None]) * softmax - chosen)
        return nll, log_z, gradient.astype(head.dtype)

    if chunks == 1:
        nll, log_z, gradient = one(hidden, targets, weights)
    else:
        parts = [_split(x, chunks) for x in (hidden, targets, weights)]
        found = jax.lax.scan(lambda _, part: (None, one(*part)), None, parts)[1]
        nll, log_z, gradient = jax.tree.map(_join, found)
    loss = jnp.sum(weights * (nll + z_loss * jnp.square(log_z)))
    return (loss, (nll, log_z)), gradient


def _split(x: Array, chunks: int) -> Array:
    """[B, L, …] → [chunks, B, L / chunks, …]."""
    parts = x.reshape(x.shape[0], chunks, -1, *x.shape[2:]).swapaxes(0, 1)
    return constrain(parts, None, "batch", "length", *[None] * (x.ndim - 2))


def _join(x: Array) -> Array:
    parts = x.swapaxes(0, 1)
    return parts.reshape(parts.shape[0], -1, *parts.shape[3:])


def _head_loss_forward(
    hidden: Array, head: Array, targets: Array, weights: Array, z_loss: float, chunks: int, ids: int | None
):
    out, gradient = _head_loss(hidden, head, targets, weights, z_loss, chunks, ids, with_gradient=True)
    return out, (hidden, head, gradient)


def _head_loss_backward(z_loss: float, chunks: int, ids: int | None, saved: tuple, cotangents: tuple) -> tuple:
    hidden, head, gradient = saved
    scale = cotangents[0].astype(gradient.dtype)
    g, x = (y.reshape(-1, y.shape[-1]) for y in (gradient, hidden))
    d_hidden = (scale * (g @ head.T)).astype(hidden.dtype).reshape(hidden.shape)
    d_head = constrain((scale * (x.T @ g)).astype(head.dtype), "embed", "vocab")
    # Both before the layers' backward pass: the gradient by the logits would wait through it.
    return *jax.lax.optimization_barrier((d_hidden, d_head)), None, None


head_loss.defvjp(_head_loss_forward, _head_loss_backward)


def trained_weights(batch: Mapping[str, Array], by_modality: Sequence[float] | None = None) -> Float[Array, "B L"]:
    """How much each target counts in the training loss: its own weight times its modality's."""
    weights = batch["loss_weights"]
    return weights if by_modality is None else weights * jnp.asarray(by_modality, weights.dtype)[batch["modality"]]


def losses(
    decoder: Decoder,
    batch: Mapping[str, Array],
    modalities: int,
    z_loss: float = 0.0,
    weight: Array | None = None,
    chunks: int = 1,
    by_modality: Sequence[float] | None = None,
) -> tuple[Float[Array, ""], LossSums]:
    """Runs the decoder on a packed batch: the training loss, and its parts, which have no derivative.

    The loss is the mean cross entropy + z_loss · the mean (log Z)², over `weight`, by default the batch's own: the
    losses of a batch's parts over the weight of the whole add up to the whole's. `batch["modality"]` (of the
    target) is below `modalities`. `by_modality` weighs the loss (`trained_weights`) and leaves its parts as they are.
    """
    weights, trained = batch["loss_weights"], trained_weights(batch, by_modality)
    total = trained.sum() if weight is None else weight
    total = jnp.where(total > 0, total, 1.0)
    hidden = decoder.hidden(batch["tokens"], batch["positions"], batch["segment_ids"])
    loss, (nll, log_z) = head_loss(
        hidden, decoder.head_matrix(), batch["targets"], trained / total, z_loss, chunks, decoder.config.ids
    )
    weights_BLM = weights[..., None] * jax.nn.one_hot(batch["modality"], modalities)

    def parts(x_BL: Array) -> Array:
        return jnp.einsum("BL,BLM->M", x_BL, weights_BLM)

    return loss, LossSums(parts(nll), parts(jnp.ones_like(nll)), parts(jnp.square(log_z)))


def modality_weights(
    train: ml_collections.ConfigDict, modalities: int, vocabulary: Vocabulary | None
) -> tuple[float, ...] | None:
    """`train.loss_weights` by modality, text first; None if all are 1. UserError if one is unknown or negative."""
    given = {name: float(weight) for name, weight in dict(train.get("loss_weights") or {}).items()}
    given = {name: weight for name, weight in given.items() if weight != 1}  # which says nothing, of any modality
    if vocabulary is None or not given:
        return None
    names = ("text", *vocabulary.modalities)
    for name, weight in given.items():
        if name not in names:
            raise UserError(f"train.loss_weights has '{name}'; the vocabulary's modalities are {', '.join(names)}.")
        if not 0 <= weight < float("inf"):
            raise UserError(f"train.loss_weights.{name}={weight} must not be negative.")
    assert len(names) == modalities
    return tuple(given.get(name, 1.0) for name in names)
