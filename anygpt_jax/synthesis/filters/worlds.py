"""Judges of whether media agree with texts: the embedded world's readers, CLIP, CLAP and recognizers.

A judge gets texts, and the media behind numbers so that no more of them is held than is looked at. Of each it gives the
scores and what is wrong (the end of a sentence), or neither where it does not know such texts.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from anygpt_jax.modalities.base import Audio
from anygpt_jax.tasks.metrics.music import MusicJudge
from anygpt_jax.tasks.metrics.scores import IMAGE_ATTRIBUTES, right
from anygpt_jax.tasks.metrics.text import corpus_word_error_rate, parse_attributes, words

Found = tuple[Mapping[str, float], str | None]
Judge = Callable[[Sequence[str], Callable[[int], Any]], list[Found]]
NOTHING: Found = ({}, None)
BATCH = 64  # media that are held at a time
SIDE = 72  # px of the embedded world's pictures
HEARD = ("instrument", "tempo")  # of music; dance and key are heard too seldom to refuse by
CLIPS = 16  # of every instrument at every tempo, from which the judge of music learns


def of_either(judges: Sequence[Judge]) -> Judge:
    """Of every medium what the first of the judges says that knows it."""

    def judge(texts: Sequence[str], load: Callable[[int], Any]) -> list[Found]:
        found = [NOTHING] * len(texts)
        for one in judges:
            left = [i for i, verdict in enumerate(found) if verdict == NOTHING]
            if left:
                verdicts = one([texts[i] for i in left], _among(left, load))
                for i, verdict in zip(left, verdicts, strict=True):
                    found[i] = verdict
        return found

    return judge


def _among(numbers: Sequence[int], load: Callable[[int], Any]) -> Callable[[int], Any]:
    return lambda i: load(numbers[i])


def _batches(numbers: Sequence[int], load: Callable[[int], Any]) -> Iterator[list[Any]]:
    rest = iter(numbers)
    while batch := [load(i) for i in itertools.islice(rest, BATCH)]:
        yield batch


@functools.cache
def _world_words() -> frozenset[str]:
    from anygpt_jax.embedded import sentences

    return frozenset(word for entry in (*sentences.written_words(), *sentences.spoken_words()) for word in words(entry))


def _world_attributes(text: str, names: Sequence[str], needed: str) -> Mapping[str, str]:
    """The attributes that a text of the embedded world states; none of a text with any other word, or without `needed`."""
    if not _world_words().issuperset(words(text)):
        return {}
    stated = parse_attributes(text, names)
    return stated if needed in stated else {}


def world_pictures(least: float) -> Judge:
    """Share of the attributes stated that the reader of scenes sees; of pictures of the embedded world's size."""

    def judge(texts: Sequence[str], load: Callable[[int], Any]) -> list[Found]:
        from anygpt_jax.tasks.metrics.image import scene_reader

        def see(pictures: list[Any]) -> list[Mapping[str, str] | None]:
            fit = [picture if picture.shape == (SIDE, SIDE, 3) else None for picture in pictures]
            return [None if p is None else seen for p, seen in zip(fit, scene_reader().read(fit), strict=True)]

        stated = [_world_attributes(text, IMAGE_ATTRIBUTES, "object") for text in texts]
        return _compared(stated, IMAGE_ATTRIBUTES, load, see, least, "shows")

    return judge


def world_music(least: float, listener: Callable[[], MusicJudge] | None = None) -> Judge:
    """Share of the stated instrument and tempo that the judge of music hears."""

    def judge(texts: Sequence[str], load: Callable[[int], Any]) -> list[Found]:
        stated = [_world_attributes(text, HEARD, "instrument") for text in texts]

        def hear(sounds: list[Any]) -> list[Mapping[str, str] | None]:
            return list((listener or music_judge)().read(sounds))

        return _compared(stated, HEARD, load, hear, least, "sounds like")

    return judge


