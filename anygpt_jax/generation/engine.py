"""The engine: requests in, decodable answers out, as many at a time as there are slots (continuous batching).

A request takes a slot as soon as one is free, its prompt is read a chunk at a time between the strides by which all
answers grow, and what another prompt began alike is not read again. Whole chunks alone are taken over, and only
those that were read and not written, since a token's keys differ in the last bits by how they were computed:
so an answer is the same whatever the slots held before.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Int32
from tqdm.auto import tqdm

from anygpt_jax.errors import UserError
from anygpt_jax.generation import slots
from anygpt_jax.generation.answer import Answer, Decodes, split_answer
from anygpt_jax.generation.automaton import DONE, Automaton, Marks, Plan
from anygpt_jax.generation.plans import Plans
from anygpt_jax.generation.request import MAX_SEED, Request, Settings
from anygpt_jax.generation.sampling import Sampling, SamplingTable
from anygpt_jax.modalities.base import Grammar
from anygpt_jax.model.decode_weights import for_decoding
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.templates import TEXT
from anygpt_jax.vocabulary import Vocabulary

_SHORTEST = 256  # cache lengths are this or its doubles, or the context: few compilations, little waste


@dataclasses.dataclass(frozen=True)
class Written:
    """What was added to one answer. `score` is its log probability, if that was asked for."""

    job: int
    ids: Int32[np.ndarray, " N"]
    answer: Answer | None  # when it is complete
    score: float | None = None


@dataclasses.dataclass
class Job:
    """A request that is not answered yet. `rows` are its prompts: the second is guidance's."""

    number: int
    request: Request
    machine: Automaton
    rows: list[np.ndarray]
    budget: int
    scored: bool
    slots: list[int] = dataclasses.field(default_factory=list)  # of the rows; none while it waits
    writing: bool = False  # after its prompts were read
    written: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class _Slot:
    """What the host knows of a slot. The keys of `ids[:read]` are there, whether or not it is in use."""

    ids: np.ndarray
    read: int = 0
    in_use: bool = False
    used: int = 0  # by which job last


