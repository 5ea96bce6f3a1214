"""Mel powers as librosa has them since version 0.10, on Slaney's scale (1998, Auditory Toolbox).

The scale is linear up to 1 kHz, at 200/3 Hz a mel, and logarithmic above, where 27 mels are a factor of 6.4.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from jaxtyping import Float


def _mel(hz: float) -> float:
    return hz * 3 / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)


def _hz(mel: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))


@functools.cache
def filterbank(
    sample_rate: int, n_fft: int, mels: int, lowest: float, highest: float
) -> Float[np.ndarray, "bins mels"]:
    """Triangles of area 1 over frequencies in Hz, their corners equally spaced on the scale."""
    corners = _hz(np.linspace(_mel(lowest), _mel(highest), mels + 2))
    bins = np.linspace(0, sample_rate / 2, n_fft // 2 + 1)[:, None]
    rising = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (corners[2:] - corners[:-2])


def powers(
    padded: Float[np.ndarray, " N"], hop: int, bank: Float[np.ndarray, "bins mels"]
) -> Float[np.ndarray, "T mels"]:
    """Of every whole window of a sound, `hop` samples apart: squared magnitudes under a periodic Hann window."""
    n_fft = 2 * (len(bank) - 1)
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    return np.abs(np.fft.rfft(frames * window)) ** 2 @ bank
