"""Official checkpoints of tokenizers as they are published: one file, several, shards with an index, diffusers' folders."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from anygpt_jax.errors import UserError
from anygpt_jax.interop import pickles, safetensors_files
from anygpt_jax.interop.source import Tensor

PICKLES = (".bin", ".pt", ".pth", ".th", ".ckpt", ".dev")
VARIANTS = (".fp16.", ".bf16.", ".non_ema.", ".ema_only.")  # second copies in diffusers' folders


@dataclasses.dataclass(frozen=True)
class Official:
    """Tensors by their official names, and the configuration beside them ({} if there is none)."""

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]


Prefix = Callable[[Collection[str]], str]


def read(
    paths: Sequence[pathlib.Path],
    subfolders: Mapping[str, str] | None = None,
    prefix: Prefix = lambda names: "",
) -> Official:
    """Everything in these files and folders. UserError if one is missing or unreadable, or a tensor is there twice.

    `subfolders`: {prefix: subfolder} of a single folder, each read by itself; the tensors get the prefix. Otherwise
    `prefix` says of the names in each file what they get in front.
    """
    if subfolders:
        if len(paths) != 1 or not paths[0].is_dir():
            raise UserError(f"--from takes one folder here, with {', '.join(subfolders.values())} in it.")
        parts = {prefix: _part(paths[0] / name) for prefix, name in subfolders.items()}
        tensors = {prefix + name: t for prefix, part in parts.items() for name, t in part.tensors.items()}
        return Official(tensors, {name: parts[prefix].config for prefix, name in subfolders.items()})
    merged: dict[str, Tensor] = {}
    config: Mapping[str, Any] = {}
    for path in paths:
        part = _one(path, prefix)
        if twice := sorted(merged.keys() & part.tensors.keys()):
            raise UserError(f"{path} holds {twice[0]}, which another file named by --from holds too; name one of them.")
        merged |= part.tensors
        config = config or part.config
    return Official(merged, config)


def _part(folder: pathlib.Path) -> Official:
    """A subfolder of a diffusers pipeline: a scheduler or an image processor has a config and no weights."""
    if not folder.is_dir():
        raise UserError(f"No folder {folder}; name a folder with a whole diffusers pipeline.")
    weights = _weight_files(folder)
    return Official(_tensors(folder, weights) if weights else {}, _config(folder))


def _one(path: pathlib.Path, prefix: Prefix) -> Official:
    if path.is_file():
        return Official(_file(path, prefix), _config(path.parent))
    if not path.is_dir():
        raise UserError(f"No file or folder {path}; --from names the published checkpoint.")
    weights = _weight_files(path)
    if not weights:
        raise UserError(f"No weights in {path}; it needs .safetensors files or {', '.join(PICKLES)}.")
    return Official(_tensors(path, weights, prefix), _config(path))


def _config(folder: pathlib.Path) -> Mapping[str, Any]:
    for name in ("config.json", "scheduler_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            return _json(folder / name)
    return {}


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise UserError(f"{path} is not JSON ({e}); copy or download it again.") from e
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object; copy or download it again.")
    return value


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """safetensors if there are any, pickles otherwise; of a file and its half-precision copy, the file."""
    found = [p for p in sorted(folder.iterdir()) if p.is_file() and p.suffix in (".safetensors", *PICKLES)]
    safe = [p for p in found if p.suffix == ".safetensors"]
    found = safe or found
    plain = [p for p in found if not any(v in p.name for v in VARIANTS)]
    return plain or found


def _tensors(
    folder: pathlib.Path, files: Sequence[pathlib.Path], prefix: Prefix = lambda names: ""
) -> dict[str, Tensor]:
    shards = {shard for path in folder.glob("*.index.json") for shard in _json(path).get("weight_map", {}).values()}
    for shard in sorted(shards):
        if pathlib.Path(shard).suffix == files[0].suffix and not (folder / shard).is_file():
            raise UserError(f"An index in {folder} names {shard}, which is not there; copy or download it.")
    tensors: dict[str, Tensor] = {}
    for path in files:
        part = _file(path, prefix)
        if twice := sorted(tensors.keys() & part.keys()):
            raise UserError(f"{path} holds {twice[0]}, which another file in {folder} holds too; name one file.")
        tensors |= part
    return tensors


def _file(path: pathlib.Path, prefix: Prefix) -> dict[str, Tensor]:
    tensors = safetensors_files.read(path) if path.suffix == ".safetensors" else pickles.read(path)
    before = prefix(tensors.keys())
    return {before + name: tensor for name, tensor in tensors.items()}
