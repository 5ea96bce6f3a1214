"""Who speaks: deterministic synthetic voices with fixed roles, mono at 16 kHz.

hibari is a neural voice; at another pitch (its sound resampled, its pace kept) it passes for another speaker.
espeak-ng is a formant synthesizer, further from human speech: the model learns to understand it, not to
imitate it.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from typing import Literal

import numpy as np
from jaxtyping import Float32

from anygpt_jax.embedded import assets, espeak
from anygpt_jax.errors import UserError
from anygpt_jax.modalities.base import Audio

SAMPLE_RATE = 16_000
MARGIN = 0.08  # seconds of zeros before and after the words
LEVEL = 0.08  # root mean square of an utterance
HIBARI_RATE = 24_000


@dataclasses.dataclass(frozen=True)
class Voice:
    """`role`: "tts" voices are heard and imitated, "asr" ones only heard, the "held_out" one only tested."""

    name: str
    engine: Literal["hibari", "espeak"]
    role: Literal["tts", "asr", "held_out"]
    pitch: float = 1.0  # hibari: factor on pitch and formants
    speed: float = 1.0  # hibari: factor on pace
    variant: str = ""  # espeak: the voice's own name
    words_per_minute: int = 165  # espeak


VOICES: dict[str, Voice] = {
    v.name: v
    for v in (
        Voice("ada", "hibari", "tts", 1.0, 1.15),
        Voice("ben", "hibari", "tts", 0.88, 1.1),
        Voice("cleo", "hibari", "tts", 1.09, 1.1),
        Voice("espeak-eva", "espeak", "asr", variant="en-us+f2"),
        Voice("espeak-flo", "espeak", "asr", variant="en-us+f5"),
        Voice("dora", "hibari", "held_out", 0.82, 1.0),
    )
}


def names(role: str) -> tuple[str, ...]:
    """The voices with a role, in a fixed order."""
    return tuple(v.name for v in VOICES.values() if v.role == role)


@functools.cache
def _hibari():
    assets.require("hibari")
    from hibari import Hibari

    return Hibari(threads=1)  # more threads are slower: the network is small


def _trim(samples: np.ndarray) -> np.ndarray:
    """Cuts all silence (10-ms frames below 2 % of the peak) at both ends, and puts `MARGIN` of zeros there."""
    frame = SAMPLE_RATE // 100
    whole = len(samples) // frame * frame
    level = np.abs(samples[:whole].reshape(-1, frame)).max(axis=1)
    loud = np.flatnonzero(level > 0.02 * level.max())
    margin = int(MARGIN * SAMPLE_RATE)
    inside = samples[loud[0] * frame : (loud[-1] + 1) * frame]
    return np.pad(inside, margin)


@functools.cache
def _voice(name: str) -> Voice:
    if name not in VOICES:
        raise UserError(f"Unknown voice '{name}'; there are {', '.join(VOICES)}.")
    return VOICES[name]


def synthesize(text: str, voice: str = "ada") -> Audio:
    """Speech: float32 mono at 16 kHz. The same text and voice always give the same samples."""
    import soxr

    v = _voice(voice)
    if v.engine == "hibari":
        # Played back `pitch` times as fast; the synthesis speed makes up for it in the pace.
        samples: Float32[np.ndarray, " samples"] = _hibari()(text, speed=v.speed / v.pitch, seed=0)
        rate = HIBARI_RATE * v.pitch
    else:
        samples, rate = espeak.speak(text, v.variant, v.words_per_minute)
    if not samples.any():
        raise UserError(f"Voice '{voice}' has nothing to say for the text {text!r}.")
    samples = _trim(soxr.resample(samples, rate, SAMPLE_RATE).astype(np.float32))
    samples *= LEVEL / np.sqrt(np.mean(samples**2))
    return Audio(np.clip(samples, -1, 1), SAMPLE_RATE)


def encode_flac(audio: Audio) -> bytes:
    """16-bit FLAC."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, audio.samples, audio.sample_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()
