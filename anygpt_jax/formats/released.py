"""What the formats of AnyGPT's two released models share: markers, and how Transformers tokenized their strings.

The strings are those of the authors' command lines (anygpt/src/m_utils/prompter.py, conversation.py). Their role is
`[MMGPT]`, as the weights were trained; the paper's `[AnyGPT]` is no token of theirs.

Ids are those of Transformers 4.34's slow LlamaTokenizer over the whole string. Markers and codes are taken out first,
then each stretch of text between two of them is tokenized by itself with a space before it: ": " before a begin marker
becomes `▁:` and `▁`. (`legacy`; otherwise the one space stands before the whole string, even before a marker.) Unlike
there, what a person types is always text: nobody can write a marker.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import sentencepiece

from anygpt_jax.errors import UserError
from anygpt_jax.formats.base import Content, Parsed
from anygpt_jax.modalities.text import TextTokenizer
from anygpt_jax.templates import TEXT, Segment
from anygpt_jax.vocabulary import Vocabulary

TURNS = ("[Human]", "[MMGPT]", "<eoh>", "<eos>")
HEARD, REPLY = "<-Ins->", "<-Res->"  # a chain of modality: what the model heard, then what it answers

Part = str | np.ndarray  # of a prompt: text, or ids int32[N]


@dataclasses.dataclass(frozen=True)
class Released:
    """`legacy` is what their tokenizer_config.json says of it (`is_legacy`)."""

    vocabulary: Vocabulary
    text: TextTokenizer
    legacy: bool = True

    @property
    def closers(self) -> tuple[int, ...]:
        """In training `</s>` came after the last `<eos>`. Should a model write it at once, that is the end too."""
        return self.vocabulary.marker("<eos>"), self.vocabulary.eos

    @property
    def dividers(self) -> tuple[int, ...]:
        """None; a format with chains of modality has its own."""
        return ()

    def decode(self, ids: np.ndarray) -> str:
        """Without spaces at its ends."""
        return self.text.decode(ids).strip()

    def parse(self, segments: Iterable[tuple[str, Content]]) -> Parsed:
        """The transcript is of the first text that marks one (`split_reply`); later ones are dropped."""
        transcript: str | None = None
        reply = []
        for modality, content in segments:
            if isinstance(content, str):
                heard, content = split_reply(content)
                transcript = heard if transcript is None else transcript
            if len(content):
                reply.append(Segment(modality, content, "assistant"))
        return Parsed(transcript, tuple(reply))

    def marked(self, text: str, markers: Sequence[str] = TURNS) -> Iterator[Part]:
        """Text with these markers as ids."""
        for part in re.split("|".join(f"({re.escape(marker)})" for marker in markers), text):
            if part in markers:
                yield np.array([self.vocabulary.marker(part)], np.int32)
            elif part:
                yield part

    def joined(self, segments: Sequence[Segment]) -> Iterator[Part]:
        """One space between any two. Text of the assistant's may hold dividers."""
        for i, segment in enumerate(segments):
            if i:
                yield " "
            text = str(segment.content).strip()
            if segment.modality != TEXT:
                block = self.vocabulary.block(segment.modality)
                codes = self.vocabulary.encode_codes(segment.modality, np.asarray(segment.content))
                yield np.concatenate([[block.begin], codes, [block.end]]).astype(np.int32)
            elif segment.role == "assistant" and self.dividers:
                yield from self.marked(text, (HEARD, REPLY))
            else:
                yield text

    def opening(self, answer: str | None) -> Iterator[Part]:
        """`[MMGPT]:`, and before an answer in codes a space and their begin marker."""
        yield from self.marked("[MMGPT]:")
        if answer is not None and answer != TEXT:
            yield " "
            yield np.array([self.vocabulary.block(answer).begin], np.int32)

    def ids(self, parts: Iterable[Part]) -> np.ndarray:
        """int32[N]: `<s>` and the parts. Text that touches is one stretch."""
        if not self.legacy:
            parts = itertools.chain([" "], parts)
        found = [np.array([self.vocabulary.bos], np.int32)]
        stretch = ""
        for part in parts:
            if isinstance(part, str):
                stretch += part
                continue
            found += [np.asarray(self._encode(stretch), np.int32), part]
            stretch = ""
        return np.concatenate([*found, np.asarray(self._encode(stretch), np.int32)])

    @functools.cached_property
    def _encode(self) -> Callable[[str], Sequence[int] | np.ndarray]:
        if self.legacy:
            return self.text.encode
        processor = sentencepiece.SentencePieceProcessor(model_proto=self.text.model)
        processor.override_normalizer_spec(add_dummy_prefix=False)
        return processor.encode


def split_reply(text: str) -> tuple[str | None, str]:
    """`<-Ins-> transcript <-Res-> reply` in two; None where no transcript is marked."""
    before, _, reply = text.partition(REPLY)
    said, heard, transcript = before.partition(HEARD)
    reply = " ".join(part.strip() for part in (said, reply) if part.strip())
    return transcript.strip() if heard else None, reply


def is_legacy(folder: pathlib.Path) -> bool:
    """What the tokenizer_config.json in a folder says of `legacy`; true, as for Transformers, where nothing is said."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return True
    try:
        legacy = json.loads(path.read_text(encoding="utf-8")).get("legacy")
    except (ValueError, AttributeError) as e:
        raise UserError(f"{path} is no tokenizer's configuration ({e}); convert the model again.") from e
    return legacy is None or bool(legacy)
