"""Batches: a pure function of (cache, mixtures, seed, step), the same for any number of hosts.

Global batch s is the packed rows s·B … (s+1)·B - 1; a host reads the rows that its devices hold. Nothing is
replayed to start at a step, and nothing but the step need be checkpointed.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from anygpt_jax.data.decode import Batch, pack_rows
from anygpt_jax.data.history import Stage
from anygpt_jax.data.mixture import Mixture
from anygpt_jax.data.packing import Items, Packer
from anygpt_jax.data.shuffle import key
from anygpt_jax.data.store import Store
from anygpt_jax.errors import UserError
from anygpt_jax.records import TokenRecord
from anygpt_jax.vocabulary import Vocabulary

__all__ = ["Batch", "BatchSource", "host_rows", "iterate", "pack_row", "packers", "with_split"]

READ_THREADS = 1  # two wait for each other (Python's lock): half as many tokens a second, measured
PREFETCHED_BATCHES = 8


def pack_row(records: Sequence[TokenRecord], seq_len: int, pad: int, modality_of: np.ndarray) -> Batch:
    """One row [seq_len] of whole records, as `pack_rows` makes it."""
    lengths = np.array([len(record.tokens) for record in records], np.int64)
    starts = np.array([0, len(records)])
    data = [record.to_bytes() for record in records]
    batch = pack_rows(data, np.zeros_like(lengths), lengths, starts, seq_len, pad, modality_of)
    return {name: rows[0] for name, rows in batch.items()}


def packers(
    store: Store,
    history: Sequence[Stage],
    *,
    batch_size: int,
    pack_rows: int,
    seq_len: int,
    seed: int,
    long_records: str = "drop",
) -> list[tuple[int, Packer]]:
    """(first step, plan) of each stage. A stage's tasks go on in their epochs where the stages before left them."""
    found: list[tuple[int, Packer]] = []
    begin: dict[str, int] = {}
    for stage in history:
        if found:
            step, before = found[-1]
            begin |= before.positions((stage.step - step) * batch_size)
        mixture = Mixture(store, stage.mixture, seed, seq_len, long_records, begin)
        found.append((stage.step, Packer(mixture, pack_rows, seq_len, key(seed, stage.step))))
    return found


class BatchSource:
    """Grain random-access source of batches: element s is rows `rows` of global batch s, arrays [len(rows), L].

    `stages` are (first step, plan), in order, the first from step 0.
    """

    def __init__(
        self,
        stages: Sequence[tuple[int, Packer]],
        vocabulary: Vocabulary,
        batch_size: int,
        steps: int,
        rows: range | None = None,
    ):
        self.stages, self.vocabulary, self.batch_size, self.steps = list(stages), vocabulary, batch_size, steps
        self.rows = range(batch_size) if rows is None else rows
        self._first_steps = [step for step, _ in self.stages]
        self._modality_of = vocabulary.modality_ids().astype(np.int32)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        return self.global_rows(int(step), self.rows)

    def global_rows(self, step: int, rows: range) -> Batch:
        """Some rows of global batch `step`, whichever this process's are."""
        packer, items, starts, data = self._read(step, rows)
        pad = self.vocabulary.pad
        return pack_rows(data, items.offset, items.length, starts, packer.seq_len, pad, self._modality_of)

    def records(self, step: int) -> list[dict[str, Any]]:
        """What global batch `step` is made of: {"row", "task", "key"} of every record, in order."""
        packer, items, starts, data = self._read(step, range(self.batch_size))
        row = np.repeat(np.arange(self.batch_size), np.diff(starts)).tolist()
        tasks = [packer.mixture.tasks[t] for t in items.task.tolist()]
        keys = [TokenRecord.from_bytes(record).key for record in data]
        return [{"row": r, "task": t, "key": k} for r, t, k in zip(row, tasks, keys, strict=True)]

    def _read(self, step: int, rows: range) -> tuple[Packer, Items, np.ndarray, list[bytes]]:
        """The plan of some rows of a global batch, and the bytes of its records."""
        first, packer = self.stages[bisect.bisect_right(self._first_steps, step) - 1]
        row = (step - first) * self.batch_size + rows.start
        items, starts = packer.plan(row, row + len(rows))
        mixture = packer.mixture
        data = [b""] * len(items)
        for t in np.unique(items.task).tolist():
            which = np.flatnonzero(items.task == t)
            read = mixture.store.read(mixture.tasks[t], items.record[which])
            for place, record in zip(which.tolist(), read, strict=True):
                data[place] = record
        return packer, items, starts, data

    def __repr__(self) -> str:
        return f"rows {self.rows} of {self.steps} batches of {self.batch_size}"


def host_rows(batch_size: int, host: int, hosts: int) -> range:
    """The rows of a global batch that host `host` of `hosts` reads: an equal, contiguous share."""
    if batch_size % hosts:
        raise UserError(f"train.batch_size={batch_size} does not divide over {hosts} hosts.")
    share = batch_size // hosts
    return range(host * share, (host + 1) * share)


def iterate(source: BatchSource, start: int) -> Iterator[tuple[int, Batch]]:
    """(step, batch) from `start` to the end, read ahead by threads."""
    if start >= len(source):
        return
    options = grain.ReadOptions(num_threads=READ_THREADS, prefetch_buffer_size=PREFETCHED_BATCHES)
    ahead = grain.MapDataset.source(source)[start:].to_iter_dataset(options)
    yield from enumerate(ahead, start)


def with_split(cache_tasks: Mapping[str, Mapping], weights: Mapping[str, float], split: str) -> dict[str, float]:
    """The part of a mixture whose tasks have this split and records in it."""
    held = {t for t, splits in cache_tasks.items() if sum(shard.records for shard in splits.get(split, ()))}
    return {task: weight for task, weight in weights.items() if task in held}
