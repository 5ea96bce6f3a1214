"""The engine: prompts in, decodable answers out, compiled once per (batch size, cache length).

A batch is prefilled in chunks of a fixed width and then decoded token by token in a `lax.while_loop` that
stops when every answer is complete. Plan, grammars, lengths and sampling settings are arguments, not
constants, so that a compiled loop serves them all.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jaxtyping import Array, Int32, PRNGKeyArray
from tqdm.auto import tqdm

from anygpt_jax.errors import UserError
from anygpt_jax.generation import automaton
from anygpt_jax.generation.answer import Answer, split_answer
from anygpt_jax.generation.automaton import DONE, Automaton, Plan, Tables
from anygpt_jax.generation.sampling import Sampling, SamplingTable, sample
from anygpt_jax.modalities.base import Grammar
from anygpt_jax.modalities.text import TextTokenizer
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.model.kv_cache import KVCache, init_cache
from anygpt_jax.templates import TEXT
from anygpt_jax.vocabulary import Vocabulary

Progress = Callable[[int, int], None]  # tokens written to each answer so far, and at most

_CACHE_MULTIPLE = 128  # cache lengths are rounded up to it: few compilations, little waste
_PROGRESS_EVERY = 16  # tokens between two calls of a progress callback
_MAX_SEED = 2**32


@dataclasses.dataclass(frozen=True)
class Settings:
    """How answers are drawn. `sampling` is by modality; a modality without an entry samples at temperature 1."""

    sampling: Mapping[str, Sampling] = dataclasses.field(default_factory=dict)
    max_text_tokens: int = 128  # of one stretch of text
    batch_size: int = 32
    prefill_chunk: int = 64

    @classmethod
    def from_config(cls, generate: ml_collections.ConfigDict) -> Settings:
        """`config.generate`: `batch_size`, and a section a modality."""
        sampling = {}
        for modality, section in generate.items():
            if isinstance(section, ml_collections.ConfigDict):
                fields = {k: v for k, v in section.items() if k in ("temperature", "top_p", "top_k")}
                sampling[modality] = Sampling(**fields)
        return cls(sampling, int(generate.text.max_tokens), int(generate.batch_size))


class _State(NamedTuple):
    """What the decode loop carries. `tokens` holds prompt and answer, its row b filled up to `position[b]`."""

    cache: KVCache
    tokens: Int32[Array, "B S"]
    position: Int32[Array, " B"]
    node: Int32[Array, " B"]
    run: Int32[Array, " B"]  # tokens since the node was entered
    left: Int32[Array, " B"]


@functools.partial(jax.jit, static_argnames=("graph", "batch", "length", "chunk"))
def _prefill(
    graph: nnx.GraphDef,
    weights: nnx.State,
    tokens: Int32[Array, "B S"],
    chunks: Array,
    batch: int,
    length: int,
    chunk: int,
) -> KVCache:
    """The cache of the first `chunks` × `chunk` positions. The head's matmul is unused, so XLA drops it."""
    decoder: Decoder = nnx.merge(graph, weights)

    def one(i: Array, cache: KVCache) -> KVCache:
        window = jax.lax.dynamic_slice_in_dim(tokens, i * chunk, chunk, axis=1)
        positions = jnp.broadcast_to(i * chunk + jnp.arange(chunk), window.shape)
        return decoder.decode(window, positions, cache)[1]

    return jax.lax.fori_loop(0, chunks, one, init_cache(decoder.config, batch, length))


