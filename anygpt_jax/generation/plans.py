"""All plans in use, compiled into one automaton: every answer of a batch may follow a plan of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from anygpt_jax.generation import automaton
from anygpt_jax.generation.automaton import DONE, Automaton, Free, Plan, Tables
from anygpt_jax.modalities.base import Grammar
from anygpt_jax.vocabulary import Vocabulary

_FEWEST = (
    2048  # nodes that the tables have room for; they double, and programs are compiled anew, when that is not enough
)
_SHARED = ("low", "high", "controls", "never")  # the same in the tables of every plan


class Plans:
    """`tables` hold the nodes of all plans so far. Their shapes change only when the number of nodes doubles."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        grammars: Mapping[str, Grammar],
        max_text_tokens: int,
        marks: automaton.Marks | None = None,
    ):
        self.marks = marks
        self.vocabulary = vocabulary
        self.grammars = dict(grammars)
        self.max_text_tokens = max_text_tokens
        self._automata: dict[tuple[str, ...] | Free, Automaton] = {}
        self._columns: dict[str, np.ndarray] = {}  # of the tables, filled up to `_used` nodes
        self._used = 0
        self.tables: Tables | None = None

    def add(self, plan: Plan) -> Automaton:
        """The compiled plan, whose `start` is a node of the common tables. UserError for one that cannot be."""
        key = automaton.check_plan(plan, self.vocabulary)
        if key not in self._automata:
            alone = automaton.compile_plan(self.vocabulary, self.grammars, key, self.max_text_tokens, self.marks)
            self._automata[key] = dataclasses.replace(alone, start=self._append(alone.tables) + alone.start)
        return self._automata[key]

    def _append(self, tables: Tables) -> int:
        """Where the nodes of one more automaton begin. DONE stays DONE: it is node 0 of the whole."""
        first = self._used
        self._used += len(tables.modality)
        room = max(_FEWEST, 1 << (self._used - 1).bit_length())
        for name, column in tables._asdict().items():
            column = np.asarray(column)
            if name not in _SHARED:
                if name == "target":
                    column = np.where(column == DONE, DONE, column + first)
                whole = np.zeros((room, *column.shape[1:]), column.dtype)
                if first:
                    whole[:first] = self._columns[name][:first]
                whole[first : self._used] = column
                column = whole
            self._columns[name] = column
        self._columns["cycle"][self._used :] = 1  # nothing divides by zero
        self.tables = Tables(**{name: jnp.asarray(column) for name, column in self._columns.items()})
        return first
