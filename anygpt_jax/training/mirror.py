"""A second directory, often a bucket, that finished checkpoints are copied to while training goes on."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import hashlib
import json
import logging
from typing import Any

from etils import epath
from orbax.checkpoint import checkpoint_managers as ocm

from anygpt_jax.training import checksums, folders
from anygpt_jax.training.retention import Retention

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Mirrored:
    """A checkpoint as retention sees it."""

    step: int
    metrics: dict[str, Any] | None
    time: datetime.datetime


def copy(source: epath.Path, target: epath.Path) -> None:
    """Copies a final checkpoint, comparing its files with their checksums on the way; whole or not at all.

    Raises ValueError if the source is damaged, FileNotFoundError if it is removed meanwhile.
    """
    listed = checksums.read(source)
    writing = folders.temporary(target)
    asyncio.run(writing.create())
    for name in (*checksums.files(source), *((checksums.NAME,) if listed is not None else ())):
        to = writing.get() / name
        to.parent.mkdir(parents=True, exist_ok=True)
        told = (listed or {}).get(name)
        found = _copy_file(source / name, to)
        if told and name != checksums.METADATA and found != told["sha256"]:
            raise ValueError(f"{name} is not what was written")
    asyncio.run(writing.finalize())


def _copy_file(source: epath.Path, target: epath.Path) -> str:
    """Returns the SHA-256 of what was copied."""
    found = hashlib.sha256()
    with source.open("rb") as reading, target.open("wb") as writing:
        while block := reading.read(checksums.BLOCK):
            found.update(block)
            writing.write(block)
    return found.hexdigest()


def bring(step: int, source: epath.Path, mirror: epath.Path, retention: Retention) -> None:
    """Copies one step and removes what the mirror's retention no longer keeps. Says what went wrong; raises nothing."""
    target = mirror / str(step)
    if folders.is_final(target) or not folders.is_final(source / str(step)):
        return
    try:
        mirror.mkdir(parents=True, exist_ok=True)
        copy(source / str(step), target)
        retire(mirror, retention)
    except (OSError, ValueError) as e:
        log.error(
            "Checkpoint %d was not copied to %s: %s. The run goes on; the next one is tried again.", step, mirror, e
        )
        try:
            folders.temporary(target).get().rmtree(missing_ok=True)
        except OSError as later:
            log.warning("What was copied of it is still there: %s", later)


def retire(directory: epath.Path, retention: Retention) -> None:
    """Removes what `retention` does not keep."""
    found = [
        Mirrored(step, metrics_of(directory / str(step)), datetime.datetime.fromtimestamp(0, datetime.UTC))
        for step in folders.final_steps(directory)
    ]
    kept = retention.policy().should_preserve(found, context=ocm.PreservationContext())
    for checkpoint, stays in zip(found, kept, strict=True):
        if not stays:
            path = directory / str(checkpoint.step)
            if not folders.is_remote(path):  # so that a half-removed one is never taken for a final one
                path = path.rename(directory / f"{path.name}{folders.UNFINISHED}")
            path.rmtree()


def metrics_of(checkpoint: epath.Path) -> dict[str, Any] | None:
    """What a checkpoint keeps of its metrics; None if it has none or cannot say."""
    try:
        return json.loads((checkpoint / "metrics" / "metrics").read_text()) or None
    except (OSError, ValueError):
        return None
