"""Embeddings: the Fréchet distance between two sets (FID, FAD), and the similarity of pairs (CLIP, CLAP, speakers).

What embeds is given: the distance is "FID" only with the Inception network it was published with.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation.measures import Measure, mean

Embed = Callable[[Sequence[Any]], Float[np.ndarray, "N D"]]
EmbedAll = Callable[[Sequence[Any]], Sequence[np.ndarray] | Float[np.ndarray, "N D"]]  # several to an item, or one


def _check_width(a: int, b: int) -> None:
    if a != b:
        raise UserError(f"Embeddings of {a} and {b} numbers cannot be compared; embed both sets with one network.")


@dataclasses.dataclass(frozen=True)
class _Gaussian:
    """`factor` is F of a covariance Fᵀ F, with no more rows than it has to have."""

    mean: Float[np.ndarray, " D"]
    factor: Float[np.ndarray, "R D"]

    @classmethod
    def of(cls, embeddings: Float[np.ndarray, "N D"]) -> _Gaussian:
        embeddings = np.asarray(embeddings, np.float64)
        if embeddings.ndim != 2 or len(embeddings) < 2:
            raise UserError(
                f"A Fréchet distance is between sets of at least 2 embeddings, got shape {embeddings.shape}; "
                "evaluate more examples."
            )
        centred = (embeddings - embeddings.mean(0)) / np.sqrt(len(embeddings) - 1)
        if len(centred) > centred.shape[1]:
            # Rounding leaves eigenvalues of 0 a little below it.
            values, vectors = np.linalg.eigh(centred.T @ centred)
            centred = np.sqrt(values.clip(0))[:, None] * vectors.T
        return cls(embeddings.mean(0), centred)

    def distance(self, other: _Gaussian) -> float:
        _check_width(len(self.mean), len(other.mean))
        # With A = Fᵀ F and B = Gᵀ G the trace of (A B)^(1/2) is the sum of the singular values of F Gᵀ.
        shared = np.linalg.svd(self.factor @ other.factor.T, compute_uv=False).sum()
        spread = np.sum(self.factor**2) + np.sum(other.factor**2) - 2 * shared
        return max(float(np.sum((self.mean - other.mean) ** 2) + spread), 0.0)


def frechet_distance(a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "M D"]) -> float:
    """|mean_a - mean_b|² + tr(A + B - 2 (A B)^(1/2)) of the Gaussians fitted to two sets (Heusel et al. 2017).

    Each set has at least 2 members, else a UserError; covariances are over n - 1. With no more members than dimensions
    they are singular, and the distance is exact for them all the same; but it falls as sets grow, so compare only
    distances of sets of the same size.
    """
    return _Gaussian.of(a).distance(_Gaussian.of(b))


def frechet_to_originals(name: str, width: int, embed_reference: EmbedAll, embed_prediction: EmbedAll) -> Measure:
    """The distance between the embeddings of all predictions and those of all their references.

    An embedder gives each item one embedding of `width` numbers, or several [E, width], which all count alike. A row has
    those of a prediction, and then those of its reference, so that a sample of rows has whole pairs; the longest item
    tells how many have room, and NaN fills what is over. An item without any, as a missing prediction is, makes the
    distance infinite: to leave it out would reward it. It has no interval: a sample drawn with repetition is further from
    the originals than the whole set is.
    """

    def rows(references: Sequence[Any], predictions: Sequence[Any]) -> Float[np.ndarray, "N W"]:
        present = [i for i, prediction in enumerate(predictions) if prediction is not None]
        made: list[np.ndarray] = [np.zeros((0, width))] * len(predictions)
        if present:
            for i, embedding in zip(present, embed_prediction([predictions[i] for i in present]), strict=True):
                made[i] = np.atleast_2d(embedding)
        truth = [np.atleast_2d(embedding) for embedding in embed_reference(references)] if references else []
        for embeddings in (*made, *truth):
            _check_width(embeddings.shape[-1], width)
        result = np.full((len(predictions), 2, max(map(len, (*made, *truth)), default=1), width), np.nan)
        for row, *pair in zip(result, made, truth, strict=True):
            for half, embeddings in zip(row, pair, strict=True):
                half[: len(embeddings)] = embeddings
        return result.reshape(len(predictions), result[0].size if len(result) else 2 * width)

    def score(rows: Float[np.ndarray, "N W"]) -> float:
        pairs = rows.reshape(len(rows), 2, -1, width)
        if np.isnan(pairs[:, :, 0, 0]).any():
            return float("inf")
        made, truth = (half[~np.isnan(half[..., 0])] for half in pairs.swapaxes(0, 1))
        return _Gaussian.of(made).distance(_Gaussian.of(truth))

    return Measure(name, False, rows, score, resampled=False)


def embed_in_batches(embed: Embed, items: Iterable[Any], size: int = 64) -> Float[np.ndarray, "N D"]:
    """`embed` of so many items at a time: thousands of recordings are never in memory together."""
    batches = iter(items)
    found = []
    while batch := list(itertools.islice(batches, size)):
        found.append(np.asarray(embed(batch)))
    return np.concatenate(found)


def cosine_rows(a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N 1"]:
    """The cosine between each row of `a` and the same row of `b`, float64 in [-1, 1]; 0 with a row of zeros."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise UserError(f"Embeddings of shapes {a.shape} and {b.shape} are no pairs; embed both into one space.")
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products = (a * b).sum(1)
    return np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0).clip(-1, 1)[:, None]


def similarity(name: str, embed_reference: Embed, embed_prediction: Embed) -> Measure:
    """The mean cosine between a reference's embedding and its prediction's, neither scaled nor cut off at 0.

    Two embedders, as a text and a picture have in CLIP; each gets all it embeds at once. A missing prediction has 0.
    """

    def rows(references: Sequence[Any], predictions: Sequence[Any]) -> Float[np.ndarray, "N 1"]:
        pairs = list(zip(references, predictions, strict=True))
        present = [i for i, (_, prediction) in enumerate(pairs) if prediction is not None]
        result = np.zeros((len(pairs), 1))
        if present:
            truth = embed_reference([pairs[i][0] for i in present])
            result[present] = cosine_rows(truth, embed_prediction([pairs[i][1] for i in present]))
        return result

    return Measure(name, True, rows, mean)
