"""GigaSpeech: one JSON of long recordings, and the utterances are cut from them (github.com/SpeechColab/GigaSpeech)."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from anygpt_jax.errors import UserError
from anygpt_jax.modalities.audio import SAMPLE_RATE, load_audio, save_wav
from anygpt_jax.modalities.base import Audio
from anygpt_jax.tasks.paths import OUTSIDE, below
from anygpt_jax.tasks.sources.metadata import json_items
from anygpt_jax.tasks.sources.source import Example, File, MediaSource, Unit, Unreadable, cause, read_medium

LONGEST = 6 * 3600.0  # s of one recording: 1.4 GB while its utterances are cut


def gigaspeech(path: str, subsets: Mapping[str, str]) -> MediaSource:
    """`path` is GigaSpeech.json and `subsets` its subset of every split: {"train": "XL", "validation": "DEV"}.

    Fields: speech (16 kHz mono WAV, cut by begin_time and end_time, in seconds), text (text_tn as it is written, see
    `text_normalization.gigaspeech`); attributes: speaker, title, category, source and so on. A recording is decoded
    once for all its utterances.
    """
    return MediaSource(
        dict.fromkeys(subsets, path), functools.partial(read, subsets=dict(subsets)), fields=("speech", "text")
    )


def read(file: File, subsets: Mapping[str, str]) -> Iterator[Unit]:
    """A unit is one recording."""
    for recording in json_items(file.path, "audios"):
        yield functools.partial(utterances, recording, subsets[file.split], file.path.parent)


def utterances(recording: Mapping[str, Any], subset: str, root: pathlib.Path) -> Iterator[Example]:
    """The utterances of one recording that belong to a subset."""
    wanted = [s for s in recording.get("segments", ()) if _within(s.get("subsets", ()), subset)]
    if not wanted:
        return
    said = {k: v for k, v in recording.items() if isinstance(v, str | int | float) and k not in ("path", "md5")}
    sound = _decoded(below(root, str(recording.get("path"))))
    for i, segment in enumerate(wanted):
        yield {
            "key": str(segment.get("sid") or f"{recording.get('aid')}#{i}"),
            "speech": sound if isinstance(sound, Unreadable) else cut(sound, segment),
            "text": segment.get("text_tn"),
            "attributes": said | {"speaker": segment.get("speaker", "N/A")},
        }


def _within(subsets: Sequence[str], subset: str) -> bool:
    return subset in {name.strip("{}") for name in subsets}


def _decoded(path: pathlib.Path | None) -> Audio | Unreadable:
    if path is None:
        return Unreadable(OUTSIDE)
    data = read_medium(path)
    if isinstance(data, Unreadable):
        return data
    try:
        return load_audio(data, SAMPLE_RATE, LONGEST)
    except UserError as e:
        return Unreadable(f"{path.name}: {e}")


def cut(sound: Audio, segment: Mapping[str, Any]) -> bytes | Unreadable:
    """WAV of the samples from begin_time to end_time, or why there is none."""
    try:
        begin, end = (round(float(segment[name]) * sound.sample_rate) for name in ("begin_time", "end_time"))
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        return Unreadable(f"its times cannot be read ({cause(e)})")
    if not 0 <= begin < end <= len(sound.samples) + sound.sample_rate // 10:  # times are rounded to hundredths
        return Unreadable(
            f"it is said to be from {segment['begin_time']} s to {segment['end_time']} s of a recording of "
            f"{len(sound.samples) / sound.sample_rate:.2f} s"
        )
    return save_wav(Audio(sound.samples[begin:end], sound.sample_rate))
