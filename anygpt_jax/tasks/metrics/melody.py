"""What a melody's sound says without any training: how fast its notes run, and whether they lie on a scale."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from anygpt_jax.modalities.base import Audio
from anygpt_jax.tasks.metrics import pitch
from anygpt_jax.tasks.metrics.memory import Memory
from anygpt_jax.tasks.metrics.sound import SAMPLE_RATE, is_audible, normalized, spectrogram

ONSET_HOP = 80  # samples: 5 ms
ONSET_WINDOW = 1024
SHORTEST = 1.0  # seconds
ONSET_HZ = (120, 6000)
RISE = 4  # hops over which a rise is measured
# Candidate rates, notes a second: each 0.6 % faster than the one before.
RATES = np.geomspace(1.8, 8.0, 250)
BETWEEN = 0.3  # weight of the autocorrelation between the multiples of a period, where there should be none
USUAL_RATE, OCTAVES, PRIOR = 5.0, 0.6, 0.2  # the prior's centre, its width in log(rate), its weight
TOLERANCE = 0.1  # of the right rate
PITCH_HOP = 512  # samples: 32 ms
LOUD = 0.1  # of the clip's mean square
NATURALS = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}
STEPS = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10, 11)}  # the seventh natural and raised


@dataclasses.dataclass(frozen=True, eq=False)
class Melody:
    """`rate`: running notes a second; `classes`: float[12], frames of each pitch class, counted from c."""

    rate: float
    classes: np.ndarray


def _onset_strength(samples: Float[np.ndarray, " samples"]) -> Float[np.ndarray, " hops"]:
    """How much louder the spectrum gets in 20 ms, every 5 ms: mean rise of the log magnitudes."""
    padded = np.pad(samples, ONSET_WINDOW // 2)
    hz = np.fft.rfftfreq(ONSET_WINDOW, 1 / SAMPLE_RATE)
    heard = (hz > ONSET_HZ[0]) & (hz < ONSET_HZ[1])
    # The floor keeps noise between the partials from counting.
    levels = np.log(spectrogram(padded, ONSET_WINDOW, ONSET_HOP)[:, heard] + 0.5)
    return np.maximum(levels[RISE:] - levels[:-RISE], 0).mean(1)


@functools.cache
def _comb(lags: int) -> Float[np.ndarray, "rates lags"]:
    """Every rate's weights on the autocorrelation: its multiples for, and halfway between them against."""
    weights = np.zeros((len(RATES), lags))
    for row, rate in zip(weights, RATES, strict=True):
        period = SAMPLE_RATE / ONSET_HOP / rate
        count = int((lags - 2) / period)
        for position in np.arange(1, 2 * count + 1) * period / 2:
            weight = 1 / count if round(position / period * 2) % 2 == 0 else -BETWEEN / count
            below = int(position)
            row[below] += weight * (below + 1 - position)
            row[below + 1] += weight * (position - below)
    return weights


def note_rate(samples: Float[np.ndarray, " samples"]) -> float:
    """Running notes a second of a clip at 16 kHz, between 1.8 and 8; NaN if it has no onsets or is under a second.

    The autocorrelation of the onset strength at multiples of a rate's period, less a part of what lies halfway
    between them (where a rate of half the true one would find notes). A rate and its octaves explain one rhythm
    almost equally well; a wide log-normal prior around 5 notes a second decides between them.
    """
    if len(samples) < SHORTEST * SAMPLE_RATE:
        return float("nan")
    strength = _onset_strength(samples)
    strength = strength - strength.mean()
    lags = len(strength) * 5 // 6
    power = float(np.square(strength).sum())
    if power < 1e-9:
        return float("nan")
    size = 2 ** int(np.ceil(np.log2(2 * len(strength))))
    correlation = np.fft.irfft(np.abs(np.fft.rfft(strength, size)) ** 2)[:lags] / power
    # Longer lags have fewer terms.
    correlation /= np.maximum(1 - np.arange(lags) / len(strength), 0.2)
    prior = -0.5 * np.square(np.log(RATES / USUAL_RATE) / OCTAVES)
    return float(RATES[np.argmax(_comb(lags) @ correlation + PRIOR * prior)])


def pitch_classes(samples: Float[np.ndarray, " samples"]) -> Float[np.ndarray, " 12"]:
    """Frames of each pitch class, counted from c, of a clip at 16 kHz.

    A frame counts if it is loud and periodic, and if the frame before or after it has the same note: glides and
    the overlap of two notes have none for long. Pitches are rounded relative to the clip's own tuning, the circular
    mean of their distances from the nearest semitone: an accordion's two reeds sound up to half a semitone flat.
    """
    length = pitch.frame_length(SAMPLE_RATE)
    if len(samples) < length:
        return np.zeros(12)
    frames = np.lib.stride_tricks.sliding_window_view(samples, length)[::PITCH_HOP].astype(np.float64)
    loud = np.square(frames).mean(1) > LOUD * np.square(samples).mean()
    pitches = pitch.to_midi(np.where(loud, pitch.yin(frames, SAMPLE_RATE), np.nan))
    around = np.exp(2j * np.pi * pitches[~np.isnan(pitches)]).sum()
    notes = np.round(pitches - np.angle(around) / (2 * np.pi))
    same = notes[1:] == notes[:-1]  # never for NaN
    held = np.append(same, False) | np.insert(same, 0, False)
    return np.bincount(notes[held].astype(int) % 12, minlength=12).astype(float)


def scale(key: str) -> list[int]:
    """Pitch classes of a key such as "b flat major" or "e minor", its seventh both natural and raised."""
    tonic, *accidental, mode = key.split()
    first = NATURALS[tonic] + {"flat": -1, "sharp": 1}.get("".join(accidental), 0)
    return [(first + step) % 12 for step in STEPS[mode]]


def _listen(clips: Sequence[Audio | None]) -> list[Melody]:
    sounds = [normalized(clip) if clip is not None and is_audible(clip) else None for clip in clips]
    silent = Melody(float("nan"), np.zeros(12))
    return [silent if sound is None else Melody(note_rate(sound), pitch_classes(sound)) for sound in sounds]


listen = Memory(_listen)


def melody_scores(targets: Sequence[dict], predictions: Sequence[Audio | None]) -> dict[str, float]:
    """Over the targets with a tempo or a key, respectively; nothing for what no target has.

    "tempo_within_10" is the share of clips whose notes run at the target's rate within 10 %, "on_scale" the mean
    share of a clip's sound that lies on the scale of the target's key (none of it in a clip without pitch).
    """
    from anygpt_jax.embedded import tunes

    melodies = listen(predictions)
    scores = {}
    rates = [
        (tunes.NOTES_PER_SECOND[t["tempo"]], m.rate) for t, m in zip(targets, melodies, strict=True) if "tempo" in t
    ]
    if rates:
        scores["tempo_within_10"] = float(np.mean([abs(heard / right - 1) < TOLERANCE for right, heard in rates]))
    keys = [(t["key"], m.classes) for t, m in zip(targets, melodies, strict=True) if "key" in t]
    if keys:
        shares = [classes[scale(key)].sum() / max(classes.sum(), 1) for key, classes in keys]
        scores["on_scale"] = float(np.mean(shares))
    return scores
