"""What is refused before anything is compiled: every problem of a config at once, a sentence each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import ml_collections

from anygpt_jax.errors import UserError
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.sharding import BATCH_AXES, RULES, mesh_problems, mesh_shape
from anygpt_jax.model.splash import length_problems
from anygpt_jax.training.optimizer import make_optimizer
from anygpt_jax.vocabulary import Vocabulary

# What an axis of the mesh must divide, by the logical axis that it cuts (`sharding.RULES`).
SIZES = {"embed": "d_model", "vocab": "vocab_size", "heads": "n_heads", "kv_heads": "n_kv_heads", "mlp": "d_ff"}


def refuse(problems: Iterable[str]) -> None:
    """UserError of all problems, a line each, if there is any."""
    found = list(dict.fromkeys(problems))
    if found:
        raise UserError("\n".join(found))


def problem_of(function: Callable, *args: object) -> list[str]:
    """What a function that raises UserError has to say."""
    try:
        function(*args)
    except UserError as e:
        return [str(e)]
    return []


def batch_problems(train: ml_collections.ConfigDict, mesh: Mapping[str, int]) -> list[str]:
    """`mesh` holds the size of every axis."""
    found = []
    rows = train.microbatches * math.prod(mesh[axis] for axis in BATCH_AXES)
    if rows < 1 or train.batch_size < 1 or train.batch_size % rows:
        found.append(
            f"train.batch_size={train.batch_size} must be a multiple of mesh slice × data × fsdp × "
            f"train.microbatches = {rows}."
        )
    for what, parts in (("mesh context", mesh["context"]), ("train.loss_chunks", train.loss_chunks)):
        if parts < 1 or train.seq_len < 1 or train.seq_len % parts:
            found.append(f"train.seq_len={train.seq_len} must be a multiple of {what} = {parts}.")
    return found


def division_problems(sizes: Mapping[str, int], mesh: Mapping[str, int]) -> list[str]:
    """Of a model's sizes by name, with `vocab_size`, over a mesh."""
    return [
        f"model.{name}={sizes[name]} must be a multiple of mesh {RULES[logical]} = {mesh[RULES[logical]]}."
        for logical, name in SIZES.items()
        if sizes[name] % mesh[RULES[logical]]
    ]


def layout_problems(
    sizes: Mapping[str, int], attention: str, train: ml_collections.ConfigDict, mesh: Mapping[str, int]
) -> list[str]:
    """Of a model's sizes and its batches on a mesh."""
    found = batch_problems(train, mesh) + division_problems(sizes, mesh)
    return found + (length_problems(train.seq_len, mesh["context"]) if attention == "splash" else [])


def config_problems(config: ml_collections.ConfigDict, vocabulary: Vocabulary, devices: int) -> list[str]:
    """Of a whole config, on so many devices."""
    model, train, mesh = config.model, config.train, mesh_shape(config.mesh)
    found = problem_of(ModelConfig.from_config, model, vocabulary) + problem_of(make_optimizer, train)
    found += mesh_problems(config.mesh, devices)
    multiple = model.get("vocab_multiple", 1)
    if min(mesh.values()) < 1 or multiple < 1:  # nothing can be divided by that
        return found
    sizes = dict(model) | {"vocab_size": vocabulary.padded_size(multiple)}
    return found + layout_problems(sizes, model.get("attention", "xla"), train, mesh)
