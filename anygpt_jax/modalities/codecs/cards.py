"""The card beside a trained tokenizer's weights: its recipe, its fingerprint, and its quality on held-out splits."""

from __future__ import annotations

import hashlib
import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from anygpt_jax.errors import UserError
from anygpt_jax.modalities.codecs import data

log = logging.getLogger(__name__)


def folder(config: ml_collections.ConfigDict) -> pathlib.Path:
    """Where the weights and the card are."""
    return pathlib.Path(config.output or config.workdir)


def _path(config: ml_collections.ConfigDict) -> pathlib.Path:
    return folder(config) / f"{config.modality}.json"


def recipe(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What decides the weights: the config without its folders, and without what is done again."""
    return {k: v for k, v in config.to_dict().items() if k not in ("workdir", "output", "data_dir", "keep_codec")}


def write(config: ml_collections.ConfigDict, card: Mapping[str, Any]) -> None:
    """Writes {modality}.json beside the weights: `card` (with its "quality"), the data set's folder, and the recipe.

    UserError if no data set is built in `config.data_dir`.
    """
    settings = recipe(config)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    about = {"data": data.find(config.data_dir).parent.name, "recipe": settings, "recipe_fingerprint": digest}
    _put(config, {**card, **about})


def _put(config: ml_collections.ConfigDict, card: Mapping[str, Any]) -> None:
    _path(config).write_text(json.dumps(card, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    log.info("%s tokenizer: %s", config.modality, json.dumps(card["quality"]))


def read(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The card that is there; UserError without one."""
    path = _path(config)
    if not path.is_file():
        raise UserError(f"No {path}; train the tokenizer first, or name its folder with --config.output.")
    return json.loads(path.read_text(encoding="utf-8"))


def evaluate(config: ml_collections.ConfigDict) -> None:
    """Measures weights that are there once more. Of their card the quality alone is new: the rest made the weights.

    UserError without a card.
    """
    _put(config, {**read(config), "quality": quality(config)})
    print(f"Wrote {_path(config)}")


def quality(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What the tokenizer conveys, by split."""
    weights = folder(config) / f"{config.modality}.safetensors"
    return {"text": _text, "image": _image, "speech": _speech, "music": _music}[config.modality](config, weights)


def _text(config: ml_collections.ConfigDict, weights: pathlib.Path) -> dict[str, Any]:
    from anygpt_jax.modalities.codecs import train_text
    from anygpt_jax.modalities.text import TextTokenizer
    from anygpt_jax.tasks.instructions import all_instructions

    texts = data.texts(config.data_dir) + all_instructions() * config.instruction_copies
    model = weights.with_suffix(".model").read_bytes()
    return {
        "pieces": TextTokenizer(model).size,
        "pieces_per_word": round(train_text.pieces_per_word(model, texts), 4),
    }


def _image(config: ml_collections.ConfigDict, weights: pathlib.Path) -> dict[str, Any]:
    from anygpt_jax.modalities.codecs import measure
    from anygpt_jax.modalities.image import ImageTokenizer

    found, tokenizer = {}, ImageTokenizer(weights)
    for split in config.measure_splits:
        images, attributes = data.scenes(config.data_dir, split)
        artist = "openmoji" if split.endswith("openmoji") else "twemoji"
        found[split] = measure.image(tokenizer, images[: config.measure], attributes[: config.measure], artist)
    return found


def _music(config: ml_collections.ConfigDict, weights: pathlib.Path) -> dict[str, Any]:
    from anygpt_jax.modalities.codecs import measure
    from anygpt_jax.modalities.music import MusicTokenizer

    tokenizer, training = MusicTokenizer(weights), data.sounds(config.data_dir, "music", "train")
    return {
        split: measure.music(tokenizer, data.sounds(config.data_dir, "music", split)[: config.measure], training)
        for split in config.measure_splits
    }


def _speech(config: ml_collections.ConfigDict, weights: pathlib.Path) -> dict[str, Any]:
    from anygpt_jax.modalities.codecs import measure
    from anygpt_jax.modalities.speech import SpeechTokenizer

    tokenizer = SpeechTokenizer(weights)
    return {
        split: measure.speech(tokenizer, data.sounds(config.data_dir, "speech", split)[: config.measure])
        for split in config.measure_splits
    }
