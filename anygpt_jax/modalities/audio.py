"""Sound in and out: any file libsndfile reads becomes mono float32 at 16 kHz, and sound becomes 16-bit WAV."""

from __future__ import annotations

import io

import numpy as np
import soundfile
import soxr

from anygpt_jax.errors import UserError
from anygpt_jax.modalities.base import Audio

SAMPLE_RATE = 16_000


def resample(audio: Audio, sample_rate: int = SAMPLE_RATE) -> Audio:
    """The same sound at another rate (SoX's high-quality resampler)."""
    if audio.sample_rate == sample_rate:
        return audio
    samples = soxr.resample(audio.samples, audio.sample_rate, sample_rate, quality="HQ")
    return Audio(samples.astype(np.float32), sample_rate)


def load_audio(data: bytes, sample_rate: int = SAMPLE_RATE) -> Audio:
    """Bytes of a WAV, FLAC, OGG, MP3 … file → mono sound; channels are averaged.

    Raises UserError if the file is empty, truncated, not sound, or holds numbers that are not finite.
    """
    if not data:
        raise UserError("The sound file is empty; give a WAV, FLAC, OGG or MP3 file.")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            promised = file.frames
            samples = file.read(dtype="float32", always_2d=True)
            rate = file.samplerate
    except (soundfile.SoundFileError, RuntimeError) as e:
        raise UserError(f"This is not a sound file that can be read ({e}); give a WAV, FLAC, OGG or MP3 file.") from e
    missing = _missing_bytes(data)
    if missing or len(samples) < promised:
        raise UserError(
            f"The sound file is cut short ({missing or promised - len(samples)} {'bytes' if missing else 'samples'} "
            "are missing); copy it again from its source."
        )
    if not np.isfinite(samples).all():
        raise UserError("The sound file holds values that are not finite numbers; export it again as 16-bit WAV.")
    return resample(Audio(samples.mean(1), rate), sample_rate)


def _missing_bytes(data: bytes) -> int:
    """How much shorter a RIFF file is than its data chunk says: libsndfile quietly reads what is there."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return 0
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"data":
            # Writers that stream leave 0 or 2^32 - 1 for a length they did not know.
            return 0 if size >= 0xFFFF_FFF0 else max(0, size - (len(data) - at - 8))
        at += 8 + size + size % 2
    return 0


def save_wav(audio: Audio) -> bytes:
    """16-bit PCM WAV; samples beyond ±1 are clipped."""
    out = io.BytesIO()
    soundfile.write(out, np.clip(audio.samples, -1.0, 1.0), audio.sample_rate, format="WAV", subtype="PCM_16")
    return out.getvalue()


def prepare(audio: Audio, what: str, shortest: int, longest: int, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """float32[N] at `sample_rate` with `shortest` ≤ N ≤ `longest` samples, or UserError with the remedy."""
    samples = np.asarray(resample(audio, sample_rate).samples, np.float32)
    if samples.ndim != 1:
        raise UserError(f"{what.capitalize()} must be mono, float32[T]; this has shape {list(samples.shape)}.")
    if len(samples) < shortest:
        raise UserError(
            f"This {what} is {len(samples) / sample_rate:.3f} s long; "
            f"give at least {shortest / sample_rate:.2f} s of sound."
        )
    if len(samples) > longest:
        raise UserError(
            f"This {what} is {len(samples) / sample_rate:.1f} s long and the tokenizer takes at most "
            f"{longest / sample_rate:.1f} s; cut it first."
        )
    return samples
