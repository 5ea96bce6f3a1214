"""Rotary positions and masked attention. Softmax is in float32 whatever the compute dtype."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Shaped

from anygpt_jax.model.config import RopeScaling

BLOCK = 128  # queries at a time
MASKED = float(jnp.finfo(jnp.float32).min)

Rotation = tuple[Float[Array, "B L 1 half"], Float[Array, "B L 1 half"]]


def rotation(
    positions: Int[Array, "B L"],
    head_dim: int,
    theta: float,
    scaling: RopeScaling | None = None,
    in_memory: bool = False,
) -> Rotation:
    """Cosines and sines of RoPE (arXiv 2104.09864), float32, for frequencies theta^(-2i/head_dim), scaled.

    `in_memory` is for XLA on CPUs, which otherwise computes them again for every head of every layer, inside
    the loops that rotate: it merges nothing with a loop that stays a loop.
    """
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is not None:
        frequencies = scale_frequencies(frequencies, scaling)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    if not in_memory:
        return jnp.cos(angles), jnp.sin(angles)
    both = jax.lax.map(lambda sine: jnp.where(sine, jnp.sin(angles), jnp.cos(angles)), jnp.array([False, True]))
    return both[0], both[1]


def scale_frequencies(frequencies: Float[Array, " half"], scaling: RopeScaling) -> Float[Array, " half"]:
    """Llama 3.1's stretch to a longer context (arXiv 2407.21783; Transformers' rope type `llama3`).

    A frequency that turns at least `high_freq_factor` times within the original context stays, one that
    turns at most `low_freq_factor` times is divided by `factor`, those between are blended linearly.
    """
    turns = scaling.original_context * frequencies / (2 * jnp.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = jnp.clip(kept, 0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def rotate(x: Float[Array, "B L heads K"], by: Rotation) -> Float[Array, "B L heads K"]:
    """Rotates the pairs (i, i + K/2), the half-split layout of Hugging Face's LLaMA."""
    cos, sin = by
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def attention(
    q: Float[Array, "B T H K"],
    k: Shaped[Array, "B S G K"],
    v: Shaped[Array, "B S G K"],
    mask: Bool[Array, "B T S"],
    k_scales: Float[Array, "B G S"] | None = None,
    v_scales: Float[Array, "B G S"] | None = None,
) -> Float[Array, "B T H K"]:
    """softmax(q kᵀ / √K) v where `mask` allows it; each of the G key heads serves H/G query heads.

    With scales k and v are 8-bit integers. The scales multiply scores and weights, so that the integers meet q and
    the weights as they are: no float copy of them need ever be in memory, and in bfloat16 they are exact.
    """
    B, T, H, K = q.shape
    G = k.shape[2]
    q_BTGRK = q.reshape(B, T, G, H // G, K) * jnp.asarray(K**-0.5, q.dtype)
    scores_BGRTS = jnp.einsum("BTGRK,BSGK->BGRTS", q_BTGRK, k.astype(q.dtype), preferred_element_type=jnp.float32)
    if k_scales is not None:
        scores_BGRTS *= k_scales[:, :, None, None]
    scores_BGRTS = jnp.where(mask[:, None, None], scores_BGRTS, MASKED)
    weights_BGRTS = jax.nn.softmax(scores_BGRTS, axis=-1)
    if v_scales is not None:
        weights_BGRTS *= v_scales[:, :, None, None]
    return jnp.einsum("BGRTS,BSGK->BTGRK", weights_BGRTS.astype(q.dtype), v.astype(q.dtype)).reshape(B, T, H, K)


def packed_attention(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L G K"],
    v: Float[Array, "B L G K"],
    segment_ids: Int[Array, "B L"],
) -> Float[Array, "B L H K"]:
    """`attention` in which a query sees the keys before it, and itself, of its own segment.

    Padding (segment 0) sees padding, so that no row of the softmax is empty; its loss weight is zero.

    Queries are taken a block at a time against the keys up to the block's end, which leaves out most of
    the masked half; the backward pass recomputes the weights from the saved log-sum-exp (arXiv 2205.14135).
    Its own derivative is there for XLA on CPUs, which transposes [L, L] matrices very slowly: here only
    [L, K] ones are ever transposed, and a whole training step is twice as fast.
    """
    B, L, H, K = q.shape
    G = k.shape[2]
    q_BGRLK = (q * jnp.asarray(K**-0.5, q.dtype)).reshape(B, L, G, H // G, K).transpose(0, 2, 3, 1, 4)
    k_BGLK, v_BGLK = (x.transpose(0, 2, 1, 3) for x in (k, v))
    return _by_blocks(q_BGRLK, k_BGLK, v_BGLK, segment_ids).transpose(0, 3, 1, 2, 4).reshape(B, L, H, K)


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(i, min(i + BLOCK, length)) for i in range(0, length, BLOCK)]


def _scores(q: Array, k: Array, segment_ids: Array, start: int, stop: int) -> Float[Array, "B G R block stop"]:
    """Masked scores of the queries start..stop-1 against the keys 0..stop-1, float32."""
    causal = jnp.arange(start, stop)[:, None] >= jnp.arange(stop)
    same = segment_ids[:, start:stop, None] == segment_ids[:, None, :stop]
    scores = jnp.einsum(
        "BGRQK,BGSK->BGRQS", q[..., start:stop, :], k[..., :stop, :], preferred_element_type=jnp.float32
    )
    return jnp.where((causal & same)[:, None, None], scores, MASKED)


@jax.custom_vjp
def _by_blocks(q: Array, k: Array, v: Array, segment_ids: Array) -> Float[Array, "B G R L K"]:
    return _forward(q, k, v, segment_ids)[0]


def _forward(q: Array, k: Array, v: Array, segment_ids: Array) -> tuple[Array, tuple]:
    outs, log_zs = [], []
    for start, stop in _blocks(q.shape[3]):
        scores = _scores(q, k, segment_ids, start, stop)
        largest = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        z = weights.sum(-1, keepdims=True)
        summed = jnp.einsum("BGRQS,BGSK->BGRQK", weights.astype(v.dtype), v[..., :stop, :])
        outs.append((summed / z).astype(q.dtype))
        log_zs.append(largest + jnp.log(z))
    out, log_z = (checkpoint_name(jnp.concatenate(x, axis=3), "attention") for x in (outs, log_zs))
    return out, (q, k, v, segment_ids, out, log_z)


def _backward(saved: tuple, d_out: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, segment_ids, out, log_z = saved
    delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    dqs, dk_BGKL, dv_BGKL = [], jnp.zeros_like(k.mT, jnp.float32), jnp.zeros_like(v.mT, jnp.float32)
    for start, stop in _blocks(q.shape[3]):
        block = (..., slice(start, stop), slice(None))
        p = jnp.exp(_scores(q, k, segment_ids, start, stop) - log_z[block])
        dp = jnp.einsum("BGRQK,BGSK->BGRQS", d_out[block], v[..., :stop, :], preferred_element_type=jnp.float32)
        ds = (p * (dp - delta[block])).astype(q.dtype)
        dqs.append(jnp.einsum("BGRQS,BGSK->BGRQK", ds, k[..., :stop, :]))
        dk_BGKL = dk_BGKL.at[..., :stop].add(jnp.einsum("BGRQK,BGRQS->BGKS", q[block], ds))
        dv_BGKL = dv_BGKL.at[..., :stop].add(jnp.einsum("BGRQK,BGRQS->BGKS", d_out[block], p.astype(v.dtype)))
    return jnp.concatenate(dqs, axis=3), dk_BGKL.mT.astype(k.dtype), dv_BGKL.mT.astype(v.dtype), None


_by_blocks.defvjp(_forward, _backward)
