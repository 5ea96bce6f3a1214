"""Which records share a row: a plan made of lengths alone, of any row, without a walk to it.

Draws come in groups and each group fills a fixed number of rows, so row g lies in group g // rows whatever came
before. Inside a group, windows of `train.pack_rows` rows are packed one after another by best-fit decreasing; what
finds no room in a window comes first in the next. A group is so large that its draws' total hardly varies, and every
window gets the same part of that total: that is where the fill comes from. Windows are planned when they are asked for.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import threading

import numpy as np
from jaxtyping import Int

from anygpt_jax.data.mixture import Mixture
from anygpt_jax.data.shuffle import hashes, key
from anygpt_jax.errors import UserError

PLAN_VERSION = 2  # of the whole way from a mixture to rows: another version packs other batches
GROUP_DRAWS = 2**18  # at most, about
MARGIN = 0.002  # of a group's capacity that its total may vary by, if so few draws are enough
SIGMAS = 2.5
LAST_WINDOW = 0.97  # of a window's part is given to a group's last one, which must place what the others could not
TRIED_WINDOWS = 4
KEPT_GROUPS = 2


@dataclasses.dataclass(frozen=True)
class Items:
    """Pieces of records, in the order of the rows they lie in."""

    task: Int[np.ndarray, " n"]
    record: Int[np.ndarray, " n"]
    offset: Int[np.ndarray, " n"]  # of the piece in its record: 0 unless a long record is split
    length: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.task)

    def take(self, which: np.ndarray) -> Items:
        """Those at the indices `which`, in that order; one may be taken several times."""
        return Items(self.task[which], self.record[which], self.offset[which], self.length[which])

    @staticmethod
    def join(parts: list[Items]) -> Items:
        """One after another; there must be at least one part."""
        return Items(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(Items)))


@dataclasses.dataclass(frozen=True)
class Window:
    """Packed rows: row r holds items starts[r] … starts[r + 1] - 1."""

    items: Items
    starts: Int[np.ndarray, " rows+1"]


def best_fit_decreasing(lengths: Int[np.ndarray, " n"], rows: int, seq_len: int) -> Int[np.ndarray, " n"]:
    """int64[n]: the row of each item, longest placed first where the least room is left; -1 if there is no room."""
    row_of = np.full(len(lengths), -1, np.int64)
    order = np.argsort(-lengths, kind="stable")
    # (room, row) in one integer, sorted: the tightest row with room is found by bisection.
    bits = rows.bit_length()
    mask = (1 << bits) - 1
    rooms = [(seq_len << bits) + row for row in range(rows)]
    placed = []
    for length in (lengths[order] << bits).tolist():
        at = bisect.bisect_left(rooms, length)
        if at == len(rooms):
            placed.append(-1)
            continue
        room = rooms.pop(at)
        placed.append(room & mask)
        bisect.insort(rooms, room - length, 0, at)
    row_of[order] = placed
    return row_of


class Group:
    """The plan of one group, its windows planned in order as far as they have been asked for."""

    def __init__(self, items: Items, windows: int, rows: int, seq_len: int, seed: int):
        self._items, self._rows, self._seq_len, self._seed = items, rows, seq_len, seed
        parts = np.ones(windows)
        parts[-1] = LAST_WINDOW
        total = np.cumsum(items.length)
        wanted = np.cumsum(parts) / parts.sum() * (total[-1] if len(items) else 0)
        self._ends = [*np.searchsorted(total, wanted[:-1]).tolist(), len(items)]
        self._waiting = items.take(np.zeros(0, np.int64))
        self._planned: list[Window] = []
        self.left_out: Items | None = None  # known when the last window is planned

    def window(self, w: int) -> Window:
        """Window `w` of the group; those before it are planned first. Not for several threads."""
        while len(self._planned) <= w:
            self._planned.append(self._pack(len(self._planned)))
        return self._planned[w]

    def _pack(self, w: int) -> Window:
        new = np.arange(self._ends[w - 1] if w else 0, self._ends[w])
        items = Items.join([self._waiting, self._items.take(new)])
        row_of = best_fit_decreasing(items.length, self._rows, self._seq_len)
        self._waiting = items.take(np.flatnonzero(row_of < 0))
        if w == len(self._ends) - 1:
            self.left_out = self._waiting
        # Packing sorts by length; rows, and sequences in a row, are put back into a random order.
        place = np.argsort(hashes(np.arange(self._rows), key(self._seed, w, "rows")), kind="stable")
        row_of = np.where(row_of < 0, self._rows, place[row_of])
        order = np.lexsort((hashes(np.arange(len(items)), key(self._seed, w, "items")), row_of))
        starts = np.searchsorted(row_of[order], np.arange(self._rows + 1))
        return Window(items.take(order[: starts[-1]]), starts)


class Packer:
    """Plans of rows, the last groups kept. Safe to share between threads. `rows` are those of a window."""

    def __init__(self, mixture: Mixture, rows: int, seq_len: int, seed: int):
        if rows < 1:
            raise UserError(f"train.pack_rows must be at least 1, not {rows}.")
        self.mixture, self.rows, self.seq_len, self._seed = mixture, rows, seq_len, seed
        self.draws, self.windows = self._choose()
        self.left_out: dict[int, int] = {}  # group -> draws without room, of the groups planned to their end
        self._groups: collections.OrderedDict[int, Group] = collections.OrderedDict()
        self._lock = threading.Lock()

    @property
    def group_rows(self) -> int:
        """Rows that a group's `draws` are packed into, in all its windows."""
        return self.rows * self.windows

    def items(self, start: int, stop: int) -> Items:
        """Draws start..stop-1 as what rows can hold: long records dropped or cut into pieces of a row's length."""
        task, record = self.mixture.draws(start, stop)
        length = self.mixture.lengths(task, record)
        items = Items(task, record, np.zeros(len(task), np.int64), length)
        if not self.mixture.split_long:
            return items.take(np.flatnonzero(length <= self.seq_len))
        pieces = -(-length // self.seq_len)
        whole = items.take(np.repeat(np.arange(len(items)), pieces))
        offset = (np.arange(len(whole)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * self.seq_len
        return dataclasses.replace(whole, offset=offset, length=np.minimum(whole.length - offset, self.seq_len))

    def _choose(self) -> tuple[int, int]:
        """Draws and windows of a group. They depend on nothing but (cache, mixture, seed).

        How full windows can be is tried on the first draws: from what best-fit leaves of too many draws, down by a
        quarter of a percent until nothing is put off for long. A group then has as many draws as keep its total
        below that, with `SIGMAS` standard deviations to spare.
        """
        mean, std = self.mixture.moments()
        capacity = self.rows * self.seq_len
        windows = TRIED_WINDOWS
        items = self.items(0, int(windows * capacity / mean) + windows)
        total = np.cumsum(items.length)
        placed = best_fit_decreasing(items.length[: np.searchsorted(total, capacity) + 1], self.rows, self.seq_len) >= 0
        fill = min(1.0, float(items.length[: len(placed)][placed].sum()) / capacity + 0.01)
        while fill > 1 / capacity:
            tried = items.take(np.arange(np.searchsorted(total, fill * windows * capacity)))
            group = Group(tried, windows, self.rows, self.seq_len, self._seed)
            group.window(windows - 1)
            if group.left_out is not None and not len(group.left_out):
                break
            fill -= max(0.0025, 0.01 * (1 - fill))
        enough = (SIGMAS * std / (mean * MARGIN)) ** 2
        count = max(1, round(min(enough, GROUP_DRAWS) * mean / capacity))
        wanted = fill * count * capacity
        root = (-SIGMAS * std + np.sqrt((SIGMAS * std) ** 2 + 4 * mean * wanted)) / (2 * mean)  # D·mean + z√D·std
        return max(1, int(root**2)), count

    def window(self, w: int) -> Window:
        """Window `w` of the whole plan, which is row w · `rows` and those after it.
        Its group is drawn anew if it is none of the last `KEPT_GROUPS` that were asked for.
        """
        g, inside = divmod(w, self.windows)
        with self._lock:
            if g not in self._groups:
                items = self.items(g * self.draws, (g + 1) * self.draws)
                self._groups[g] = Group(items, self.windows, self.rows, self.seq_len, key(self._seed, g))
                if len(self._groups) > KEPT_GROUPS:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(g)
            found = self._groups[g].window(inside)
            left_out = self._groups[g].left_out
            if left_out is not None:
                self.left_out[g] = len(left_out)
            return found

    def fill(self, w: int) -> float:
        """Share of a window's positions that hold a token."""
        return float(self.window(w).items.length.sum() / (self.rows * self.seq_len))

    def plan(self, start: int, stop: int) -> tuple[Items, Int[np.ndarray, " stop-start+1"]]:
        """The items of rows start..stop-1, and where each row's begin among them."""
        parts, starts, held = [], [np.zeros(1, np.int64)], 0
        while start < stop:
            w, first = divmod(start, self.rows)
            last = min(self.rows, first + stop - start)
            window = self.window(w)
            bounds = window.starts[first : last + 1]
            parts.append(window.items.take(np.arange(bounds[0], bounds[-1])))
            starts.append(bounds[1:] - bounds[0] + held)
            held += len(parts[-1])
            start += last - first
        return Items.join(parts), np.concatenate(starts)

    def positions(self, rows: int) -> dict[str, int]:
        """At which position of its epochs each task is when the group of row `rows` - 1 is over."""
        return self.mixture.positions(-(-rows // self.group_rows) * self.draws)
