"""Small modalities, a small random model and an independent account of what an answer may be."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping

import numpy as np
import soundfile
from flax import nnx
from PIL import Image, UnidentifiedImageError

from anygpt_jax.errors import UserError
from anygpt_jax.modalities.base import Audio, Grammar
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.vocabulary import BlockSpec, Vocabulary

# One of each kind: a prefix and a fixed length, a free length, codebooks in turn, and all of it at once.
GRAMMARS = {
    "image": Grammar(cycle=((3, 12),), min_length=7, max_length=7, prefix=((0, 3),)),
    "speech": Grammar(cycle=((0, 10),), min_length=2, max_length=9),
    "music": Grammar(cycle=((0, 4), (4, 8), (8, 12)), min_length=6, max_length=13),
    "gesture": Grammar(cycle=((2, 5), (5, 9)), min_length=0, max_length=8, prefix=((0, 2), (1, 3))),
}
SIZES = {"image": 12, "speech": 10, "music": 12, "gesture": 9}


class Words:
    """A text tokenizer whose piece i is written `i `."""

    size = 20
    fingerprint = "words"

    def encode(self, text: str) -> np.ndarray:
        return np.array([int(word) for word in text.split()], np.int32)

    def decode(self, ids: np.ndarray) -> str:
        if len(ids) and (ids.min() < 0 or ids.max() >= self.size):
            raise ValueError("not text")
        return " ".join(str(i) for i in ids)


def vocabulary() -> Vocabulary:
    blocks = [BlockSpec(name, size) for name, size in SIZES.items()]
    return Vocabulary.build(text_size=Words.size, text_fingerprint=Words.fingerprint, blocks=blocks)


def decoder(vocab: Vocabulary, seed: int = 0, scale: float = 20.0) -> Decoder:
    """Randomly initialised, with an embedding large enough for its choices to be far from uniform."""
    config = ModelConfig(vocab.padded_size(16), 16, 2, 2, 1, 8, 24, tied_embeddings=True, qk_norm=True)
    model = Decoder(config, rngs=nnx.Rngs(seed))
    model.embedding[...] = model.embedding[...] * scale
    return model


def sentences(grammar: Grammar, size: int, start: int) -> list[tuple[int, ...]]:
    """Every code sequence without a `Grammar.problem`, as ids."""
    lengths = range(grammar.max_length + 1)
    every = itertools.chain.from_iterable(itertools.product(range(size), repeat=n) for n in lengths)
    return [tuple(start + c for c in codes) for codes in every if grammar.problem(codes) is None]


def media(vocab: Vocabulary, grammars: Mapping[str, Grammar]) -> dict[str, list[tuple[int, ...]]]:
    """Every medium with its markers, by modality."""
    blocks = {b.modality: b for b in vocab.blocks}
    return {
        name: [
            (blocks[name].begin, *ids, blocks[name].end) for ids in sentences(g, blocks[name].size, blocks[name].start)
        ]
        for name, g in grammars.items()
    }


def texts(vocab: Vocabulary, longest: int) -> list[tuple[int, ...]]:
    pieces = [i for i in range(vocab.text_size) if i not in (vocab.pad, vocab.bos, vocab.eos)]
    return [t for n in range(1, longest + 1) for t in itertools.product(pieces, repeat=n)]


def planned_answers(
    vocab: Vocabulary, grammars: Mapping[str, Grammar], plan: tuple[str, ...], longest_text: int
) -> Iterator[tuple[int, ...]]:
    choices = {**media(vocab, grammars), "text": texts(vocab, longest_text)}
    for parts in itertools.product(*(choices[step] for step in plan)):
        yield (*itertools.chain.from_iterable(parts), vocab.marker("<eos>"))


def free_answers(
    vocab: Vocabulary, grammars: Mapping[str, Grammar], longest_text: int, budget: int
) -> Iterator[tuple[int, ...]]:
    """Every answer of at most `budget` ids: any segments, but no text directly after text."""
    every_medium = [m for ms in media(vocab, grammars).values() for m in ms]
    every_text = texts(vocab, longest_text)

    def grow(so_far: tuple[int, ...], after_text: bool) -> Iterator[tuple[int, ...]]:
        if so_far:
            yield (*so_far, vocab.marker("<eos>"))
        room = budget - 1 - len(so_far)
        for part in every_medium:
            if len(part) <= room:
                yield from grow(so_far + part, False)
        if not after_text:
            for part in every_text:
                if len(part) <= room:
                    yield from grow(so_far + part, True)

    yield from grow((), False)


class ImageCodec:
    """Seven codes: the corner's brightness, then the means of six columns."""

    name, symbol, codebook_size, rate, fingerprint = "image", "i", 12, 7.0, "image-1"
    grammar = GRAMMARS["image"]

    def load(self, data: bytes) -> np.ndarray:
        try:
            return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        except (UnidentifiedImageError, OSError) as e:
            raise UserError("this is not a whole PNG image; save it again.") from e

    def save(self, image: np.ndarray) -> bytes:
        out = io.BytesIO()
        Image.fromarray(image).save(out, "PNG")
        return out.getvalue()

    def encode(self, images):
        return [np.r_[i[0, 0, 0] // 86, 3 + (i[0, :6, 0] // 29)].astype(np.int32) for i in images]

    def decode(self, codes):
        assert all(self.grammar.problem(c) is None for c in codes)
        return [np.repeat(np.repeat(c[None, 1:, None], 6, 0), 3, 2).astype(np.uint8) * 20 for c in codes]


class SoundCodec:
    """One code a 100 samples."""

    symbol, rate = "s", 10.0

    def __init__(self, name: str):
        self.name, self.fingerprint = name, f"{name}-1"
        self.grammar, self.codebook_size = GRAMMARS[name], SIZES[name]

    def load(self, data: bytes) -> Audio:
        try:
            samples, rate = soundfile.read(io.BytesIO(data), dtype="float32")
        except soundfile.LibsndfileError as e:
            raise UserError("this is not a whole sound file; save it again.") from e
        return Audio(samples, rate)

    def save(self, audio: Audio) -> bytes:
        out = io.BytesIO()
        soundfile.write(out, audio.samples, audio.sample_rate, format="WAV")
        return out.getvalue()

    def encode(self, sounds):
        ranges = [[self.grammar.allowed(i) for i in range(6)] for _ in sounds]
        return [np.array([lo for lo, _ in r], np.int32) for r in ranges]

    def decode(self, codes):
        assert all(self.grammar.problem(c) is None for c in codes)
        return [Audio(np.repeat(c, 100).astype(np.float32) / 32, 16_000) for c in codes]
