"""The records of one split of a cache by (task, number): their lengths without their tokens, and their bytes in batches.

A shard is opened when it is first needed and closed when others are needed more, so that neither memory nor files grow
with the cache: an open shard costs its record index (about 16 bytes a record) and a map of its lengths.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import logging
import math
import os
import pathlib
import resource
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from jaxtyping import Int

from anygpt_jax.cache import Manifest, Shard
from anygpt_jax.errors import UserError

log = logging.getLogger(__name__)
T = TypeVar("T")

OPEN_RECORDS = 2**26  # of all open shards together: 1 GiB of indices
OPEN_SHARDS = 4096
# Read ahead helps sequential readers only. `read(i, i + 1)` is used throughout: `read([i])` takes time in proportion
# to the records of the file (array_record 0.8.6: 4.8 ms of 10^6 records, against 2 µs).
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
READER_BUFFER = 2048  # bytes
READS = 3  # of a file, before it is asked what is wrong with it
READ_PAUSE = 5.0  # seconds between them


@dataclasses.dataclass(frozen=True)
class Lengths:
    """What a scan of a task's lengths finds. Tokens and squares are of records that are at most `seq_len` long."""

    records: int
    fitting: int
    tokens: int
    squares: float
    too_long: int
    too_long_tokens: int
    all_squares: float
    shortest: int
    longest: int
    first_too_long: tuple[int, ...]  # the numbers of the first ones


class OpenShard:
    """One shard's lengths, and its reader once a record is asked for: planning opens no record file."""

    def __init__(self, root: pathlib.Path, shard: Shard):
        self.lengths = _read_lengths(root, shard)
        self._path, self._shard = root / shard.path, shard
        self._reader: ArrayRecordReader | None = None
        self._lock = threading.Lock()  # the reader is not promised to be thread-safe

    def _opened(self) -> ArrayRecordReader:
        # Neither a truncated nor an empty file raises: it is not ok, or counts other records.
        reader = ArrayRecordReader(str(self._path), READER_OPTIONS, file_reader_buffer_size=READER_BUFFER)
        if not reader.ok() or reader.num_records() != self._shard.records:
            raise ValueError(f"it does not hold the {self._shard.records} records of its manifest")
        return reader

    def read(self, numbers: list[int]) -> list[bytes]:
        """The bytes of the records of these numbers, in their order.

        UserError if the file is missing or damaged; OSError if it is whole, but cannot be read.
        """

        def all_of_them() -> list[bytes]:
            reader, self._reader = self._reader or self._opened(), None  # after an error, another
            found = [reader.read(i, i + 1)[0] for i in numbers]
            self._reader = reader
            return found

        with self._lock:
            return _insist(all_of_them, self._path, self._shard.sha256)


def _read_lengths(root: pathlib.Path, shard: Shard) -> Int[np.ndarray, " records"]:
    """uint32, a map of the file."""
    path = root / shard.lengths_path

    def mapped() -> np.ndarray:
        lengths = np.load(path, mmap_mode="r")
        if lengths.shape != (shard.records,):
            raise ValueError(f"it does not hold the {shard.records} lengths that its manifest counts")
        return lengths

    return _insist(mapped, path, shard.lengths_sha256)


def _insist(work: Callable[[], T], path: pathlib.Path, sha256: str) -> T:
    """What `work` reads of a file, tried again: one error of a mounted bucket must not end a run for good.

    UserError if the file is not what was written; OSError if it is, which a restart of the job may repair.
    """
    for left in range(READS - 1, -1, -1):
        try:
            return work()
        except (OSError, RuntimeError, ValueError, IndexError) as e:
            error = e
        if left:
            log.warning("%s cannot be read (%s); trying again.", path, error)
            time.sleep(READ_PAUSE)
    if isinstance(error, FileNotFoundError):
        raise UserError(f"{path} is in the manifest but missing; tokenize again.") from error
    with path.open("rb") as file:
        whole = hashlib.file_digest(file, "sha256").hexdigest() == sha256
    if whole:
        raise OSError(f"{path} is whole, but could not be read {READS} times ({error}).") from error
    raise UserError(f"{path} is damaged ({error}); tokenize again.") from error


