"""`anygpt inspect`: of checkpoints, which are there and whether they are whole; of a cache, see `data.inspect`."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import pathlib
from typing import Any

import ml_collections
from etils import epath

from anygpt_jax.cache import write_atomically
from anygpt_jax.data import inspect as of_cache
from anygpt_jax.errors import UserError
from anygpt_jax.training import checksums, folders, mirror

NEEDS_CONFIG = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `data.inspect`, as one verb serves both, and those of checkpoints."""
    of_cache.add_arguments(parser)
    parser.add_argument(
        "--step", type=int, metavar="N", help="of checkpoints: which one is described; default: the last"
    )
    parser.add_argument("--norms", action="store_true", help="of a checkpoint: the L2 norm of every parameter")


def checkpoints_of(place: str | None) -> tuple[epath.Path, int | None] | None:
    """The folder of checkpoints that PLACE is, and the step if it is one of them; None if it is something else."""
    if not place:
        return None
    path = folders.absolute(place)
    if path.name.isdigit() and (path / checksums.METADATA).exists():
        return path.parent, int(path.name)
    for folder in (path, path / "checkpoints") if not (path / "cache").is_dir() else (path,):
        if any(folders.steps_in(folder)):
            return folder, None
    return None


@dataclasses.dataclass(frozen=True)
class Found:
    """A step's folder. Whether it is whole is known only if it was read."""

    name: str
    status: str  # finished, whole, damaged, unfinished, set aside, or without checksums
    bytes: dict[str, int]  # by item
    metrics: dict[str, float]
    saved: str  # when it became final, UTC
    problems: tuple[str, ...] = ()


def look_at(path: epath.Path, *, verify: bool) -> Found:
    """A step's folder as it is; `verify` reads every byte."""
    problems: tuple[str, ...] = ()
    if folders.DAMAGED in path.name or folders.LEFT in path.name:
        status = "set aside"
    elif not path.name.isdigit() or not folders.is_final(path):
        status = "unfinished"
    else:
        try:
            status = "finished" if checksums.read(path) is not None else "without checksums"
        except (OSError, ValueError) as e:
            status, problems = "damaged", (str(e),)
        if verify and status == "finished":
            problems = tuple(checksums.problems(path))
            status = "damaged" if problems else "whole"
    sizes: dict[str, int] = {}
    for name in checksums.files(path):
        item = name.split("/")[0] if "/" in name else "."
        sizes[item] = sizes.get(item, 0) + (path / name).stat().length
    return Found(path.name, status, sizes, mirror.metrics_of(path) or {}, _saved(path), problems)


def _saved(path: epath.Path) -> str:
    try:
        stamp = json.loads((path / checksums.METADATA).read_text()).get(checksums.STAMP)
        return datetime.datetime.fromtimestamp(stamp / 1e9, datetime.UTC).isoformat(timespec="seconds") if stamp else ""
    except (OSError, ValueError, TypeError, AttributeError):
        return ""


