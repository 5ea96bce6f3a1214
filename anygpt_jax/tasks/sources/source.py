"""A SeqIO source over files that Python reads: deterministic, shardable, and no bad input stops it.

A reader turns one file (a tar, a metadata file, a folder …) into units in a fixed order. A unit is cheap until it is
called; then it reads its media and gives its examples. So a shard reads the media of its own units alone.

    key         string   SPLIT/FILE/NAME: unique in the source, and the same wherever the data is
    FIELDS      string, or string[n] for those in `lists`: text or encoded media
    attributes  string   JSON: what else the data says
    filtered    string   "", or "!" and why something of the example cannot be read: the job rejects it (`preprocessors`)

What cannot even be listed, such as the rest of a damaged tar, becomes one example without content.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import hashlib
import json
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import seqio
import tensorflow as tf

from anygpt_jax.errors import UserError
from anygpt_jax.tasks import recipe
from anygpt_jax.tasks.encoding import FAILED

LARGEST = 1 << 28  # bytes of one medium: an hour of 16-bit stereo at 32 kHz is 0.46 of it
SAMPLE = 1 << 12  # bytes hashed at either end of every file of a folder

PACKAGE = __name__.rpartition(".")[0]


@dataclasses.dataclass(frozen=True)
class File:
    """One file or folder of a split; `name` is its path below the split's folder, "" for that folder itself."""

    path: pathlib.Path
    name: str
    split: str


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """Stands for a medium that could not be read."""

    reason: str


Example = Mapping[str, Any]  # "key", "attributes" (a dict) and fields: str, bytes, None, Unreadable, or lists of these
Unit = Callable[[], Iterator[Example]]
Reader = Callable[[File], Iterator[Unit]]


class MediaSource(seqio.DataSource):
    """Examples of `reader`, file by file.

    `splits` gives paths or glob patterns of every split; they are looked at when the task is read. `count` gives the
    number of examples of one file where that is cheap. `reader` is a function or a functools.partial of one: its
    module and its arguments are part of what a shard of the token cache is held against.
    """

    def __init__(
        self,
        splits: Mapping[str, str | Sequence[str]],
        reader: Reader,
        *,
        fields: Sequence[str],
        lists: Sequence[str] = (),
        count: Callable[[File], int] | None = None,
    ):
        super().__init__(splits=tuple(splits), caching_permitted=True)
        self._patterns = {s: (p,) if isinstance(p, str | os.PathLike) else tuple(p) for s, p in splits.items()}
        self._reader = reader
        self._fields, self._lists, self._count = tuple(fields), frozenset(lists), count

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """Where there are more shards than files, several share a file's units."""
        return True

    def files(self, split: str) -> list[File]:
        """The split's files in order of their names. Raises UserError if there are none."""
        patterns = [os.path.abspath(p) for p in self._patterns[split]]
        if len(patterns) == 1 and os.path.isdir(patterns[0]):
            return [File(pathlib.Path(patterns[0]), "", split)]
        root = os.path.commonpath([os.path.dirname(re.split(r"[*?\[]", p)[0]) for p in patterns])
        found = sorted({path for pattern in patterns for path in glob.glob(pattern, recursive=True)})
        if not found:
            raise UserError(
                f"There is no file {' or '.join(patterns)} for split '{split}'; mend the path of the source."
            )
        return [File(pathlib.Path(p), pathlib.Path(p).relative_to(root).as_posix(), split) for p in found]

    def list_shards(self, split: str) -> Sequence[str]:
        """The split's files, and a digest of their names and of what is in the folders among them."""
        files = self.files(split)
        folders = [_listing(f.path) for f in files if f.path.is_dir()]
        named = f"named {_digest([f.name for f in files], folders)}"
        return [*(str(f.path) for f in files if not f.path.is_dir()), named]

    def fingerprint(self, split: str) -> str:
        """Of how files are read: the reader's settings, and its code with that of this package which it uses."""
        function = self._reader
        while isinstance(function, functools.partial):
            function = function.func
        code = sorted(recipe.module_code(m) for m in _modules(sys.modules[function.__module__]))
        return _digest(split, recipe.value_digest(self._reader), code, self._fields, sorted(self._lists))

    def num_input_examples(self, split: str) -> int | None:
        """None without `count`, or if a file cannot be counted."""
        if self._count is None:
            return None
        try:
            return sum(self._count(file) for file in self.files(split))
        except Exception:  # a damaged file: how many there are is seen when they are read
            return None

    def examples(self, split: str, index: int = 0, count: int = 1) -> Iterator[dict[str, bytes | list[bytes]]]:
        """The examples of one shard. Whole files if there are enough of them, or else every n-th unit of one file."""
        files = self.files(split)
        shares = [(file, 0, 1) for file in files[index::count]]
        if count > len(files):
            which, rank = index % len(files), index // len(files)
            shares = [(files[which], rank, len(range(which, count, len(files))))]
        for file, rank, of in shares:
            for example in self._of_file(file, rank, of):
                yield self._encoded(example, "/".join(filter(None, (split, file.name, example["key"]))))

    def _of_file(self, file: File, rank: int, of: int) -> Iterator[Example]:
        n = 0
        try:
            for n, unit in enumerate(self._reader(file)):
                if n % of == rank:
                    yield from _guarded(unit, f"#{n}")
        except Exception as e:  # the file ends here, for whatever reason; one of its shards says so
            if rank == 0:
                yield damaged(f"#after-{n}", f"the rest of {file.path.name} cannot be read ({cause(e)})")

    def _encoded(self, example: Example, key: str) -> dict[str, bytes | list[bytes]]:
        problems: list[str] = []

        def value(of: Any) -> bytes:
            if isinstance(of, Unreadable):
                problems.append(of.reason)
                return b""
            if isinstance(of, bytes):
                return of
            return b"" if of is None else str(of).encode("utf-8", "surrogateescape")

        missing = Unreadable(example["unreadable"]) if "unreadable" in example else None
        fields: dict[str, bytes | list[bytes]] = {}
        for name in self._fields:
            of = example.get(name, missing)
            if name in self._lists:
                fields[name] = [value(v) for v in ([of] if isinstance(of, Unreadable) else of or [])]
            else:
                fields[name] = value(of)
        attributes = json.dumps(example.get("attributes") or {}, sort_keys=True, ensure_ascii=False, default=str)
        return {
            "key": key.encode("utf-8", "surrogateescape"),
            **fields,
            "attributes": attributes.encode("utf-8", "replace"),
            "filtered": (FAILED + problems[0]).encode("utf-8", "replace") if problems else b"",
        }

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = False,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused: object,
    ) -> tf.data.Dataset:
        """The order is the files': `shuffle` and `seed` are for SeqIO's own buffers downstream."""
        index, count = (shard_info.index, shard_info.num_shards) if shard_info else (0, 1)
        self.files(split)  # a wrong path is reported from here, not from inside TensorFlow
        signature = {
            name: tf.TensorSpec([None] if name in self._lists else [], tf.string)
            for name in ("key", *self._fields, "attributes", "filtered")
        }
        return tf.data.Dataset.from_generator(
            functools.partial(self.examples, split, index, count), output_signature=signature
        )


