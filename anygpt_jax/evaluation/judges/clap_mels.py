"""What CLAP hears: mel powers in dB, as Transformers' ClapFeatureExtractor gives them for models without fusion."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
from jaxtyping import Float

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation.judges import mels
from anygpt_jax.evaluation.judges.folders import read_json
from anygpt_jax.modalities.audio import resample
from anygpt_jax.modalities.base import Audio

FLOOR = 1e-10  # of a power: -100 dB


@dataclasses.dataclass(frozen=True)
class ClapMels:
    """`length`, `n_fft` and `hop` in samples; `lowest` and `highest` in Hz."""

    sample_rate: int = 48_000
    length: int = 480_000
    n_fft: int = 1024
    hop: int = 480
    mels: int = 64
    lowest: float = 50.0
    highest: float = 14_000.0

    @classmethod
    def from_json(cls, path: pathlib.Path) -> ClapMels:
        """Of a preprocessor_config.json. UserError if it wants other steps than these."""
        config = read_json(path, "ClapModel")
        for name, needed in (("padding", "repeatpad"), ("truncation", "rand_trunc")):
            if config.get(name, needed if name == "padding" else "fusion") != needed:
                raise UserError(
                    f"{path} does not have the {name} '{needed}' of CLAP without fusion; take the one of such a "
                    "ClapModel, such as laion/larger_clap_music."
                )
        rate = config.get("sampling_rate", 48_000)
        return cls(
            sample_rate=rate,
            length=config.get("max_length_s", 10) * rate,
            n_fft=config.get("fft_window_size", 1024),
            hop=config.get("hop_length", 480),
            mels=config.get("feature_size", 64),
            lowest=config.get("frequency_min", 0),
            highest=config.get("frequency_max", 14_000),
        )

    @property
    def frames(self) -> int:
        """T of every sound's mels, whatever its own length: 1,001 as published."""
        return 1 + self.length // self.hop

    def __call__(self, sound: Audio) -> Float[np.ndarray, "T M"]:
        """float32; frame t is centred on sample t · hop, and the sound goes on mirrored at its ends.

        A sound that is shorter than `length` is repeated as often as it fits whole, with silence after it. Of a longer
        one the first `length` samples are heard: a random crop, as the name "rand_trunc" says, would give another score
        each time. ValueError for a sound without samples.
        """
        if not len(sound.samples):
            raise ValueError("the sound has no samples")
        samples = resample(sound, self.sample_rate).samples[: self.length].astype(np.float64)
        samples = np.tile(samples, self.length // len(samples))
        samples = np.pad(samples, (0, self.length - len(samples)))
        padded = np.pad(samples, self.n_fft // 2, mode="reflect")
        bank = mels.filterbank(self.sample_rate, self.n_fft, self.mels, self.lowest, self.highest)
        powers = mels.powers(padded, self.hop, bank)
        return (10 * np.log10(np.maximum(powers, FLOOR))).astype(np.float32)
