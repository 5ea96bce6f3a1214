"""Embeddings: the Fréchet distance between two sets (FID, FAD), and the similarity of pairs (CLIP, CLAP, speakers).

What embeds is given: the distance is "FID" only with the Inception network it was published with.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation.measures import Measure, mean

Embed = Callable[[Sequence[Any]], Float[np.ndarray, "N D"]]


def _root(covariance: Float[np.ndarray, "D D"]) -> Float[np.ndarray, "D D"]:
    """The symmetric root; rounding leaves eigenvalues of 0 a little below it."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def _check_width(a: int, b: int) -> None:
    if a != b:
        raise UserError(f"Embeddings of {a} and {b} numbers cannot be compared; embed both sets with one network.")


@dataclasses.dataclass(frozen=True)
class _Gaussian:
    mean: Float[np.ndarray, " D"]
    covariance: Float[np.ndarray, "D D"]

    @classmethod
    def of(cls, embeddings: Float[np.ndarray, "N D"]) -> _Gaussian:
        embeddings = np.asarray(embeddings, np.float64)
        if embeddings.ndim != 2 or len(embeddings) < 2:
            raise UserError(
                f"A Fréchet distance is between sets of at least 2 embeddings, got shape {embeddings.shape}; "
                "evaluate more examples."
            )
        centred = embeddings - embeddings.mean(0)
        return cls(embeddings.mean(0), centred.T @ centred / (len(centred) - 1))

    @functools.cached_property
    def root(self) -> Float[np.ndarray, "D D"]:
        return _root(self.covariance)

    def distance(self, other: _Gaussian) -> float:
        _check_width(len(self.mean), len(other.mean))
        # The trace of (A B)^(1/2) is that of (A^(1/2) B A^(1/2))^(1/2), which is symmetric and has no imaginary part.
        shared = np.linalg.eigvalsh(self.root @ other.covariance @ self.root)
        spread = np.trace(self.covariance) + np.trace(other.covariance) - 2 * np.sqrt(shared.clip(0)).sum()
        return max(float(np.sum((self.mean - other.mean) ** 2) + spread), 0.0)


def frechet_distance(a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "M D"]) -> float:
    """|mean_a - mean_b|² + tr(A + B - 2 (A B)^(1/2)) of the Gaussians fitted to two sets (Heusel et al. 2017).

    Each set has at least 2 members, else a UserError; covariances are over n - 1. With no more members than dimensions
    they are singular, and the distance is exact for them all the same; but it falls as sets grow, so compare only
    distances of sets of the same size.
    """
    return _Gaussian.of(a).distance(_Gaussian.of(b))


def frechet(name: str, embed: Embed, reference_embeddings: Float[np.ndarray, "M D"]) -> Measure:
    """The distance of the predictions' embeddings, which are the rows [N, D], to a fixed set's; references are unused.

    A missing prediction's row is NaN, and a set with one has an infinite distance: to leave it out would reward it.
    """
    truth = _Gaussian.of(reference_embeddings)

    def rows(references: Sequence[Any], predictions: Sequence[Any]) -> Float[np.ndarray, "N D"]:
        result = np.full((len(predictions), len(truth.mean)), np.nan)
        present = [i for i, prediction in enumerate(predictions) if prediction is not None]
        if present:
            made = np.asarray(embed([predictions[i] for i in present]))
            _check_width(made.shape[-1], len(truth.mean))
            result[present] = made
        return result

    def score(rows: Float[np.ndarray, "N D"]) -> float:
        return float("inf") if not np.isfinite(rows).all() else truth.distance(_Gaussian.of(rows))

    return Measure(name, False, rows, score)


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
