"""What a prompt format is: how turns become ids, and what the ids of an answer mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from anygpt_jax.modalities.text import TextTokenizer
from anygpt_jax.templates import Segment
from anygpt_jax.vocabulary import Vocabulary

Content = str | np.ndarray  # of a segment: text, or codes int32[N]


@dataclasses.dataclass(frozen=True)
class Parsed:
    """An answer: the reply, and before it what the model says that it heard, if it does."""

    transcript: str | None
    segments: tuple[Segment, ...]


class Format(Protocol):
    """Segments of text are strings. Prompts begin with `<s>`."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Of the ids."""

    @property
    def text(self) -> TextTokenizer:
        """Of the pieces."""

    @property
    def closers(self) -> tuple[int, ...]:
        """Ids of which any one ends an answer; the first is the usual one."""

    @property
    def dividers(self) -> tuple[int, ...]:
        """Ids that may stand in an answer's text: before what was heard and before the reply, or none."""

    def prompt(self, segments: Sequence[Segment], answer: str | None = None) -> np.ndarray:
        """int32[N]: the turns, then the opening of the assistant's.

        `answer` names the modality that the answer must start with, by its begin marker; None or "text" leaves the
        choice to the grammar of the generation.
        """

    def ask(
        self, source: str, target: str, content: Content, tokenizers: Mapping[str, object] | None = None
    ) -> list[Segment]:
        """The human turn that asks for `target` of one source; UserError if there are no words for it."""

    def decode(self, ids: np.ndarray) -> str:
        """A stretch of text, int32[N] of pieces and dividers, as it stands in an assistant's turn of `prompt`."""

    def parse(self, segments: Iterable[tuple[str, Content]]) -> Parsed:
        """An answer's segments, (modality, content), where text is what `decode` gave. Empty ones are left out."""
