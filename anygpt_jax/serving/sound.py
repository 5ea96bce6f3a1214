"""Sound on its way out: file formats, and speech in pieces that can be played before the rest is there."""

from __future__ import annotations

import io

import numpy as np
import soundfile

from anygpt_jax.modalities.audio import save_wav
from anygpt_jax.modalities.base import Audio, ModalityTokenizer

_CONTAINERS = {"flac": ("FLAC", "PCM_16"), "mp3": ("MP3", None), "opus": ("OGG", "OPUS")}
FIRST = 1.0  # s of the first piece
# s at the end of a prefix whose sound is still unsure: the network looks ahead, and the phases of Griffin-Lim spread.
# Half a second back they agree with those of the whole to 50 dB and more (tests/test_serving_sound.py).
UNSURE = 0.5


def pcm16(samples: np.ndarray) -> bytes:
    """float32[T] in -1..1 → 16 bits, little-endian."""
    return (np.clip(samples, -1.0, 1.0) * 32767).round().astype("<i2").tobytes()


def encode(sound: Audio, kind: str) -> bytes:
    """A sound as wav, flac, mp3, opus (in Ogg) or pcm16 without a header."""
    if kind == "pcm16":
        return pcm16(sound.samples)
    if kind == "wav":
        return save_wav(sound)
    container, subtype = _CONTAINERS[kind]
    out = io.BytesIO()
    soundfile.write(out, np.clip(sound.samples, -1.0, 1.0), sound.sample_rate, format=container, subtype=subtype)
    return out.getvalue()


class Pieces:
    """When a growing sound's codes are decoded, and which samples of that are new.

    A prefix is decoded once there is `FIRST` second of sure sound, and again each time what is sure has doubled, so that
    all of it costs less than three times the whole at once.
    """

    def __init__(self, tokenizer: ModalityTokenizer):
        self._grammar = tokenizer.grammar
        self._rate = tokenizer.rate
        self._unsure = int(np.ceil(UNSURE * tokenizer.rate))
        self._sent = 0  # samples
        self._wanted = int(np.ceil(FIRST * tokenizer.rate)) + self._unsure  # codes

    def due(self, count: int) -> int:
        """How many of the codes so far are to be decoded now; 0 for none yet."""
        if count < self._wanted:
            return 0
        while count and not self._grammar.may_end(count):
            count -= 1
        return count

    def new(self, sound: Audio, codes: int, last: bool) -> np.ndarray:
        """The samples float32[T] to send of what the first `codes` codes decode to."""
        sure = len(sound.samples)
        if not last:
            sure = int((codes - self._unsure) * sound.sample_rate / self._rate)
            self._wanted = 2 * (codes - self._unsure) + self._unsure
        found = sound.samples[self._sent : sure]
        self._sent = max(self._sent, sure)
        return found
