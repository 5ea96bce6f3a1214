"""What a listener hears while an answer is being written: text as it grows, codes, and the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int32

from anygpt_jax.generation.answer import Answer, Decodes
from anygpt_jax.vocabulary import Block, Vocabulary


@dataclasses.dataclass(frozen=True)
class Text:
    """The next characters of a stretch of text; `last`, perhaps with none: it is complete."""

    piece: str
    last: bool = False


@dataclasses.dataclass(frozen=True)
class Codes:
    """The next codes of the medium that is being written; `last`, perhaps with none: it is complete."""

    modality: str
    codes: Int32[np.ndarray, " N"]
    last: bool = False


@dataclasses.dataclass(frozen=True)
class Done:
    """The last event of a request that was answered."""

    answer: Answer
    reason: str  # "stop", or "length" if the answer had to end


@dataclasses.dataclass(frozen=True)
class Failed:
    """The last event of a request that was not, or not wholly, answered."""

    reason: str  # "cancelled", "deadline" or "error: …"


Event = Text | Codes | Done | Failed


class Unfolding:
    """Turns the ids of one answer, as they come, into Text and Codes. The pieces add up to the answer's segments."""

    def __init__(self, vocabulary: Vocabulary, text: Decodes, opening: int | None, closers: Sequence[int] = ()):
        self.vocabulary = vocabulary
        self.text = text
        self._begins = {block.begin: block for block in vocabulary.blocks}
        self._closers = closers or (vocabulary.marker("<eos>"),)
        self._block: Block | None = None if opening is None else self._begins[opening]
        self._words: list[int] = []  # ids of the stretch of text
        self._told = ""  # of it

    def add(self, ids: Int32[np.ndarray, " N"]) -> Iterator[Text | Codes]:
        """Takes the next ids, however many. A closer completes the text before it and has no event of its own."""
        codes: list[int] = []
        for token in map(int, ids):
            if self._block is not None:
                if token == self._block.end:
                    yield self._codes(codes, last=True)
                    self._block, codes = None, []
                else:
                    codes.append(token)
            elif token in self._begins or token in self._closers:
                if self._words and ((news := self._news(whole=True)) or self._told):
                    yield Text(news, last=True)
                if self._words:
                    self._words, self._told = [], ""
                self._block = self._begins.get(token)
            else:
                self._words.append(token)
        if codes:
            yield self._codes(codes, last=False)
        if self._words and (news := self._news(whole=False)):
            yield Text(news)

    def _codes(self, ids: list[int], last: bool) -> Codes:
        assert self._block is not None
        codes = self.vocabulary.decode_codes(self._block.modality, np.asarray(ids, np.int32))
        return Codes(self._block.modality, codes, last)

    def _news(self, whole: bool) -> str:
        """What has come to the text since it was told. A character of several bytes is held back until it is whole."""
        text = self.text.decode(np.asarray(self._words, np.int32))
        if not whole:
            text = text.rstrip("\N{REPLACEMENT CHARACTER}")
        if not text.startswith(self._told):  # only where bytes turn out to be no character
            return ""
        news, self._told = text[len(self._told) :], text
        return news
