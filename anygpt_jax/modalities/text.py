"""Text: a SentencePiece subword model. It is the base of the vocabulary, not a block in it."""

from __future__ import annotations

import functools
import hashlib
import pathlib

import numpy as np
import sentencepiece

from anygpt_jax.errors import UserError

EMBEDDED_MODEL = pathlib.Path(__file__).parent / "weights" / "text.model"


class TextTokenizer:
    """Pieces ↔ text. Ids 0, 1, 2 are `<unk>`/padding, `<s>` and `</s>`, as in LLaMA."""

    def __init__(self, model: bytes):
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    @classmethod
    def load(cls, path: str | pathlib.Path = EMBEDDED_MODEL) -> TextTokenizer:
        """The model in a file, by default the shipped one; UserError if it is not there."""
        path = pathlib.Path(path)
        if not path.is_file():
            raise UserError(f"No text tokenizer at {path}; train it with configs/tokenizer_text.py.")
        return cls(path.read_bytes())

    @property
    def size(self) -> int:
        """Pieces, special ones included: ids are 0 … size - 1."""
        return self._processor.vocab_size()

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model file, in hex."""
        return hashlib.sha256(self.model).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        """int32[N], without begin and end tokens."""
        return np.asarray(self._processor.encode(text), np.int32)

    def decode(self, ids: np.ndarray) -> str:
        """Ids outside the text vocabulary are an error: they are not text."""
        ids = np.asarray(ids, np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= self.size):
            raise ValueError(f"ids outside the text vocabulary 0..{self.size - 1}")
        return self._processor.decode([int(i) for i in ids])
