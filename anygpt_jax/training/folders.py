"""The folders of checkpoints, local or in a bucket: which are final, which were never finished, which are damaged.

STEP                         final: Orbax renames it to that, or in a bucket writes commit_success.txt into it
STEP.orbax-checkpoint-tmp    never finished, or being written
STEP.damaged                 set aside: it was final, and its bytes are no longer those that were written
STEP.left                    set aside: the run went back to an older one, and on in another way
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

from etils import epath
from orbax.checkpoint import path as ocp_path

log = logging.getLogger(__name__)

COMMITTED = "commit_success.txt"
DAMAGED = ".damaged"
LEFT = ".left"
UNFINISHED = ".orbax-checkpoint-tmp"


def is_remote(path: epath.Path | str) -> bool:
    """Whether a path has a scheme, as those in buckets do (gs://)."""
    return "://" in str(path)


def absolute(path: str | os.PathLike[str]) -> epath.Path:
    """Buckets (gs://) as they are, local paths from the root on, which TensorStore asks for."""
    if not is_remote(os.fspath(path)):
        return epath.Path(os.path.abspath(os.fspath(path)))
    os.environ.setdefault("EPATH_USE_TF", "0")  # etils would import TensorFlow where there is one
    return epath.Path(path)


def temporary(final: epath.Path) -> ocp_path.atomicity_types.TemporaryPath:
    """How Orbax writes a folder that is there as a whole or not at all, on the file system that it is on."""
    return ocp_path.atomicity_defaults.get_default_temporary_path_class(final).from_final(final)


def is_final(path: epath.Path) -> bool:
    """Whether saving it came to its end."""
    return path.is_dir() and (not is_remote(path) or (path / COMMITTED).exists())


def steps_in(directory: epath.Path) -> Iterator[epath.Path]:
    """Whatever belongs to a step: final, unfinished or set aside."""
    if directory.is_dir():
        for path in sorted(directory.iterdir(), key=lambda p: p.name):
            if path.name.split(".")[0].isdigit():
                yield path


def final_steps(directory: epath.Path) -> list[int]:
    """In order. A folder that is there but lacks files is among them."""
    return sorted(int(path.name) for path in steps_in(directory) if path.name.isdigit() and is_final(path))


def clean(directory: epath.Path) -> None:
    """Removes what was being written when a run was killed. What was set aside stays."""
    for path in list(steps_in(directory)):
        if DAMAGED in path.name or LEFT in path.name or (path.name.isdigit() and is_final(path)):
            continue
        try:
            path.rmtree()
        except OSError as e:
            log.warning("%s was never finished and cannot be removed: %s", path, e)


def set_aside(path: epath.Path, why: str = DAMAGED) -> epath.Path:
    """Renames a checkpoint that is damaged, or was left; nothing is deleted. Returns where it is now."""
    target, n = path.parent / f"{path.name}{why}", 1
    while target.exists():
        n += 1
        target = path.parent / f"{path.name}{why}.{n}"
    path.rename(target)
    return target