class Engine:
    """Generates with one model. `grammars` are those of the tokenizers that will decode the answers.

    `mesh` is that on which the decoder's weights lie, cut over its axis `tensor` alone; by default one device.
    """

    def __init__(
        self,
        decoder: Decoder,
        vocabulary: Vocabulary,
        grammars: Mapping[str, Grammar],
        settings: Settings,
        text: Decodes,
        mesh: Mesh | None = None,
        marks: Marks | None = None,
    ):
        if decoder.config.vocab_size < vocabulary.size:
            raise UserError(
                f"The model knows {decoder.config.vocab_size} ids and the vocabulary has {vocabulary.size}; "
                "use the vocabulary that lies beside the checkpoint."
            )
        self.decoder = decoder
        self.vocabulary = vocabulary
        self.settings = settings
        self.mesh = mesh
        self.text = text
        self.marks = marks or Marks((vocabulary.marker("<eos>"),))
        self.plans = Plans(vocabulary, grammars, settings.max_text_tokens, self.marks)
        with self.in_mesh():
            self.graph, self.weights = nnx.split(for_decoding(decoder, settings.weights))
        self._modalities = (TEXT, *vocabulary.modalities)
        self._state: slots.State | None = None
        self._slots: list[_Slot] = []
        self._waiting: collections.deque[Job] = collections.deque()
        self._jobs: dict[int, Job] = {}
        self._numbers = itertools.count(1)

    @property
    def _reserved(self) -> slots.State:
        if self._state is None:
            raise ValueError("nothing is reserved yet")
        return self._state

    @property
    def waiting(self) -> int:
        """Requests that have no slot yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that have their slots, whether their prompts are being read or their answers written."""
        return len(self._jobs) - len(self._waiting)

    def submit(self, request: Request, *, scored: bool = False) -> int:
        """Takes a request and gives it a number. UserError if it cannot be answered; `scored`: `Written` has a score."""
        return self.enqueue(self.prepare(request, scored=scored))

    def enqueue(self, job: Job) -> int:
        """Lets a prepared job wait behind the others; returns its number. Not while another thread is within `step`."""
        self._jobs[job.number] = job
        self._waiting.append(job)
        return job.number

    def prepare(self, request: Request, *, scored: bool = False) -> Job:
        """Checks a request, which `enqueue` then takes. Another thread may be within `step` meanwhile."""
        if not 0 <= request.seed < MAX_SEED:
            raise UserError(f"A seed must lie in 0..{MAX_SEED - 1}; got {request.seed}.")
        machine, budget = self.planned(request.plan, request.max_new_tokens)
        rows = [self.opened(request.prompt, machine)]
        if any(s.guidance != 1 for s in self.sampling_of(request)):
            if request.without is None:
                raise UserError("Guidance needs the prompt without the request; give it, or leave guidance at 1.")
            rows.append(self.opened(request.without, machine))
        longest, context = max(map(len, rows)), self.settings.context
        if context is not None and longest + machine.shortest > context:
            raise UserError(
                f"The prompt has {longest} tokens and the answer at least {machine.shortest}; "
                f"together they may have {context}. Say less, or ask for less."
            )
        if context is not None:
            budget = min(budget, context - longest)
        if len(rows) > self.settings.batch_size:
            raise UserError("Guidance takes two slots and there is one; raise the batch size to 2.")
        return Job(next(self._numbers), request, machine, rows, budget, scored)

    def in_mesh(self) -> contextlib.AbstractContextManager:
        """Around calls of the device's programs; `step`, `reserve` and `cancel` enter it themselves."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def cancel(self, number: int) -> None:
        """Forgets a request and frees its slots; nothing happens if it is answered already."""
        job = self._jobs.pop(number, None)
        if job is None:
            return
        if job.slots:
            with self.in_mesh():
                self._set_node(job, DONE)
            self._release(job)
        else:
            self._waiting.remove(job)

    def reset(self) -> None:
        """Forgets all requests and everything on the device, as after an error in the middle of a step."""
        self._state, self._slots = None, []
        self._jobs.clear()
        self._waiting.clear()

    def step(self) -> list[Written]:
        """Lets requests in, reads a chunk of every new prompt, and writes up to a stride of tokens of every answer."""
        with self.in_mesh():
            return self._step()

    def _step(self) -> list[Written]:
        self._let_in()
        running = [job for job in self._jobs.values() if job.slots]
        for job in running:
            if not job.writing:
                self._read(job)
        writing = [job for job in running if job.writing]
        if not writing:
            return []
        stride = self.settings.stride
        furthest = max(len(row) + len(job.written) for job in writing for row in job.rows) + stride
        self._state, written = slots.decode(
            self.graph,
            self.weights,
            self.plans.tables,
            self._reserved,
            jnp.bool_(bool(self._waiting)),
            stride=stride,
            length=self._attended(furthest),
        )
        rows = np.asarray(written)
        return [self._collect(job, rows[job.slots[0]]) for job in writing]

    def generate(
        self,
        prompts: Sequence[np.ndarray],
        plan: Plan,
        seeds: Sequence[int],
        *,
        max_new_tokens: int | None = None,
        description: str | None = None,
    ) -> list[Answer]:
        """One answer a prompt int32[N], in their order. `description` names a progress bar."""
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds")
        requests = [Request(p, plan, int(s), max_new_tokens) for p, s in zip(prompts, seeds, strict=True)]
        return self.answer(requests, description=description)

    def answer(self, requests: Sequence[Request], *, description: str | None = None) -> list[Answer]:
        """One answer a request, in their order. Not for an engine whose steps something else takes."""
        return [answer for answer, _ in self._finish([self.submit(r) for r in requests], description)]

    def answer_scored(self, requests: Sequence[Request]) -> list[tuple[Answer, float]]:
        """The same with the log probability of each answer among those that its plan allows."""
        return self._finish([self.submit(r, scored=True) for r in requests], None)

    def _finish(self, numbers: Sequence[int], description: str | None) -> list[tuple[Answer, float]]:
        # The longest prompts first, so that the end, when slots are left over, is short.
        self._waiting = collections.deque(sorted(self._waiting, key=lambda job: -len(job.rows[0])))
        finished: dict[int, tuple[Answer, float]] = {}
        try:
            with tqdm(total=len(numbers), desc=description, unit="answer", disable=description is None) as bar:
                while len(finished) < len(numbers):
                    complete = {w.job: (w.answer, w.score or 0.0) for w in self.step() if w.answer is not None}
                    finished.update(complete)
                    bar.update(len(complete))
        finally:
            for number in numbers:
                self.cancel(number)
        return [finished[number] for number in numbers]

    def reserve(self, batch: int, length: int) -> None:
        """Room for so many slots of so many tokens, in what is reserved already or in what is compiled anew."""
        batch = min(1 << (batch - 1).bit_length(), self.settings.batch_size)
        batch, length = max(batch, len(self._slots)), self.rounded(length)
        if self._state is not None:
            length = max(length, self._state.tokens.shape[1])
            if (batch, length) == self._state.tokens.shape:
                return
        with self.in_mesh():
            larger = slots.empty(self.decoder.config, batch, length, len(self._modalities), self.settings.cache)
            self._state = larger if self._state is None else slots.grown(self._state, larger)
        self._slots += [_Slot(np.zeros(0, np.int32)) for _ in range(batch - len(self._slots))]

    def attended_lengths(self) -> list[int]:
        """The lengths that a program is compiled for, of the reserved ones."""
        found: list[int] = []
        longest, length = self._reserved.tokens.shape[1], 1
        while not found or found[-1] < longest:
            found.append(min(self.rounded(length), longest))
            length = found[-1] + 1
        return found

    def rounded(self, length: int) -> int:
        """The length that programs have for so many tokens: 256, or its common multiple with a chunk, doubled until
        it is enough, but not beyond the context."""
        whole = math.lcm(_SHORTEST, self.settings.prefill_chunk)
        doubled = whole << max(0, (-(-length // whole) - 1).bit_length())
        if self.settings.context is not None:
            doubled = min(doubled, -(-self.settings.context // whole) * whole)
        return doubled

    def _attended(self, furthest: int) -> int:
        return min(self.rounded(furthest), self._reserved.tokens.shape[1])

    def planned(self, plan: Plan, cap: int | None) -> tuple[Automaton, int]:
        """The compiled plan, and the tokens that an answer may have; UserError if a cap leaves too few."""
        machine = self.plans.add(plan)
        budget = machine.longest if cap is None else min(machine.longest, cap)
        if budget < machine.shortest:
            raise UserError(f"An answer of {plan} needs at least {machine.shortest} tokens; max_new_tokens is {cap}.")
        return machine, budget

    def whole(self, machine: Automaton, written: Sequence[int], seed: int) -> Answer:
        """The answer of these ids, and of the begin marker that the plan put before them."""
        opening = [] if machine.opening is None else [machine.opening]
        ids = np.array([*opening, *written], np.int32)
        return Answer(split_answer(ids, self.vocabulary, self.text, self.marks.closers), ids, seed)

    def opened(self, prompt: np.ndarray, machine: Automaton) -> np.ndarray:
        """The prompt int32[N], with the begin marker of an answer that starts with codes."""
        prompt = np.asarray(prompt, np.int32)
        if prompt.ndim != 1 or not len(prompt):
            raise ValueError(f"a prompt must be int32[N] with at least one id, not of shape {prompt.shape}")
        if machine.opening is None or prompt[-1] == machine.opening:
            return prompt
        return np.append(prompt, np.int32(machine.opening))

    def sampling_of(self, request: Request) -> list[Sampling]:
        """Of text, then of the vocabulary's modalities in their order; the request's own go over the engine's."""
        settings = {**self.settings.sampling, **(request.sampling or {})}
        return [settings.get(modality, Sampling()) for modality in self._modalities]

    def _let_in(self) -> None:
        if not self._waiting:
            return
        longest = max(max(map(len, job.rows)) + job.budget for job in self._waiting)
        self.reserve(sum(len(job.rows) for job in self._jobs.values()), longest)
        while self._waiting:
            job = self._waiting[0]
            free = [i for i, slot in enumerate(self._slots) if not slot.in_use]
            if len(free) < len(job.rows):
                return
            self._waiting.popleft()
            for row in job.rows:
                self._place(job, row, [i for i in free if i not in job.slots])

    def _place(self, job: Job, ids: np.ndarray, free: Sequence[int]) -> None:
        """Puts one prompt of a job into one of the free slots, with what a slot holds already of its beginning."""
        chunk = self.settings.prefill_chunk
        shared = [_common(ids[:-1], slot.ids[: slot.read]) // chunk * chunk for slot in self._slots]
        source = int(np.argmax(shared))
        # A slot in use is copied from; of the free ones the one goes that was used longest ago.
        target = source if source in free and shared[source] else min(free, key=lambda i: self._slots[i].used)
        slot = self._slots[target]
        slot.ids, slot.read, slot.in_use, slot.used = ids, shared[source], True, job.number
        job.slots.append(target)
        tokens = np.full(self._reserved.tokens.shape[1], self.vocabulary.pad, np.int32)
        tokens[: len(ids)] = ids
        leader = job.slots[0]
        row = slots.row(len(ids) - 1, DONE, job.budget, job.request.seed, leader, target, job.scored)
        sampling = SamplingTable.build(self.sampling_of(job.request))
        source = source if shared[source] else target
        self._state = slots.admit(self._reserved, jnp.int32(target), jnp.int32(source), tokens, row, sampling)
        if target != leader:
            self._state = slots.set_without(self._state, jnp.int32(leader), jnp.int32(target))

    def _read(self, job: Job) -> None:
        """One more chunk of each of its prompts; after the last one the answer begins."""
        chunk = self.settings.prefill_chunk
        job.writing = True
        for i in job.slots:
            slot = self._slots[i]
            needed = len(slot.ids) - 1  # the last token is fed to the first step
            if slot.read < needed:
                self._state = slots.prefill(
                    self.graph,
                    self.weights,
                    self._reserved,
                    jnp.int32(i),
                    jnp.int32(slot.read),
                    chunk=chunk,
                    length=self._attended(slot.read + chunk),
                )
                slot.read = min(slot.read + chunk, needed)
            job.writing &= slot.read == needed
        if job.writing:
            self._set_node(job, job.machine.start)

    def _collect(self, job: Job, ids: Int32[np.ndarray, " stride"]) -> Written:
        ids = ids[ids >= 0]
        job.written += ids.tolist()
        if not job.written or job.written[-1] not in self.marks.closers:
            return Written(job.number, ids, None)
        answer = self.whole(job.machine, job.written, job.request.seed)
        score = float(self._reserved.row.score[job.slots[0]]) if job.scored else None
        del self._jobs[job.number]
        self._release(job)
        return Written(job.number, ids, answer, score)

    def _set_node(self, job: Job, node: int) -> None:
        for i in job.slots:
            self._state = slots.set_node(self._reserved, jnp.int32(i), jnp.int32(node))

    def _release(self, job: Job) -> None:
        for i in job.slots:
            self._slots[i].in_use = False


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """The length of the beginning that two sequences share."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n
