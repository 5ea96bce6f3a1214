"""Music: 12.5 frames a second of two residual codes, written frame by frame as AnyGPT does.

Code q of a frame is written as code + size·q: the codebooks share one block of the vocabulary, and the
grammar is a cycle of their ranges.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from anygpt_jax.modalities import audio
from anygpt_jax.modalities.base import Audio, Grammar
from anygpt_jax.modalities.codecs import batching, mel, weights
from anygpt_jax.modalities.codecs.melcodec import CodecSettings, MelCodec, frame_mask


class MusicTokenizer:
    """`Audio` of at most `longest` samples ↔ int32[frames · codebooks]; decoded sound is whole frames long."""

    name = "music"
    symbol = "🎶"

    def __init__(self, path: pathlib.Path = weights.SHIPPED / "music.safetensors"):
        tensors, settings = weights.read(path)
        self.fingerprint = weights.fingerprint(tensors, settings)
        self.mel = mel.MelSettings(**settings["mel"])
        self.settings = s = CodecSettings(**settings["codec"])
        self._codec = weights.fill(lambda: MelCodec(s, rngs=nnx.Rngs(0)), tensors)
        self.frame = self.mel.hop * s.stack  # samples
        self.frames = settings["max_frames"]
        self.longest = self.frames * self.frame
        self.codebook_size = s.codebooks * s.codebook_size
        self.rate = s.codebooks * audio.SAMPLE_RATE / self.frame
        ranges = tuple((q * s.codebook_size, (q + 1) * s.codebook_size) for q in range(s.codebooks))
        self.grammar = Grammar(cycle=ranges, min_length=s.codebooks, max_length=self.frames * s.codebooks)

    def load(self, data: bytes) -> Audio:
        """Any sound file → mono at 16 kHz; UserError if it is damaged or its length is out of bounds."""
        sound = audio.load_audio(data, longest=self.longest / audio.SAMPLE_RATE)
        audio.prepare(sound, self.name, self.frame, self.longest)
        return sound

    def save(self, media: Audio) -> bytes:
        """A 16-bit WAV file."""
        return audio.save_wav(media)

    def clip(self, media: Audio) -> Audio:
        """The first seconds of a longer sound, as many as the grammar allows."""
        sound = audio.resample(media)
        return Audio(sound.samples[: self.longest], sound.sample_rate)

    def encode(self, media: Sequence[Audio]) -> list[np.ndarray]:
        """UserError for sound shorter than a frame or longer than `longest`. A last, partial frame is padded."""
        items = [audio.prepare(m, self.name, self.frame, self.longest) for m in media]
        lengths = [-(-len(item) // self.frame) for item in items]
        codes = batching.bucketed(self._encode, items, lengths, (self.frames,), self.frame)
        offsets = np.arange(self.settings.codebooks, dtype=np.int32) * self.settings.codebook_size
        return [(c[:n] + offsets).reshape(-1).astype(np.int32) for c, n in zip(codes, lengths, strict=True)]

    def decode(self, codes: Sequence[np.ndarray]) -> list[Audio]:
        """Codes → log-mel → Griffin-Lim."""
        size, count = self.settings.codebook_size, self.settings.codebooks
        rows = []
        for i, row in enumerate(codes):
            row = np.asarray(row, np.int32)
            if problem := self.grammar.problem(row):
                raise ValueError(f"music {i} cannot be decoded: {problem}")
            rows.append(row.reshape(-1, count) % size)
        lengths = [len(row) for row in rows]
        sounds = batching.bucketed(self._decode, rows, lengths, (self.frames,), 1, batching.ALONE_OR_ALL)
        return [Audio(s[: n * self.frame], audio.SAMPLE_RATE) for s, n in zip(sounds, lengths, strict=True)]

    @functools.cached_property
    def _encode(self):
        def encode(samples, lengths, _indices):
            mask = frame_mask(lengths, samples.shape[1] // self.frame)
            return self._codec.encode(mel.log_mel(samples, self.mel), mask)

        return jax.jit(encode)

    @functools.cached_property
    def _decode(self):
        def decode(codes, lengths, _indices):
            mask = frame_mask(lengths, codes.shape[1])
            log_mels = self._codec.decode(codes, mask)
            silent = jnp.repeat(mask, self.settings.stack, 1) == 0
            return mel.invert(jnp.where(silent, jnp.log(self.mel.floor), log_mels), self.mel)

        return jax.jit(decode)


def load() -> MusicTokenizer:
    """The shipped tokenizer (entry point)."""
    return MusicTokenizer()
