"""Which parameters change: by patterns of their paths, and of the vocabulary's matrices by rows.

What does not change has no gradient, no optimizer state and no part in the gradient's norm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from anygpt_jax.errors import UserError

Params = dict[str, Any]

VOCABULARY_AXIS = {"embedding": 0, "head": 1}  # of the matrices that have a row or a column for every id


def path_of(path: tuple) -> str:
    """A parameter's path as patterns see it, for instance blocks/q."""
    return "/".join(str(part.key) for part in path)


def _patterns(train: ml_collections.ConfigDict, name: str) -> tuple[str, ...]:
    given = train.get(name) or ()
    return (given,) if isinstance(given, str) else tuple(given)


def _matching(patterns: tuple[str, ...], paths: list[str], setting: str) -> set[str]:
    """The paths that a pattern describes from end to end. UserError if a pattern is none or describes nothing."""
    found: set[str] = set()
    for pattern in patterns:
        try:
            hits = {path for path in paths if re.fullmatch(pattern, path)}
        except re.error as e:
            raise UserError(f"train.{setting}: '{pattern}' is no regular expression ({e}).") from e
        if not hits:
            raise UserError(f"train.{setting}: '{pattern}' describes no parameter; there are {', '.join(paths)}.")
        found |= hits
    return found


def trained_paths(params: Params, train: ml_collections.ConfigDict) -> frozenset[str]:
    """The paths that `train.trainable` describes (all, if it is empty), without those of `train.frozen`.

    `params` may be abstract. UserError if a pattern describes no parameter, or nothing is left to train.
    """
    paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    patterns = _patterns(train, "trainable")
    found = _matching(patterns, paths, "trainable") if patterns else set(paths)
    found -= _matching(_patterns(train, "frozen"), paths, "frozen")
    if not found:
        raise UserError("train.trainable and train.frozen leave no parameter to train.")
    if train.get("new_rows_only") and not found & set(VOCABULARY_AXIS):
        raise UserError("train.new_rows_only is set, but neither the embedding nor the head is trained.")
    return frozenset(found)


def split(params: Params, trained: frozenset[str], at: str = "") -> tuple[Params, Params]:
    """(those that are trained, the others), each nested as before and without empty parts."""
    ours: Params = {}
    others: Params = {}
    for key, child in params.items():
        if isinstance(child, Mapping):
            parts = split(dict(child), trained, f"{at}{key}/")
            for side, part in zip((ours, others), parts, strict=True):
                if part:
                    side[key] = part
        else:
            (ours if at + key in trained else others)[key] = child
    return ours, others


def merge(ours: Params, others: Params) -> Params:
    """The inverse of `split`."""
    found = dict(others)
    for key, child in ours.items():
        found[key] = merge(dict(child), others.get(key, {})) if isinstance(child, Mapping) else child
    return found


def new_rows(new: Params, old: Params, first: int) -> Params:
    """`new`, but `old` in the rows of the embedding and columns of the head of ids below `first`."""

    def one(path: tuple, new: jax.Array, old: jax.Array) -> jax.Array:
        axis = VOCABULARY_AXIS.get(path_of(path))
        if axis is None:
            return new
        ids = jax.lax.broadcasted_iota(jnp.int32, new.shape, axis)
        return jnp.where(ids >= first, new, old)

    return jax.tree_util.tree_map_with_path(one, new, old)
