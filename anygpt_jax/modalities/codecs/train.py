"""`anygpt train` for a modality tokenizer: reads the built data set, trains, measures, writes the weights.

    anygpt train --config=configs/tokenizer_image.py --workdir X

writes X/image.safetensors and X/image.json (the recipe, its fingerprint, and quality on the held-out split).
With `--config.output=anygpt_jax/modalities/weights` the shipped ones are replaced.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time

import ml_collections
import numpy as np

from anygpt_jax.errors import UserError
from anygpt_jax.modalities.audio import SAMPLE_RATE
from anygpt_jax.modalities.codecs import cards, data, weights


def run(config: ml_collections.ConfigDict) -> None:
    """Trains `config.modality` and writes it to `config.output`, or to the workdir."""
    recipes = {"text": _text, "image": _image, "speech": _speech, "music": _music}
    if config.modality not in recipes:
        raise UserError(f"config.modality is '{config.modality}'; it must be one of {', '.join(recipes)}.")
    output = cards.folder(config)
    output.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    fingerprint = recipes[config.modality](config, output)
    kept = cards.read(config)["cpu_seconds"] if config.get("keep_codec") else 0.0
    seconds = round(time.process_time() - started + kept, 1)
    cards.write(config, {"fingerprint": fingerprint, "cpu_seconds": seconds, "quality": cards.quality(config)})
    print(f"Wrote {output / config.modality}.* ({seconds} CPU-seconds)")


def _text(config: ml_collections.ConfigDict, output: pathlib.Path) -> str:
    from anygpt_jax.modalities.codecs import train_text
    from anygpt_jax.modalities.text import TextTokenizer
    from anygpt_jax.tasks.instructions import all_instructions

    model = train_text.train(config, data.texts(config.data_dir) + all_instructions() * config.instruction_copies)
    (output / "text.model").write_bytes(model)
    return TextTokenizer(model).fingerprint


def _image(config: ml_collections.ConfigDict, output: pathlib.Path) -> str:
    from anygpt_jax.modalities.codecs import train_image

    images, attributes = data.scenes(config.data_dir, "train")
    # What a scene shows and where, but not on which ground.
    layouts = [json.dumps([a[k] for k in sorted(a) if k != "colour"]) for a in attributes]
    codec = train_image.train(config, images, layouts)
    path = output / "image.safetensors"
    return weights.save(path, weights.halve(weights.flatten(codec)), {"codec": config.codec.to_dict()})


def _music(config: ml_collections.ConfigDict, output: pathlib.Path) -> str:
    from anygpt_jax.modalities.codecs import train_mel
    from anygpt_jax.modalities.codecs.mel import MelSettings

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
    return weights.save(path, weights.halve(weights.flatten(codec)), settings)


def _speech(config: ml_collections.ConfigDict, output: pathlib.Path) -> str:
    from anygpt_jax.modalities.codecs import train_acoustic, train_mel
    from anygpt_jax.modalities.codecs.mel import MelSettings
    from anygpt_jax.modalities.codecs.phones import to_phones
    from anygpt_jax.modalities.speech import SpeechTokenizer

    mel = MelSettings(sample_rate=SAMPLE_RATE, **config.mel)
    sounds = [s for s in data.sounds(config.data_dir, "speech", "train") if len(s.samples) <= config.longest_samples]
    corpus = train_mel.corpus(
        [s.samples for s in sounds], [to_phones(s.text) for s in sounds], mel, config.codec.stack,
        -(-config.longest_samples // (mel.hop * config.codec.stack)),
    )  # fmt: skip
    path = output / "speech.safetensors"
    if config.keep_codec:  # the codes, and all that was made with them, stay what they are
        codec = SpeechTokenizer(path).codec
    else:
        codec = train_mel.train(config, corpus, "speech tokenizer")
        speaker = np.flatnonzero([s.attributes["voice"] == config.default_voice for s in sounds])
        codec.default_voice[...] = train_acoustic.mean_voice(codec, corpus, speaker)
    stage = train_acoustic.train(config.acoustic, codec, corpus)
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
    weights.save(path, weights.halve(tensors), settings)
    return SpeechTokenizer(path).fingerprint
