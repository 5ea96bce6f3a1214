"""The examples of pictures, speech and music, split by split: what the TFDS builder writes.

Every example has a unique `key`, its media as encoded bytes (PNG, FLAC) and its `attributes` as JSON. A split
is a pure function of the settings.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from anygpt_jax.embedded import assets, grammar, scenes, sentences, tunes, voices
from anygpt_jax.embedded.settings import Settings
from anygpt_jax.embedded.splits import TEST, TRAIN, VALIDATION
from anygpt_jax.modalities import pictures
from anygpt_jax.modalities.audio import load_audio

Example = dict[str, Any]
LIBRIVOX = "test_librivox"  # real human speech, read from a novel
UNSPOKEN = "test_unspoken"  # sentences with a word that training never hears
ABOUT_MUSIC = "test_music"  # of `test`, more sentences about music than it has
SENTENCES_ABOUT_MUSIC = 200  # at most: the grammar has few more that are held out
VALIDATED = 128  # examples of a validation split at most
INSTRUMENTS = "test_instruments"  # of `test`, more pictures of instruments than it has
CHUNK = 8  # utterances handed to a worker at a time

# part -> its splits
SPLITS: Mapping[str, tuple[str, ...]] = {
    "images": (TRAIN, VALIDATION, TEST, INSTRUMENTS, "test_openmoji"),
    "speech": (TRAIN, VALIDATION, TEST, "test_voice", ABOUT_MUSIC, UNSPOKEN, LIBRIVOX),
    "music": (TRAIN, VALIDATION, TEST),
    "interleaved": (TRAIN, VALIDATION, TEST),
}


def generator(settings: Settings, part: str, split: str) -> np.random.Generator:
    """The source of randomness of one split: independent of every other split and size."""
    return np.random.default_rng([settings.seed, zlib.crc32(f"{part}/{split}".encode())])


def to_json(attributes: Mapping[str, Any]) -> str:
    """How every example keeps its attributes: by sorted names, so that equal ones are equal text."""
    return json.dumps(attributes, sort_keys=True)


def key(part: str, split: str, number: int) -> str:
    """Unique in the data set; the number, counted from 0, has six digits: speech-train-000042."""
    return f"{part}-{split}-{number:06d}"


def size(settings: Settings, part: str, split: str) -> int:
    """Examples of a split."""
    if split == LIBRIVOX:
        return len(assets.librivox())
    if split == ABOUT_MUSIC:
        return min(settings.held_out, SENTENCES_ABOUT_MUSIC)
    if split == VALIDATION:
        return min(settings.held_out, VALIDATED)
    if split != TRAIN:
        return settings.held_out * (2 if part == "interleaved" else 1)  # documents and dialogues
    return {
        "images": settings.scenes,
        "speech": settings.voices_a_sentence * settings.sentences + settings.espeak_sentences,
        "music": settings.clips,
        "interleaved": settings.dialogues,
    }[part]


def images(settings: Settings, split: str) -> Iterator[Example]:
    """Scenes with written captions. `test_openmoji` has pairs of the training split, drawn by another artist."""
    rng = generator(settings, "images", split)
    names = scenes.objects(settings.objects)
    artist, pairs_of = ("openmoji", TRAIN) if split == "test_openmoji" else ("twemoji", split)
    two_objects = settings.two_objects
    if split == INSTRUMENTS:
        pairs_of, names, two_objects = TEST, tuple(scenes.INSTRUMENTS), 0
    for i in range(size(settings, "images", split)):
        two = rng.random() * 100 < two_objects
        attributes = (scenes.sample_two if two else scenes.sample)(rng, pairs_of, names)
        yield {
            "key": key("images", split, i),
            "image": pictures.save_png(scenes.render(attributes, artist)),
            "caption": sentences.caption_scene(attributes, rng, pairs_of),
            "attributes": to_json(attributes),
        }


def _utterance(job: tuple[str, str]) -> bytes:
    text, voice = job
    return voices.encode_flac(voices.synthesize(text, voice))


def _utterances(jobs: Sequence[tuple[str, str]]) -> Iterator[bytes]:
    """FLAC of every (text, voice) in order, synthesized by as many processes as there are cores."""
    processes = min(len(os.sched_getaffinity(0)), max(1, len(jobs) // (4 * CHUNK)))
    if processes == 1:
        yield from map(_utterance, jobs)
        return
    _utterance(jobs[0])  # a package that is missing is reported here, not by a worker
    # Spawned, not forked: TensorFlow's threads do not survive a fork.
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(_utterance, jobs, CHUNK)


def _spoken_sentences(settings: Settings, split: str) -> list[tuple[sentences.Sentence, str]]:
    """(sentence, voice) of a split of speech. `test_voice` speaks the sentences of `test` in an unheard voice."""
    of = TEST if split == "test_voice" else split
    rng = generator(settings, "speech", of)
    names = scenes.objects(settings.objects)
    naming = [name for name in names if name in scenes.UNSPOKEN] if split == UNSPOKEN else []
    imitated, heard = voices.names("tts"), voices.names("asr")
    if of != TRAIN:
        about = {UNSPOKEN: "image", ABOUT_MUSIC: "music"}.get(split)
        count = size(settings, "speech", split)
        drawn = sentences.sample(TEST if about else of, count, rng, names, kind=about, naming=naming)
        unheard = voices.names("held_out")
        return [(s, unheard[0] if split == "test_voice" else imitated[i % len(imitated)]) for i, s in enumerate(drawn)]
    drawn = sentences.sample(TRAIN, settings.sentences + settings.espeak_sentences, rng, names)
    jobs = []
    for i, sentence in enumerate(drawn[: settings.sentences]):
        jobs += [(sentence, imitated[(i + k) % len(imitated)]) for k in range(settings.voices_a_sentence)]
    jobs += [(s, heard[i % len(heard)]) for i, s in enumerate(drawn[settings.sentences :])]
    return jobs


def speech(settings: Settings, split: str) -> Iterator[Example]:
    """Spoken sentences, with the attributes of the picture or the tune that they mention."""
    if split == LIBRIVOX:
        for i, (path, text) in enumerate(assets.librivox()):
            yield {
                "key": key("speech", split, i),
                "speech": voices.encode_flac(load_audio(path.read_bytes())),
                "text": text,
                "attributes": to_json({"text": text, "voice": "librivox", "kind": "read"}),
            }
        return
    jobs = _spoken_sentences(settings, split)
    sounds = _utterances([(sentence.text, voice) for sentence, voice in jobs])
    for i, ((sentence, voice), sound) in enumerate(zip(jobs, sounds, strict=True)):
        attributes: dict[str, Any] = {"text": sentence.text, "voice": voice, "kind": sentence.kind}
        attributes |= sentence.mentioned
        if split == UNSPOKEN:
            attributes["unspoken"] = sorted(set(sentence.text.split()) & set(scenes.UNSPOKEN))
        yield {
            "key": key("speech", split, i),
            "speech": sound,
            "text": sentence.text,
            "attributes": to_json(attributes),
        }


def tune_clip(rng: np.random.Generator, split: str, **fixed: str) -> tuple[bytes, dict[str, Any]]:
    """(FLAC, attributes) of a random clip of a split; `fixed` attributes are kept."""

    def draw(options: Sequence[Any]) -> Any:
        return options[int(rng.integers(len(options)))]

    instrument = fixed.get("instrument") or draw(list(tunes.PROGRAMS))
    tempo = fixed.get("tempo") or draw(list(tunes.NOTES_PER_SECOND))
    tune = draw(tunes.tunes(split, fixed.get("dance") or draw(list(grammar.DANCES))))
    mode = tune.key.split()[-1]
    tune = tunes.transpose(tune, draw([key for key in grammar.KEYS if key.endswith(mode)]))
    audio, notes = tunes.render(tune, instrument, tempo)
    attributes = {"instrument": instrument, "tempo": tempo, "dance": tune.dance, "key": tune.key}
    return voices.encode_flac(audio), {**attributes, "tune": tune.name, "notes": notes}


def music(settings: Settings, split: str) -> Iterator[Example]:
    """Clips of tunes with written captions."""
    rng = generator(settings, "music", split)
    for i in range(size(settings, "music", split)):
        sound, attributes = tune_clip(rng, split)
        yield {
            "key": key("music", split, i),
            "music": sound,
            "caption": sentences.caption_music(attributes, rng, split),
            "attributes": to_json(attributes),
        }


PARTS: Mapping[str, Callable[[Settings, str], Iterator[Example]]] = {"images": images, "speech": speech, "music": music}
