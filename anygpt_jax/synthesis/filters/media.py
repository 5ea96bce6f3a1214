"""Filters of media: each can be read and is not empty, and agrees with its description or with its words.

What belongs to the embedded world is judged by that world's readers, which are nearly exact; the rest by published
networks, whose cosines and error rates tell only what is far off.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation.judges.chosen import Judges
from anygpt_jax.modalities.audio import load_audio
from anygpt_jax.modalities.base import Audio
from anygpt_jax.modalities.pictures import load_picture
from anygpt_jax.synthesis.dialogue import Dialogue, Medium, Place, media_of
from anygpt_jax.synthesis.filters import Filter, Read, Verdict
from anygpt_jax.synthesis.filters.worlds import (
    Judge,
    clap_cosines,
    clip_cosines,
    heard_errors,
    of_either,
    world_music,
    world_pictures,
    world_speech,
)

CLIPPED = 0.999  # of full scale
RECOGNIZERS = ("", "pocketsphinx", "whisper")


@dataclasses.dataclass(frozen=True)
class MediaSettings:
    """Pairs are the least and the most. A judge that is not asked for gives no score and refuses nothing."""

    side: tuple[int, int] = (32, 8192)  # px, of either side of a picture
    contrast: float = 2.0  # standard deviation of a picture's values of 0..255, at least
    speech_seconds: tuple[float, float] = (0.2, 30.0)
    music_seconds: tuple[float, float] = (1.0, 60.0)
    loudness: float = 0.001  # root mean square of a sound, at least: -60 dB of full scale
    clipped: float = 0.02  # share of a sound's samples at full scale, at most
    world: bool = True  # judge what the embedded world describes by its own readers
    world_right: float = 1.0  # share of the attributes stated that must be seen or heard
    world_errors: float = 0.35  # word error rate of its sentences, at most
    judges: str = ""  # folder of clip/, clap/ and whisper/
    clip: float = 0.0  # cosine of a picture and its description, at least; 0: CLIP is not asked
    clap: float = 0.0  # the same of music
    recognizer: str = ""  # of other speech: pocketsphinx, whisper, or "" for none
    errors: float = 0.5  # word error rate by that recognizer, at most

    def __post_init__(self):
        for name in ("side", "speech_seconds", "music_seconds"):
            pair = getattr(self, name)
            if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
                raise UserError(f"`{name}` of the filters is {pair!r}; it must be the least and the most.")
        if self.recognizer not in RECOGNIZERS:
            known = ", ".join(map(repr, RECOGNIZERS))
            raise UserError(f"`recognizer` of the filters is {self.recognizer!r}; there are {known}.")


def filters(settings: MediaSettings) -> tuple[Filter, ...]:
    """First what needs no judge. UserError for a judge whose weights are not there, when it is first asked."""
    judges = Judges(pathlib.Path(settings.judges) if settings.judges else None)
    s = settings
    pictures = [
        world_pictures(s.world_right) if s.world else None,
        clip_cosines(lambda: judges.clip, s.clip) if s.clip else None,
    ]
    music = [
        world_music(s.world_right) if s.world else None,
        clap_cosines(lambda: judges.clap, s.clap) if s.clap else None,
    ]
    speech = [
        world_speech(s.world_errors) if s.world else None,
        heard_errors(_recognizer(s.recognizer, judges), s.errors) if s.recognizer else None,
    ]
    return (
        Whole(settings),
        *(
            Agreement(f"{modality}_agrees", modality, of_either([judge for judge in found if judge]))
            for modality, found in (("image", pictures), ("music", music), ("speech", speech))
        ),
    )


def _recognizer(name: str, judges: Judges) -> Callable[[Sequence[Audio]], Sequence[str]]:
    if name == "pocketsphinx":
        return judges.heard

    def heard(sounds: Sequence[Audio]) -> Sequence[str]:
        if judges.whisper is None:
            raise UserError(
                "Speech is to be judged by Whisper: name the folder that holds it as whisper/ in the filters' `judges`, "
                "or take the recognizer 'pocketsphinx'."
            )
        return judges.whisper.heard(sounds)

    return heard


@dataclasses.dataclass(frozen=True)
class Whole:
    """Every medium is there, can be read, has a sane size and is not blank, silent or clipped."""

    settings: MediaSettings
    name: str = "media_whole"

    def check(self, dialogue: Dialogue, read: Read) -> Verdict:
        """Scores every medium that can be read; the reason is that of the first one with a fault."""
        scores: dict[Place, Mapping[str, float]] = {}
        reasons = []
        for place, medium in media_of(dialogue):
            scores[place], reason = self._looked_at(medium, read)
            if reason:
                reasons.append(f"{told(place, medium)} {reason}.")
        return Verdict(reason=reasons[0] if reasons else None, media=scores)

    def _looked_at(self, medium: Medium, read: Read) -> tuple[Mapping[str, float], str | None]:
        s = self.settings
        if not medium.file:
            return {}, "was not made"
        try:
            if medium.modality == "image":
                return _picture_scores(read(medium.file), s)
            return _sound_scores(
                read(medium.file), s, s.speech_seconds if medium.modality == "speech" else s.music_seconds
            )
        except UserError as e:
            return {}, f"cannot be read: {str(e).rstrip('.')}"
        except OSError as e:
            return {}, f"cannot be read: {e.strerror or type(e).__name__}"


def _picture_scores(data: bytes, s: MediaSettings) -> tuple[Mapping[str, float], str | None]:
    """Scores of a picture, and what is wrong with it. UserError if it cannot be read."""
    picture = load_picture(data)
    height, width = picture.shape[:2]
    contrast = float(np.std(picture, axis=(0, 1), dtype=np.float64).max())
    scores = {"width": float(width), "height": float(height), "contrast": round(contrast, 2)}
    if not s.side[0] <= min(height, width) <= max(height, width) <= s.side[1]:
        return scores, f"has {width} x {height} px; sides of {s.side[0]} to {s.side[1]} px are asked for"
    return scores, "is blank" if contrast < s.contrast else None


def _sound_scores(
    data: bytes, s: MediaSettings, seconds: tuple[float, float]
) -> tuple[Mapping[str, float], str | None]:
    """Scores of a sound, and what is wrong with it. UserError if it cannot be read."""
    sound = load_audio(data)
    samples = np.asarray(sound.samples, np.float64)
    loudness = float(np.sqrt(np.mean(np.square(samples)))) if len(samples) else 0.0
    clipped = float(np.mean(np.abs(samples) >= CLIPPED)) if len(samples) else 0.0
    scores = {"seconds": round(sound.seconds, 3), "loudness": round(loudness, 5), "clipped": round(clipped, 5)}
    if not seconds[0] <= sound.seconds <= seconds[1]:
        return scores, f"lasts {sound.seconds:.2f} s; {seconds[0]:g} to {seconds[1]:g} s are asked for"
    if loudness < s.loudness:
        return scores, "is silent"
    return scores, f"has {clipped:.0%} of its samples at full scale" if clipped > s.clipped else None


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Media of one modality against their descriptions, or the words that they are to say. `Whole` comes before it."""

    name: str
    modality: str
    judge: Judge

    def check(self, dialogue: Dialogue, read: Read) -> Verdict:
        """As `check_many`, of one dialogue."""
        return self.check_many([dialogue], read)[0]

    def check_many(self, dialogues: Sequence[Dialogue], read: Read) -> list[Verdict]:
        """All media of the modality go to the judge at once; the reason is that of a dialogue's first fault."""
        looked = [
            (i, place, medium)
            for i, dialogue in enumerate(dialogues)
            for place, medium in media_of(dialogue)
            if medium.modality == self.modality
        ]
        load: Callable[[bytes], Any] = load_picture if self.modality == "image" else load_audio
        found = self.judge([m.description for _, _, m in looked], lambda j: load(read(looked[j][2].file)))
        scores: dict[int, dict[Place, Mapping[str, float]]] = collections.defaultdict(dict)
        reasons: dict[int, str] = {}
        for (i, place, medium), (score, reason) in zip(looked, found, strict=True):
            scores[i][place] = score
            if reason:
                reasons.setdefault(i, f"{told(place, medium)} {reason}.")
        return [Verdict(reason=reasons.get(i), media=scores[i]) for i in range(len(dialogues))]


def told(place: Place, medium: Medium) -> str:
    """How the sentence of a reason begins; turns are counted from 1."""
    kind = {"image": "picture", "speech": "speech", "music": "music"}[medium.modality]
    return f"The {kind} of turn {place[0] + 1}"
