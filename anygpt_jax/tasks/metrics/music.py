"""The judge of music: instrument, tempo, dance and key of a clip, each by a logistic regression on originals.

Its features are textbook ones, computed here from the samples: log-mel statistics for the instrument (timbre),
the autocorrelation of the onset strength for tempo and dance (rhythm), the pitch-class profile for the
key. It is fitted on original clips of the training split and never sees a tokenizer.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from anygpt_jax.cache import write_atomically
from anygpt_jax.errors import UserError
from anygpt_jax.modalities.base import Audio
from anygpt_jax.tasks.metrics.melody import melody_scores
from anygpt_jax.tasks.metrics.memory import Memory
from anygpt_jax.tasks.metrics.scores import MUSIC_ATTRIBUTES, instrument_scores
from anygpt_jax.tasks.metrics.sound import SAMPLE_RATE, is_audible, normalized, spectrogram

HOP = 160  # 10 ms
WINDOW = 1024
BANDS = 64
LONGEST_LAG = 200  # hops: 2 s


@functools.cache
def _mel_matrix() -> Float[np.ndarray, "bins bands"]:
    """Triangles of equal area over 50..7600 Hz on the mel scale 2595 log10(1 + f / 700)."""
    mel = np.linspace(2595 * np.log10(1 + 50 / 700), 2595 * np.log10(1 + 7600 / 700), BANDS + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    bins = np.fft.rfftfreq(WINDOW, 1 / SAMPLE_RATE)[:, None]
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle))
    return np.maximum(triangles, 0) / (high - low) * 100


def _log_mel(samples: np.ndarray) -> Float[np.ndarray, "frames bands"]:
    return np.log(spectrogram(samples, WINDOW, HOP) @ _mel_matrix() + 1e-3)


def timbre(samples: np.ndarray) -> np.ndarray:
    """Mean, spread and mean absolute change of every mel band, over the frames that sound."""
    mel = _log_mel(samples)
    loudness = mel.mean(1)
    sounding = mel[loudness > np.percentile(loudness, 25)]
    change = np.abs(np.diff(mel, axis=0)).mean(0)
    return np.concatenate([sounding.mean(0) - sounding.mean(), sounding.std(0), change])


def rhythm(samples: np.ndarray) -> np.ndarray:
    """Autocorrelation of the onset strength at lags from 80 ms to 2 s."""
    rise = np.maximum(np.diff(_log_mel(samples), axis=0), 0).mean(1)
    rise = rise - rise.mean()
    size = 2 ** int(np.ceil(np.log2(2 * len(rise) + LONGEST_LAG)))
    correlation = np.fft.irfft(np.abs(np.fft.rfft(rise, size)) ** 2)[: LONGEST_LAG + 1]
    return correlation[8:] / max(correlation[0], 1e-9)


def profile(samples: np.ndarray) -> Float[np.ndarray, " 24"]:
    """Loudness of the twelve pitch classes: over the whole clip, and over its last second."""
    window, hop = 4096, 1024
    spectrum = np.sqrt(spectrogram(samples, window, hop))
    hz = np.fft.rfftfreq(window, 1 / SAMPLE_RATE)
    heard = (hz > 180) & (hz < 2100)
    classes = np.round(69 + 12 * np.log2(hz[heard] / 440)).astype(int) % 12
    chroma = np.stack([spectrum[:, heard][:, classes == c].sum(1) for c in range(12)], axis=1)
    last = chroma[-SAMPLE_RATE // hop :]
    return np.concatenate([part.sum(0) / max(part.sum(), 1e-9) for part in (chroma, last)]) * 12


FEATURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "instrument": timbre,
    "tempo": rhythm,
    "dance": rhythm,
    "key": profile,
}


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A fitted multinomial logistic regression on standardized features."""

    classes: tuple[str, ...]
    mean: np.ndarray  # [features]
    scale: np.ndarray  # [features]
    weights: np.ndarray  # [classes, features]
    bias: np.ndarray  # [classes]

    @classmethod
    def fit(cls, features: np.ndarray, labels: Sequence[str], strength: float) -> Classifier:
        """`features` [clips, features], a label a clip, of two kinds at least; `strength` is inverse regularization."""
        from sklearn.linear_model import LogisticRegression

        mean, scale = features.mean(0), features.std(0) + 1e-6
        model = LogisticRegression(C=strength, max_iter=500).fit((features - mean) / scale, labels)
        weights, bias = model.coef_, model.intercept_
        if len(model.classes_) == 2:  # scikit-learn keeps one row for two classes
            weights, bias = np.concatenate([-weights, weights]), np.concatenate([-bias, bias])
        return cls(tuple(map(str, model.classes_)), mean, scale, weights, bias)

    def predict(self, features: np.ndarray) -> list[str]:
        """The likeliest class of each clip; `features` are [clips, features]."""
        scores = (features - self.mean) / self.scale @ self.weights.T + self.bias
        return [self.classes[i] for i in scores.argmax(1)]


