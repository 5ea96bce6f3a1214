"""Sound by a published residual codec (EnCodec, DAC, Mimi): codes frame by frame, as AnyGPT writes music.

Code q of a frame is written as code + size·q: the codebooks share one block of the vocabulary, and the grammar is a
cycle of their ranges. AnyGPT's music is EnCodec at 32 kHz: 4 codebooks of 2048 at 50 frames a second.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from anygpt_jax.errors import UserError
from anygpt_jax.modalities import audio
from anygpt_jax.modalities.base import SYMBOLS, Audio, Grammar
from anygpt_jax.modalities.codecs import batching, released


class AudioCodec:
    """`Audio` of at most `seconds` ↔ int32[frames · levels].

    `weights` is a converted file; `levels` is how many of its codebooks are written (None: all), of which fewer make
    shorter sequences and a worse sound. UserError if it has not that many.
    """

    def __init__(self, weights: str, modality: str = "music", seconds: float = 20.0, levels: int | None = None):
        loaded = released.load(weights, "encodec", "dac", "mimi")
        self._codec = codec = loaded.module
        self.name, self.symbol = modality, SYMBOLS.get(modality, modality)
        self.levels = codec.codebooks if levels is None else levels
        if not 1 <= self.levels <= codec.codebooks:
            raise UserError(
                f"{weights} has {codec.codebooks} codebooks; levels must be 1 … {codec.codebooks}, not {levels}."
            )
        self.fingerprint = released.fingerprint(loaded.fingerprint, levels=self.levels)
        self.sample_rate = codec.sample_rate
        self.codebook_size = self.levels * codec.codebook_size
        self.rate = self.levels * codec.sample_rate / codec.hop
        self.frames = int(seconds * codec.sample_rate / codec.hop)
        self._buckets = batching.buckets(self.frames)
        size = codec.codebook_size
        ranges = tuple((q * size, (q + 1) * size) for q in range(self.levels))
        self.grammar = Grammar(cycle=ranges, min_length=self.levels, max_length=self.frames * self.levels)

    def load(self, data: bytes) -> Audio:
        """Any sound file → mono at the codec's rate; UserError if it is damaged or too long."""
        sound = audio.load_audio(data, self.sample_rate, self.frames * self._codec.hop / self.sample_rate)
        self._samples(sound)
        return sound

    def save(self, media: Audio) -> bytes:
        """A 16-bit WAV file."""
        return audio.save_wav(media)

    def clip(self, media: Audio) -> Audio:
        """The first seconds of a longer sound, as many as the grammar allows."""
        sound = audio.resample(media, self.sample_rate)
        return Audio(sound.samples[: self.frames * self._codec.hop], sound.sample_rate)

    def encode(self, media: Sequence[Audio]) -> list[np.ndarray]:
        """UserError for empty sound, or one longer than `seconds`. The last frame may be partial."""
        items = [self._samples(m) for m in media]
        lengths = [-(-len(item) // self._codec.hop) for item in items]

        def run(batch, _steps, index):
            return self._encode(batch, np.array([len(items[i]) if i >= 0 else 1 for i in index], np.int32))

        codes = batching.bucketed(run, items, lengths, self._buckets, self._codec.hop)
        offsets = np.arange(self.levels, dtype=np.int32) * self._codec.codebook_size
        return [(c[:n] + offsets).reshape(-1).astype(np.int32) for c, n in zip(codes, lengths, strict=True)]

    def decode(self, codes: Sequence[np.ndarray]) -> list[Audio]:
        """Whole frames of sound."""
        rows = []
        for i, row in enumerate(codes):
            row = np.asarray(row, np.int32)
            if problem := self.grammar.problem(row):
                raise ValueError(f"{self.name} {i} cannot be decoded: {problem}")
            rows.append(row.reshape(-1, self.levels) % self._codec.codebook_size)
        lengths = [len(row) for row in rows]
        sounds = batching.bucketed(self._decode, rows, lengths, self._buckets, 1)
        return [Audio(s[: n * self._codec.hop], self.sample_rate) for s, n in zip(sounds, lengths, strict=True)]

    def _samples(self, media: Audio) -> np.ndarray:
        return audio.prepare(media, self.name, 1, self.frames * self._codec.hop, self.sample_rate)

    @functools.cached_property
    def _encode(self):
        def encode(codec, samples, lengths):
            return codec.encode(samples, lengths, levels=self.levels)

        return released.program(encode, self._codec, exact=True)

    @functools.cached_property
    def _decode(self):
        return released.program(lambda codec, codes, steps, _: codec.decode(codes, steps), self._codec)
