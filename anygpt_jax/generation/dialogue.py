"""A dialogue between a person and the model: its turns, what the model answers, undo, and a file to keep it in."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from anygpt_jax.cache import write_atomically
from anygpt_jax.errors import UserError
from anygpt_jax.generation.answer import Answer
from anygpt_jax.generation.automaton import ANY, Plan
from anygpt_jax.generation.events import Codes, Text, Unfolding
from anygpt_jax.generation.pipeline import Pipeline
from anygpt_jax.generation.request import Request
from anygpt_jax.templates import Segment

FORMAT = "anygpt-dialogue-1"


@dataclasses.dataclass
class Dialogue:
    """`segments` are the turns so far, in order; codes are those of the pipeline's tokenizers."""

    pipeline: Pipeline
    longest: int  # tokens of a prompt at most: what the model was trained on
    segments: list[Segment] = dataclasses.field(default_factory=list)

    def answer(
        self,
        said: Sequence[Segment],
        plan: Plan,
        seed: int,
        listen: Callable[[Text | Codes], None] = lambda event: None,
    ) -> Answer:
        """What the model says to a human turn, which both become part of the dialogue.

        The oldest turns are left out of the prompt when all do not fit. UserError if the new turn alone does not.
        `listen` hears the answer while it grows; what it raises, as an interruption, leaves the dialogue as it was.
        """
        answer = self._written(Request(self.prompt(said, plan), plan, seed), listen)
        self.segments += said
        self.segments += [Segment(s.modality, s.content, "assistant") for s in answer.segments]
        return answer

    def _written(self, request: Request, listen: Callable[[Text | Codes], None]) -> Answer:
        engine = self.pipeline.engine
        job = engine.prepare(request)
        unfolding = Unfolding(engine.vocabulary, engine.text, job.machine.opening, engine.marks.closers)
        engine.enqueue(job)
        try:
            while True:
                for written in engine.step():
                    for event in unfolding.add(written.ids):
                        listen(event)
                    if written.answer is not None:
                        return written.answer
        finally:
            engine.cancel(job.number)

    def prompt(self, said: Sequence[Segment], plan: Plan = ANY) -> np.ndarray:
        """int32[N]: as many of the last turns as fit, a human turn first, and the new one."""
        for start in [*self._human_turns(), len(self.segments)]:
            ids = self.pipeline.prompt([*self.segments[start:], *said], plan)
            if len(ids) <= self.longest:
                return ids
        raise UserError(
            f"This is {len(ids)} tokens and the model was trained on at most {self.longest}; say less at once."
        )

    def undo(self) -> list[Segment]:
        """Takes the last human turn and its answer back; returns the human turn, [] if there is none."""
        starts = self._human_turns()
        if not starts:
            return []
        taken, self.segments = self.segments[starts[-1] :], self.segments[: starts[-1]]
        return [segment for segment in taken if segment.role == "human"]

    def _human_turns(self) -> list[int]:
        """Where they begin."""
        roles = [segment.role for segment in self.segments]
        return [i for i, role in enumerate(roles) if role == "human" and (i == 0 or roles[i - 1] != "human")]

    def save(self, path: pathlib.Path) -> None:
        """Writes the turns as JSON, media as their codes, with what the codes mean something to."""
        turns = [{"role": s.role, "modality": s.modality, "content": _plain(s.content)} for s in self.segments]
        text = json.dumps({**self._header(), "segments": turns}, ensure_ascii=False, indent=1)
        write_atomically(path, text.encode())

    def load(self, path: pathlib.Path) -> None:
        """Reads what `save` wrote. UserError if it is something else, or of another vocabulary or tokenizer."""
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            if saved["format"] != FORMAT:
                raise ValueError(saved["format"])
            segments = [Segment(s["modality"], _content(s["content"]), s["role"]) for s in saved["segments"]]
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise UserError(f"{path} is not a saved dialogue ({e}).") from e
        other = [name for name, value in self._header().items() if saved.get(name) != value]
        if other:
            raise UserError(
                f"{path} was saved with another model (its {other[0]} differs); its codes mean something else."
            )
        self.segments = segments

    def _header(self) -> dict[str, Any]:
        tokenizers = {name: tokenizer.fingerprint for name, tokenizer in self.pipeline.tokenizers.items()}
        vocabulary = self.pipeline.engine.vocabulary.fingerprint
        return {"format": FORMAT, "vocabulary": vocabulary, "tokenizers": tokenizers}


def _plain(content: str | np.ndarray) -> str | list[int]:
    return content if isinstance(content, str) else np.asarray(content).tolist()


def _content(saved: str | list[int]) -> str | np.ndarray:
    return saved if isinstance(saved, str) else np.asarray(saved, np.int32)
