"""Batches: a pure function of (cache, mixture, seed, step), the same for any number of hosts.

Global batch s is the packed rows s·B … (s+1)·B - 1; a host reads the rows that its devices hold. Nothing is
replayed to start at a step, and nothing but the step need be checkpointed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import grain
import numpy as np

from anygpt_jax.data.packing import Packer
from anygpt_jax.errors import UserError
from anygpt_jax.records import TokenRecord
from anygpt_jax.vocabulary import Vocabulary

Batch = dict[str, np.ndarray]
READ_THREADS = 2
PREFETCHED_BATCHES = 8


def pack_row(records: Sequence[TokenRecord], seq_len: int, pad: int, modality_of: np.ndarray) -> Batch:
    """One row [seq_len] of whole sequences, one after another.

    tokens, targets (the next token of the same sequence), segment_ids (1, 2, …; 0 is padding), positions
    (from 0 in every sequence), modality (of the target): int32. loss_weights: float32, 1 where the target is
    trained. A sequence's last position has no target and no weight.
    """
    row = {name: np.zeros(seq_len, np.int32) for name in ("segment_ids", "positions", "modality")}
    row["tokens"] = np.full(seq_len, pad, np.int32)
    row["targets"] = np.full(seq_len, pad, np.int32)
    row["loss_weights"] = np.zeros(seq_len, np.float32)
    start = 0
    for i, record in enumerate(records):
        stop = start + len(record.tokens)
        row["tokens"][start:stop] = record.tokens
        row["targets"][start : stop - 1] = record.tokens[1:]
        row["loss_weights"][start : stop - 1] = record.loss_mask()[1:]
        row["segment_ids"][start:stop] = i + 1
        row["positions"][start:stop] = np.arange(stop - start)
        row["modality"][start : stop - 1] = modality_of[record.tokens[1:]]
        start = stop
    return row


class BatchSource:
    """Grain random-access source of batches: element s is rows `rows` of global batch s, arrays [len(rows), L]."""

    def __init__(self, packer: Packer, vocabulary: Vocabulary, batch_size: int, steps: int, rows: range | None = None):
        self.packer, self.vocabulary, self.batch_size, self.steps = packer, vocabulary, batch_size, steps
        self.rows = range(batch_size) if rows is None else rows
        self._modality_of = vocabulary.modality_ids()

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        readers = self.packer.mixture.readers
        packed = []
        for i in self.rows:
            pairs = self.packer.row(int(step) * self.batch_size + i)
            records = [readers[task][record] for task, record in pairs]
            packed.append(pack_row(records, self.packer.seq_len, self.vocabulary.pad, self._modality_of))
        return {name: np.stack([row[name] for row in packed]) for name in packed[0]}

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