@functools.partial(jax.jit, static_argnames=("graph",), donate_argnames=("state",))
def _decode(
    graph: nnx.GraphDef,
    weights: nnx.State,
    tables: Tables,
    settings: SamplingTable,
    keys: PRNGKeyArray,
    state: _State,
    steps: Array,
) -> tuple[_State, Array]:
    """Up to `steps` more tokens for every unfinished answer, and whether all are finished."""
    decoder: Decoder = nnx.merge(graph, weights)
    rows = jnp.arange(state.tokens.shape[0])

    def unfinished(carry: tuple[Array, _State]) -> Array:
        step, state = carry
        return (step < steps) & jnp.any(state.node != DONE)

    def write(carry: tuple[Array, _State]) -> tuple[Array, _State]:
        step, s = carry
        logits, cache = decoder.decode(s.tokens[rows, s.position][:, None], s.position[:, None], s.cache)
        mask = automaton.allowed(tables, s.node, s.run, s.left, logits.shape[-1])
        # The key is the seed's and the position's: no batch-mate, batch size or padding has a say.
        drawn = sample(
            logits[:, 0], mask, settings.rows(tables.modality[s.node]), jax.vmap(jax.random.fold_in)(keys, s.position)
        )
        done = s.node == DONE
        position = jnp.where(done, s.position, s.position + 1)
        token = jnp.where(done, s.tokens[rows, s.position], drawn)
        node, run = automaton.advance(tables, s.node, s.run, drawn)
        tokens = s.tokens.at[rows, position].set(token)
        return step + 1, _State(cache, tokens, position, node, run, s.left - 1)

    _, state = jax.lax.while_loop(unfinished, write, (jnp.int32(0), state))
    return state, jnp.all(state.node == DONE)


