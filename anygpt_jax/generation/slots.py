"""Slots on the device: each a sequence with its keys and values, and the compiled programs that write them.

Plans, grammars, lengths and sampling settings are arguments, not constants: one compiled program serves them
all. A program is compiled once for a number of slots, a cache length and a length that is attended.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32, UInt32

from anygpt_jax.generation import automaton
from anygpt_jax.generation.automaton import DONE, Tables
from anygpt_jax.generation.sampling import SamplingTable, guide, penalize, sample
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.decode_weights import compiler_options
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.model.kv_cache import KVCache, cache_specs, init_cache


class Row(NamedTuple):
    """What a sequence is written by; as fields of the state, arrays over the B slots."""

    position: Int32[Array, " B"]  # of the last token that is there
    node: Int32[Array, " B"]  # of the plans' automaton; DONE: nothing is written
    run: Int32[Array, " B"]  # tokens since the node was entered
    left: Int32[Array, " B"]  # tokens that may still be written
    seed: UInt32[Array, " B"]
    leader: Int32[Array, " B"]  # the slot whose tokens this one repeats; its own otherwise
    without: Int32[Array, " B"]  # the slot whose logits guide this one's; its own otherwise
    scored: Bool[Array, " B"]  # whether `score` is kept
    score: Float[Array, " B"]  # log probability of what was written, among what the plan allowed


def row(position: int, node: int, left: int, seed: int, leader: int, without: int, scored: bool = False) -> Row:
    """One slot's fields, at the beginning of an answer."""
    values = (position, node, 0, left, seed, leader, without, scored, 0.0)
    kinds = (np.int32, np.int32, np.int32, np.int32, np.uint32, np.int32, np.int32, np.bool_, np.float32)
    return Row(*(np.asarray(value, kind) for value, kind in zip(values, kinds, strict=True)))  # type: ignore[arg-type]


class State(NamedTuple):
    """`tokens` holds prompt and answer of each slot, filled up to `row.position`."""

    cache: KVCache
    tokens: Int32[Array, "B S"]
    row: Row
    sampling: SamplingTable  # [B, M]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))  # what it makes are arrays of their own, to be donated
def empty(config: ModelConfig, slots: int, length: int, modalities: int, dtype: str | None = None) -> State:
    """So many slots of which none is in use. `dtype` is that of `init_cache`."""
    ints = jnp.zeros(slots, jnp.int32)
    own = jnp.arange(slots, dtype=jnp.int32)
    row = Row(ints, ints, ints, ints, jnp.zeros(slots, jnp.uint32), own, own, jnp.zeros(slots, bool), jnp.zeros(slots))
    ones = jnp.ones((slots, modalities))
    table = SamplingTable(ones, ones, jnp.zeros((slots, modalities), jnp.int32), 0 * ones, ones, ones)
    cache = init_cache(config, slots, length, dtype)
    if not jax.sharding.get_abstract_mesh().empty:
        cache = jax.tree.map(jax.lax.with_sharding_constraint, cache, cache_specs(cache))
    return State(cache, jnp.zeros((slots, length), jnp.int32), row, table)


def grown(state: State, larger: State) -> State:
    """The slots of a state at the beginning of an empty larger one."""
    return jax.tree.map(lambda new, old: new.at[tuple(map(slice, old.shape))].set(old), larger, state)


@functools.partial(jax.jit, donate_argnames=("state",))
def admit(
    state: State, slot: Array, source: Array, tokens: Int32[Array, " S"], row: Row, sampling: SamplingTable
) -> State:
    """Puts a sequence into a slot, with the keys and values of another slot that begins alike."""
    cache = jax.tree.map(lambda x: x.at[:, slot].set(x[:, source]), state.cache)
    rows, table = (
        jax.tree.map(lambda x, new: x.at[slot].set(new), old, new)
        for old, new in ((state.row, row), (state.sampling, sampling))
    )
    return State(cache, state.tokens.at[slot].set(tokens), rows, table)


@functools.partial(jax.jit, donate_argnames=("state",))
def set_node(state: State, slot: Array, node: Array) -> State:
    """Starts a slot at a node, or stops it: DONE."""
    return state._replace(row=state.row._replace(node=state.row.node.at[slot].set(node)))


@functools.partial(jax.jit, donate_argnames=("state",))
def set_without(state: State, slot: Array, without: Array) -> State:
    """Names the slot whose logits guide this one's."""
    return state._replace(row=state.row._replace(without=state.row.without.at[slot].set(without)))


@functools.partial(jax.jit, static_argnames=("graph", "chunk", "length"), donate_argnames=("state",))
def prefill(
    graph: nnx.GraphDef, weights: nnx.State, state: State, slot: Array, start: Array, *, chunk: int, length: int
) -> State:
    """Reads `chunk` tokens of a slot from `start` on, a multiple of `chunk`. The head is unused: XLA drops it."""
    decoder: Decoder = nnx.merge(graph, weights)
    window = jax.lax.dynamic_slice(state.tokens, (slot, start), (1, chunk))
    positions = start + jnp.arange(chunk)[None]
    return state._replace(cache=decoder.decode(window, positions, state.cache, slot[None], length)[1])


