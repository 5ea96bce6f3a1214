"""Which record the i-th draw is: a function of (cache, mixture, seed, i), reached without replay."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from anygpt_jax.data.shuffle import hashes, key, permute
from anygpt_jax.data.store import Lengths, Store
from anygpt_jax.errors import UserError

BY = ("weights", "examples")
LONG_RECORDS = ("drop", "split")
LISTED_TOO_LONG = 100  # a task
# An epoch is shuffled whole up to so many records or shards, and in groups of random shards beyond: a run's part
# of an epoch touches a bounded share of the cache.
GROUP_RECORDS = 2**22
GROUP_SHARDS = 512


@dataclasses.dataclass(frozen=True)
class MixtureSettings:
    """A task's share of the draws is in proportion to (weight)^(1 / temperature), or by examples to
    (weight × records)^(1 / temperature), as SeqIO's `mixing_rate_num_examples` has it."""

    weights: Mapping[str, float]
    by: str = "weights"
    temperature: float = 1.0

    def problems(self) -> list[str]:
        """A sentence for every setting that cannot be, naming its key in the config."""
        found = []
        bad = sorted(task for task, weight in self.weights.items() if not weight > 0)
        if bad or not self.weights:
            found.append(
                f"The mixture needs tasks with weights above zero; see config.mixture ({', '.join(bad) or 'empty'})."
            )
        if self.by not in BY:
            found.append(f"config.mixture_by must be one of {', '.join(BY)}, not {self.by!r}.")
        if not self.temperature > 0:
            found.append(f"config.mixture_temperature must be above zero, not {self.temperature}.")
        return found

    def shares(self, records: Mapping[str, int]) -> dict[str, float]:
        """Of the draws, by task; they sum to one."""
        rates = {
            task: (weight * (records[task] if self.by == "examples" else 1)) ** (1 / self.temperature)
            for task, weight in self.weights.items()
        }
        return {task: rate / sum(rates.values()) for task, rate in rates.items()}


class TaskOrder:
    """One task walked in epochs, each shuffled anew: position p -> record."""

    def __init__(self, offsets: Int[np.ndarray, " shards+1"], seed: int):
        self._offsets, self._seed = offsets, seed
        self._sizes = np.diff(offsets)
        self.records = int(offsets[-1])
        self._whole = self.records <= GROUP_RECORDS and len(self._sizes) <= GROUP_SHARDS

    @functools.lru_cache(maxsize=4)  # noqa: B019 - it lives as long as the run
    def _groups(self, epoch: int) -> list[np.ndarray]:
        """The epoch's groups of shards, in order."""
        order = np.argsort(hashes(np.arange(len(self._sizes)), key(self._seed, epoch, "shards")), kind="stable")
        groups, current, held = [], [], 0
        for shard in order.tolist():
            current.append(shard)
            held += int(self._sizes[shard])
            if held >= GROUP_RECORDS or len(current) == GROUP_SHARDS:
                groups.append(np.array(current))
                current, held = [], 0
        return groups + ([np.array(current)] if current else [])

    def records_at(self, start: int, stop: int) -> Int[np.ndarray, " stop-start"]:
        """int64: the records at positions start..stop-1."""
        if self._whole:
            position = np.arange(start, stop)
            epochs = position // self.records
            same = start == stop or epochs[0] == epochs[-1]
            return permute(position % self.records, self.records, hashes(epochs[:1] if same else epochs, self._seed))
        parts = []
        while start < stop:
            epoch, at = divmod(start, self.records)
            for g, shards in enumerate(self._groups(epoch)):
                sizes = self._sizes[shards]
                ends = np.cumsum(sizes)
                held = int(ends[-1])
                if at < held:
                    taken = min(stop - start, held - at)
                    inside = permute(np.arange(at, at + taken), held, key(self._seed, epoch, g))
                    shard = np.searchsorted(ends, inside, side="right")
                    parts.append(inside - (ends - sizes)[shard] + self._offsets[shards[shard]])
                    start, at = start + taken, held
                    if start == stop:
                        break
                at -= held
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)


