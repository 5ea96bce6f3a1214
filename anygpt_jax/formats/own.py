"""The format of models that are trained here: that of their records (templates.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from anygpt_jax.formats.base import Content, Parsed
from anygpt_jax.tasks.instructions import pair_segments
from anygpt_jax.templates import CLOSING, Formatter, Segment


@dataclasses.dataclass(frozen=True)
class Own(Formatter):
    """Segments are written in their order, `<eos>` ends an answer, and chains of modality have no markers."""

    dividers = ()

    @property
    def closers(self) -> tuple[int, ...]:
        """`<eos>` alone."""
        return (self.vocabulary.marker(CLOSING["assistant"]),)

    def ask(
        self, source: str, target: str, content: Content, tokenizers: Mapping[str, object] | None = None
    ) -> list[Segment]:
        """Always with the first of a pair's instructions, as in evaluation."""
        return pair_segments(source, target, content, tokenizers=tokenizers)

    def decode(self, ids: np.ndarray) -> str:
        """Spaces at its ends are kept."""
        return self.text.decode(ids)

    def parse(self, segments: Iterable[tuple[str, Content]]) -> Parsed:
        """Never a transcript: where the model writes what it heard, that is text of the reply."""
        return Parsed(None, tuple(Segment(m, content, "assistant") for m, content in segments if len(content)))
