"""What the recipes train and measure on: splits of the built TFDS data set (`anygpt build-data`)."""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from anygpt_jax.errors import UserError
from anygpt_jax.modalities.audio import load_audio

DATASET = "embedded_world"


@dataclasses.dataclass(frozen=True)
class Sound:
    """float32[N] at 16 kHz, the text that goes with it (what is said, or a caption), and its attributes."""

    key: str
    samples: np.ndarray
    text: str
    attributes: Mapping[str, Any]


def find(data_dir: str | pathlib.Path) -> pathlib.Path:
    """The folder of the one built data set under `data_dir`; UserError if there is none, or several.

    What an earlier version of the builder left there is passed over.
    """
    from anygpt_jax.embedded.settings import VERSION

    root = pathlib.Path(data_dir)
    found = sorted({p for pattern in (DATASET, f"*/{DATASET}") for p in root.glob(pattern) if p.is_dir()})
    current = [p for p in found if _version(p.parent) == VERSION]
    found = current or found
    if not found:
        raise UserError(f"No built data set under {root}; run `anygpt build-data` first or set --config.data_dir.")
    if len(found) > 1:
        names = ", ".join(str(p.parent) for p in found)
        raise UserError(f"Several data sets are built under {root} ({names}); name one of them with --config.data_dir.")
    return found[0]


def _version(folder: pathlib.Path) -> str | None:
    settings = folder / "settings.json"
    return json.loads(settings.read_text())["version"] if settings.is_file() else None


def examples(data_dir: str | pathlib.Path, part: str, split: str) -> Iterator[dict[str, Any]]:
    """Examples of one builder config as numpy; attributes are parsed."""
    import tensorflow_datasets as tfds

    versions = sorted(p for p in (find(data_dir) / part).glob("*") if (p / "dataset_info.json").is_file())
    if not versions:
        raise UserError(f"{find(data_dir)} has no '{part}'; run `anygpt build-data` again.")
    builder = tfds.builder_from_directory(versions[-1])
    for example in tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False)):
        if "attributes" in example:
            example["attributes"] = json.loads(example["attributes"])
        yield example


def scenes(data_dir: str | pathlib.Path, split: str) -> tuple[np.ndarray, list[dict[str, str]]]:
    """(uint8[N, S, S, 3], attributes)."""
    images, attributes = [], []
    for example in examples(data_dir, "images", split):
        images.append(np.asarray(Image.open(io.BytesIO(example["image"])).convert("RGB")))
        attributes.append(example["attributes"])
    return np.stack(images), attributes


def sounds(data_dir: str | pathlib.Path, part: str, split: str) -> list[Sound]:
    """The sounds of "speech" or "music"."""
    text = {"speech": "text", "music": "caption"}[part]
    return [
        Sound(e["key"].decode(), load_audio(e[part]).samples, e[text].decode(), e["attributes"])
        for e in examples(data_dir, part, split)
    ]


def texts(data_dir: str | pathlib.Path) -> list[str]:
    """Every text of the training splits: captions, what is said, and the written parts of documents and dialogues."""
    found = []
    for part, field in (("images", "caption"), ("speech", "text"), ("music", "caption")):
        found += [example[field].decode() for example in examples(data_dir, part, "train")]
    for example in examples(data_dir, "interleaved", "train"):
        pairs = zip(example["modality"], example["content"], strict=True)
        found += [content.decode() for modality, content in pairs if modality == b"text"]
    return found
