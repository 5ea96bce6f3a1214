"""What was generated: the ids, and the segments they mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from anygpt_jax.templates import TEXT
from anygpt_jax.vocabulary import Vocabulary


class Decodes(Protocol):
    """A text tokenizer, or a prompt format, whose text may hold dividers."""

    def decode(self, ids: np.ndarray) -> str:
        """The text of int32[N]: of pieces, and of dividers where the format has them."""


class Segment(NamedTuple):
    """A stretch of one modality in an answer: text as a string, anything else as codes int32[N]."""

    modality: str
    content: str | np.ndarray


@dataclasses.dataclass(frozen=True)
class Answer:
    """`ids` int32[N] are what the model wrote, from the first begin marker (or text) to `<eos>`."""

    segments: tuple[Segment, ...]
    ids: np.ndarray
    seed: int

    def first(self, modality: str) -> str | np.ndarray | None:
        """The content of the first segment of a modality, or None."""
        return next((s.content for s in self.segments if s.modality == modality), None)


def likeliest(drawn: Sequence[tuple[Answer, float]], best_of: int) -> list[Answer]:
    """Of every `best_of` draws in a row, each with its log probability, the likeliest a token."""
    groups = [drawn[i : i + best_of] for i in range(0, len(drawn), best_of)]
    return [max(group, key=lambda one: one[1] / len(one[0].ids))[0] for group in groups]


def split_answer(
    ids: np.ndarray, vocabulary: Vocabulary, text: Decodes, closers: Sequence[int] = ()
) -> tuple[Segment, ...]:
    """The segments of an answer's ids int32[N]; ValueError if they are not a whole answer.

    `closers` are the format's; by default `<eos>`. Text that is nothing but spaces is no segment.
    """
    segments: list[Segment] = []
    begins = {block.begin: block for block in vocabulary.blocks}
    closers = closers or (vocabulary.marker("<eos>"),)
    i, words = 0, 0
    while i < len(ids):
        block = begins.get(int(ids[i]))
        if block is None and ids[i] not in closers:
            i += 1
            continue
        if i > words and (said := text.decode(ids[words:i])):
            segments.append(Segment(TEXT, said))
        if block is None:
            return tuple(segments)
        ends = np.flatnonzero(ids[i:] == block.end)
        if not len(ends):
            raise ValueError(f"{block.modality} begins and does not end")
        stop = i + int(ends[0])
        segments.append(Segment(block.modality, vocabulary.decode_codes(block.modality, ids[i + 1 : stop])))
        i = words = stop + 1
    raise ValueError("an answer must end with <eos>")
