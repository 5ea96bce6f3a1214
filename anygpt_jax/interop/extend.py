"""A source with another number of rows in its embedding and head: the vocabulary's new ids, or padding.

Rows of ids that were there stay as they are. New ids start as the mean of the old rows, so that no new id is likelier
than the average token (Hewitt 2021, "Initializing new word embeddings for pretrained language models"; AnyGPT drew
them at random). With `noise` they differ from the start: noise · a draw of the old rows' covariance is added, 1 being
as far apart as the old rows are (Transformers adds 3e-5). Padding, whose ids are never targets, is zero.
"""

from __future__ import annotations

import dataclasses
import logging

import numpy as np

from anygpt_jax.errors import UserError
from anygpt_jax.interop.layout import EMBEDDING, HEAD
from anygpt_jax.interop.source import Source, Tensor
from anygpt_jax.vocabulary import Vocabulary

log = logging.getLogger(__name__)


def require_extends(new: Vocabulary, old: Vocabulary, where: str) -> None:
    """UserError unless every id of `old` means in `new` what it meant."""
    if new.text_size != old.text_size:
        problem = f"has {new.text_size} text pieces and the weights have {old.text_size}"
    elif new.text_fingerprint and old.text_fingerprint and new.text_fingerprint != old.text_fingerprint:
        problem = f"was made with text tokenizer {new.text_fingerprint[:12]}, not {old.text_fingerprint[:12]}"
    elif not set(old.markers) <= set(new.markers):
        problem = f"lacks the marker '{min(set(old.markers) - set(new.markers))[0]}' of the weights"
    elif not set(old.blocks) <= set(new.blocks):
        lacking = next(block.modality for block in old.blocks if block not in new.blocks)
        problem = f"does not have the {lacking} block where the weights have it"
    else:
        return
    raise UserError(f"{where} {problem}; build it on the vocabulary of the weights that are converted.")


def _mean_row(tensor: Tensor, rows: int) -> np.ndarray:
    """The mean of the first `rows` rows, accumulated in float64, in the tensor's dtype."""
    total = np.zeros(tensor.shape[1:], np.float64)
    for start, stop in tensor.slabs():
        total += tensor.rows(start, stop)[: max(0, rows - start)].sum(0, dtype=np.float64)
    return (total / rows).astype(tensor.dtype)


def spread(tensor: Tensor, rows: int) -> np.ndarray:
    """float64[D, D]: times a draw of independent normals, a draw of the first `rows` rows' covariance."""
    mean = _mean_row(tensor, rows).astype(np.float64)
    covariance = np.zeros((tensor.shape[1], tensor.shape[1]), np.float64)
    for start, stop in tensor.slabs():
        apart = tensor.rows(start, stop)[: max(0, rows - start)].astype(np.float64) - mean
        covariance += apart.T @ apart
    values, vectors = np.linalg.eigh(covariance / rows)
    return vectors * np.sqrt(np.maximum(values, 0))


def _drawn_rows(tensor: Tensor, kept: int, used: int, noise: float, seed: int) -> np.ndarray:
    """Rows of ids `kept` to `used`: the mean, and noise that depends on the seed and the id alone."""
    mean = _mean_row(tensor, kept)
    if not noise:
        return np.broadcast_to(mean, (used - kept, *mean.shape))
    draws = np.stack([np.random.default_rng((seed, i)).normal(size=mean.size) for i in range(kept, used)])
    return (mean.astype(np.float64) + noise * draws @ spread(tensor, kept).T).astype(tensor.dtype)


def resized(tensor: Tensor, kept: int, used: int, rows: int, noise: float = 0.0, seed: int = 0) -> Tensor:
    """`tensor`'s first `kept` rows, then new ones up to `used`, then zeros up to `rows`."""
    shape = (rows, *tensor.shape[1:])
    new = _drawn_rows(tensor, kept, used, noise, seed) if used > kept else None

    def read(start: int, stop: int) -> np.ndarray:
        out = np.zeros((stop - start, *shape[1:]), tensor.dtype)
        if start < kept:
            out[: kept - start] = tensor.rows(start, min(stop, kept))
        if new is not None and stop > kept:
            first = max(kept, start)
            last = max(first, min(used, stop))
            out[first - start : last - start] = new[first - kept : last - kept]
        return out

    return Tensor(shape, tensor.dtype, read)


def with_vocabulary(source: Source, vocabulary: Vocabulary, multiple: int = 1, noise: float = 0.0) -> Source:
    """The source with the rows `vocabulary` needs, padded to a multiple. UserError if it does not extend its own."""
    if not 0 <= noise < float("inf"):
        raise UserError(f"--noise {noise:g} must not be negative.")
    require_extends(vocabulary, source.vocabulary, "The vocabulary")
    have = source.model.vocab_size
    kept, used, rows = min(have, source.vocabulary.size), vocabulary.size, vocabulary.padded_size(multiple)
    if have > source.vocabulary.size:
        log.info("Rows %d to %d of the embedding belong to no token: they are left out.", kept, have - 1)
    if used > kept:
        apart = f", and {noise:g} of how far those are apart" if noise else ""
        log.info("%d ids are new: their rows start as the mean of the %d others%s.", used - kept, kept, apart)
    tensors = dict(source.tensors)
    if rows != have or used != kept:
        for seed, name in enumerate((EMBEDDING, HEAD)):
            if name in tensors:
                tensors[name] = resized(tensors[name], kept, used, rows, noise, seed)
    model = dataclasses.replace(source.model, vocab_size=rows)
    return dataclasses.replace(source, model=model, tensors=tensors, vocabulary=vocabulary)
