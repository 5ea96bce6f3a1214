"""The token-id space: text pieces, special tokens, then one contiguous block of ids a modality.

Ids follow AnyGPT's order (anygpt/src/train/stage1_pretrain.py): the base text vocabulary, the
dialogue markers, then for each modality its codes followed by its begin and end markers. A block's
ids never move once a checkpoint exists; a new modality appends a block.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from anygpt_jax.errors import UserError

# The markers of a dialogue, in AnyGPT's order. The role token is the paper's `[AnyGPT]`; the
# released weights were trained with `[MMGPT]`, which is why markers are data and not constants of
# the templates.
DIALOGUE_MARKERS = ("[Human]", "[AnyGPT]", "<eoh>", "<eos>")


@dataclasses.dataclass(frozen=True)
class Block:
    """The ids of one modality: `size` codes from `start`, and the two markers that enclose them."""

    modality: str
    start: int
    size: int
    begin: int
    end: int
    symbol: str = ""  # codes are written <symbol i>, as AnyGPT does: image 👀, speech 🗣️, music 🎶

    @property
    def stop(self) -> int:
        """One more than the last code's id; the two markers lie outside."""
        return self.start + self.size


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """What a modality asks of the vocabulary: its name, its number of codes, its code symbol."""

    modality: str
    size: int
    symbol: str = ""


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """An immutable id space. `text_size` pieces come first; pad, bos and eos are among them."""

    text_size: int
    text_fingerprint: str
    pad: int
    bos: int
    eos: int
    markers: tuple[tuple[str, int], ...]
    blocks: tuple[Block, ...]

    @classmethod
    def build(
        cls,
        *,
        text_size: int,
        text_fingerprint: str,
        blocks: Iterable[BlockSpec],
        pad: int = 0,
        bos: int = 1,
        eos: int = 2,
        markers: Sequence[str] = DIALOGUE_MARKERS,
    ) -> Vocabulary:
        """A fresh vocabulary: text, markers, then the blocks in the order given."""
        numbered = tuple((marker, text_size + i) for i, marker in enumerate(markers))
        vocabulary = cls(text_size, text_fingerprint, pad, bos, eos, numbered, ())
        for spec in blocks:
            vocabulary = vocabulary.append(spec)
        return vocabulary

    def append(self, spec: BlockSpec) -> Vocabulary:
        """This vocabulary with one more modality at its end; every earlier id stays where it was."""
        if any(block.modality == spec.modality for block in self.blocks):
            raise UserError(f"The vocabulary already has a block for modality '{spec.modality}'.")
        if spec.size < 1:
            raise UserError(f"Modality '{spec.modality}' asks for {spec.size} codes; it needs at least 1.")
        start = self.size
        begin = start + spec.size
        block = Block(spec.modality, start, spec.size, begin, begin + 1, spec.symbol)
        return dataclasses.replace(self, blocks=(*self.blocks, block))

    @property
    def size(self) -> int:
        """One more than the largest id in use."""
        ends = [self.text_size, *(i + 1 for _, i in self.markers)]
        ends += [max(b.stop, b.begin + 1, b.end + 1) for b in self.blocks]
        return max(ends)

    def padded_size(self, multiple: int) -> int:
        """`size` rounded up, so that a sharded embedding divides the mesh."""
        return -(-self.size // multiple) * multiple

    @property
    def modalities(self) -> tuple[str, ...]:
        """The blocks' names in their order. Text has no block and is not among them."""
        return tuple(block.modality for block in self.blocks)

    def block(self, modality: str) -> Block:
        """Of a modality. UserError, which names those there are, if it has none; text has none."""
        for block in self.blocks:
            if block.modality == modality:
                return block
        known = ", ".join(self.modalities) or "none"
        raise UserError(f"Unknown modality '{modality}'; this vocabulary has: text, {known}.")

    def marker(self, text: str) -> int:
        """The id of a dialogue marker. UserError if there is no such marker."""
        for marker, token in self.markers:
            if marker == text:
                return token
        raise UserError(f"The vocabulary has no marker '{text}'; it has {[m for m, _ in self.markers]}.")

    def encode_codes(self, modality: str, codes: np.ndarray) -> np.ndarray:
        """Codes int32[N] of one modality as ids int32[N], without the begin and end markers."""
        block = self.block(modality)
        codes = np.asarray(codes, np.int32)
        if codes.size and (codes.min() < 0 or codes.max() >= block.size):
            raise ValueError(f"{modality} codes must lie in 0..{block.size - 1}, got {codes.min()}..{codes.max()}")
        return codes + np.int32(block.start)

    def decode_codes(self, modality: str, ids: np.ndarray) -> np.ndarray:
        """The inverse of `encode_codes`; ids outside the block are an error, not silently dropped."""
        block = self.block(modality)
        codes = np.asarray(ids, np.int32) - np.int32(block.start)
        if codes.size and (codes.min() < 0 or codes.max() >= block.size):
            raise ValueError(f"ids outside the {modality} block {block.start}..{block.stop - 1}")
        return codes

    def modality_ids(self) -> np.ndarray:
        """int8[size]: 0 for text and dialogue markers, 1 + i for the i-th block, markers included."""
        table = np.zeros(self.size, np.int8)
        for i, block in enumerate(self.blocks):
            table[block.start : block.stop] = 1 + i
            table[[block.begin, block.end]] = 1 + i
        return table

    def to_json(self) -> str:
        """Canonical, with sorted keys: `fingerprint` is of this text."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        """The inverse of `to_json`. UserError if the text is no vocabulary."""
        try:
            fields: Mapping = json.loads(text)
            return cls(
                **{k: fields[k] for k in ("text_size", "text_fingerprint", "pad", "bos", "eos")},
                markers=tuple((str(m), int(i)) for m, i in fields["markers"]),
                blocks=tuple(Block(**b) for b in fields["blocks"]),
            )
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f"This is not a vocabulary.json ({type(e).__name__}: {e}).") from e

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON: equal fingerprints mean equal ids."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def save(self, path: str | pathlib.Path) -> None:
        """Writes the JSON and a newline, in place."""
        pathlib.Path(path).write_text(self.to_json() + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | pathlib.Path) -> Vocabulary:
        """Reads what `save` wrote. UserError if there is no such file, or it is no vocabulary."""
        path = pathlib.Path(path)
        if not path.is_file():
            raise UserError(f"No vocabulary at {path}; run `anygpt tokenize` first or name another folder.")
        return cls.from_json(path.read_text(encoding="utf-8"))

    def require_same(self, other: Vocabulary, mine: str, theirs: str) -> None:
        """Refuses to let two artefacts meet whose ids differ. `mine` and `theirs` name them."""
        if self.fingerprint != other.fingerprint:
            raise UserError(
                f"{mine} was made with vocabulary {self.fingerprint[:12]} and {theirs} with "
                f"{other.fingerprint[:12]}; tokenize again or use the matching checkpoint."
            )
