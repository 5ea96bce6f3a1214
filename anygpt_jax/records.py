"""TokenRecord: one interleaved training sequence, and its bytes on disk.

A record is a run of token ids covered without gap or overlap by spans; each span says which modality
it is, who speaks, and whether loss falls on it. On disk a record is a msgpack map whose arrays are raw
little-endian bytes: decoding is a few microseconds and copies nothing (tf.Example took some hundreds).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import msgpack
import numpy as np

ROLES = ("document", "system", "human", "assistant")


@dataclasses.dataclass(frozen=True)
class Span:
    """`length` tokens of one modality and role; a modality's span includes its begin and end markers."""

    length: int
    modality: str
    role: str
    loss: bool


@dataclasses.dataclass(frozen=True)
class TokenRecord:
    """One sequence. `key` is stable across runs and unique in its source; `source` names the SeqIO task."""

    key: str
    source: str
    tokens: np.ndarray  # int32[L]
    spans: tuple[Span, ...]

    def __post_init__(self):
        problem = self.problem()
        if problem:
            raise ValueError(f"record {self.key!r}: {problem}")

    def problem(self) -> str | None:
        """Why this is not a valid record, or None."""
        if self.tokens.ndim != 1 or self.tokens.dtype != np.int32:
            return f"tokens must be int32[L], got {self.tokens.dtype}{list(self.tokens.shape)}"
        if not self.key or not self.source:
            return "key and source must not be empty"
        if len(self.tokens) == 0:
            return "it has no tokens"
        if self.tokens.min() < 0:
            return "it has a negative token id"
        if any(span.length < 1 for span in self.spans):
            return "it has an empty span"
        if sum(span.length for span in self.spans) != len(self.tokens):
            return "its spans do not cover its tokens"
        if any(span.role not in ROLES for span in self.spans):
            return f"its roles must be among {ROLES}"
        return None

    def loss_mask(self) -> np.ndarray:
        """bool[L]: true where predicting this token is trained."""
        return np.repeat([s.loss for s in self.spans], [s.length for s in self.spans])

    def modalities(self) -> Sequence[str]:
        """The modality of every span, in order."""
        return [span.modality for span in self.spans]

    def to_bytes(self) -> bytes:
        """The msgpack map; ids are uint16 where all are below 2**16, otherwise uint32."""
        narrow = np.uint16 if self.tokens.max() < 2**16 else np.uint32
        return msgpack.packb(
            {
                "key": self.key,
                "source": self.source,
                "dtype": np.dtype(narrow).str,
                "tokens": self.tokens.astype(narrow).tobytes(),
                "spans": [[s.length, s.modality, s.role, s.loss] for s in self.spans],
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> TokenRecord:
        """Raises ValueError if the bytes are not a valid record."""
        try:
            fields = msgpack.unpackb(data)
            if fields["dtype"] not in ("<u2", "<u4"):
                raise TypeError(f"unknown token dtype {fields['dtype']!r}")
            tokens = np.frombuffer(fields["tokens"], fields["dtype"]).astype(np.int32)
            spans = tuple(Span(*span) for span in fields["spans"])
        except (KeyError, TypeError, ValueError) as e:  # msgpack's own errors are ValueErrors
            raise ValueError(f"not a TokenRecord: {type(e).__name__}: {e}") from e
        return cls(fields["key"], fields["source"], tokens, spans)
