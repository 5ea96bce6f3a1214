"""Which record the i-th draw is: a function of (cache, weights, seed, i), reached without replay."""

from __future__ import annotations

import dataclasses
import pathlib
import zlib
from collections.abc import Mapping, Sequence

import grain
import numpy as np

from anygpt_jax.cache import CacheReader
from anygpt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class TooLong:
    """A record that no row can hold. It is never drawn, and is listed."""

    task: str
    index: int
    length: int


class _Indices:
    """The records of one task that may be drawn, as (task, record) pairs: a Grain random-access source."""

    def __init__(self, task: int, records: np.ndarray):
        self._task, self._records = task, records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> tuple[int, int]:
        return self._task, int(self._records[i])

    def __repr__(self) -> str:
        return f"records of task {self._task}"


class Mixture:
    """An endless sequence of draws. Every task is walked in epochs, each epoch shuffled anew.

    `weights` are shares of the draws (not of the tokens); they need not sum to one.
    """

    def __init__(self, cache: str | pathlib.Path, weights: Mapping[str, float], split: str, seed: int, seq_len: int):
        self.tasks = tuple(sorted(weights))
        bad = [task for task in self.tasks if not weights[task] > 0]
        if bad or not self.tasks:
            raise UserError(
                f"The mixture needs tasks with weights above zero; see config.mixture ({', '.join(bad) or 'empty'})."
            )
        self.readers = tuple(CacheReader(cache, task, split) for task in self.tasks)
        self.shares = np.array([weights[task] for task in self.tasks]) / sum(weights.values())
        self.too_long: list[TooLong] = []
        drawn = [self._drawn(i, task, seed, seq_len) for i, task in enumerate(self.tasks)]
        self._draws = grain.MapDataset.mix(drawn, [float(share) for share in self.shares])

    def _drawn(self, i: int, task: str, seed: int, seq_len: int) -> grain.MapDataset:
        lengths = self.readers[i].lengths
        fits = np.flatnonzero(lengths <= seq_len)
        self.too_long += [TooLong(task, int(r), int(lengths[r])) for r in np.flatnonzero(lengths > seq_len)]
        if not len(fits):
            raise UserError(
                f"Every record of {task} is longer than train.seq_len={seq_len} (shortest: {lengths.min()})."
            )
        # The seed depends on the task's name alone: adding a task leaves the order of the others as it was.
        own = (seed * 1_000_003 + zlib.crc32(task.encode())) % 2**32
        return grain.MapDataset.source(_Indices(i, fits)).shuffle(own).repeat()

    def draws(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The draws start..stop-1 as (task, record) pairs."""
        return [self._draws[i] for i in range(start, stop)]

    def lengths(self, draws: Sequence[tuple[int, int]]) -> np.ndarray:
        """int64[n]: tokens of each drawn record."""
        return np.array([self.readers[task].lengths[record] for task, record in draws], np.int64)

    def moments(self, seq_len: int) -> tuple[float, float]:
        """Mean and standard deviation of a drawn record's length."""
        kept = [reader.lengths[reader.lengths <= seq_len] for reader in self.readers]
        mean = sum(s * k.mean() for s, k in zip(self.shares, kept, strict=True))
        square = sum(s * np.square(k).mean() for s, k in zip(self.shares, kept, strict=True))
        return float(mean), float(np.sqrt(max(square - mean**2, 0.0)))
