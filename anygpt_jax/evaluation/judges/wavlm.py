"""Who speaks, as papers ask it: WavLM-TDNN, whose cosine is the speaker similarity of AnyGPT's table.

This is Hugging Face's WavLMForXVector: microsoft/wavlm-base-plus-sv (or wavlm-base-sv), a WavLM-Base with an x-vector
head trained on VoxCeleb1. UniAudio's compute_similarity_vc.py, which AnyGPT took for its 0.77, uses the former. Cosines
are high: the networks' cards take 0.86 as the least of one voice.

VALL-E and many after it take another network that is called WavLM-TDNN too: UniSpeech's wavlm_large_finetune.pth, a
fine-tuned WavLM-Large with an ECAPA-TDNN. Its figures are on another scale and cannot be set beside these; it is not
supported.
"""

from __future__ import annotations

import bisect
import pathlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation import judges
from anygpt_jax.evaluation.judges.folders import read_json
from anygpt_jax.evaluation.judges.wavlm_network import IGNORED, WavlmConfig, WavlmNetwork, layout
from anygpt_jax.interop.tokenizers import files
from anygpt_jax.modalities.audio import resample
from anygpt_jax.modalities.base import Audio
from anygpt_jax.modalities.codecs import batching, released, weights

SAMPLE_RATE = 16_000
LONGEST = 60 * SAMPLE_RATE  # of a longer sound the beginning is heard: attention is quadratic
LENGTHS = batching.buckets(LONGEST, 2 * SAMPLE_RATE)  # that sounds are padded to: a program each


class Wavlm:
    """A WavLMForXVector on this process's first chip, in full float32. Make it by `load`."""

    def __init__(self, network: WavlmNetwork, normalize: bool):
        self._config, self._normalize = network.config, normalize
        self._run = released.program(WavlmNetwork.__call__, network, exact=True)

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> Wavlm:
        """Of a Hugging Face WavLMForXVector's folder: config.json, preprocessor_config.json, and model.safetensors or
        pytorch_model.bin. UserError if one is missing or does not fit the others."""
        folder = pathlib.Path(folder)
        config = WavlmConfig.from_json(folder / "config.json")
        preprocessing = read_json(folder / "preprocessor_config.json", "WavLMForXVector")
        if (rate := preprocessing.get("sampling_rate", SAMPLE_RATE)) != SAMPLE_RATE:
            raise UserError(
                f"{folder / 'preprocessor_config.json'} asks for {rate} samples a second and WavLM hears {SAMPLE_RATE}; "
                "take the one of a WavLMForXVector."
            )
        tensors = files.read([folder]).tensors

        def build() -> WavlmNetwork:
            return WavlmNetwork(config, rngs=weights.rngs())

        network = judges.filled(build, layout(config), tensors, IGNORED, str(folder))
        return cls(network, preprocessing.get("do_normalize", True))

    def embed(self, sounds: Iterable[Audio]) -> Float[np.ndarray, "N 512"]:
        """float32, of unit length; each of the first minute of a sound.

        Each sound goes by itself, so that its vector does not depend on the others: in a batch of Transformers' the
        silence that fills a shorter one up counts in its norms. What is too short for the network (0.33 s) goes on in
        silence. Sounds are taken one by one, so that thousands may be read as they are needed. ValueError for a sound
        without samples.
        """
        rows = [self._run(*self._padded(sound)) for sound in sounds]
        return np.array(rows, np.float32).reshape(-1, self._config.vector)

    def _padded(self, sound: Audio) -> tuple[Float[np.ndarray, "1 N"], np.ndarray]:
        """(samples, how many of them are the sound's)."""
        if not len(sound.samples):
            raise ValueError("a sound has no samples")
        samples = resample(sound, SAMPLE_RATE).samples[:LONGEST]
        samples = np.pad(samples, (0, max(0, self._config.shortest - len(samples))))
        if self._normalize:  # as Transformers' Wav2Vec2FeatureExtractor
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + np.float32(1e-7))
        padded = LENGTHS[bisect.bisect_left(LENGTHS, len(samples))]
        return np.pad(samples, (0, padded - len(samples)))[None], np.array([len(samples)], np.int32)
