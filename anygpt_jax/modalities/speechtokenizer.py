"""Speech as AnyGPT has it: SpeechTokenizer's first codebook for the language model, SoundStorm for the other seven.

50 semantic codes a second, of 1024. The acoustic stage takes the voice of a prompt of about 3 s, or makes one up.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from anygpt_jax.modalities import audio
from anygpt_jax.modalities.base import SYMBOLS, Audio, Grammar
from anygpt_jax.modalities.codecs import batching, released

PROMPT_SECONDS = 3.0  # of the voice that is heard; AnyGPT's prompts are that long


class SpeechTokenizerSpeech:
    """`Audio` of at most `seconds` ↔ int32[N], 50 a second.

    `weights` and `acoustic` are converted files of SpeechTokenizer and of SoundStorm. Without the second, speech is
    decoded from the semantic codes alone, which is understood and has no voice. `steps` is SoundStorm's, of the
    first acoustic codebook; its noise comes from `seed`.
    """

    def __init__(
        self, weights: str, acoustic: str | None = None, modality: str = "speech", seconds: float = 30.0,
        steps: int = 3, seed: int = 0,
    ):  # fmt: skip
        loaded = released.load(weights, "speechtokenizer")
        self._codec = codec = loaded.module
        self._stage = released.load(acoustic, "soundstorm").module if acoustic else None
        self._steps, self._seed = steps, seed
        self.name, self.symbol = modality, SYMBOLS.get(modality, modality)
        self.fingerprint = released.fingerprint(loaded.fingerprint)  # the acoustic stage changes no code
        self.sample_rate, self.codebook_size = codec.sample_rate, codec.codebook_size
        self.rate = codec.sample_rate / codec.hop
        self.frames = int(seconds * self.rate)
        self._prompt_frames = int(PROMPT_SECONDS * self.rate)
        self._buckets = batching.buckets(self.frames)
        self.grammar = Grammar(((0, codec.codebook_size),), 1, self.frames)

    def load(self, data: bytes) -> Audio:
        """Any sound file → mono at 16 kHz; UserError if it is damaged or too long."""
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
        """Semantic codes. UserError for empty sound, or one longer than `seconds`."""
        return [codes[:, 0].copy() for codes in self.encode_all(media)]

    def encode_all(self, media: Sequence[Audio]) -> list[np.ndarray]:
        """int32[N, 8]: the codes of every codebook."""
        items = [self._samples(m) for m in media]
        lengths = [-(-len(item) // self._codec.hop) for item in items]

        def run(batch, _steps, index):
            return self._encode(batch, np.array([len(items[i]) if i >= 0 else 1 for i in index], np.int32))

        codes = batching.bucketed(run, items, lengths, self._buckets, self._codec.hop)
        return [c[:n] for c, n in zip(codes, lengths, strict=True)]

    def decode(self, codes: Sequence[np.ndarray], prompt: Audio | None = None, acoustic: bool = True) -> list[Audio]:
        """Semantic codes int32[N], or all of them int32[N, 8], → sound; in the voice of the prompt, if there is one.

        Given semantic codes, the acoustic stage makes the others, unless `acoustic` is false or there is no stage.
        """
        rows = []
        for i, row in enumerate(codes):
            row = np.asarray(row, np.int32)
            row = row[:, None] if row.ndim == 1 else row
            if problem := self.grammar.problem(row[:, 0]):
                raise ValueError(f"{self.name} {i} cannot be decoded: {problem}")
            if row.min() < 0 or row.max() >= self.codebook_size or row.shape[1] not in (1, self._codec.codebooks):
                raise ValueError(f"{self.name} {i} has acoustic codes that are none")
            rows.append(row)
        voice = self._voice(prompt) if prompt is not None else np.zeros((0, self._codec.codebooks), np.int32)
        sounds: list[np.ndarray | None] = [None] * len(rows)
        for whole in (False, True):  # rows with all codes need no stage, and have another shape
            members = [i for i, row in enumerate(rows) if (row.shape[1] > 1) == whole]

            def run(batch, steps, _index, whole=whole):
                if acoustic and self._stage is not None and not whole:
                    return self._restore(batch[..., 0], steps, voice)
                return self._decode(batch, steps)

            group = [rows[i] for i in members]
            lengths = [len(row) for row in group]
            for i, sound in zip(members, batching.bucketed(run, group, lengths, self._buckets, 1), strict=True):
                sounds[i] = sound[: len(rows[i]) * self._codec.hop]
        return [Audio(s, self.sample_rate) for s in sounds if s is not None]

    def _voice(self, prompt: Audio) -> np.ndarray:
        """int32[P, 8]: the codes of the prompt's first seconds. Another length is another program."""
        heard = audio.resample(prompt, self.sample_rate).samples[: self._prompt_frames * self._codec.hop]
        return self.encode_all([Audio(heard, self.sample_rate)])[0]

    def _samples(self, media: Audio) -> np.ndarray:
        return audio.prepare(media, self.name, 1, self.frames * self._codec.hop, self.sample_rate)

    @functools.cached_property
    def _encode(self):
        return released.program(lambda codec, sound, lengths: codec.encode(sound, lengths), self._codec, exact=True)

    @functools.cached_property
    def _decode(self):
        return released.program(lambda codec, codes, lengths: codec.decode(codes, lengths), self._codec)

    @functools.cached_property
    def _restore(self):
        assert self._stage is not None

        def restore(codec, stage, semantic, lengths, voice):
            rows = len(semantic)
            codes = stage.generate(
                semantic, lengths, jnp.broadcast_to(jax.random.key(self._seed), (rows,)),
                jnp.broadcast_to(voice, (rows, *voice.shape)), jnp.full(rows, len(voice)), steps=self._steps,
            )  # fmt: skip
            return codec.decode(codes, lengths)

        return released.program(restore, self._codec, self._stage)
