"""How pairs, documents and dialogues become one interleaved sequence, and where loss falls.

The dialogue form is AnyGPT's (paper, section 3.2): `[Human] … <eoh> [AnyGPT] … <eos>`, every modality's
codes enclosed in its begin and end markers. Loss falls on what the segments say it falls on, and on the
`<eos>` that closes a trained answer. A document has no turns and is closed by the end-of-text token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from anygpt_jax.modalities.text import TextTokenizer
from anygpt_jax.records import Span, TokenRecord
from anygpt_jax.vocabulary import Vocabulary

TEXT = "text"
OPENING = {"human": "[Human]", "assistant": "[AnyGPT]"}
CLOSING = {"human": "<eoh>", "assistant": "<eos>"}


@dataclasses.dataclass(frozen=True)
class Segment:
    """A stretch of one modality in one turn. Text is a string, anything else codes int32[N]."""

    modality: str
    content: str | np.ndarray
    role: str
    loss: bool = False


@dataclasses.dataclass(frozen=True)
class Formatter:
    """Turns segments into ids. Text segments are tokenized one by one, never across a boundary."""

    vocabulary: Vocabulary
    text: TextTokenizer

    def content_ids(self, segment: Segment) -> np.ndarray:
        """int32[N]: the ids of one segment, with the markers that enclose codes."""
        if segment.modality == TEXT:
            return self.text.encode(str(segment.content))
        block = self.vocabulary.block(segment.modality)
        codes = self.vocabulary.encode_codes(segment.modality, np.asarray(segment.content))
        return np.concatenate([[block.begin], codes, [block.end]]).astype(np.int32)

    def _pieces(self, segments: Sequence[Segment]) -> Iterable[tuple[np.ndarray, Span]]:
        def marker(token: int, role: str, loss: bool) -> tuple[np.ndarray, Span]:
            return np.array([token], np.int32), Span(1, TEXT, role, loss)

        yield marker(self.vocabulary.bos, segments[0].role, False)
        for i, segment in enumerate(segments):
            starts_turn = i == 0 or segments[i - 1].role != segment.role
            ends_turn = i + 1 == len(segments) or segments[i + 1].role != segment.role
            if starts_turn and segment.role in OPENING:
                yield marker(self.vocabulary.marker(OPENING[segment.role]), segment.role, False)
            ids = self.content_ids(segment)
            if len(ids):
                yield ids, Span(len(ids), segment.modality, segment.role, segment.loss)
            if ends_turn and segment.role in CLOSING:
                yield marker(self.vocabulary.marker(CLOSING[segment.role]), segment.role, segment.loss)
        if segments[-1].role == "document":
            yield marker(self.vocabulary.eos, "document", segments[-1].loss)

    def record(self, key: str, source: str, segments: Sequence[Segment]) -> TokenRecord:
        """A whole training sequence. Raises ValueError if there are no segments or an unknown role."""
        if not segments:
            raise ValueError(f"record {key!r} has no segments")
        ids, spans = zip(*self._pieces(segments), strict=True)
        return TokenRecord(key, source, np.concatenate(ids), tuple(spans))

    def prompt(self, segments: Sequence[Segment], answer: str | None = None) -> np.ndarray:
        """int32[N]: the turns so far, then the opening of the assistant's turn.

        `answer` names the modality that the answer must start with, by its begin marker; None or "text"
        leaves the choice to the grammar of the generation.
        """
        ids = [piece for piece, _ in self._pieces(segments)]
        ids.append(np.array([self.vocabulary.marker(OPENING["assistant"])], np.int32))
        if answer not in (None, TEXT):
            ids.append(np.array([self.vocabulary.block(answer).begin], np.int32))
        return np.concatenate(ids)