# Inverse regularization: timbre separates cleanly, the others have little data for their noise.
STRENGTH = {"instrument": 0.1, "tempo": 0.02, "dance": 0.02, "key": 0.1}


@dataclasses.dataclass(frozen=True)
class MusicJudge:
    """One classifier for each attribute of a tune."""

    classifiers: dict[str, Classifier]

    @classmethod
    def fit(cls, clips: Sequence[Audio], attributes: Sequence[dict]) -> MusicJudge:
        """Learns from original clips what their attributes sound like."""
        features = _features(clips)
        labels = {name: [str(a[name]) for a in attributes] for name in FEATURES if all(name in a for a in attributes)}
        return cls(
            {
                name: Classifier.fit(features[FEATURES[name]], values, STRENGTH[name])
                for name, values in labels.items()
                if len(set(values)) > 1
            }
        )

    def read(self, clips: Sequence[Audio | None]) -> list[dict[str, str]]:
        """The attributes of every clip; none for a missing or silent one."""
        audible = {i: clip for i, clip in enumerate(clips) if clip is not None and is_audible(clip)}
        readings: list[dict[str, str]] = [{} for _ in clips]
        if audible:
            features = _features(list(audible.values()))
            for name, classifier in self.classifiers.items():
                for i, value in zip(audible, classifier.predict(features[FEATURES[name]]), strict=True):
                    readings[i][name] = value
        return readings

    def save(self, path: pathlib.Path) -> None:
        """JSON, written whole or not at all."""
        as_lists = {
            name: {field.name: np.asarray(getattr(c, field.name)).tolist() for field in dataclasses.fields(Classifier)}
            for name, c in self.classifiers.items()
        }
        write_atomically(path, json.dumps(as_lists).encode())

    @classmethod
    def load(cls, path: pathlib.Path) -> MusicJudge:
        """One that was saved; FileNotFoundError if it was not."""
        as_lists = json.loads(path.read_text())
        return cls(
            {
                name: Classifier(tuple(f["classes"]), *(np.array(f[k]) for k in ("mean", "scale", "weights", "bias")))
                for name, f in as_lists.items()
            }
        )


def _features(clips: Sequence[Audio]) -> dict[Callable, np.ndarray]:
    """Every kind of features, [clips, features], of clips brought to 16 kHz and a common loudness."""
    sounds = [normalized(clip) for clip in clips]
    return {kind: np.stack([kind(sound) for sound in sounds]) for kind in dict.fromkeys(FEATURES.values())}


_in_use: list[Memory[dict[str, str]]] = []


def use_judge(fit: Callable[[], MusicJudge]) -> None:
    """Sets the judge of this process, fitted when it is first asked.

    SeqIO's metric functions have no argument to carry it.
    """
    judge = functools.cache(fit)
    _in_use[:] = [Memory(lambda clips: judge().read(clips))]


def read_music(clips: Sequence[Audio | None]) -> list[dict[str, str]]:
    """What the judge in use hears in every clip."""
    if not _in_use:
        raise UserError("No judge of music is set; run `anygpt evaluate`, or set one with `use_judge`.")
    return _in_use[0](clips)


def music_attributes(targets: Sequence[dict], predictions: Sequence[Audio | None]) -> dict[str, float]:
    """Music: the share with the right instrument; tempo, dance and key beside it, and what a melody says untrained."""
    heard = instrument_scores(targets, read_music(predictions), MUSIC_ATTRIBUTES)
    return heard | melody_scores(targets, predictions)