class Mixture:
    """An endless sequence of draws from one split.

    Shares are of the draws, not of the tokens. Draws that no row can hold (`long_records="drop"`) do not lower
    their task's share. `begin` says at which position of its epochs each task starts (0 if it is not there).
    """

    def __init__(
        self,
        store: Store,
        settings: MixtureSettings,
        seed: int,
        seq_len: int,
        long_records: str = "drop",
        begin: Mapping[str, int] | None = None,
    ):
        problems = settings.problems()
        if long_records not in LONG_RECORDS:
            problems.append(f"train.long_records must be one of {', '.join(LONG_RECORDS)}, not {long_records!r}.")
        if problems:
            raise UserError("\n".join(problems))
        self.store, self.seq_len, self.split_long = store, seq_len, long_records == "split"
        self.tasks = tuple(sorted(settings.weights))
        self.scans = {task: store.scan(task, seq_len, LISTED_TOO_LONG) for task in self.tasks}
        for task, scan in self.scans.items():
            if not scan.fitting and not self.split_long:
                raise UserError(
                    f"Every record of {task} is longer than train.seq_len={seq_len} (shortest: {scan.shortest})."
                )
        shares = settings.shares({task: self._usable(scan) for task, scan in self.scans.items()})
        drawn = {
            task: share * self.scans[task].records / self._usable(self.scans[task]) for task, share in shares.items()
        }
        # Of 2^40: positions are exact integers, the same on every host.
        self._rates = [max(1, round(drawn[task] / sum(drawn.values()) * 2**40)) for task in self.tasks]
        self._begin = [(begin or {}).get(task, 0) for task in self.tasks]
        # The seed depends on the task's name alone: adding a task leaves the order of the others as it was.
        self._orders = [TaskOrder(store.offsets(task), key(seed, task)) for task in self.tasks]
        self._seed = seed

    def _usable(self, scan: Lengths) -> int:
        return scan.records if self.split_long else scan.fitting

    @property
    def too_long(self) -> dict[str, Lengths]:
        """The tasks that have records longer than a row."""
        return {task: scan for task, scan in self.scans.items() if scan.too_long}

    def positions(self, draw: int) -> dict[str, int]:
        """At which position of its epochs each task is before this draw."""
        return {
            task: begin + (draw * rate >> 40)
            for task, rate, begin in zip(self.tasks, self._rates, self._begin, strict=True)
        }

    def draws(self, start: int, stop: int) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """(task, record) of about stop - start draws: every task has its share to within one, evenly spread."""
        before, after = self.positions(start), self.positions(stop)
        tasks, records, places = [], [], []
        for t, task in enumerate(self.tasks):
            n = after[task] - before[task]
            position = np.arange(before[task], after[task])
            jitter = hashes(position, key(self._seed, task, "place")).astype(np.float64) / 2**64
            tasks.append(np.full(n, t, np.int64))
            records.append(self._orders[t].records_at(before[task], after[task]))
            places.append((np.arange(n) + jitter) / max(n, 1))
        order = np.argsort(np.concatenate(places), kind="stable")
        return np.concatenate(tasks)[order], np.concatenate(records)[order]

    def lengths(self, tasks: Int[np.ndarray, " n"], records: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """int64: tokens of each drawn record."""
        found = np.empty(len(records), np.int64)
        for t, task in enumerate(self.tasks):
            which = np.flatnonzero(tasks == t)
            found[which] = self.store.lengths(task, records[which])
        return found

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation of the tokens that a draw brings; a dropped one brings none."""
        rates = np.array(self._rates) / sum(self._rates)
        scans = list(self.scans.values())
        tokens = [s.tokens + self.split_long * s.too_long_tokens for s in scans]
        squares = [s.all_squares if self.split_long else s.squares for s in scans]
        mean = sum(r * t / s.records for r, t, s in zip(rates, tokens, scans, strict=True))
        square = sum(r * q / s.records for r, q, s in zip(rates, squares, scans, strict=True))
        return float(mean), float(np.sqrt(max(square - mean**2, 0.0)))
