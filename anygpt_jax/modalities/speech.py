"""Speech: 25 semantic codes a second for the language model; a second stage restores the acoustics.

AnyGPT's design in miniature. The first of the residual codebooks is trained to hold the phones (CTC) and is
all that the language model reads and writes. Sound comes back from it through the shared decoder and a voice,
either directly or after the acoustic stage has filled in the other codebooks.
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
from anygpt_jax.modalities.codecs.acoustic import AcousticSettings, AcousticStage
from anygpt_jax.modalities.codecs.melcodec import CodecSettings, MelCodec, frame_mask

BUCKETS = (48, 64, 96)  # latent steps of the compiled programs, and the longest the grammar allows


class SpeechTokenizer:
    """`Audio` of 0.3 to 6 s ↔ int32[N], 25 a second."""

    name = "speech"
    symbol = "🗣️"

    def __init__(self, path: pathlib.Path = weights.SHIPPED / "speech.safetensors"):
        tensors, settings = weights.read(path)
        # Of what decides the codes: another second stage makes another sound of the same codes.
        self.fingerprint = weights.fingerprint(
            {name: x for name, x in tensors.items() if name.startswith("codec.")},
            {name: x for name, x in settings.items() if name != "acoustic"},
        )
        self.mel = mel.MelSettings(**settings["mel"])
        self.settings = s = CodecSettings(**settings["codec"])
        stage = AcousticSettings(**settings["acoustic"])
        self.codec = weights.fill(lambda: MelCodec(s, rngs=nnx.Rngs(0)), tensors, "codec.")
        self._stage = weights.fill(lambda: AcousticStage(stage, s, rngs=nnx.Rngs(0)), tensors, "acoustic.")
        self.frame = self.mel.hop * s.stack  # samples a code
        self.shortest = settings["min_codes"] * self.frame
        self.longest = settings["max_codes"] * self.frame
        self._buckets = (*(b for b in BUCKETS if b < settings["max_codes"]), settings["max_codes"])
        self.codebook_size = s.codebook_size
        self.rate = audio.SAMPLE_RATE / self.frame
        self.grammar = Grammar(((0, s.codebook_size),), settings["min_codes"], settings["max_codes"])

    def load(self, data: bytes) -> Audio:
        """Any sound file → mono at 16 kHz; UserError if it is damaged or its length is out of bounds."""
        sound = audio.load_audio(data, longest=self.longest / audio.SAMPLE_RATE)
        audio.prepare(sound, self.name, self.shortest, self.longest)
        return sound

    def save(self, media: Audio) -> bytes:
        """A 16-bit WAV file."""
        return audio.save_wav(media)

    def clip(self, media: Audio) -> Audio:
        """The first seconds of a longer sound, as many as the grammar allows."""
        sound = audio.resample(media)
        return Audio(sound.samples[: self.longest], sound.sample_rate)

    def encode(self, media: Sequence[Audio]) -> list[np.ndarray]:
        """Semantic codes. UserError for sound too short or too long. A last, partial frame is padded."""
        return [codes[:, 0].copy() for codes in self.encode_all(media)]

    def encode_all(self, media: Sequence[Audio]) -> list[np.ndarray]:
        """int32[N, Q]: the codes of every codebook."""
        items = [audio.prepare(m, self.name, self.shortest, self.longest) for m in media]
        lengths = [-(-len(item) // self.frame) for item in items]
        codes = batching.bucketed(self._encode, items, lengths, self._buckets, self.frame)
        return [c[:n] for c, n in zip(codes, lengths, strict=True)]

    def voice(self, prompt: Audio) -> np.ndarray:
        """float32[V]: the voice of a prompt, of at most `longest` samples of which are heard."""
        samples = audio.prepare(self.clip(prompt), self.name, self.shortest, self.longest)
        length = -(-len(samples) // self.frame)
        return batching.bucketed(self._voice, [samples], [length], self._buckets, self.frame)[0]

    def decode(self, codes: Sequence[np.ndarray], prompt: Audio | None = None, acoustic: bool = False) -> list[Audio]:
        """Semantic codes int32[N] (or all of them, int32[N, Q]) → sound, in the voice of the prompt.

        Without a prompt it is the default voice. `acoustic` fills in the other codebooks by the second stage;
        otherwise the decoder works from the codes given, which is clearer (figures are in speech.json).
        """
        voice = np.asarray(self.codec.default_voice[...]) if prompt is None else self.voice(prompt)
        rows = []
        for i, row in enumerate(codes):
            row = np.asarray(row, np.int32)
            row = row[:, None] if row.ndim == 1 else row
            if problem := self.grammar.problem(row[:, 0]):
                raise ValueError(f"speech {i} cannot be decoded: {problem}")
            if row.min() < 0 or row.max() >= self.codebook_size or row.shape[1] > self.settings.codebooks:
                raise ValueError(f"speech {i} has acoustic codes that are none")
            rows.append(row)
        lengths = [len(row) for row in rows]

        def run(batch, steps, _indices):
            return self._decode(batch, steps, np.broadcast_to(voice, (len(batch), len(voice))), acoustic)

        sounds = batching.bucketed(run, rows, lengths, self._buckets, 1, batching.ALONE_OR_ALL)
        return [Audio(s[: n * self.frame], audio.SAMPLE_RATE) for s, n in zip(sounds, lengths, strict=True)]

    @functools.cached_property
    def _encode(self):
        def encode(samples, lengths, _indices):
            mask = frame_mask(lengths, samples.shape[1] // self.frame)
            return self.codec.encode(mel.log_mel(samples, self.mel), mask)

        return jax.jit(encode)

    @functools.cached_property
    def _voice(self):
        def voice(samples, lengths, _indices):
            mask = frame_mask(lengths, samples.shape[1] // self.frame)
            return self.codec.voice(self.codec.standardize(mel.log_mel(samples, self.mel)), mask)

        return jax.jit(voice)

    @functools.cached_property
    def _decode(self):
        def decode(codes, lengths, voice, acoustic):
            mask = frame_mask(lengths, codes.shape[1])
            if acoustic:
                codes = self._stage.complete(codes[..., 0], self.codec.codebooks[...], mask, voice)
            log_mels = self.codec.decode(codes, mask, voice)
            silent = jnp.repeat(mask, self.settings.stack, 1) == 0
            return mel.invert(jnp.where(silent, jnp.log(self.mel.floor), log_mels), self.mel)

        return jax.jit(decode, static_argnames="acoustic")


def load() -> SpeechTokenizer:
    """The shipped tokenizer (entry point)."""
    return SpeechTokenizer()
