"""YIN: the pitch of a note, for the share of notes whose pitch survives a music tokenizer.

Source: A. de Cheveigné, H. Kawahara, "YIN, a fundamental frequency estimator for speech and music",
JASA 111(4), 2002, steps 2 to 5.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

LOWEST_HZ = 150.0
WINDOW = 1024  # samples at 16 kHz: 64 ms, some ten periods of the lowest note
THRESHOLD = 0.15
INTO_THE_NOTE = 0.06  # seconds after the onset, past the attack


def yin(
    frames: Float[np.ndarray, "n window"], sample_rate: int, threshold: float = THRESHOLD
) -> Float[np.ndarray, " n"]:
    """Fundamental frequency in Hz of every frame; NaN where the frame is not periodic.

    A frame holds `WINDOW` samples and one longest period beyond.
    """
    longest = int(sample_rate / LOWEST_HZ)
    window = frames.shape[1] - longest
    if window < longest:
        raise ValueError(f"a frame needs at least {2 * longest} samples at {sample_rate} Hz, got {frames.shape[1]}")
    head = frames[:, :window]
    difference = np.stack(
        [np.square(head - frames[:, lag : lag + window]).sum(1) for lag in range(longest + 1)], axis=1
    )
    # Cumulative mean normalized difference: 1 at lag 0, small at the period.
    running = np.cumsum(difference[:, 1:], axis=1) / np.arange(1, longest + 1)
    normalized = np.ones_like(difference)
    normalized[:, 1:] = difference[:, 1:] / np.maximum(running, 1e-12)
    return np.array([_period_to_hz(row, sample_rate, threshold) for row in normalized])


def _period_to_hz(curve: np.ndarray, sample_rate: int, threshold: float) -> float:
    below = np.flatnonzero(curve[2:-1] < threshold)
    if not len(below):
        return float("nan")
    lag = int(below[0]) + 2
    while lag + 1 < len(curve) - 1 and curve[lag + 1] < curve[lag]:
        lag += 1
    before, here, after = curve[lag - 1 : lag + 2]
    bend = before - 2 * here + after
    shift = 0.5 * (before - after) / bend if bend > 0 else 0.0
    return sample_rate / (lag + float(np.clip(shift, -1, 1)))


def note_pitches(samples: np.ndarray, sample_rate: int, onsets: np.ndarray) -> np.ndarray:
    """MIDI pitch (fractional) shortly after every onset (s); NaN where there is none or the clip has ended."""
    length = WINDOW + int(sample_rate / LOWEST_HZ)
    starts = ((np.asarray(onsets) + INTO_THE_NOTE) * sample_rate).astype(int)
    pitches = np.full(len(starts), np.nan)
    inside = (starts >= 0) & (starts + length <= len(samples))
    if not inside.any():
        return pitches
    frames = np.stack([samples[s : s + length] for s in starts[inside]]).astype(np.float64)
    loud = np.square(frames).mean(1) > 1e-6
    hz = np.where(loud, yin(frames, sample_rate), np.nan)
    pitches[inside] = 69 + 12 * np.log2(hz / 440)
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
