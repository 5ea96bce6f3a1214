"""What every judge of music starts from: clips at one rate and loudness, and their spectrogram."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from anygpt_jax.modalities.base import Audio

SAMPLE_RATE = 16_000


def normalized(clip: Audio) -> Float[np.ndarray, " samples"]:
    """The samples at 16 kHz with a root mean square of 0.1."""
    samples = np.asarray(clip.samples, np.float32)
    if clip.sample_rate != SAMPLE_RATE:
        import scipy.signal

        samples = scipy.signal.resample_poly(samples, SAMPLE_RATE, clip.sample_rate)
    return samples / max(float(np.sqrt(np.mean(np.square(samples)))), 1e-6) * 0.1


def is_audible(clip: Audio) -> bool:
    """Whether the root mean square is above -60 dB of full scale; an empty clip's is not."""
    return len(clip.samples) > 0 and float(np.sqrt(np.mean(np.square(clip.samples)))) > 1e-3


def spectrogram(samples: Float[np.ndarray, " samples"], window: int, hop: int) -> Float[np.ndarray, "frames bins"]:
    """Magnitudes of Hann-windowed frames."""
    samples = np.pad(samples, (0, max(0, window - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop]
    return np.abs(np.fft.rfft(frames * np.hanning(window).astype(np.float32), axis=1))
