"""A data set of a few examples in the embedded world's form, and codecs small enough to check by eye.

Named in `config.tokenize.modules`, this module gives every process its codecs on import.
"""

import functools
import io
import json
import pathlib

import ml_collections
import numpy as np
import sentencepiece
import soundfile
from PIL import Image

from anygpt_jax.embedded import settings
from anygpt_jax.errors import UserError
from anygpt_jax.modalities import base
from anygpt_jax.modalities.base import Audio, Grammar
from anygpt_jax.modalities.text import TextTokenizer
from anygpt_jax.tasks.instructions import all_instructions

COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}
OBJECTS = ("fox", "piano", "cat")
RATE = 16_000


class ImageCodec:
    """Four codes, one a quadrant: its brightest channel."""

    name, symbol, codebook_size, rate, fingerprint = "image", "i", 3, 4.0, "image-1"
    grammar = Grammar(cycle=((0, 3),), min_length=4, max_length=4)
    encoded = 0  # media encoded by this process, over all instances

    def load(self, data: bytes) -> np.ndarray:
        try:
            return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        except OSError as e:
            raise UserError(f"this is not a whole image ({e})") from e

    def encode(self, media):
        ImageCodec.encoded += len(media)
        return [self._codes(m) for m in media]

    def _codes(self, image):
        h, w = image.shape[0] // 2, image.shape[1] // 2
        quadrants = [image[:h, :w], image[:h, w:], image[h:, :w], image[h:, w:]]
        return np.array([int(q.mean((0, 1)).argmax()) for q in quadrants], np.int32)


