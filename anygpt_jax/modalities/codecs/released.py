"""Converted weights of published tokenizers: what `anygpt convert tokenizer` wrote, as a module again."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from anygpt_jax.errors import UserError
from anygpt_jax.modalities.codecs import weights


@dataclasses.dataclass(frozen=True)
class Released:
    """A network of a converted file: `module` is filled with its weights, `kind` is the name it was converted by."""

    module: Any
    kind: str
    fingerprint: str  # SHA-256 of settings and weights


def load(path: str | pathlib.Path, *kinds: str) -> Released:
    """The network in a converted file, whose kind must be one of `kinds`. UserError if it is not.

    A kind is the module of this package that builds it.
    """
    path = pathlib.Path(path)
    tensors, settings = weights.read(path)
    if settings.get("kind") not in kinds:
        raise UserError(
            f"{path} holds {settings.get('kind', 'a tokenizer of ours')}, and {' or '.join(kinds)} is needed; "
            f"make one with `anygpt convert tokenizer --kind {kinds[0]}`."
        )
    build = importlib.import_module(f"anygpt_jax.modalities.codecs.{settings['kind']}").build

    def module() -> nnx.Module:
        return build(settings["codec"])

    return Released(weights.fill(module, tensors), settings["kind"], weights.fingerprint(tensors, settings))


def program(function: Callable[..., Any], *modules: nnx.Module, exact: bool = False) -> Callable[..., Any]:
    """`function(*modules, *arrays)` compiled, as a function of the arrays.

    The weights are arguments of the program, not constants in it. `exact`: products in full float32, where a chip
    would round to bfloat16: codes are those of the published tokenizer, decoded media need not be to the last bit.
    """
    graph, state = nnx.split(modules)

    def run(state: Any, *arrays: Any) -> Any:
        with jax.default_matmul_precision("highest" if exact else "default"):
            return function(*nnx.merge(graph, state), *arrays)

    return functools.partial(jax.jit(run), state)


def fingerprint(*parts: str, **settings: Any) -> str:
    """SHA-256 of a tokenizer made of several files (their fingerprints) and of settings that change its codes."""
    return hashlib.sha256(json.dumps([parts, settings], sort_keys=True).encode()).hexdigest()