def write_tokens(
    graph: nnx.GraphDef,
    weights: nnx.State,
    tables: Tables,
    state: State,
    hurry: Array,
    *,
    stride: int,
    length: int,
) -> tuple[State, Int32[Array, "B stride"]]:
    """Up to `stride` more tokens for every slot that is not done: what was written, -1 where nothing was.

    With `hurry` it comes back as soon as a slot is done, for another sequence to take it.
    """
    decoder: Decoder = nnx.merge(graph, weights)
    B = state.tokens.shape[0]
    slots = jnp.arange(B)
    keys = jax.vmap(jax.random.key)(state.row.seed)
    waiting = jnp.sum(state.row.node == DONE)

    def unfinished(carry: tuple[Array, State, Array]) -> Array:
        step, state, _ = carry
        done = jnp.sum(state.row.node == DONE)
        return (step < stride) & (done < B) & ~(hurry & (done > waiting))

    def write(carry: tuple[Array, State, Array]) -> tuple[Array, State, Array]:
        step, state, written = carry
        row = state.row
        token, position = state.tokens[slots, row.position], row.position
        logits, cache = decoder.decode(token[:, None], position[:, None], state.cache, None, length)
        settings = state.sampling.at(tables.modality[row.node])
        mask = automaton.allowed(tables, row.node, row.run, row.left, logits.shape[-1])
        logits = _adjusted(logits[:, 0], state, settings)
        # The key is the seed's and the position's: no batch-mate, batch size or padding has a say.
        drawn = sample(logits, mask, settings, jax.vmap(jax.random.fold_in)(keys, position))[row.leader]
        done = row.node == DONE
        node, run = automaton.advance(tables, row.node, row.run, drawn)
        row = row._replace(
            position=jnp.where(done, position, position + 1),
            node=node,
            run=run,
            left=jnp.where(done, row.left, row.left - 1),
            score=_scores(row, logits, mask, drawn),
        )
        tokens = state.tokens.at[slots, row.position].set(jnp.where(done, token, drawn))
        written = written.at[:, step].set(jnp.where(done, -1, drawn))
        return step + 1, State(cache, tokens, row, state.sampling), written

    nothing = jnp.full((B, stride), -1, jnp.int32)
    _, state, written = jax.lax.while_loop(unfinished, write, (jnp.int32(0), state, nothing))
    return state, written


@functools.cache
def _decode_program(platform: str) -> Any:
    return jax.jit(
        write_tokens,
        static_argnames=("graph", "stride", "length"),
        donate_argnames=("state",),
        compiler_options=compiler_options(platform),
    )


def decode(*args: Any, **kwargs: Any) -> tuple[State, Int32[Array, "B stride"]]:
    """`write_tokens`, compiled for this process's devices."""
    return _decode_program(jax.default_backend())(*args, **kwargs)


def compiled() -> int:
    """How many programs there are so far."""
    programs: tuple[Any, ...] = (_decode_program(jax.default_backend()), prefill, admit)
    return sum(program._cache_size() for program in programs)


def _adjusted(logits: Float[Array, "B V"], state: State, settings: SamplingTable) -> Float[Array, "B V"]:
    """Guidance and the penalty of repetitions, where any sequence has one."""

    def penalized(logits: Array) -> Array:
        there = jnp.arange(state.tokens.shape[1]) <= state.row.position[:, None]
        ids = jnp.where(there, state.tokens, logits.shape[-1])
        seen = jnp.zeros(logits.shape, bool).at[jnp.arange(len(ids))[:, None], ids].set(True, mode="drop")
        return penalize(logits, seen, settings.repetition_penalty)

    logits = logits.astype(jnp.float32)
    logits = jax.lax.cond(
        jnp.any(settings.guidance != 1),
        lambda x: guide(x, state.row.without, settings.guidance),
        lambda x: x,
        logits,
    )
    return jax.lax.cond(jnp.any(settings.repetition_penalty != 1), penalized, lambda x: x, logits)


def _scores(
    row: Row, logits: Float[Array, "B V"], mask: Bool[Array, "B V"], drawn: Int32[Array, " B"]
) -> Float[Array, " B"]:
    def added(score: Array) -> Array:
        chances = jax.nn.log_softmax(jnp.where(mask, logits, -jnp.inf), axis=1)
        chance = jnp.take_along_axis(chances, drawn[:, None], axis=1)[:, 0]
        return jnp.where(row.scored & (row.node != DONE), score + chance, score)

    return jax.lax.cond(jnp.any(row.scored), added, lambda score: score, row.score)
