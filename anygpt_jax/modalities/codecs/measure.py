"""Quality of a trained tokenizer on splits it never saw: distances, and what the tasks' own judges still hear and see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from anygpt_jax.modalities.audio import SAMPLE_RATE
from anygpt_jax.modalities.base import Audio
from anygpt_jax.modalities.codecs import mel
from anygpt_jax.modalities.codecs.data import Sound
from anygpt_jax.modalities.image import ImageTokenizer
from anygpt_jax.modalities.music import MusicTokenizer
from anygpt_jax.modalities.speech import SpeechTokenizer


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float[N]: peak signal-to-noise ratio of uint8[N, H, W, 3], in dB."""
    error = ((a.astype(np.float32) - b.astype(np.float32)) ** 2).mean((1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(error, 1e-3))


def _ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float[N]: structural similarity (Wang et al. 2004) of uint8[N, H, W, 3], by TensorFlow."""
    import tensorflow as tf

    return tf.image.ssim(tf.constant(a), tf.constant(b), max_val=255).numpy()


def _si_sdr(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019), over the samples both have.

    It compares waveforms: a decoder that makes its own phases, as Griffin-Lim does, is far below 0 dB however good
    it sounds.
    """
    n = min(len(reference), len(estimate))
    reference, estimate = (x[:n].astype(np.float64) - x[:n].mean() for x in (reference, estimate))
    target = reference * (estimate @ reference) / max(reference @ reference, 1e-12)
    return float(10 * np.log10(max(target @ target, 1e-12) / max(((estimate - target) ** 2).sum(), 1e-12)))


def _log_mel_distance(a: Sequence[np.ndarray], b: Sequence[np.ndarray], settings: mel.MelSettings) -> float:
    """Mean absolute difference of log-mels in nats, over the samples both of a pair have."""
    total = []
    for x, y in zip(a, b, strict=True):
        n = min(len(x), len(y)) // settings.hop * settings.hop
        # One length for all: another one would be compiled anew.
        longest = -(-max(map(len, (*a, *b))) // settings.hop) * settings.hop
        pair = mel.log_mel(jnp.asarray([np.pad(s[:n], (0, longest - n)) for s in (x, y)]), settings)
        total.append(float(jnp.abs(pair[0] - pair[1])[: n // settings.hop].mean()))
    return float(np.mean(total))


def median_f0(samples: np.ndarray, sample_rate: int = SAMPLE_RATE) -> float:
    """Median fundamental frequency of the voiced frames in Hz, NaN without any.

    The first peak of the autocorrelation (over what a shorter overlap leaves of it) that comes within a tenth of the
    highest one, between 70 and 400 Hz; a frame of 40 ms is voiced if that is over 0.6 and it is not 20 dB below the
    loudest.
    """
    size, shortest, longest = int(0.04 * sample_rate), sample_rate // 400, sample_rate // 70
    if len(samples) < size:
        return float("nan")
    frames = np.lib.stride_tricks.sliding_window_view(np.asarray(samples, np.float64), size)[:: size // 4]
    frames = frames - frames.mean(1, keepdims=True)
    energy = np.square(frames).sum(1)
    frames = frames[energy > 0.01 * energy.max(initial=0.0)]
    spectrum = np.abs(np.fft.rfft(frames, 2 * size)) ** 2
    curve = np.fft.irfft(spectrum)[:, : longest + 2] * (size / (size - np.arange(longest + 2)))
    curve = curve / np.maximum(curve[:, :1], 1e-12)
    found = []
    for row in curve:
        peaks = np.flatnonzero((row[1:-1] > row[:-2]) & (row[1:-1] >= row[2:])) + 1
        peaks = peaks[peaks >= shortest]
        if len(peaks) and row[peaks].max() > 0.6:
            found.append(sample_rate / peaks[row[peaks] > row[peaks].max() - 0.1][0])
    return float(np.median(found)) if found else float("nan")


def voice_choice(tokenizer: SpeechTokenizer, sounds: Sequence[Sound], count: int = 8) -> dict[str, Any]:
    """Codes of utterances decoded with the prompts of other voices: in whose pitch does the output speak?

    The prompt of a voice is its first utterance, its pitch the median over its utterances. `count` utterances of
    other voices are decoded for each; {} if there is one voice only.
    """
    voices = sorted({s.attributes["voice"] for s in sounds})
    if len(voices) < 2:
        return {}
    pitch = {v: _median([median_f0(s.samples) for s in sounds if s.attributes["voice"] == v]) for v in voices}
    away, nearer = [], []
    for voice in voices:
        prompt = next(s for s in sounds if s.attributes["voice"] == voice)
        others = [s for s in sounds if s.attributes["voice"] != voice][:count]
        spoken = tokenizer.decode(tokenizer.encode(_audio(others)), prompt=Audio(prompt.samples, SAMPLE_RATE))
        for source, output in zip(others, spoken, strict=True):
            hz = median_f0(output.samples)
            from_prompt, from_source = (abs(12 * np.log2(hz / pitch[v])) for v in (voice, source.attributes["voice"]))
            away.append(from_prompt)
            nearer.append(from_prompt < from_source)
    return {
        "n": len(away),
        "semitones_from_the_prompts_voice": round(_median(away), 2),
        "nearer_to_it_than_to_the_source": round(float(np.mean(nearer)), 3),
    }


def image(tokenizer: ImageTokenizer, images: np.ndarray, attributes: Sequence[dict], artist: str) -> dict[str, Any]:
    """Attributes are read off the reconstructions by the independent reader of pixels."""
    from anygpt_jax.tasks.metrics.image import image_attributes, reading_scenes_of

    codes = tokenizer.encode(list(images))
    decoded = tokenizer.decode(codes)
    with reading_scenes_of(artist):
        scores = image_attributes(attributes, decoded)
    return {
        "n": len(images),
        "psnr_db": round(float(psnr(images, np.stack(decoded)).mean()), 2),
        "ssim": round(float(_ssim(images, np.stack(decoded)).mean()), 4),
        "codes_used": len(np.unique(np.stack(codes)[:, 1:])),
        **_rounded(scores),
    }


def music(tokenizer: MusicTokenizer, sounds: Sequence[Sound], training: Sequence[Sound]) -> dict[str, Any]:
    """Instrument and tempo by classifiers fitted on original training clips; pitch by YIN."""
    from anygpt_jax.tasks.metrics.music import MusicJudge
    from anygpt_jax.tasks.metrics.pitch import pitch_share
    from anygpt_jax.tasks.metrics.scores import instrument_scores

    originals = [s.samples for s in sounds]
    codes = tokenizer.encode(_audio(sounds))
    decoded = tokenizer.decode(codes)
    judge = MusicJudge.fit(_audio(training), [dict(s.attributes) for s in training])
    notes = [
        pitch_share(s.attributes["notes"], s.samples, sound.samples, SAMPLE_RATE)
        for s, sound in zip(sounds, decoded, strict=True)
    ]
    right, judged = np.sum(notes, 0)
    books = np.concatenate(codes).reshape(-1, tokenizer.settings.codebooks)
    return {
        "n": len(sounds),
        "log_mel_l1_nats": round(_log_mel_distance(originals, [d.samples for d in decoded], tokenizer.mel), 4),
        "si_sdr_db": _mean_si_sdr(originals, decoded),
        "codes_used": [len(np.unique(column)) for column in books.T],
        "pitch": round(float(right / max(judged, 1)), 4),
        "notes": int(judged),
        **_rounded(instrument_scores([s.attributes for s in sounds], judge.read(decoded))),
    }


def speech(tokenizer: SpeechTokenizer, sounds: Sequence[Sound]) -> dict[str, Any]:
    """Word error rate under the independent recognizer, and log-mel distance, of every way to decode."""
    from anygpt_jax.tasks.metrics.speech import speech_word_error_rate

    codes = tokenizer.encode_all(_audio(sounds))
    semantic = [c[:, 0] for c in codes]
    ways = {
        "original": _audio(sounds),
        "semantic": tokenizer.decode(semantic),
        "semantic_and_acoustic_stage": tokenizer.decode(semantic, acoustic=True),
        "all_codebooks": tokenizer.decode(codes),
    }
    originals = [s.samples for s in sounds]
    targets = [{"text": s.text} for s in sounds]
    return {
        "n": len(sounds),
        "semantic_codes_used": len(np.unique(np.concatenate(semantic))),
        "wer": {name: round(speech_word_error_rate(targets, heard)["wer"], 4) for name, heard in ways.items()},
        "log_mel_l1_nats": {
            name: round(_log_mel_distance(originals, [s.samples for s in heard], tokenizer.mel), 4)
            for name, heard in ways.items()
            if name != "original"
        },
        "si_sdr_db": {name: _mean_si_sdr(originals, heard) for name, heard in ways.items() if name != "original"},
        "prompted_by_another_voice": voice_choice(tokenizer, sounds),
    }


def _mean_si_sdr(originals: Sequence[np.ndarray], decoded: Sequence[Audio]) -> float:
    return round(float(np.mean([_si_sdr(x, y.samples) for x, y in zip(originals, decoded, strict=True)])), 2)


def _median(values: Sequence[float]) -> float:
    return float(np.nanmedian(values))


def _audio(sounds: Sequence[Sound]) -> list[Audio]:
    return [Audio(s.samples, SAMPLE_RATE) for s in sounds]


def _rounded(scores: dict[str, float]) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in scores.items()}
