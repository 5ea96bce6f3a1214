"""TFDS builder of the embedded data set: parts `images`, `speech`, `music` and `interleaved`.

Media are kept as encoded bytes, so that decoding them is part of the pipeline, as it is with any real source.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from anygpt_jax.embedded import interleaved, parts
from anygpt_jax.embedded.settings import BUILDER_CONFIGS, VERSION, Settings
from anygpt_jax.errors import UserError

_BYTES = np.object_  # TFDS's dtype of a string tensor


class Builder(tfds.core.GeneratorBasedBuilder):
    """The embedded world. Build it with `anygpt build-data`, which chooses the folder by the settings."""

    VERSION = tfds.core.Version(VERSION)
    RELEASE_NOTES: ClassVar = {
        "1.0.0": "First version.",
        "1.1.0": "Real human speech: test_librivox.",
        "2.0.0": "128 objects, scenes of two, tunes in every key, words that are never spoken, conversations.",
    }
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name=name) for name in BUILDER_CONFIGS]

    def __init__(self, *, settings: Settings | None = None, **kwargs: Any):
        """`settings` are the sizes to build; what is already built is read without them."""
        self._settings = settings or Settings()
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text, media = tfds.features.Text(), tfds.features.Tensor(shape=(), dtype=_BYTES)
        features: dict[str, Any] = {"key": text, "attributes": text}
        match self.builder_config.name:
            case "images":
                features |= {"image": media, "caption": text}
            case "speech":
                features |= {"speech": media, "text": text}
            case "music":
                features |= {"music": media, "caption": text}
            case "interleaved":
                content = tfds.features.Tensor(shape=(None,), dtype=_BYTES)
                features |= {"kind": text, "modality": content, "role": content, "content": content}
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            description=f"{self.builder_config.name} of the small world of AnyGPT-JAX; see CARD.md for sources.",
            license="Twemoji CC-BY-4.0, OpenMoji CC-BY-SA-4.0; see CARD.md",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in parts.SPLITS[self.builder_config.name]}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, parts.Example]]:
        settings, part = self._settings, self.builder_config.name
        if part == "interleaved":
            examples = interleaved.interleaved(settings, split, self._utterances(split))
        else:
            examples = parts.PARTS[part](settings, split)
        total = parts.size(settings, part, split)
        for example in tqdm(examples, f"{part} {split}", total, unit="example", leave=False):
            yield example["key"], example

    def _utterances(self, split: str) -> list[interleaved.Spoken]:
        """The speech that is already built: the same sound in a dialogue costs nothing."""
        folder = pathlib.Path(self.data_path).parents[1] / "speech" / VERSION
        if not (folder / "dataset_info.json").is_file():
            raise UserError(
                f"Documents and dialogues need the speech at {folder}; run `anygpt build-data` to build it."
            )
        speech = tfds.builder_from_directory(folder).as_dataset(split=split, shuffle_files=False)
        return [
            interleaved.Spoken.from_example(json.loads(e["attributes"]), e["speech"]) for e in tfds.as_numpy(speech)
        ]
