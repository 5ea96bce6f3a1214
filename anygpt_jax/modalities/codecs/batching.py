"""Items of any length through jitted functions of a few static shapes.

Every call has the same batch size and a length that depends on the item alone, so that an item meets the
same compiled program whoever its batch-mates are: its result does not depend on them. Who waits for one picture or
sound should not pay for eight: what is heard or seen, and not counted on to the last bit, may go alone (`ALONE_OR_ALL`).
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Sequence

import numpy as np

BATCH = 8
ALL = (BATCH,)
ALONE_OR_ALL = (1, BATCH)


def bucketed(
    run: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    items: Sequence[np.ndarray],
    lengths: Sequence[int],
    buckets: Sequence[int],
    unit: int,
    batches: Sequence[int] = ALL,
) -> list[np.ndarray]:
    """Results in the order of `items`.

    `items[i]` is padded with zeros along its first axis to `unit` times the smallest bucket that holds
    `lengths[i]`. `run(batch[B, bucket·unit, …], lengths[B], indices[B])` gets item numbers too, -1 for the rows that
    only fill the batch, which is the smallest of `batches` that holds what there is; the last of them is BATCH.
    """
    places = [bisect.bisect_left(buckets, n) for n in lengths]
    if any(place == len(buckets) for place in places):
        raise ValueError(f"an item of {max(lengths)} steps does not fit in {buckets[-1]}")
    results: list[np.ndarray | None] = [None] * len(items)
    order = sorted(range(len(items)), key=lambda i: places[i])
    for place, group in itertools.groupby(order, key=lambda i: places[i]):
        for members in itertools.batched(group, BATCH) if hasattr(itertools, "batched") else _batched(group, BATCH):
            size = next(size for size in batches if size >= len(members))
            batch = np.zeros((size, buckets[place] * unit, *items[members[0]].shape[1:]), items[members[0]].dtype)
            index = np.full(size, -1, np.int32)
            index[: len(members)] = members
            for row, i in enumerate(members):
                batch[row, : len(items[i])] = items[i]
            steps = np.zeros(size, np.int32)
            steps[: len(members)] = [lengths[i] for i in members]
            for i, result in zip(members, np.asarray(run(batch, steps, index)), strict=False):
                results[i] = result
    return [r for r in results if r is not None]


def filled(run: Callable[[np.ndarray], np.ndarray], items: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
    """Results of items of one shape, in order: always `size` a call, the last one filled up with copies."""
    results: list[np.ndarray] = []
    for start in range(0, len(items), size):
        chunk = list(items[start : start + size])
        results += list(np.asarray(run(np.stack(chunk + chunk[-1:] * (size - len(chunk))))))[: len(chunk)]
    return results


def buckets(most: int, least: int = 32) -> tuple[int, ...]:
    """Lengths from `least` to `most` that grow by half: at most a third of a batch's work is padding."""
    found = [min(least, most)]
    while found[-1] < most:
        found.append(min(most, found[-1] * 3 // 2))
    return tuple(found)


def _batched(items, size):
    items = iter(items)
    while chunk := tuple(itertools.islice(items, size)):
        yield chunk
