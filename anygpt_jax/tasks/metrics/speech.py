"""Judges of speech: what an independent recognizer hears.

The recognizer is pocketsphinx with its own acoustic model, kept to the sentences of the embedded world by
a grammar. The grammar gives no free score: noise, and another sentence's text, are near 100 % errors
(tests/test_metrics_speech.py).
"""

from __future__ import annotations

import concurrent.futures
import functools
import multiprocessing
import os
from collections.abc import Sequence

import numpy as np

from anygpt_jax.modalities.base import Audio
from anygpt_jax.tasks.metrics.memory import Memory
from anygpt_jax.tasks.metrics.scores import IMAGE_ATTRIBUTES, MUSIC_ATTRIBUTES, attribute_scores, instrument_scores
from anygpt_jax.tasks.metrics.text import corpus_word_error_rate, parse_attributes, unspoken_word_recall

SAMPLE_RATE = 16_000
SILENCE = 0.25  # seconds before and after: the recognizer misses words that touch the edge
WORKERS_FROM = 24  # fewer utterances are not worth the start of other processes


def _recognise(speech: Sequence[Audio | None]) -> list[str]:
    pcm = [b"" if audio is None else samples16(audio) for audio in speech]
    if _pool.cache_info().currsize == 0 and (len(pcm) < WORKERS_FROM or WORKERS == 1):
        return [_hear(utterance) for utterance in pcm]
    return list(_pool().map(_hear, pcm, chunksize=2))


WORKERS = min(os.cpu_count() or 1, 4)
_remembered = Memory(_recognise)


def recognise(speech: Sequence[Audio | None]) -> list[str]:
    """The words heard in each recording, "" for none. Uses the machine's cores for a long list."""
    return _remembered(speech)


@functools.cache
def _pool() -> concurrent.futures.ProcessPoolExecutor:
    # pocketsphinx holds the interpreter's lock; "spawn", as JAX's threads do not survive a fork.
    return concurrent.futures.ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn"))


def samples16(audio: Audio) -> bytes:
    """16-bit samples at 16 kHz at a common loudness, with silence around."""
    samples = np.asarray(audio.samples, np.float32)
    if audio.sample_rate != SAMPLE_RATE:
        import scipy.signal

        samples = scipy.signal.resample_poly(samples, SAMPLE_RATE, audio.sample_rate)
    peak = float(np.abs(samples).max(initial=0.0))
    samples = np.pad(samples / max(peak, 1e-3) * 0.7, int(SILENCE * SAMPLE_RATE))
    return (samples * 32767).astype("<i2").tobytes()


@functools.cache
def _decoder():
    import tempfile

    import pocketsphinx

    from anygpt_jax.embedded import automaton, sentences

    with tempfile.NamedTemporaryFile("w", suffix=".fsg") as file:
        file.write(automaton.to_fsg(sentences.recognizer()))
        file.flush()
        return pocketsphinx.Decoder(samprate=SAMPLE_RATE, fsg=file.name, lm=None, loglevel="FATAL")


def _hear(pcm: bytes) -> str:
    if not pcm:
        return ""
    decoder = _decoder()
    decoder.start_utt()
    decoder.process_raw(pcm, full_utt=True)
    decoder.end_utt()
    heard = decoder.hyp()
    return heard.hypstr if heard else ""


def speech_word_error_rate(targets: Sequence[dict], predictions: Sequence[Audio | None]) -> dict[str, float]:
    """Words heard against the targets' "text"."""
    return {"wer": corpus_word_error_rate([t["text"] for t in targets], recognise(predictions))}


def spoken_image_attributes(targets: Sequence[dict], predictions: Sequence[Audio | None]) -> dict[str, float]:
    """Spoken descriptions of images: the share of the reference's attributes that are heard."""
    readings = [parse_attributes(text, IMAGE_ATTRIBUTES) for text in recognise(predictions)]
    return attribute_scores(targets, readings, IMAGE_ATTRIBUTES)


def spoken_music_attributes(targets: Sequence[dict], predictions: Sequence[Audio | None]) -> dict[str, float]:
    """Spoken descriptions of music: the share that names the right instrument."""
    return instrument_scores(targets, [parse_attributes(text, MUSIC_ATTRIBUTES) for text in recognise(predictions)])


def heard_unspoken_word_recall(targets: Sequence[dict], predictions: Sequence[Audio | None]) -> dict[str, float]:
    """`unspoken_word_recall` of what the recognizer hears."""
    return unspoken_word_recall(targets, recognise(predictions))
