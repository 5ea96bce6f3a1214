"""Weights of a codec on disk: one safetensors file that also holds its settings, and its fingerprint."""

from __future__ import annotations

import hashlib
import itertools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from anygpt_jax.errors import UserError

SHIPPED = pathlib.Path(__file__).parent.parent / "weights"
UNHALVED = ("codebooks", "mean", "std")  # residual codebooks, and what inputs are standardized by
M = TypeVar("M", bound=nnx.Module)


def dotted(keys: tuple[Any, ...]) -> str:
    """A variable's name in our files."""
    return ".".join(str(k) for k in keys)


def flatten(module: nnx.Module) -> dict[str, np.ndarray]:
    """Every variable of a module by its dotted path, in the dtype it has."""
    flat = nnx.to_flat_state(nnx.state(module))
    return {dotted(keys): np.asarray(variable[...]) for keys, variable in flat}


def fingerprint(tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> str:
    """SHA-256 of the settings and of every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def save(path: pathlib.Path, tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> str:
    """Writes the file whole or not at all; returns its fingerprint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    metadata = {"settings": json.dumps(settings, sort_keys=True)}
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, partial, metadata)
    partial.chmod(0o644)  # the library makes files that only their owner may read
    partial.replace(path)
    return fingerprint(tensors, settings)


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(tensors as stored, settings)."""
    if not path.is_file():
        raise UserError(
            f"No tokenizer weights at {path}; train them with a configs/tokenizer_*.py, or convert published ones "
            "with `anygpt convert tokenizer`."
        )
    try:
        with safetensors.safe_open(path, "numpy") as file:
            settings = json.loads((file.metadata() or {})["settings"])
            return {name: file.get_tensor(name) for name in file.keys()}, settings  # noqa: SIM118
    except (safetensors.SafetensorError, KeyError, ValueError) as e:
        raise UserError(f"{path} is not a file of tokenizer weights ({e}); train or convert it again.") from e


class _Keys:
    """The part of nnx.Rngs that modules call, without its counter in a Variable.

    Under `nnx.eval_shape` each use of that counter costs milliseconds: 19 s instead of 1 for the largest network.
    """

    def __init__(self, seed: int):
        self._key, self._count = jax.random.key(seed), itertools.count()

    def params(self) -> jax.Array:
        return jax.random.fold_in(self._key, next(self._count))

    def split(self, n: int) -> nnx.Rngs:
        return nnx.Rngs(self.params()).split(n)


def rngs(seed: int = 0) -> nnx.Rngs:
    """Random numbers for modules that are built to be filled, or for tests."""
    return cast(nnx.Rngs, _Keys(seed))


def fill(build: Callable[[], M], tensors: Mapping[str, np.ndarray], prefix: str = "") -> M:
    """`build()` without spending time on its random weights, then filled with the tensors under a prefix."""
    module = nnx.eval_shape(build)
    graph, state = nnx.split(module)
    flat = dict(nnx.to_flat_state(state))
    for keys, variable in flat.items():
        name = prefix + dotted(keys)
        if name not in tensors:
            raise UserError(
                f"The tokenizer weights lack '{name}'; they are of another version, train or convert them again."
            )
        if tensors[name].shape != variable.shape:
            raise UserError(f"Tokenizer weight '{name}' has shape {tensors[name].shape}, not {variable.shape}.")
        flat[keys] = variable.replace(jnp.asarray(tensors[name], variable.dtype))
    return nnx.merge(graph, nnx.from_flat_state(flat))


def halve(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """fp32 tensors in fp16, but those whose last name is in `UNHALVED`; activations stay fp32.

    The image tokenizer's `codebook` and `palette` are halved too: its codes are told apart by the rounded vectors.
    """
    return {
        name: array if array.dtype != np.float32 or name.split(".")[-1] in UNHALVED else array.astype(np.float16)
        for name, array in tensors.items()
    }


def count(module: nnx.Module) -> int:
    """Number of trained parameters."""
    return sum(int(x.size) for x in jax.tree.leaves(nnx.state(module, nnx.Param)))
