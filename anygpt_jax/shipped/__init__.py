"""The model inside this package: `anygpt generate` and the other readers take it where no config is named.

checkpoints/STEP    an ordinary checkpoint (docs/checkpoints.md) with the parameters alone, and with the whole config
                    of the run that made it; `python -m anygpt_jax.shipped RUN` writes it
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import ml_collections

from anygpt_jax.errors import UserError

METRICS = pathlib.Path(__file__).with_name("metrics.json")  # what its card says, as `anygpt evaluate` measured it
WORKDIR = "runs/tiny"  # where a data set, a cache and measurements go that are made with the shipped config


def folder() -> pathlib.Path:
    """Where its checkpoints are."""
    return pathlib.Path(__file__).parent / "checkpoints"


def config() -> ml_collections.ConfigDict:
    """The config inside the shipped checkpoint, which names that checkpoint; UserError if there is none.

    Read without JAX: the verbs that make data do not load it.
    """
    found = sorted(folder().glob("[0-9]*/config/metadata"), key=lambda path: int(path.parts[-3]))
    if not found:
        raise UserError("This package holds no model of its own; name a config of yours with --config=FILE.")
    read = ml_collections.ConfigDict(_with_tuples(json.loads(found[-1].read_text(encoding="utf-8"))))
    read.workdir = WORKDIR
    read.checkpoints = str(folder())
    return read


def _with_tuples(value: Any) -> Any:
    """As a config file says it: JSON has made lists of its tuples."""
    if isinstance(value, dict):
        return {name: _with_tuples(part) for name, part in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
