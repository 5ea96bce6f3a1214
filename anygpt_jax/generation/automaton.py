"""Constrained decoding: grammars and a plan compiled to a small automaton that runs on the device.

A node of the automaton says what may be written now: ids of one modality by position (its grammar), and
which control tokens may end or leave it. Text is the modality whose grammar is "any pieces, at least one,
at most so many". Allowed ids are ranges compared with an iota, so nothing has the size nodes × vocabulary,
and all plans share shapes: a decode loop compiled for one plan serves every other.

The automaton also counts: a token is allowed only if the answer can still be completed within the number
of tokens that are left. So an answer is decodable whatever the model says and wherever it is cut.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32

from anygpt_jax.errors import UserError
from anygpt_jax.modalities.base import Grammar
from anygpt_jax.templates import TEXT
from anygpt_jax.vocabulary import Vocabulary

ANY = "any"  # the plan of free conversation: text and media in whatever order
DONE = 0  # the node in which nothing is written any more
_FAR = 1 << 29  # longer than any answer, and addable without overflow
_NODES_MULTIPLE = 8  # tables are padded to this many nodes: few shapes, few compilations


@dataclasses.dataclass(frozen=True)
class Free:
    """The plan of an answer that the model composes itself of what it may write, and must not end without.

    Text that must be there comes first. ANY is Free of everything.
    """

    may: tuple[str, ...]
    must: tuple[str, ...] = ()


Plan = Sequence[str] | str | Free


@dataclasses.dataclass(frozen=True)
class Marks:
    """Of a prompt format (formats/base.py): the ids of which any one ends an answer, and those within its text."""

    closers: tuple[int, ...]
    dividers: tuple[int, ...] = ()


class Tables(NamedTuple):
    """The automaton as arrays: R ranges of ids, N nodes, K control tokens."""

    low: Int32[Array, " R"]
    high: Int32[Array, " R"]
    first_range: Int32[Array, " N"]  # the node's first row in low and high
    prefix: Int32[Array, " N"]
    cycle: Int32[Array, " N"]
    first_end: Int32[Array, " N"]  # the lengths at which the content may end: first_end, + cycle, … last_end
    last_end: Int32[Array, " N"]
    modality: Int32[Array, " N"]  # 0 text, 1 + i the i-th block: whose sampling settings hold here
    always: Bool[Array, "N K"]  # controls allowed at once
    ends: Bool[Array, "N K"]  # controls allowed where the content may end
    target: Int32[Array, "N K"]  # where a control leads
    cost: Int32[Array, "N K"]  # tokens of the shortest completion that takes this control now
    exit_cost: Int32[Array, " N"]  # the cheapest of those that end the content
    controls: Int32[Array, " K"]  # ids
    never: Int32[Array, " F"]  # ids inside the text vocabulary that are not text: pad, bos, eos


@dataclasses.dataclass(frozen=True)
class Automaton:
    """`start` is the first node; `opening` the begin marker to write before it, if there is one."""

    tables: Tables
    start: int
    opening: int | None
    shortest: int  # tokens of the shortest answer from `start` on
    longest: int  # of the longest one; for free conversation, of a generous one


@dataclasses.dataclass
class _Node:
    """A node while the automaton is being built."""

    modality: int
    base: int  # id of code 0
    grammar: Grammar | None  # None: no content, only controls
    always: dict[int, int] = dataclasses.field(default_factory=dict)  # control id -> node
    ends: dict[int, int] = dataclasses.field(default_factory=dict)

    @property
    def first_end(self) -> int:
        if self.grammar is None:
            return 0
        prefix, cycle = len(self.grammar.prefix), len(self.grammar.cycle)
        cycles = -(-(max(self.grammar.min_length, prefix) - prefix) // cycle)
        return prefix + cycles * cycle

    @property
    def last_end(self) -> int:
        if self.grammar is None:
            return 0
        prefix, cycle = len(self.grammar.prefix), len(self.grammar.cycle)
        return prefix + (self.grammar.max_length - prefix) // cycle * cycle

    def shortest(self, after: Sequence[int]) -> int:
        """Tokens from entering this node to the end, given the same of every node."""
        leaving = [1 + after[n] for n in self.always.values()]
        leaving += [self.first_end + 1 + after[n] for n in self.ends.values()]
        return min(leaving, default=_FAR)


class _Builder:
    """Nodes of one vocabulary. Node 0 is DONE."""

    def __init__(
        self, vocabulary: Vocabulary, grammars: Mapping[str, Grammar], max_text_tokens: int, marks: Marks | None
    ):
        self.vocabulary = vocabulary
        self.marks = marks or Marks((vocabulary.marker("<eos>"),))
        self.grammars = grammars
        self.max_text_tokens = max_text_tokens
        self.end = dict.fromkeys(self.marks.closers, DONE)
        self.nodes = [_Node(0, 0, None)]

    def add(self, node: _Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def text(self, at_least: int) -> int:
        pieces = ((0, self.vocabulary.text_size),)
        return self.add(_Node(0, 0, Grammar(pieces, at_least, self.max_text_tokens)))

    def codes(self, modality: str) -> int:
        block = self.vocabulary.block(modality)
        if modality not in self.grammars:
            raise UserError(f"There is no tokenizer for modality '{modality}'; add it to the config's modalities.")
        grammar = self.grammars[modality]
        if any(low < 0 or high > block.size for low, high in (*grammar.prefix, *grammar.cycle)):
            raise UserError(f"The grammar of '{modality}' speaks of codes beyond its block of {block.size} codes.")
        return self.add(_Node(1 + self.vocabulary.modalities.index(modality), block.start, grammar))

    def may_tell_what_it_heard(self, first: int) -> None:
        """The first text may instead be what was heard and the reply, which is left as that text is."""
        if not self.marks.dividers:
            return
        heard, reply = self.marks.dividers
        transcript, answer = self.text(1), self.text(1)
        self.nodes[first].always[heard] = transcript
        self.nodes[transcript].ends[reply] = answer
        self.nodes[answer].ends |= self.nodes[first].ends

    def gate(self) -> int:
        return self.add(_Node(0, 0, None))

    def shortest(self) -> list[int]:
        """Tokens of the shortest completion from entering each node (Bellman–Ford; the graph is tiny)."""
        after = [0] + [_FAR] * (len(self.nodes) - 1)
        for _ in self.nodes:
            after = [0] + [min(node.shortest(after), _FAR) for node in self.nodes[1:]]
        return after

    def tables(self) -> Tables:
        v = self.vocabulary
        controls = [*self.marks.closers, *self.marks.dividers, *(i for b in v.blocks for i in (b.begin, b.end))]
        column = {token: k for k, token in enumerate(controls)}
        after = self.shortest()
        count = -(-len(self.nodes) // _NODES_MULTIPLE) * _NODES_MULTIPLE
        grid = (count, len(controls))
        always, ends = np.zeros(grid, bool), np.zeros(grid, bool)
        target, cost = np.full(grid, DONE, np.int32), np.full(grid, _FAR, np.int32)
        names = ("first_range", "prefix", "cycle", "first_end", "last_end", "modality")
        rows = {name: np.zeros(count, np.int32) for name in names}
        rows["cycle"][:] = 1
        exit_cost = np.full(count, _FAR, np.int32)
        # Every modality's ranges are there in every plan, so that the shapes are the same.
        first_range, ranges = self._ranges()
        for n, node in enumerate(self.nodes):
            rows["modality"][n] = node.modality
            rows["first_end"][n], rows["last_end"][n] = node.first_end, node.last_end
            rows["first_range"][n] = first_range[node.modality]
            if node.grammar is not None:
                rows["prefix"][n], rows["cycle"][n] = len(node.grammar.prefix), len(node.grammar.cycle)
            for table, edges in ((always, node.always), (ends, node.ends)):
                for token, to in edges.items():
                    k = column[token]
                    table[n, k], target[n, k], cost[n, k] = True, to, 1 + after[to]
            exit_cost[n] = min((1 + after[to] for to in node.ends.values()), default=_FAR)
        never = [i for i in (v.pad, v.bos, v.eos) if i not in column]
        return Tables(
            low=jnp.asarray([low for low, _ in ranges], jnp.int32),
            high=jnp.asarray([high for _, high in ranges], jnp.int32),
            **{name: jnp.asarray(row) for name, row in rows.items()},
            always=jnp.asarray(always),
            ends=jnp.asarray(ends),
            target=jnp.asarray(target),
            cost=jnp.asarray(cost),
            exit_cost=jnp.asarray(exit_cost),
            controls=jnp.asarray(controls, jnp.int32),
            never=jnp.asarray(never, jnp.int32),
        )

    def _ranges(self) -> tuple[list[int], list[tuple[int, int]]]:
        """For each modality index the row where its ranges begin, and all ranges as ids."""
        first, rows = [0], [(0, self.vocabulary.text_size)]
        for block in self.vocabulary.blocks:
            first.append(len(rows))
            grammar = self.grammars.get(block.modality)
            if grammar is not None:
                rows += [(block.start + low, block.start + high) for low, high in (*grammar.prefix, *grammar.cycle)]
        return first, rows


def check_plan(plan: Plan, vocabulary: Vocabulary) -> tuple[str, ...] | Free:
    """The plan as a tuple of modalities, or Free; a single modality may be given as a string."""
    if plan == ANY:
        return Free((TEXT, *vocabulary.modalities))
    if isinstance(plan, Free):
        may = tuple(m for m in (TEXT, *vocabulary.modalities) if m in plan.may)
        must = tuple(m for m in may if m in plan.must)
        unknown = sorted({*plan.may, *plan.must} - {TEXT, *vocabulary.modalities})
        if unknown:
            vocabulary.block(unknown[0])  # raises UserError
        if not may:
            raise UserError("An answer may hold nothing; name a modality that it may hold.")
        if len(must) < len(set(plan.must)):
            forbidden = sorted(set(plan.must) - set(may))
            raise UserError(f"An answer must hold {forbidden[0]} and may not; allow it.")
        return Free(may, must)
    steps = (plan,) if isinstance(plan, str) else tuple(plan)
    if not steps:
        raise UserError("An answer needs at least one modality; name it with --to.")
    for step in steps:
        if step != TEXT:
            vocabulary.block(step)  # raises UserError for an unknown one
    if any(a == b == TEXT for a, b in itertools.pairwise(steps)):
        raise UserError("A plan cannot have text after text: nothing would mark where one ends.")
    return steps


def compile_plan(
    vocabulary: Vocabulary,
    grammars: Mapping[str, Grammar],
    plan: Plan,
    max_text_tokens: int,
    marks: Marks | None = None,
) -> Automaton:
    """The automaton that writes exactly the modalities of the plan in order and then `<eos>`.

    Text is ended by `<eos>` or by the next begin marker, codes by their end marker. With ANY and Free the model
    chooses, but may not say nothing. Raises UserError for a plan or grammar that cannot be.
    """
    if max_text_tokens < 1:
        raise UserError(f"max_tokens of text must be at least 1, not {max_text_tokens}.")
    steps = check_plan(plan, vocabulary)
    builder = _Builder(vocabulary, grammars, max_text_tokens, marks)
    if isinstance(steps, Free):
        return _free(builder, steps)
    content = [builder.text(1) if step == TEXT else builder.codes(step) for step in steps]
    for i, (step, node) in enumerate(zip(steps, content, strict=True)):
        if i + 1 == len(steps):
            leave = dict(builder.end)
        elif steps[i + 1] == TEXT:
            leave = {}
        else:
            leave = {vocabulary.block(steps[i + 1]).begin: content[i + 1]}
        if step != TEXT:
            # After the end marker: text begins at once, anything else passes a gate of one control.
            after = builder.gate() if leave else content[i + 1]
            builder.nodes[after].ends |= leave
            leave = {vocabulary.block(step).end: after}
        builder.nodes[node].ends |= leave
    if steps[0] == TEXT:
        builder.may_tell_what_it_heard(content[0])
    longest = sum(node.last_end + bool(node.ends) for node in builder.nodes)
    opening = None if steps[0] == TEXT else vocabulary.block(steps[0]).begin
    return Automaton(builder.tables(), content[0], opening, builder.shortest()[content[0]], longest)


def _free(builder: _Builder, plan: Free) -> Automaton:
    """Nodes for every set of what must still come: the text, or gate, between media, and each medium."""
    vocabulary = builder.vocabulary
    # Without a tokenizer a modality cannot be decoded: the model is free to write what is left.
    media = [m for m in plan.may if m in builder.grammars or (m in plan.must and m != TEXT)]
    speaks, owed_media = TEXT in plan.may, frozenset(plan.must) - {TEXT}
    if not speaks and not media:
        raise UserError("There is no tokenizer for any modality that the answer may hold.")
    between: dict[frozenset[str], int] = {}
    media_nodes: dict[tuple[str, frozenset[str]], int] = {}

    def begins(owed: frozenset[str]) -> dict[int, int]:
        """What may follow, each begin marker with the node of its medium."""
        return {vocabulary.block(m).begin: medium(m, owed - {m}) for m in media}

    def medium(modality: str, owed: frozenset[str]) -> int:
        key = modality, owed
        if key not in media_nodes:
            media_nodes[key] = node = builder.codes(modality)
            builder.nodes[node].ends[vocabulary.block(modality).end] = after(owed)
        return media_nodes[key]

    def after(owed: frozenset[str]) -> int:
        if owed not in between:
            between[owed] = node = builder.text(0) if speaks else builder.gate()
            builder.nodes[node].ends |= begins(owed) | ({} if owed else builder.end)
        return between[owed]

    start = builder.text(1) if speaks else builder.gate()
    first = begins(owed_media)
    if TEXT not in plan.must:
        builder.nodes[start].always |= first
    builder.nodes[start].ends |= first | ({} if owed_media or not speaks else builder.end)
    if speaks:
        builder.may_tell_what_it_heard(start)
    lengths = {node.modality: node.last_end + 2 for node in builder.nodes if node.modality}
    owed_tokens = sum(lengths[1 + vocabulary.modalities.index(m)] for m in owed_media)
    # Room for text, what must come or one medium, and text.
    longest = (
        (2 + len(builder.marks.dividers)) * (builder.max_text_tokens + 1) * speaks
        + (owed_tokens or max(lengths.values(), default=0))
        + 1
    )
    return Automaton(builder.tables(), start, None, builder.shortest()[start], longest)


def allowed(
    tables: Tables, node: Int32[Array, " B"], count: Int32[Array, " B"], left: Int32[Array, " B"], vocab_size: int
) -> Bool[Array, "B V"]:
    """Which ids may come next, `count` tokens into the node and with `left` tokens to write at most."""
    first_end, cycle, prefix = tables.first_end[node], tables.cycle[node], tables.prefix[node]
    may_end = _next_end(first_end, cycle, count) == count
    completion = 1 + _next_end(first_end, cycle, count + 1) - (count + 1) + tables.exit_cost[node]
    may_go_on = (count < tables.last_end[node]) & (completion <= left)
    row = tables.first_range[node] + jnp.where(count < prefix, count, prefix + (count - prefix) % cycle)
    iota = jax.lax.broadcasted_iota(jnp.int32, (node.shape[0], vocab_size), 1)
    mask = (iota >= tables.low[row][:, None]) & (iota < tables.high[row][:, None]) & may_go_on[:, None]
    leave = tables.always[node] | (tables.ends[node] & may_end[:, None])
    leave &= tables.cost[node] <= left[:, None]
    return mask.at[:, tables.controls].set(leave, mode="drop").at[:, tables.never].set(False, mode="drop")


def _next_end(first_end: Array, cycle: Array, count: Array) -> Array:
    """The first length from `count` on at which the content may end; past `last_end` it is not asked."""
    return first_end + jnp.maximum(-((first_end - count) // cycle), 0) * cycle


def advance(
    tables: Tables, node: Int32[Array, " B"], count: Int32[Array, " B"], token: Int32[Array, " B"]
) -> tuple[Int32[Array, " B"], Int32[Array, " B"]]:
    """The node and the count after writing an allowed token. DONE stays DONE."""
    hit = token[:, None] == tables.controls[None, :]
    is_control = hit.any(axis=1)
    target = jnp.take_along_axis(tables.target[node], jnp.argmax(hit, axis=1)[:, None], axis=1)[:, 0]
    done = node == DONE
    moved = jnp.where(is_control, target, node)
    return jnp.where(done, DONE, moved), jnp.where(done | is_control, 0, count + 1)