class Store:
    """One split of a cache. Safe to share between threads."""

    def __init__(self, cache: str | pathlib.Path, split: str):
        self.root, self.split = pathlib.Path(cache), split
        self.manifest = Manifest.load(self.root)
        self._shards: dict[str, list[Shard]] = {}
        self._offsets: dict[str, np.ndarray] = {}
        self._open: collections.OrderedDict[tuple[str, int], OpenShard] = collections.OrderedDict()
        self._open_records = 0
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        files = hard if hard != resource.RLIM_INFINITY else math.inf
        self._open_shards = int(min(OPEN_SHARDS, max(files // 4, 16)))  # two files a shard
        self._lock = threading.Lock()

    def shards(self, task: str) -> list[Shard]:
        """Those with records in them."""
        if task not in self._shards:
            shards = [s for s in self.manifest.shards(task, self.split) if s.records]
            if not shards:
                raise UserError(
                    f"{self.root}: {task}/{self.split} holds no records; see its rejects.jsonl for the reasons."
                )
            for shard in shards:
                if not os.path.isfile(self.root / shard.path):
                    raise UserError(f"{self.root / shard.path} is in the manifest but missing; tokenize again.")
            self._offsets[task] = np.cumsum([0, *(s.records for s in shards)])
            self._shards[task] = shards
        return self._shards[task]

    def offsets(self, task: str) -> Int[np.ndarray, " shards+1"]:
        """int64: the number of each shard's first record; the last one is the task's number of records."""
        self.shards(task)
        return self._offsets[task]

    def scan(self, task: str, seq_len: int, listed: int) -> Lengths:
        """Reads all lengths of a task once, a shard at a time."""
        records = fitting = tokens = too_long = too_long_tokens = longest = 0
        squares = all_squares = 0.0
        shortest = 2**32
        first: list[int] = []
        for shard in self.shards(task):
            lengths = _read_lengths(self.root, shard)
            total, sum_squares = int(lengths.sum(dtype=np.int64)), _squares(lengths)
            shortest, longest = min(shortest, int(lengths.min())), max(longest, int(lengths.max()))
            out, out_tokens, out_squares = 0, 0, 0.0
            if int(lengths.max()) > seq_len:
                which = np.flatnonzero(lengths > seq_len)
                beyond = lengths[which]
                out, out_tokens, out_squares = len(which), int(beyond.sum(dtype=np.int64)), _squares(beyond)
                first += [records + int(i) for i in which[: listed - len(first)]]
            fitting += len(lengths) - out
            tokens += total - out_tokens
            squares += sum_squares - out_squares
            all_squares += sum_squares
            too_long += out
            too_long_tokens += out_tokens
            records += len(lengths)
        return Lengths(
            records, fitting, tokens, squares, too_long, too_long_tokens, all_squares, shortest, longest, tuple(first)
        )

    def _opened(self, task: str, shard: int) -> OpenShard:
        with self._lock:
            found = self._open.get((task, shard))
            if found is None:
                found = self._open[task, shard] = OpenShard(self.root, self.shards(task)[shard])
                self._open_records += len(found.lengths)
                while len(self._open) > 1 and (
                    len(self._open) > self._open_shards or self._open_records > OPEN_RECORDS
                ):
                    _, closed = self._open.popitem(last=False)  # whoever reads from it still has it
                    self._open_records -= len(closed.lengths)
            self._open.move_to_end((task, shard))
            return found

    def _by_shard(self, task: str, records: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(shard, which of `records` are in it, their numbers in it), a shard once."""
        shard_of = np.searchsorted(self.offsets(task), records, side="right") - 1
        order = np.argsort(shard_of, kind="stable")
        numbers = (records - self.offsets(task)[shard_of])[order]
        shards = shard_of[order]
        cuts = [0, *(np.flatnonzero(shards[1:] != shards[:-1]) + 1).tolist(), len(order)]
        for start, stop in itertools.pairwise(cuts if len(order) else ()):
            yield int(shards[start]), order[start:stop], numbers[start:stop]

    def lengths(self, task: str, records: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """int64: tokens of each record."""
        found = np.empty(len(records), np.int64)
        for shard, which, numbers in self._by_shard(task, records):
            found[which] = self._opened(task, shard).lengths[numbers]
        return found

    def read(self, task: str, records: Int[np.ndarray, " n"]) -> list[bytes]:
        """The bytes of each record (`TokenRecord.to_bytes`)."""
        found = [b""] * len(records)
        for shard, which, numbers in self._by_shard(task, records):
            read = self._opened(task, shard).read(numbers.tolist())
            for place, data in zip(which.tolist(), read, strict=True):
                found[place] = data
        return found


def _squares(lengths: np.ndarray) -> float:
    as_floats = lengths.astype(np.float64)
    return float(as_floats @ as_floats)
