"""Checksums of a checkpoint's files: inside it before it becomes final, each process's own files by that process.

STEP/checksums.json    {"files": {PATH: {"bytes", "sha256"}}, "sha256": of the rest}; PATH is relative to STEP

They are of what is read back after it was written: they find what changes later, and a file that could not be read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Collection, Iterator
from typing import Any

from etils import epath

from anygpt_jax.training import folders

NAME = "checksums.json"
METADATA = "_CHECKPOINT_METADATA"
LATER = ("commit_success.txt",)  # Orbax writes it after the checksums
STAMP = "commit_timestamp_nsecs"  # and this field of its metadata too
BLOCK = 16 << 20


def files(folder: epath.Path, within: str = "") -> Iterator[str]:
    """Every file under a checkpoint, relative to it, but those that are no part of what is checked."""
    for path in sorted(folder.iterdir(), key=lambda p: p.name):
        name = within + path.name
        if path.is_dir():
            yield from files(path, name + "/")
        elif name not in (NAME, *LATER) and not name.startswith("checksums.process_"):
            yield name


def sum_of(path: epath.Path) -> dict[str, Any]:
    """Size and SHA-256. Of Orbax's own metadata: of its fields, without the one that comes later."""
    if path.name == METADATA:
        fields = json.loads(path.read_text())
        fields.pop(STAMP, None)
        return {"bytes": 0, "sha256": hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()}
    found, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
            size += len(block)
    return {"bytes": size, "sha256": found.hexdigest()}


def is_of(name: str, process: int) -> bool:
    """Whether a process wrote a file: its own part of the arrays and of their metadata."""
    return any(part in (f"ocdbt.process_{process}", f"process_{process}") for part in name.split("/"))


def write_own(folder: epath.Path, process: int) -> None:
    """Of several processes, each calls this when its own files are written: every item is in a temporary folder yet."""
    own = [name for name in files(folder) if is_of(name, process)]
    found = {name.replace(folders.UNFINISHED, "", 1): sum_of(folder / name) for name in own}
    (folder / f"checksums.process_{process}.json").write_text(json.dumps(found))


def wait_for_metadata(folder: epath.Path, seconds: float = 120) -> None:
    """Until Orbax's metadata are complete but for their stamp: a thread of its own writes them, all fields at once.

    TimeoutError if they do not come.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(ValueError):  # missing, or half written
            if _promised(folder / METADATA):
                return
        time.sleep(0.01)
    raise TimeoutError(f"{folder / METADATA} was not completed within {seconds:g} s")


def write(folder: epath.Path) -> None:
    """One process calls this when all else is written: the others' sums are taken over, the rest is read."""
    parts = [path for path in folder.iterdir() if path.name.startswith("checksums.process_")]
    known: dict[str, Any] = {}
    for part in parts:
        known |= json.loads(part.read_text())
    found = {name: known.get(name) or sum_of(folder / name) for name in files(folder)}
    content = {"files": found, "sha256": _of_list(found)}
    (folder / NAME).write_text(json.dumps(content, indent=0))
    for part in parts:
        part.unlink()


def _of_list(found: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def read(folder: epath.Path) -> dict[str, dict[str, Any]] | None:
    """The list of a checkpoint; None if it was made without one. Raises ValueError if it is damaged or gone."""
    path = folder / NAME
    if not path.exists():
        if _promised(folder / METADATA):
            raise ValueError(f"{NAME} is missing")
        return None
    try:
        content = json.loads(path.read_text())
        if _of_list(content["files"]) == content["sha256"]:
            return content["files"]
    except (ValueError, TypeError, KeyError):
        pass
    raise ValueError(f"{NAME} is not what was written")


def _promised(metadata: epath.Path) -> bool:
    """Whether a checkpoint's metadata say that it has checksums."""
    try:
        return bool((json.loads(metadata.read_text()).get("custom_metadata") or {}).get("checksums"))
    except FileNotFoundError:
        raise ValueError(f"{METADATA} is missing") from None
    except (ValueError, AttributeError):
        raise ValueError(f"{METADATA} is not what was written") from None


def problems(
    folder: epath.Path, items: Collection[str] | None = None, share: tuple[int, int] = (0, 1)
) -> Iterator[str]:
    """What is wrong with a checkpoint, a sentence a file; nothing if it is whole, or was made without checksums.

    `items` names those that are read, None all; `share` is this reader's index and their number.
    """
    try:
        listed = read(folder)
    except (OSError, ValueError) as e:
        yield str(e)
        return
    wanted = {
        name: told
        for name, told in (listed or {}).items()
        if items is None or "/" not in name or name.split("/")[0] in items
    }
    index, count = share
    for name in sorted(wanted, key=lambda name: (-wanted[name]["bytes"], name))[index::count]:
        try:
            found = sum_of(folder / name)
        except FileNotFoundError:
            yield f"{name} is missing"
        except OSError as e:
            yield f"{name} cannot be read ({e.strerror or e})"
        except ValueError:
            yield f"{name} is not what was written"
        else:
            if found["bytes"] != wanted[name]["bytes"]:
                yield f"{name} has {found['bytes']:,} bytes; {wanted[name]['bytes']:,} were written"
            elif found != wanted[name]:
                yield f"{name} is not what was written"