class SoundCodec:
    """One code a tenth of a second: its loudness."""

    symbol, codebook_size, rate = "s", 8, 10.0

    def __init__(self, name: str):
        self.name = name
        self.fingerprint = f"{name}-1"
        self.grammar = Grammar(cycle=((0, 8),), min_length=1, max_length=40)

    def load(self, data: bytes) -> Audio:
        try:
            samples, rate = soundfile.read(io.BytesIO(data), dtype="float32")
        except soundfile.LibsndfileError as e:
            raise UserError(f"this is not a whole sound ({e})") from e
        return Audio(samples, rate)

    def encode(self, media):
        if any(len(m.samples) > 30 * RATE for m in media):
            raise ValueError("out of memory")  # as a batch with one huge medium in it would
        return [self._codes(m) for m in media]

    def _codes(self, sound):
        frames = sound.samples[: len(sound.samples) // 1600 * 1600].reshape(-1, 1600)
        return np.minimum(7, np.abs(frames).max(1) * 8).astype(np.int32)


class EntryPoint:
    def __init__(self, factory):
        self.load = lambda: factory


ENTRY_POINTS = {
    "image": EntryPoint(ImageCodec),
    "speech": EntryPoint(functools.partial(SoundCodec, "speech")),
    "music": EntryPoint(functools.partial(SoundCodec, "music")),
}


@functools.cache
def text_tokenizer() -> TextTokenizer:
    """The same bytes in every process: SentencePiece trains without chance."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*all_instructions(), "a red fox on a blue background", "the green cat hears music"]),
        model_writer=model, vocab_size=300, byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
        num_threads=1,
    )  # fmt: skip
    return TextTokenizer(model.getvalue())


def install() -> None:
    base._entry_points = lambda: ENTRY_POINTS
    base.get.cache_clear()
    TextTokenizer.load = classmethod(lambda cls, path=None: text_tokenizer())


def png(colour: str, seed: int) -> bytes:
    pixels = np.full((8, 8, 3), COLOURS[colour], np.uint8)
    pixels[0, 0] = (seed % 256, seed // 256 % 256, 0)  # every picture is another one
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def flac(seconds: float, loudness: float, seed: int) -> bytes:
    sound = np.full(int(seconds * RATE), loudness, np.float32)
    sound[0] = seed / 4096
    buffer = io.BytesIO()
    soundfile.write(buffer, sound, RATE, format="FLAC")
    return buffer.getvalue()


def image_example(split: str, i: int) -> dict:
    object_ = "piano" if split == "test_instruments" else OBJECTS[i % 3]
    colour = list(COLOURS)[i // 3 % 3]
    attributes = {"object": object_, "colour": colour, "size": "small", "place": "top"}
    return {
        "key": f"images/{split}/{i:05d}",
        "image": png(colour, i + 1000 * len(split)),
        "caption": f"a {object_} on {colour}",
        "attributes": json.dumps(attributes),
    }


def speech_example(split: str, i: int) -> dict:
    kinds = ({"object": "fox", "colour": "red"}, {"instrument": "piano"}, {})
    text = ("a red fox", "play the piano", "good morning")[i % 3]
    voice = "eva" if i % 4 == 3 else "ada"
    return {
        "key": f"speech/{split}/{i:05d}",
        "speech": flac(0.5 + 0.1 * (i % 5), 0.3, i + 100 * len(split)),
        "text": text,
        "attributes": json.dumps({"text": text, "voice": voice, **kinds[i % 3]}),
    }


def music_example(split: str, i: int) -> dict:
    instrument = ("piano", "flute")[i % 2]
    return {
        "key": f"music/{split}/{i:05d}",
        "music": flac(2.0, 0.2 + 0.3 * (i % 2), i + 100 * len(split)),
        "caption": f"a slow tune on the {instrument}",
        "attributes": json.dumps({"instrument": instrument, "tempo": "slow"}),
    }


def interleaved_example(split: str, i: int) -> dict:
    image = image_example(split, i)
    speech = speech_example(split, i)
    rows = [("speech", "human", speech["speech"]), ("text", "assistant", speech["text"].encode())]
    rows.append(("image", "assistant", image["image"]))
    kind = ("dialogue", "document")[i % 2]
    if kind == "document":
        rows = [(modality, "document", content) for modality, _, content in rows]
    modality, role, content = (list(column) for column in zip(*rows, strict=True))
    return {"key": f"interleaved/{split}/{i:05d}", "kind": kind, "modality": modality, "role": role, "content": content}


MAKERS = {
    "images": (image_example, ("test_instruments", "test_openmoji")),
    "speech": (speech_example, ("test_voice", "test_music", "test_unspoken", "test_librivox")),
    "music": (music_example, ()),
    "interleaved": (interleaved_example, ()),
}


def build(workdir: pathlib.Path, sizes: dict[str, int], mend=lambda example: example) -> None:
    """Writes the data sets of `config(workdir)`: `sizes` examples a split, three by default; `mend` may spoil some."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    scalar = tfds.features.Tensor(shape=(), dtype=tf.string)
    for data, (make, hard_splits) in MAKERS.items():
        listed = ("modality", "role", "content")
        names = make("train", 0)
        features = tfds.features.FeaturesDict(
            {n: tfds.features.Sequence(scalar) if n in listed else scalar for n in names}
        )
        splits = {}
        for split in ("train", "validation", "test", *hard_splits):
            examples = [mend(make(split, i)) for i in range(sizes.get(split, 3))]
            signature = {n: tf.TensorSpec([None] if n in listed else [], tf.string) for n in names}
            splits[split] = tf.data.Dataset.from_generator(
                lambda examples=examples: iter(examples), output_signature=signature
            )
        tfds.dataset_builders.store_as_tfds_dataset(
            name="embedded_world", config=data, version=settings.VERSION, data_dir=str(settings.data_dir(config(workdir))),
            split_datasets=splits, features=features, disable_shuffling=True,
        )  # fmt: skip


def config(workdir: pathlib.Path, **tokenize) -> ml_collections.ConfigDict:
    """The quickstart's config over a tiny world, two shards a split."""
    from anygpt_jax.cli import load_config

    c = load_config(str(pathlib.Path(__file__).parents[1] / "configs" / "quickstart.py"))
    c.workdir = str(workdir)
    c.tokenize.update({"shards": 2, "batch_size": 4, "modules": ("tiny_world",), **tokenize})
    return c


install()
