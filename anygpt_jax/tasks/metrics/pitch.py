"""YIN: the pitch of a note, for what a melody's notes are and which of them survive a music tokenizer.

Source: A. de Cheveigné, H. Kawahara, "YIN, a fundamental frequency estimator for speech and music",
JASA 111(4), 2002, steps 2 to 5.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

LOWEST_HZ = 130.0  # the lowest note of a transposed tune has 138 Hz
WINDOW = 1024  # samples at 16 kHz: 64 ms, some eight periods of the lowest note
THRESHOLD = 0.15
INTO_THE_NOTE = 0.06  # seconds after the onset, past the attack


def frame_length(sample_rate: int) -> int:
    """Samples of a frame that `yin` takes: `WINDOW` and one longest period beyond."""
    return WINDOW + int(sample_rate / LOWEST_HZ)


def yin(
    frames: Float[np.ndarray, "n samples"], sample_rate: int, threshold: float = THRESHOLD
) -> Float[np.ndarray, " n"]:
    """Fundamental frequency in Hz of every frame; NaN where the frame is not periodic.

    A frame holds a window (`WINDOW` samples or others) and one longest period beyond.
    """
    longest = int(sample_rate / LOWEST_HZ)
    window = frames.shape[1] - longest
    if window < longest:
        raise ValueError(f"a frame needs at least {2 * longest} samples at {sample_rate} Hz, got {frames.shape[1]}")
    # Sum of (x[t] - x[t + lag])² over the window as energies less twice the correlation, the latter by FFT.
    size = 2 ** int(np.ceil(np.log2(frames.shape[1])))
    spectrum = np.fft.rfft(frames, size)
    correlation = np.fft.irfft(spectrum * np.fft.rfft(frames[:, :window], size).conj(), size)[:, : longest + 1]
    summed = np.pad(np.cumsum(np.square(frames), axis=1), ((0, 0), (1, 0)))
    energy = summed[:, window:] - summed[:, : longest + 1]
    difference = np.maximum(energy[:, :1] + energy - 2 * correlation, 0)
    # Cumulative mean normalized difference: 1 at lag 0, small at the period.
    running = np.cumsum(difference[:, 1:], axis=1) / np.arange(1, longest + 1)
    normalized = np.ones_like(difference)
    normalized[:, 1:] = difference[:, 1:] / np.maximum(running, 1e-12)
    return _periods_to_hz(normalized, sample_rate, threshold)


def _periods_to_hz(curves: np.ndarray, sample_rate: int, threshold: float) -> np.ndarray:
    """The bottom of the first dip below the threshold, refined by a parabola."""
    lags = np.arange(curves.shape[1])
    below = (curves < threshold) & (lags >= 2) & (lags < lags[-1])
    first = below.argmax(1)
    rises = np.diff(curves, axis=1, append=np.inf) >= 0
    rises[:, -2] = True  # the parabola needs a neighbour
    lag = (rises & (lags >= first[:, None])).argmax(1)
    lag = np.clip(lag, 1, lags[-1] - 1)
    rows = np.arange(len(curves))
    before, here, after = (curves[rows, lag + shift] for shift in (-1, 0, 1))
    bend = before - 2 * here + after
    shift = np.where(bend > 0, 0.5 * (before - after) / np.where(bend > 0, bend, 1), 0.0)
    return np.where(below.any(1), sample_rate / (lag + np.clip(shift, -1, 1)), np.nan)


def to_midi(hz: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """MIDI pitch (fractional): 69 at 440 Hz, 12 an octave."""
    return 69 + 12 * np.log2(hz / 440)


def note_pitches(samples: np.ndarray, sample_rate: int, onsets: np.ndarray) -> np.ndarray:
    """MIDI pitch (fractional) shortly after every onset (s); NaN where there is none or the clip has ended."""
    length = frame_length(sample_rate)
    starts = ((np.asarray(onsets) + INTO_THE_NOTE) * sample_rate).astype(int)
    pitches = np.full(len(starts), np.nan)
    inside = (starts >= 0) & (starts + length <= len(samples))
    if not inside.any():
        return pitches
    frames = np.stack([samples[s : s + length] for s in starts[inside]]).astype(np.float64)
    loud = np.square(frames).mean(1) > 1e-6
    hz = np.where(loud, yin(frames, sample_rate), np.nan)
    pitches[inside] = to_midi(hz)
    return pitches


def pitch_share(
    notes: list[tuple[float, float]], original: np.ndarray, reconstruction: np.ndarray, sample_rate: int
) -> tuple[int, int]:
    """(notes whose pitch is right in the reconstruction, notes judged), within 50 cents of the score.

    Judged are the notes on which YIN agrees with the score in the original: elsewhere (grace notes,
    ringing strings) the judge, not the tokenizer, would be measured.
    """
    if not notes:
        return 0, 0
    onsets, midi = np.array(notes, np.float64).T
    judged = np.abs(note_pitches(original, sample_rate, onsets) - midi) < 0.5
    kept = np.abs(note_pitches(reconstruction, sample_rate, onsets) - midi) < 0.5
    return int((judged & kept).sum()), int(judged.sum())
