"""CLAP (Wu et al. 2023, arXiv 2211.06687): sounds and texts in one space, where the cosine is their likeness.

The "CLAP score" of music papers is the mean cosine of a sound and a text, by LAION's networks. Each network has its own
scale: figures of two of them cannot be set beside each other, and papers seldom say which one they took.
"""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation import judges
from anygpt_jax.evaluation.judges import folders
from anygpt_jax.evaluation.judges.clap_mels import ClapMels
from anygpt_jax.evaluation.judges.clap_network import IGNORED, ClapConfig, ClapNetwork, layout
from anygpt_jax.evaluation.judges.clap_roberta import RobertaSettings
from anygpt_jax.interop.tokenizers import files
from anygpt_jax.modalities.base import Audio
from anygpt_jax.modalities.codecs import batching, released, weights

BATCH = 8
TOKENS = 77  # of a text, where LAION's training and its package laion_clap cut it off


class Clap:
    """A ClapModel on this process's first chip, in full float32. Make it by `load`."""

    def __init__(
        self,
        network: ClapNetwork,
        mels: ClapMels,
        tokenize: Callable[[Sequence[str]], Int[np.ndarray, "B N"]],
        width: int,
    ):
        self.mels, self._tokenize, self.width = mels, tokenize, width
        self._sounds = released.program(ClapNetwork.sounds, network, exact=True)
        self._texts = released.program(ClapNetwork.texts, network, exact=True)

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> Clap:
        """Of a Hugging Face ClapModel's folder: config.json, model.safetensors, preprocessor_config.json,
        tokenizer.json. UserError if one is missing or does not fit the others, or the model fuses several crops."""
        folder = pathlib.Path(folder)
        config = ClapConfig.from_json(folder / "config.json")
        mels = ClapMels.from_json(folder / "preprocessor_config.json")
        if mels.mels != config.audio.mels or mels.frames > config.audio.frames:
            raise UserError(
                f"{folder} makes {mels.frames} frames of {mels.mels} mels and its network takes {config.audio.frames} of "
                f"{config.audio.mels}; take config.json and preprocessor_config.json of one and the same network."
            )
        tokenize = tokenizer(folder / "tokenizer.json", config.text)
        tensors = files.read([folder]).tensors

        def build() -> ClapNetwork:
            return ClapNetwork(config, rngs=weights.rngs())

        network = judges.filled(build, layout(config), tensors, IGNORED, str(folder))
        return cls(network, mels, tokenize, config.projection)

    def sounds(self, sounds: Iterable[Audio]) -> Float[np.ndarray, "N D"]:
        """float32, of unit length: of the first ten seconds; a shorter sound is repeated (`ClapMels`).

        They are taken a batch at a time, so that thousands may be read one by one. ValueError for a sound without samples.
        """
        rows: list[np.ndarray] = []
        rest = iter(sounds)
        while batch := [self.mels(sound) for sound in itertools.islice(rest, BATCH)]:
            rows += batching.filled(self._sounds, batch, BATCH)
        return np.array(rows, np.float32).reshape(-1, self.width)

    def texts(self, texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
        """float32, of unit length. What of a text is beyond TOKENS is cut off."""
        rows = batching.filled(self._texts, list(self._tokenize(texts)), BATCH) if texts else []
        return np.array(rows, np.float32).reshape(-1, self.width)


def tokenizer(path: pathlib.Path, settings: RobertaSettings) -> Callable[[Sequence[str]], Int[np.ndarray, "B N"]]:
    """Texts → ids, padded after their end. UserError if the file is not there or not of the network."""
    length = min(TOKENS, settings.longest)
    loaded = folders.read_tokenizer(path, "ClapModel", length)
    if loaded.encode("").ids != [settings.begin, settings.end] or loaded.get_vocab_size() > settings.vocabulary:
        raise UserError(
            f"{path} has {loaded.get_vocab_size()} tokens and makes {loaded.encode('').ids} of an empty text; the network "
            f"has {settings.vocabulary} and begins and ends one with {settings.begin} and {settings.end}: take the "
            "tokenizer.json that came with it."
        )

    return folders.padded(loaded, length, settings.pad)