def _compared(
    stated: Sequence[Mapping[str, str]],
    names: Sequence[str],
    load: Callable[[int], Any],
    read: Callable[[list[Any]], list[Mapping[str, str] | None]],
    least: float,
    verb: str,
) -> list[Found]:
    """NOTHING where nothing is stated, or the reader does not know such media (None)."""
    known = [i for i, attributes in enumerate(stated) if attributes]
    found = [NOTHING] * len(stated)
    readings = (reading for batch in _batches(known, load) for reading in read(batch))
    for i, reading in zip(known, readings, strict=True):
        if reading is not None:
            verdicts = right(stated[i], reading, names)
            share = sum(verdicts.values()) / len(verdicts)
            wrong = [
                f"{reading.get(n, 'nothing')} for the {n} {stated[i][n]}" for n, yes in verdicts.items() if not yes
            ]
            found[i] = {"attributes": round(share, 4)}, f"{verb} {', '.join(wrong)}" if share < least else None
    return found


@functools.cache
def music_judge() -> MusicJudge:
    """Fitted on original clips, once a process and within a minute.

    Of 288 clips of unseen tunes it hears 99.7 % of the instruments and all of the tempi.
    """
    from anygpt_jax.embedded import parts, tunes
    from anygpt_jax.modalities.audio import load_audio

    rng = np.random.default_rng(0)
    made = [
        parts.tune_clip(rng, "train", instrument=instrument, tempo=tempo)
        for _ in range(CLIPS)
        for instrument in tunes.PROGRAMS
        for tempo in tunes.NOTES_PER_SECOND
    ]
    labels = [{name: attributes[name] for name in HEARD} for _, attributes in made]
    return MusicJudge.fit([load_audio(data) for data, _ in made], labels)


def world_speech(most: float) -> Judge:
    """Word error rate of what the recognizer of the embedded world's sentences hears; of its sentences alone."""

    def judge(texts: Sequence[str], load: Callable[[int], Any]) -> list[Found]:
        from anygpt_jax.embedded import automaton, sentences
        from anygpt_jax.tasks.metrics.speech import recognise

        known = [i for i, text in enumerate(texts) if automaton.accepts(sentences.recognizer(), _plain(text))]
        found = [NOTHING] * len(texts)
        for i, verdict in zip(known, _heard([texts[i] for i in known], known, load, recognise, most), strict=True):
            found[i] = verdict
        return found

    return judge


def _plain(text: str) -> str:
    return " ".join(text.lower().replace(",", " ").rstrip(" .?!").split())


def heard_errors(recognise: Callable[[Sequence[Audio]], Sequence[str]], most: float) -> Judge:
    """Word error rate of what a recognizer of any sentence hears."""

    def judge(texts: Sequence[str], load: Callable[[int], Any]) -> list[Found]:
        return _heard(texts, range(len(texts)), load, recognise, most)

    return judge


def _heard(
    texts: Sequence[str],
    numbers: Sequence[int],
    load: Callable[[int], Any],
    recognise: Callable[[list[Any]], Sequence[str]],
    most: float,
) -> list[Found]:
    found: list[Found] = []
    heard = (text for batch in _batches(numbers, load) for text in recognise(batch))
    for text, hypothesis in zip(texts, heard, strict=True):
        errors = word_errors(text, hypothesis)
        found.append(({"wer": round(errors, 4)}, f"is heard as {hypothesis!r}" if errors > most else None))
    return found


def word_errors(text: str, heard: str) -> float:
    """Word error rate after Whisper's normalizer, so that numbers may be written either way."""
    from anygpt_jax.evaluation.measures.transcripts import whisper

    return corpus_word_error_rate([whisper(text)], [whisper(heard)])


def clip_cosines(clip: Callable[[], Any], least: float) -> Judge:
    """Cosine of picture and description by CLIP."""

    def judge(texts: Sequence[str], load: Callable[[int], Any]) -> list[Found]:
        pictures = (row for batch in _batches(range(len(texts)), load) for row in clip().images(batch))
        return _cosines("clip", clip().texts(texts), pictures, least)

    return judge


def clap_cosines(clap: Callable[[], Any], least: float) -> Judge:
    """Cosine of music and description by CLAP."""

    def judge(texts: Sequence[str], load: Callable[[int], Any]) -> list[Found]:
        return _cosines("clap", clap().texts(texts), clap().sounds(load(i) for i in range(len(texts))), least)

    return judge


def _cosines(name: str, texts: Iterable[np.ndarray], media: Iterable[np.ndarray], least: float) -> list[Found]:
    cosines = [float(text @ medium) for text, medium in zip(texts, media, strict=True)]
    return [
        (
            {name: round(cosine, 4)},
            f"has a cosine of {cosine:.2f} to its description, below {least:g}" if cosine < least else None,
        )
        for cosine in cosines
    ]
