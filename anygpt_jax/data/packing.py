"""Which records share a row: chunks of draws, each packed into a fixed number of rows.

A chunk is `draws_per_chunk` consecutive draws of the mixture packed by first-fit decreasing into exactly
`rows` rows. Both numbers are fixed for a run, so row g lies in chunk g // rows, whatever came before:
a plan needs lengths only, never tokens, and no state is carried from one chunk to the next.
"""

from __future__ import annotations

import collections
import dataclasses
import threading

import numpy as np

from anygpt_jax.data.mixture import Mixture
from anygpt_jax.errors import UserError

CHECKED_DRAWS = 4096  # how many draws the choice of draws_per_chunk is tried on
KEPT_PLANS = 4


def first_fit_decreasing(lengths: np.ndarray, rows: int, seq_len: int) -> np.ndarray:
    """int64[n]: the row of each item, longest placed first into the first row with room; -1 if none has."""
    free = np.full(rows, seq_len, np.int64)
    row_of = np.full(len(lengths), -1, np.int64)
    for item in np.argsort(-lengths, kind="stable"):
        row = int(np.argmax(free >= lengths[item]))
        if free[row] >= lengths[item]:
            row_of[item] = row
            free[row] -= lengths[item]
    return row_of


@dataclasses.dataclass(frozen=True)
class ChunkPlan:
    """The (task, record) pairs of each row, and the draws that found no room."""

    rows: tuple[tuple[tuple[int, int], ...], ...]
    left_out: tuple[tuple[int, int], ...]
    fill: float  # share of positions that hold a token


class Packer:
    """Plans of chunks, the last few kept. Safe to share between threads."""

    def __init__(self, mixture: Mixture, rows: int, seq_len: int, seed: int):
        if rows < 1:
            raise UserError(f"train.pack_rows must be at least 1, not {rows}.")
        self.mixture, self.rows, self.seq_len, self.seed = mixture, rows, seq_len, seed
        self.draws_per_chunk = self._choose_draws()
        self.left_out: dict[int, int] = {}  # chunk -> draws without room, of the chunks planned so far
        self._plans: collections.OrderedDict[int, ChunkPlan] = collections.OrderedDict()
        self._lock = threading.Lock()

    def _choose_draws(self) -> int:
        """The most draws a chunk can hold without leaving any out, in trials on the mixture's own draws.

        Starts one standard deviation under the rows' capacity and goes down half a percent at a time.
        It depends on nothing but (cache, mixture, seed), so every host and every restart agrees.
        """
        mean, std = self.mixture.moments(self.seq_len)
        capacity = self.rows * self.seq_len
        root = (-std + np.sqrt(std**2 + 4 * mean * capacity)) / (2 * mean)  # D·mean + √D·std = capacity
        draws = max(1, int(root**2))
        trials = int(np.clip(CHECKED_DRAWS // draws, 4, 64))
        lengths = self.mixture.lengths(self.mixture.draws(0, draws * trials))
        while draws > 1:
            chunks = (lengths[i * draws : (i + 1) * draws] for i in range(trials))
            if all((first_fit_decreasing(chunk, self.rows, self.seq_len) >= 0).all() for chunk in chunks):
                break
            draws = min(draws - 1, int(draws * 0.995))
        return draws

    def chunk(self, c: int) -> ChunkPlan:
        with self._lock:
            if c not in self._plans:
                self._plans[c] = self._plan(c)
                if len(self._plans) > KEPT_PLANS:
                    self._plans.popitem(last=False)
            self._plans.move_to_end(c)
            return self._plans[c]

    def _plan(self, c: int) -> ChunkPlan:
        draws = self.mixture.draws(c * self.draws_per_chunk, (c + 1) * self.draws_per_chunk)
        lengths = self.mixture.lengths(draws)
        row_of = first_fit_decreasing(lengths, self.rows, self.seq_len)
        # Packing sorts by length; rows, and sequences in a row, are put back into a random order.
        shuffled = np.random.default_rng((self.seed, c))
        new_place = shuffled.permutation(self.rows)
        rows: list[list[tuple[int, int]]] = [[] for _ in range(self.rows)]
        for item in shuffled.permutation(len(draws)):
            if row_of[item] >= 0:
                rows[new_place[row_of[item]]].append(draws[item])
        left_out = tuple(draws[i] for i in np.flatnonzero(row_of < 0))
        self.left_out[c] = len(left_out)
        fill = float(lengths[row_of >= 0].sum() / (self.rows * self.seq_len))
        return ChunkPlan(tuple(tuple(row) for row in rows), left_out, fill)

    def row(self, g: int) -> tuple[tuple[int, int], ...]:
        """The (task, record) pairs of global row g."""
        return self.chunk(g // self.rows).rows[g % self.rows]