def size(count: float) -> str:
    """Bytes to three digits, in steps of 1000: 1.23 GB."""
    units = ["B", "KB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        units.pop(0)
    return f"{count:.3g} {units[0]}"


def table(found: list[Found]) -> str:
    """A line each: name, status, bytes and the four largest items, when, metrics; below it up to five problems.

    `found` must not be empty.
    """
    width = max(len(one.name) for one in found)
    lines = []
    for one in found:
        parts = ", ".join(f"{name} {size(n)}" for name, n in sorted(one.bytes.items(), key=lambda part: -part[1])[:4])
        metrics = " ".join(f"{name}={value:.4g}" for name, value in one.metrics.items())
        total = size(sum(one.bytes.values()))
        lines.append(f"{one.name:>{width}}  {one.status:<10} {total:>8} ({parts})  {one.saved}  {metrics}".rstrip())
        lines += [f"{'':>{width}}    {problem}" for problem in one.problems[:5]]
    return "\n".join(lines)


def parameters(directory: epath.Path, step: int, *, norms: bool) -> dict[str, dict[str, Any]]:
    """Path → shape, dtype, count and, if asked for, L2 norm: each matrix is read alone, in float32."""
    import numpy as np
    import orbax.checkpoint as ocp

    item, handler = directory / str(step) / "params", ocp.PyTreeCheckpointHandler()
    found = {}
    for path, leaf in _leaves(handler.metadata(item).tree):
        name = "/".join(path)
        found[name] = {"shape": list(leaf.shape), "dtype": str(np.dtype(leaf.dtype)), "count": math.prod(leaf.shape)}
        if norms:
            args = ocp.args.PyTreeRestore(
                item=_nested(path, 0),
                restore_args=_nested(path, ocp.RestoreArgs(restore_type=np.ndarray)),
                partial_restore=True,
            )
            [(_, read)] = _leaves(handler.restore(item, args=args))
            found[name]["norm"] = float(np.linalg.norm(np.asarray(read, np.float32).ravel()))
    return found


def _nested(path: tuple[str, ...], leaf: Any) -> Any:
    return _nested(path[:-1], {path[-1]: leaf}) if path else leaf


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if not isinstance(tree, dict):
        return [(path, tree)]
    return [leaf for key, part in tree.items() for leaf in _leaves(part, (*path, key))]


def describe(directory: epath.Path, step: int, *, norms: bool) -> dict[str, Any]:
    """Of one checkpoint: config, vocabulary, progress, parameters."""
    from anygpt_jax.training.checkpoints import Checkpoints

    checkpoints = Checkpoints(directory, read_only=True)
    try:
        about = checkpoints.description(step)
    finally:
        checkpoints.close()
    return {
        "step": step,
        "config": about.config,
        "vocabulary": {
            "fingerprint": about.vocabulary.fingerprint,
            "size": about.vocabulary.size,
            "modalities": list(about.vocabulary.modalities),
        },
        "progress": about.progress,
        "metrics": about.metrics,
        "parameters": parameters(directory, step, norms=norms),
    }


def readable(about: dict[str, Any]) -> str:
    """A description as lines."""
    vocabulary, groups = about["vocabulary"], about["parameters"]
    total = sum(group["count"] for group in groups.values())
    model = about["config"].get("model", {})
    shown = " ".join(f"{name}={model[name]}" for name in ("d_model", "n_layers", "n_heads", "d_ff") if name in model)
    blocks = ", ".join(("text", *vocabulary["modalities"]))
    lines = [
        f"step {about['step']}: {about['config'].get('kind', '?')} {shown}, {total:,} parameters",
        f"vocabulary {vocabulary['fingerprint'][:12]} of {vocabulary['size']:,} ids ({blocks})",
        f"progress {json.dumps(about['progress'])}",
    ]
    width = max(map(len, groups), default=0)
    for name, group in groups.items():
        norm = f"  |w| {group['norm']:.4g}" if "norm" in group else ""
        shape = " × ".join(map(str, group["shape"]))
        lines.append(f"  {name:{width}}  {group['dtype']:<8}  {group['count']:>13,}  {shape}{norm}")
    return "\n".join(lines)


def run(config: ml_collections.ConfigDict | None, args: argparse.Namespace) -> None:
    """Tells of checkpoints; of a cache `data.inspect` does.

    UserError if there is no such step to read, or, after all is told, if a checkpoint is damaged.
    """
    place = checkpoints_of(args.place)
    if place is None:
        if args.step is not None or args.norms:
            raise UserError(f"--step and --norms are for checkpoints; {args.place or 'the place'} holds none.")
        return of_cache.run(config, args)
    directory, step = place
    found = [look_at(path, verify=args.verify) for path in folders.steps_in(directory)]
    found.sort(key=lambda one: (int(one.name.split(".")[0]), one.name))
    print(f"{directory}: {len(found)} checkpoints\n{table(found)}")
    output: dict[str, Any] = {"directory": str(directory), "checkpoints": [dataclasses.asdict(one) for one in found]}
    good = [int(one.name) for one in found if one.status in ("finished", "whole", "without checksums")]
    step = args.step if args.step is not None else step
    if step is not None and step not in good:
        raise UserError(f"{directory} has no checkpoint {step} that can be read; it has {good or 'none'}.")
    if step is not None or good:
        about = describe(directory, good[-1] if step is None else step, norms=args.norms)
        output["described"] = about
        print(f"\n{readable(about)}")
    if args.json:
        write_atomically(pathlib.Path(args.json), json.dumps(output, indent=1, ensure_ascii=False).encode())
    damaged = [one.name for one in found if one.status == "damaged"]
    if damaged:
        raise UserError(f"{directory}: {', '.join(damaged)} damaged; training leaves these out and sets them aside.")
