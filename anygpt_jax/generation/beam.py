"""Beam search: the likeliest answers by breadth, as the paper's captions and transcripts are decoded (5 beams).

The algorithm is Hugging Face's (`num_beams`, `early_stopping=False`): of the 2 W best continuations of W beams
those that end among the first W are kept by their score over length^penalty, the best W that do not end go on,
until no beam could still become better than the worst of the W that are kept. Probabilities are those among the
tokens that the plan allows, so what the grammar forces costs nothing. A beam decodes always.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32

from anygpt_jax.errors import UserError
from anygpt_jax.generation import automaton, slots
from anygpt_jax.generation.answer import Answer
from anygpt_jax.generation.automaton import Plan, Tables
from anygpt_jax.generation.engine import Engine
from anygpt_jax.generation.sampling import Sampling, SamplingTable
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.model.kv_cache import KVCache


class _Beams(NamedTuple):
    """W beams of P prompts: rows p · W + w of the cache. `score` of a beam that is no beam is -inf."""

    cache: KVCache
    tokens: Int32[Array, "P W S"]
    position: Int32[Array, "P W"]
    node: Int32[Array, "P W"]
    run: Int32[Array, "P W"]
    left: Int32[Array, "P W"]
    score: Float[Array, "P W"]  # log probability
    written: Int32[Array, ""]
    best: Float[Array, "P W"]  # of the answers that are whole, over length^penalty; -inf: none
    best_tokens: Int32[Array, "P W S"]
    best_length: Int32[Array, "P W"]  # tokens written, <eos> included
    done: Bool[Array, " P"]


def search(
    engine: Engine,
    prompts: Sequence[np.ndarray],
    plan: Plan,
    *,
    beams: int = 5,
    length_penalty: float = 1.0,
    max_new_tokens: int | None = None,
) -> list[list[tuple[Answer, float]]]:
    """The best answers to each prompt int32[N], at most `beams` and the best one first, and their log probabilities over
    length^penalty. Prompts × beams rows are written at once, as many as the engine has slots for, at least one prompt's.
    UserError for a plan that cannot be, or fewer than one beam."""
    if beams < 1:
        raise UserError(f"The number of beams must be at least 1, not {beams}.")
    at_once = max(1, engine.settings.batch_size // beams)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    answers: dict[int, list[tuple[Answer, float]]] = {}
    for start in range(0, len(order), at_once):
        some = order[start : start + at_once]
        with engine.in_mesh():
            found = _search(engine, [prompts[i] for i in some], plan, beams, length_penalty, max_new_tokens, at_once)
        answers.update(zip(some, found, strict=True))
    return [answers[i] for i in range(len(prompts))]


def _search(
    engine: Engine,
    prompts: Sequence[np.ndarray],
    plan: Plan,
    beams: int,
    penalty: float,
    max_new_tokens: int | None,
    batch: int,
) -> list[list[tuple[Answer, float]]]:
    machine, budget = engine.planned(plan, max_new_tokens)
    rows = [engine.opened(prompt, machine) for prompt in prompts]
    length = engine.rounded(max(map(len, rows)) + budget)
    state = slots.empty(
        engine.decoder.config, batch * beams, length, 1 + len(engine.vocabulary.modalities), engine.settings.cache
    )
    table = SamplingTable.build([Sampling()] * (1 + len(engine.vocabulary.modalities)))
    chunk = engine.settings.prefill_chunk
    for p, row in enumerate(rows):
        tokens = np.full(length, engine.vocabulary.pad, np.int32)
        tokens[: len(row)] = row
        fields = slots.row(len(row) - 1, machine.start, budget, 0, p * beams, p * beams)
        own = jnp.int32(p * beams)
        state = slots.admit(state, own, own, tokens, fields, table)
        for start in range(0, len(row) - 1, chunk):
            state = slots.prefill(
                engine.graph, engine.weights, state, own, jnp.int32(start), chunk=chunk, length=length
            )
        for w in range(1, beams):
            state = slots.admit(state, own + w, own, tokens, fields, table)
    found = _run(
        engine.graph, engine.weights, engine.plans.tables, state, jnp.float32(penalty), beams=beams, count=len(rows),
        closers=engine.marks.closers,
    )  # fmt: skip
    tokens, written, scores = (np.asarray(x) for x in found)
    return [
        [
            (engine.whole(machine, ids[len(row) : len(row) + count], 0), score)
            for ids, count, score in zip(tokens[p], written[p].tolist(), scores[p].tolist(), strict=True)
            if score > -np.inf
        ]
        for p, row in enumerate(rows)
    ]


@functools.partial(jax.jit, static_argnames=("graph", "beams", "count", "closers"))
def _run(
    graph: nnx.GraphDef,
    weights: nnx.State,
    tables: Tables,
    state: slots.State,
    penalty: Array,
    *,
    beams: int,
    count: int,
    closers: tuple[int, ...],
) -> tuple[Int32[Array, "P W S"], Int32[Array, "P W"], Float[Array, "P W"]]:
    """The tokens of the best answers to every prompt, prompt included, how many were written, and the scores."""
    decoder: Decoder = nnx.merge(graph, weights)
    B = state.tokens.shape[0]
    P, W = B // beams, beams
    prompts = jnp.arange(P)

    def by_beam(x: Array) -> Array:
        return x.reshape(P, W, *x.shape[1:])

    def flat(x: Array) -> Array:
        return x.reshape(B, *x.shape[2:])

    def unfinished(b: _Beams) -> Array:
        return ~jnp.all(b.done)

    def grow(b: _Beams) -> _Beams:
        position, node, run = flat(b.position), flat(b.node), flat(b.run)
        token = flat(b.tokens)[jnp.arange(B), position]
        logits, cache = decoder.decode(token[:, None], position[:, None], b.cache)
        V = logits.shape[-1]
        mask = automaton.allowed(tables, node, run, flat(b.left), V)
        chances = jax.nn.log_softmax(jnp.where(mask, logits[:, 0].astype(jnp.float32), -jnp.inf), axis=1)
        # Of nothing that is allowed the softmax is not a number: such a beam has ended before.
        C = (1 + len(closers)) * W  # so many candidates that W of them go on
        total = jnp.where(mask, flat(b.score)[:, None] + chances, -jnp.inf).reshape(P, W * V)
        score, index = jax.lax.top_k(total, C)
        parent, drawn = index // V, (index % V).astype(jnp.int32)
        ends = jnp.isin(drawn, jnp.array(closers))
        written = b.written + 1

        def of_parent(x: Array) -> Array:
            return x[prompts[:, None], parent]

        tokens = of_parent(b.tokens).at[prompts[:, None], jnp.arange(C), of_parent(b.position) + 1].set(drawn)
        # What ends among the first W joins the best, over its length to the power of the penalty.
        whole = jnp.where(ends & (jnp.arange(C) < W), score / written.astype(jnp.float32) ** penalty, -jnp.inf)
        whole = jnp.where(b.done[:, None], -jnp.inf, whole)
        best, kept = jax.lax.top_k(jnp.concatenate([b.best, whole], 1), W)
        lengths = jnp.concatenate([b.best_length, jnp.full((P, C), written)], 1)
        all_tokens = jnp.concatenate([b.best_tokens, tokens], 1)
        # The best W that do not end go on.
        score, on = jax.lax.top_k(jnp.where(ends, -jnp.inf, score), W)
        parent = jnp.take_along_axis(parent, on, 1)
        drawn = jnp.take_along_axis(drawn, on, 1)
        rows = flat(prompts[:, None] * W + parent)
        node, run = automaton.advance(tables, node[rows], run[rows], flat(drawn))
        reached = score[:, 0] / written.astype(jnp.float32) ** penalty
        done = b.done | (reached <= best[:, -1]) | (score[:, 0] == -jnp.inf)
        return _Beams(
            jax.tree.map(lambda x: x[:, rows], cache),
            tokens[prompts[:, None], on],
            by_beam(position[rows]) + 1,
            by_beam(node),
            by_beam(run),
            by_beam(flat(b.left)[rows]) - 1,
            score,
            written,
            best,
            all_tokens[prompts[:, None], kept],
            jnp.take_along_axis(lengths, kept, 1),
            done,
        )

    row = state.row
    first = jnp.where(jnp.arange(W) == 0, 0.0, -jnp.inf)  # alike, they would be one beam W times
    nothing = jnp.full((P, W), -jnp.inf)
    tokens = by_beam(state.tokens)
    beams_of = _Beams(
        state.cache, tokens, by_beam(row.position), by_beam(row.node), by_beam(row.run), by_beam(row.left),
        jnp.broadcast_to(first, (P, W)), jnp.int32(0), nothing, tokens, jnp.zeros((P, W), jnp.int32),
        prompts >= count,
    )  # fmt: skip
    found = jax.lax.while_loop(unfinished, grow, beams_of)
    return found.best_tokens, found.best_length, found.best