class Generator:
    """Generates with one model. `grammars` are those of the tokenizers that will decode the answers."""

    def __init__(
        self,
        decoder: Decoder,
        vocabulary: Vocabulary,
        grammars: Mapping[str, Grammar],
        settings: Settings,
        text: TextTokenizer,
    ):
        if decoder.config.vocab_size < vocabulary.size:
            raise UserError(
                f"The model knows {decoder.config.vocab_size} ids and the vocabulary has {vocabulary.size}; "
                "use the vocabulary that lies beside the checkpoint."
            )
        self.vocabulary = vocabulary
        self.grammars = dict(grammars)
        self.settings = settings
        self.text = text
        self._config = decoder.config
        self._graph, self._weights = nnx.split(decoder)
        self._sampling = SamplingTable.build((TEXT, *vocabulary.modalities), settings.sampling)
        self._automata: dict[tuple[str, ...] | str, Automaton] = {}

    def automaton(self, plan: Plan) -> Automaton:
        """The compiled plan, kept for the next time."""
        key = automaton.check_plan(plan, self.vocabulary)
        if key not in self._automata:
            self._automata[key] = automaton.compile_plan(
                self.vocabulary, self.grammars, key, self.settings.max_text_tokens
            )
        return self._automata[key]

    def generate(
        self,
        prompts: Sequence[np.ndarray],
        plan: Plan,
        seeds: Sequence[int],
        *,
        max_new_tokens: int | None = None,
        progress: Progress | None = None,
        batch_size: int | None = None,
    ) -> list[Answer]:
        """One answer a prompt, as one batch.

        `prompts` are int32[N] and end with the opening of the assistant's turn; if the plan starts with codes
        the begin marker may be there already (`Formatter.prompt(…, answer=…)`) or is added. `max_new_tokens`
        caps an answer, `<eos>` included; what is written then still ends as the plan demands, or there is a
        UserError. The batch is padded to `batch_size` rows, by default to the next power of two.
        """
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds")
        if any(not 0 <= seed < _MAX_SEED for seed in seeds):
            raise UserError(f"A seed must lie in 0..{_MAX_SEED - 1}; got {list(seeds)}.")
        if not prompts:
            return []
        machine = self.automaton(plan)
        budget = machine.longest if max_new_tokens is None else min(machine.longest, max_new_tokens)
        if budget < machine.shortest:
            raise UserError(
                f"An answer of {plan} needs at least {machine.shortest} tokens; max_new_tokens is {max_new_tokens}."
            )
        rows = [self._opened(prompt, machine) for prompt in prompts]
        state, keys = self._start(rows, seeds, machine, budget, batch_size or 1 << (len(rows) - 1).bit_length())
        written, stride = 0, _PROGRESS_EVERY if progress else budget
        done = False
        while written < budget and not done:
            state, all_done = _decode(
                self._graph, self._weights, machine.tables, self._sampling, keys, state, jnp.int32(stride)
            )
            written, done = written + stride, bool(all_done)
            if progress:
                progress(min(written, budget), budget)
        tokens, position = np.asarray(state.tokens), np.asarray(state.position)
        opening = 0 if machine.opening is None else 1
        return [
            self._answer(tokens[b, len(row) - opening : position[b] + 1], seed)
            for b, (row, seed) in enumerate(zip(rows, seeds, strict=True))
        ]

    def _opened(self, prompt: np.ndarray, machine: Automaton) -> np.ndarray:
        """The prompt int32[N], with the begin marker of an answer that starts with codes."""
        prompt = np.asarray(prompt, np.int32)
        if prompt.ndim != 1 or not len(prompt):
            raise ValueError(f"a prompt must be int32[N] with at least one id, not of shape {prompt.shape}")
        if machine.opening is None or prompt[-1] == machine.opening:
            return prompt
        return np.append(prompt, np.int32(machine.opening))

    def _start(
        self, rows: Sequence[np.ndarray], seeds: Sequence[int], machine: Automaton, budget: int, batch: int
    ) -> tuple[_State, PRNGKeyArray]:
        """The state after prefill. Rows beyond the prompts are done before they begin."""
        chunk = self.settings.prefill_chunk
        longest = max(map(len, rows))
        chunks = -(-(longest - 1) // chunk)  # the last token of a prompt is fed to the first decode step
        length = max(longest + budget, chunks * chunk)
        length = -(-length // _CACHE_MULTIPLE) * _CACHE_MULTIPLE
        tokens = np.full((batch, length), self.vocabulary.pad, np.int32)
        position, node = np.zeros(batch, np.int32), np.full(batch, DONE, np.int32)
        for b, row in enumerate(rows):
            tokens[b, : len(row)], position[b], node[b] = row, len(row) - 1, machine.start
        device_tokens = jnp.asarray(tokens)
        cache = _prefill(self._graph, self._weights, device_tokens, jnp.int32(chunks), batch, length, chunk)
        padded = np.zeros(batch, np.uint32)
        padded[: len(seeds)] = seeds
        keys = jax.vmap(jax.random.key)(jnp.asarray(padded))
        left = jnp.full(batch, budget, jnp.int32)
        state = _State(cache, device_tokens, jnp.asarray(position), jnp.asarray(node), jnp.zeros_like(left), left)
        return state, keys

    def _answer(self, ids: np.ndarray, seed: int) -> Answer:
        return Answer(split_answer(ids, self.vocabulary, self.text), ids, seed)


def generate_many(
    generator: Generator,
    prompts: Sequence[np.ndarray],
    plan: Plan,
    seeds: Sequence[int],
    batch_size: int,
    *,
    description: str | None = None,
    max_new_tokens: int | None = None,
) -> list[Answer]:
    """Answers for any number of prompts, in their order, in batches of prompts of similar length.

    Which prompts share a batch changes nothing in the answers. `description` names a progress bar.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: dict[int, Answer] = {}
    with tqdm(total=len(prompts), desc=description, unit="answer", disable=description is None) as bar:
        for start in range(0, len(order), batch_size):
            members = order[start : start + batch_size]
            batch = generator.generate(
                [prompts[i] for i in members],
                plan,
                [seeds[i] for i in members],
                max_new_tokens=max_new_tokens,
                # One shape for all batches: another one would be compiled anew.
                batch_size=batch_size if len(order) > batch_size else None,
            )
            answers.update(zip(members, batch, strict=True))
            bar.update(len(members))
    return [answers[i] for i in range(len(prompts))]
