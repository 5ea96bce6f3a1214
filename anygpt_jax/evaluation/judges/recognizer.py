"""What a recognizer of free English hears: pocketsphinx with the models in its package.

A small one: of clean synthetic speech it mistakes one word in seven (ordinary sentences) to two in five (this project's
descriptions of pictures). Papers take Whisper; a rate is to be held against that of the originals by this recognizer.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from anygpt_jax.modalities.base import Audio
from anygpt_jax.tasks.metrics.speech import SAMPLE_RATE, samples16


@functools.cache
def _decoder() -> Any:
    import pocketsphinx

    return pocketsphinx.Decoder(samprate=SAMPLE_RATE, loglevel="FATAL")


def heard(sounds: Sequence[Audio]) -> list[str]:
    """The words of each sound, "" for none."""
    return [_words(samples16(sound)) for sound in sounds]


def _words(samples: bytes) -> str:
    decoder = _decoder()
    decoder.start_utt()
    decoder.process_raw(samples, full_utt=True)
    decoder.end_utt()
    found = decoder.hyp()
    return "" if found is None else found.hypstr
