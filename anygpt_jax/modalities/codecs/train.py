"""`anygpt train` for a modality tokenizer: reads the built data set, trains, measures, writes the weights.

    anygpt train --config=configs/tokenizer_image.py --workdir X

writes X/image.safetensors and X/image.json (the recipe, its fingerprint, and quality on the held-out split).
With `--config.output=anygpt_jax/modalities/weights` the shipped ones are replaced.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np

from anygpt_jax.errors import UserError
from anygpt_jax.modalities.audio import SAMPLE_RATE
from anygpt_jax.modalities.codecs import data, weights

log = logging.getLogger(__name__)


def run(config: ml_collections.ConfigDict, args: argparse.Namespace | None = None) -> None:
    """Trains `config.modality` and writes it to `config.output`, or to the workdir."""
    recipes = {"text": _text, "image": _image, "speech": _speech, "music": _music}
    if config.modality not in recipes:
        raise UserError(f"config.modality is '{config.modality}'; it must be one of {', '.join(recipes)}.")
    output = pathlib.Path(config.output or config.workdir)
    output.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    card = recipes[config.modality](config, output)
    card["data"] = data.find(config.data_dir).parent.name  # the fingerprint of its settings
    card["cpu_seconds"] = round(time.process_time() - started, 1)
    write_card(output / f"{config.modality}.json", config, card)
    log.info("%s tokenizer: %s", config.modality, json.dumps(card["quality"]))
    print(f"Wrote {output / config.modality}.* ({card['cpu_seconds']} CPU-seconds)")


def recipe(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What decides the weights: the config without its folders."""
    return {k: v for k, v in config.to_dict().items() if k not in ("workdir", "output", "data_dir")}


def write_card(path: pathlib.Path, config: ml_collections.ConfigDict, card: Mapping[str, Any]) -> None:
    settings = recipe(config)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    whole = {**card, "recipe": settings, "recipe_fingerprint": digest}
    path.write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _text(config: ml_collections.ConfigDict, output: pathlib.Path) -> dict[str, Any]:
    from anygpt_jax.modalities.codecs import train_text
    from anygpt_jax.modalities.text import TextTokenizer
    from anygpt_jax.tasks.instructions import all_instructions

    texts = data.texts(config.data_dir) + all_instructions() * config.instruction_copies
    model = train_text.train(config, texts)
    (output / "text.model").write_bytes(model)
    tokenizer = TextTokenizer(model)
    quality = {"pieces": tokenizer.size, "pieces_per_word": round(train_text.pieces_per_word(model, texts), 4)}
    return {"fingerprint": tokenizer.fingerprint, "quality": quality}


def _image(config: ml_collections.ConfigDict, output: pathlib.Path) -> dict[str, Any]:
    from anygpt_jax.modalities.codecs import measure, train_image
    from anygpt_jax.modalities.image import ImageTokenizer

    images, attributes = data.scenes(config.data_dir, "train")
    # What a scene shows and where, but not on which ground.
    layouts = [json.dumps([a[k] for k in sorted(a) if k != "colour"]) for a in attributes]
    codec = train_image.train(config, images, layouts)
    path = output / "image.safetensors"
    fingerprint = weights.save(path, weights.halve(weights.flatten(codec)), {"codec": config.codec.to_dict()})
    tokenizer = ImageTokenizer(path)
    quality = {}
    for split in config.measure_splits:
        images, attributes = data.scenes(config.data_dir, split)
        artist = "openmoji" if split.endswith("openmoji") else "twemoji"
        quality[split] = measure.image(tokenizer, images[: config.measure], attributes[: config.measure], artist)
    return {"fingerprint": fingerprint, "quality": quality}


def _music(config: ml_collections.ConfigDict, output: pathlib.Path) -> dict[str, Any]:
    from anygpt_jax.modalities.codecs import measure, train_mel
    from anygpt_jax.modalities.codecs.mel import MelSettings
    from anygpt_jax.modalities.music import MusicTokenizer

    mel = MelSettings(sample_rate=SAMPLE_RATE, **config.mel)
    sounds = data.sounds(config.data_dir, "music", "train")
    corpus = train_mel.corpus(
        [s.samples for s in sounds], [[]] * len(sounds), mel, config.codec.stack, config.max_frames
    )
    codec = train_mel.train(config, corpus, "music tokenizer")
    settings = {
        "codec": dataclasses.asdict(codec.settings), "mel": dataclasses.asdict(mel), "max_frames": config.max_frames
    }  # fmt: skip
    path = output / "music.safetensors"
    fingerprint = weights.save(path, weights.halve(weights.flatten(codec)), settings)
    tokenizer = MusicTokenizer(path)
    quality = {
        split: measure.music(tokenizer, data.sounds(config.data_dir, "music", split)[: config.measure], sounds)
        for split in config.measure_splits
    }
    return {"fingerprint": fingerprint, "quality": quality}


def _speech(config: ml_collections.ConfigDict, output: pathlib.Path) -> dict[str, Any]:
    from anygpt_jax.modalities.codecs import measure, train_acoustic, train_mel
    from anygpt_jax.modalities.codecs.mel import MelSettings
    from anygpt_jax.modalities.codecs.phones import to_phones
    from anygpt_jax.modalities.speech import SpeechTokenizer

    mel = MelSettings(sample_rate=SAMPLE_RATE, **config.mel)
    sounds = [s for s in data.sounds(config.data_dir, "speech", "train") if len(s.samples) <= config.longest_samples]
    corpus = train_mel.corpus(
        [s.samples for s in sounds], [to_phones(s.text) for s in sounds], mel, config.codec.stack,
        -(-config.longest_samples // (mel.hop * config.codec.stack)),
    )  # fmt: skip
    codec = train_mel.train(config, corpus, "speech tokenizer")
    stage = train_acoustic.train(config.acoustic, codec, corpus)
    speaker = np.flatnonzero([s.attributes["voice"] == config.default_voice for s in sounds])
    codec.default_voice[...] = train_acoustic.mean_voice(codec, corpus, speaker)
    # The phones were a teacher: nothing reads them off any more.
    tensors = {f"codec.{k}": v for k, v in weights.flatten(codec).items() if not k.startswith("phone_")}
    tensors |= {f"acoustic.{k}": v for k, v in weights.flatten(stage).items()}
    settings = {
        "codec": dataclasses.asdict(codec.settings) | {"phones": 0},
        "acoustic": {"width": config.acoustic.width, "dilations": list(config.acoustic.dilations)},
        "mel": dataclasses.asdict(mel),
        "min_codes": config.min_codes,
        "max_codes": config.max_codes,
    }
    path = output / "speech.safetensors"
    fingerprint = weights.save(path, weights.halve(tensors), settings)
    tokenizer = SpeechTokenizer(path)
    quality = {
        split: measure.speech(tokenizer, data.sounds(config.data_dir, "speech", split)[: config.measure])
        for split in config.measure_splits
    }
    return {"fingerprint": fingerprint, "quality": quality}