def _guarded(unit: Unit, key: str) -> Iterator[Example]:
    try:
        yield from unit()
    except Exception as e:  # a bad input costs only itself
        yield damaged(key, cause(e))


def damaged(key: str, reason: str) -> Example:
    """An example without content, which the job rejects."""
    return {"key": key, "unreadable": reason}


def cause(error: Exception) -> str:
    """For the reason of a reject: one line, with the error's class unless it is a UserError."""
    said = " ".join(str(error).split())[:200]
    return said if isinstance(error, UserError) else f"{type(error).__name__}: {said}"


def read_medium(path: pathlib.Path) -> bytes | Unreadable:
    """The bytes of one file, unless there are more than a worker should hold."""
    try:
        size = path.stat().st_size
        return too_large(size) or path.read_bytes()
    except OSError as e:
        return Unreadable(f"{path.name} cannot be read ({e.strerror})")


def too_large(size: int) -> Unreadable | None:
    """Stands for a medium of more than LARGEST bytes; None for one that may be read."""
    return Unreadable(f"it has {size:,} bytes and at most {LARGEST:,} are read") if size > LARGEST else None


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _listing(folder: pathlib.Path) -> str:
    """A digest of the names, sizes and ends of a folder's files."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return _digest(
        [(p.relative_to(folder).as_posix(), _ends(p, p.stat().st_size, p.stat().st_mtime_ns)) for p in files]
    )


@functools.lru_cache(maxsize=1 << 20)
def _ends(path: pathlib.Path, size: int, modified: int) -> str:
    try:
        with path.open("rb") as f:
            ends = f.read(SAMPLE)
            f.seek(max(0, size - SAMPLE))
            return _digest(size, hashlib.sha256(ends + f.read(SAMPLE)).hexdigest())
    except OSError:  # its example is rejected
        return "unreadable"


def _modules(module: ModuleType) -> set[ModuleType]:
    """A module and those of this package that it takes names from, directly or not."""
    found, ahead = {module}, [module]
    while ahead:
        for value in vars(ahead.pop()).values():
            name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
            if isinstance(name, str) and name.startswith(PACKAGE + ".") and sys.modules[name] not in found:
                found.add(sys.modules[name])
                ahead.append(sys.modules[name])
    return found
