"""Vector quantization: nearest codes, residual levels, k-means, EMA codebooks that restart their dead codes.

van den Oord et al. 2017 (VQ-VAE, appendix A.1: EMA updates), Zeghidour et al. 2021 (SoundStream: residual
levels, k-means start, restart of unused codes). Pure functions on arrays: a codebook is float32[K, D].
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Codebooks(NamedTuple):
    """Q codebooks in training: their vectors, and the running counts and sums the vectors are the ratio of."""

    vectors: Float[Array, "Q K D"]
    counts: Float[Array, "Q K"]
    sums: Float[Array, "Q K D"]


def nearest(x: Float[Array, "*N D"], codebook: Float[Array, "K D"]) -> Int[Array, "*N"]:
    """Index of the closest code in Euclidean distance; the lowest index wins a tie."""
    # |x - c|^2 without |x|^2, which does not change the winner.
    distance = jnp.sum(codebook**2, -1) - 2 * x @ codebook.T
    return jnp.argmin(distance, -1).astype(jnp.int32)


def unit(x: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
    """Vectors of length 1, for codes by direction. The floor is torch.nn.functional.normalize's."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def residual_encode(x: Float[Array, "*N D"], vectors: Float[Array, "Q K D"]) -> Int[Array, "*N Q"]:
    """Level by level, the code nearest to what the levels before have left over."""
    codes = []
    for codebook in vectors:
        codes.append(nearest(x, codebook))
        x = x - codebook[codes[-1]]
    return jnp.stack(codes, -1)


def residual_decode(codes: Int[Array, "*N Q"], vectors: Float[Array, "Q K D"]) -> Float[Array, "*N Q D"]:
    """Partial sums: entry q is the reconstruction from the levels up to and with q."""
    parts = [codebook[codes[..., q]] for q, codebook in enumerate(vectors[: codes.shape[-1]])]
    return jnp.cumsum(jnp.stack(parts, -2), -2)


def _spread(key: Array, x: Float[Array, "N D"], k: int) -> Float[Array, "K D"]:
    """k-means++ (Arthur and Vassilvitskii, 2007): members drawn with probability ~ squared distance to those drawn."""

    def draw(distance, key):
        index = jax.random.categorical(key, jnp.log(jnp.maximum(distance, 1e-12)))
        return jnp.minimum(distance, jnp.sum((x - x[index]) ** 2, -1)), x[index]

    _, centres = jax.lax.scan(draw, jnp.full(len(x), 1e6, x.dtype), jax.random.split(key, k))
    return centres


@functools.partial(jax.jit, static_argnames=("k", "iterations"))
def kmeans(key: Array, x: Float[Array, "N D"], k: int, iterations: int = 10) -> Float[Array, "K D"]:
    """Lloyd's algorithm from a k-means++ start; an empty cluster moves to a point far from its centre."""

    def step(_, centres):
        codes = nearest(x, centres)
        counts = jnp.zeros(k).at[codes].add(1.0)
        sums = jnp.zeros_like(centres).at[codes].add(x)
        error = jnp.sum((x - centres[codes]) ** 2, -1)
        farthest = x[jnp.argsort(-error)[jnp.arange(k) % len(x)]]
        # The r-th empty cluster takes the r-th farthest point.
        rank = jnp.cumsum(counts == 0) - 1
        return jnp.where((counts > 0)[:, None], sums / jnp.maximum(counts, 1.0)[:, None], farthest[rank])

    return jax.lax.fori_loop(0, iterations, step, _spread(key, x, k))


def init_codebooks(key: Array, x: Float[Array, "N D"], levels: int, k: int) -> Codebooks:
    """Each level by k-means of what the levels before leave over."""
    vectors = []
    for _ in range(levels):
        key, sub = jax.random.split(key)
        vectors.append(kmeans(sub, x, k))
        x = x - vectors[-1][nearest(x, vectors[-1])]
    stacked = jnp.stack(vectors)
    return Codebooks(stacked, jnp.ones(stacked.shape[:2]), stacked)


def update(
    books: Codebooks,
    key: Array,
    x: Float[Array, "N D"],
    codes: Int[Array, "N Q"],
    valid: Bool[Array, " N"],
    decay: float = 0.99,
    dead: float = 0.05,
) -> Codebooks:
    """One EMA step from a batch of latents; padding is where `valid` is false.

    A code used less than `dead` times a batch on average restarts from a random valid latent (what is left
    of it at that level).
    """
    weight = valid.astype(x.dtype)
    pick = jax.random.choice(key, len(x), (books.vectors.shape[1],), p=weight / jnp.maximum(weight.sum(), 1.0))
    vectors, counts, sums = [], [], []
    for q in range(books.vectors.shape[0]):
        code = codes[:, q]
        seen = jnp.zeros(books.counts.shape[1]).at[code].add(weight)
        total = jnp.zeros_like(books.sums[q]).at[code].add(weight[:, None] * x)
        count = decay * books.counts[q] + (1 - decay) * seen
        summed = decay * books.sums[q] + (1 - decay) * total
        is_dead = count < dead
        counts.append(jnp.where(is_dead, 1.0, count))
        sums.append(jnp.where(is_dead[:, None], x[pick], summed))
        vectors.append(sums[-1] / counts[-1][:, None])
        x = x - books.vectors[q][code]
    return Codebooks(jnp.stack(vectors), jnp.stack(counts), jnp.stack(sums))


def straight_through(x: Float[Array, "*N D"], quantized: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
    """`quantized` forwards, the identity backwards."""
    return x + jax.lax.stop_gradient(quantized - x)


def usage(codes: Int[Array, " N"], k: int) -> tuple[int, float]:
    """(distinct codes used, perplexity of their distribution)."""
    counts = jnp.bincount(codes.reshape(-1), length=k)
    p = counts / jnp.maximum(counts.sum(), 1)
    entropy = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.maximum(p, 1e-12)), 0.0))
    return int((counts > 0).sum()), float(jnp.exp(entropy))
