"""`anygpt convert tokenizer`: an official checkpoint → one safetensors file of ours, with its settings inside."""

from __future__ import annotations

import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx
from tqdm import tqdm

from anygpt_jax.errors import UserError
from anygpt_jax.interop import safetensors_files
from anygpt_jax.interop.source import DTYPES, Tensor
from anygpt_jax.interop.tokenizers import files, kinds
from anygpt_jax.interop.tokenizers.rules import Alternative, Layout
from anygpt_jax.modalities.codecs import weights


def convert(paths: Sequence[pathlib.Path], name: str, to: pathlib.Path, dtype: str = "float32") -> dict[str, Any]:
    """Writes `to`, whole or not at all, and returns a summary. UserError says which tensors are missing or unknown.

    Tensors are made one at a time: memory holds a few of the largest.
    """
    kind = kinds.get(name)
    if to.suffix != ".safetensors":
        raise UserError(f"--to names a file that ends in .safetensors, not {to}.")
    if to.exists():
        raise UserError(f"{to} exists; name another file with --to, or remove it.")
    official = files.read(paths, kind.subfolders, kind.prefix)
    settings = kind.settings(official.config, {name: t.shape for name, t in official.tensors.items()})
    expected = shapes(nnx.eval_shape(lambda: kind.build(settings)))
    chosen = choose(kind.layout(settings), official.tensors, kind.ignored, ", ".join(map(str, paths)))
    made = {path: _made(path, chosen[path], shape, official.tensors) for path, shape in expected.items()}
    to.parent.mkdir(parents=True, exist_ok=True)
    partial = to.with_name(to.name + ".partial")
    metadata = {"settings": json.dumps({"kind": name, "codec": settings}, sort_keys=True)}
    total = sum(math.prod(shape) for shape in expected.values()) * DTYPES[dtype].itemsize
    try:
        with tqdm(total=total, unit="B", unit_scale=True, desc="writing", disable=None) as progress:
            safetensors_files.write(partial, made, DTYPES[dtype], progress, metadata)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(to)
    return {
        "kind": name,
        "parameters": sum(math.prod(shape) for shape in expected.values()),
        "official_tensors": len(official.tensors),
        "settings": settings,
    }


def shapes(module: nnx.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every variable by its dotted path, as `weights.flatten` names them."""
    return {weights.dotted(keys): variable.shape for keys, variable in nnx.to_flat_state(nnx.state(module))}


def choose(layout: Layout, available: Mapping[str, Any], ignored: Sequence[str], where: str) -> dict[str, Alternative]:
    """For each of our tensors what it is made of. UserError lists all that is missing and all that is left over."""
    chosen = {path: rule.choose(available) for path, rule in layout.items()}
    missing = sorted(
        " + ".join(n for n in layout[path].alternatives[0].names if n not in available)
        for path, alternative in chosen.items()
        if alternative is None
    )
    used = {n for alternative in chosen.values() if alternative is not None for n in alternative.names}
    left = sorted(n for n in available if n not in used and not any(re.fullmatch(p, n) for p in ignored))
    if missing or left:
        lines = [f"{where} does not fit."]
        if missing:
            lines.append(f"Missing ({len(missing)}): {', '.join(missing)}.")
        if left:
            lines.append(f"Unexpected ({len(left)}): {', '.join(left)}.")
        lines.append("Take the whole checkpoint as it was published, or another --kind.")
        raise UserError(" ".join(lines))
    return {path: alternative for path, alternative in chosen.items() if alternative is not None}


def _made(path: str, how: Alternative, shape: tuple[int, ...], tensors: Mapping[str, Tensor]) -> Tensor:
    """A tensor that is made when it is read, in one piece."""

    def whole(tensor: Tensor) -> np.ndarray:
        return tensor.rows(0, tensor.shape[0] if tensor.shape else 1).reshape(tensor.shape).astype(np.float32)

    def rows(start: int, stop: int) -> np.ndarray:
        array = np.asarray(how.make(*(whole(tensors[name]) for name in how.names)))
        if array.shape != shape:
            raise UserError(
                f"{how.names[0]} gives {path} the shape {list(array.shape)}, which should be {list(shape)}; "
                "the weights and the configuration beside them are not of the same network."
            )
        return array[start:stop]

    return Tensor(shape, np.dtype(np.float32), rows, unit=shape[0])
