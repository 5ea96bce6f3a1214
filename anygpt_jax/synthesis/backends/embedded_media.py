"""The media of the small world, made of their descriptions: drawn, played and spoken as its data set's are.

What a description leaves open is drawn by the request's seed, from the split that `about["split"]` names: "train" by
default, "validation" or "test". A description of something else is refused, as is a held-out picture in training.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from anygpt_jax.embedded import assets, grammar, scenes, sentences, tunes, voices
from anygpt_jax.embedded.splits import TRAIN
from anygpt_jax.errors import UserError
from anygpt_jax.modalities import pictures
from anygpt_jax.synthesis.backends import Failure, Request
from anygpt_jax.synthesis.backends.embedded_text import split_of
from anygpt_jax.tasks.metrics.scores import IMAGE_ATTRIBUTES, MUSIC_ATTRIBUTES
from anygpt_jax.tasks.metrics.text import lexicon, parse_attributes, spans, words


class _NotOfThisWorld(Exception):
    """A description that cannot be made; the message is the failure's reason."""


@dataclasses.dataclass(frozen=True)
class EmbeddedMedia:
    """Makes the media of one modality, one of `MAKERS`."""

    modality: str

    @property
    def name(self) -> str:
        """The number is to grow with any change of what is made, as that of `EmbeddedText`."""
        return f"embedded-{self.modality}/1"

    def make(self, requests: Sequence[Request]) -> list[bytes | Failure]:
        """PNG for images, FLAC for the others; a Failure for a description that is not of this world.
        UserError for a modality that has no maker, or a voice or split that there is not.
        """
        if self.modality not in MAKERS:
            raise UserError(f"The small world makes no {self.modality}; it makes {', '.join(MAKERS)}.")
        answers: list[bytes | Failure] = []
        for request in requests:
            try:
                answers.append(MAKERS[self.modality](request))
            except _NotOfThisWorld as e:
                answers.append(Failure(str(e)))
        return answers


def _drawn(request: Request) -> bytes:
    """PNG, 72 × 72, of a scene with one object or two."""
    split, rng = split_of(request.about), np.random.default_rng(request.seed)
    stated = _read(request.content, IMAGE_ATTRIBUTES)
    if "object" not in stated:
        raise _NotOfThisWorld(f"'{request.content}' names no object of the small world, or several apart.")
    if split == TRAIN and scenes.split(stated) != TRAIN:
        raise _NotOfThisWorld(f"'{request.content}' is held out from training.")
    if "second" in stated and (stated.get("size") == "large" or stated["second"] == stated["object"]):
        raise _NotOfThisWorld(f"'{request.content}': two objects are small, and differ.")
    # What is said in full is drawn as it is said: a held-out split's picture may be a training pair.
    whole = {"second", "relation", "colour"} if "second" in stated else {"object", "colour"}
    if whole <= set(stated) and split != TRAIN:
        split = scenes.split(stated)
    try:
        if "second" in stated:
            fixed = {name: value for name, value in stated.items() if name not in ("size", "place")}
            attributes = scenes.sample_two(rng, split, **fixed)
        else:
            attributes = scenes.sample(rng, split, **stated)
    except ValueError:
        raise _NotOfThisWorld(f"The split {split} has no picture of '{request.content}'.") from None
    return pictures.save_png(scenes.render(attributes))


def _played(request: Request) -> bytes:
    """FLAC, four seconds at 16 kHz, of one of the collection's tunes."""
    split, rng = split_of(request.about), np.random.default_rng(request.seed)
    stated = _read(request.content, MUSIC_ATTRIBUTES)
    if not stated:
        raise _NotOfThisWorld(f"'{request.content}' names no instrument, tempo, dance or key of the small world.")

    def draw(options: Sequence[Any]) -> Any:
        return options[int(rng.integers(len(options)))]

    instrument = stated.get("instrument") or draw(list(tunes.PROGRAMS))
    tempo = stated.get("tempo") or draw(list(tunes.NOTES_PER_SECOND))
    mode = stated["key"].split()[-1] if "key" in stated else ""
    dances = [stated["dance"]] if "dance" in stated else list(grammar.DANCES)
    # A melody is put into another key of its own mode only.
    fitting = [tune for dance in dances for tune in tunes.tunes(split, dance) if tune.key.endswith(mode)]
    if not fitting:
        raise _NotOfThisWorld(f"The split {split} has no tune like '{request.content}'.")
    tune = draw(fitting)
    key = stated.get("key") or draw([key for key in grammar.KEYS if key.split()[-1] == tune.key.split()[-1]])
    audio, _ = tunes.render(tunes.transpose(tune, key), instrument, tempo)
    return voices.encode_flac(audio)


def _spoken(request: Request) -> bytes:
    """FLAC at 16 kHz. UserError for a voice that is none of `voices.VOICES`."""
    if request.voice not in voices.VOICES:
        raise UserError(f"The small world has no voice '{request.voice}'; there are {', '.join(voices.VOICES)}.")
    if not words(request.content):
        raise _NotOfThisWorld(f"There is nothing to say in '{request.content}'.")
    engine = voices.VOICES[request.voice].engine
    assets.require("hibari" if engine == "hibari" else "espeakng_loader")
    try:
        return voices.encode_flac(voices.synthesize(request.content, request.voice))
    except UserError as e:  # silence
        raise _NotOfThisWorld(str(e)) from None


MAKERS: Mapping[str, Callable[[Request], bytes]] = {"image": _drawn, "music": _played, "speech": _spoken}


@functools.cache
def _known() -> frozenset[str]:
    """The words that a description may have."""
    return frozenset(words(" ".join([*sentences.spoken_words(), *sentences.written_words(), "image drawing"])))


def _read(description: str, names: Sequence[str]) -> dict[str, str]:
    """The attributes that a description states; it must have no other words than the world's, and no contradiction."""
    heard = words(description)
    strange = sorted(set(heard) - _known())
    if strange:
        raise _NotOfThisWorld(f"'{description}' is not of the small world, which does not know '{strange[0]}'.")
    stated = parse_attributes(description, names)
    for name in names:
        if name in ("object", "second", "relation") or (name == "place" and "relation" in stated):
            continue
        said = {value for _, _, value in spans(heard, lexicon()[name])}
        if len(said) > 1 and name not in stated:
            raise _NotOfThisWorld(f"'{description}' states more than one {name}: {' and '.join(sorted(said))}.")
    return stated
