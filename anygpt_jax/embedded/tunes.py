"""Tunes of Ryan's Mammoth Collection (Boston, 1883), played by a General MIDI soundfont.

A clip is the first four seconds of a melody at one of three tempi, mono at 16 kHz. Its notes are kept, so
that what is heard can be compared with what was played.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from fractions import Fraction

import numpy as np

from anygpt_jax.embedded import abc_notation, assets, grammar
from anygpt_jax.embedded.splits import split_of
from anygpt_jax.modalities.base import Audio

SAMPLE_RATE = 16_000
SECONDS = 4.0
LEVEL = 0.1  # root mean square of a clip
# General MIDI programs, counted from 0.
PROGRAMS: dict[str, int] = {
    "piano": 0, "violin": 40, "guitar": 24, "flute": 73, "accordion": 21, "trumpet": 56, "banjo": 105, "saxophone": 65,
}  # fmt: skip
# Running notes a second: eight to a bar of a reel or hornpipe, six to one of a jig. A reel's bars of two beats
# thus go at 36, 60 and 99 beats a minute. Each step is a factor of 5/3, which can be heard and measured.
NOTES_PER_SECOND: dict[str, float] = {"slow": 2.4, "medium": 4.0, "fast": 6.6}
RUNNING_NOTES_A_BAR = {"reel": 8, "hornpipe": 8, "jig": 6}
ARTICULATION = 0.92  # share of a note's duration that it is held
OPENING = 12  # notes by which melodies count as the same


@dataclasses.dataclass(frozen=True)
class Tune:
    """A melody and what its header says."""

    name: str  # the file's name in the collection
    title: str
    dance: str
    key: str
    notes: tuple[abc_notation.Note, ...]
    bar: Fraction  # whole notes

    @property
    def opening(self) -> str:
        """Hash of the first notes' intervals and relative durations: the same for transposed copies."""
        notes = self.notes[: OPENING + 1]
        steps = [(b.pitch - a.pitch, str(a.duration / self.bar)) for a, b in itertools.pairwise(notes)]
        return hashlib.sha256(repr(steps).encode()).hexdigest()

    @property
    def split(self) -> str:
        """By the hash of the opening: a melody is in one split in every key and under every name."""
        return split_of("melody", self.opening)


def _read(name: str, text: str) -> Tune | None:
    """The tune, or None for another dance, another mode or notation the reader does not know."""
    fields = abc_notation.header(text)
    dance = fields.get("R", "").lower()
    try:
        key, bar = abc_notation.Key.parse(fields.get("K", "")).name, abc_notation.meter(fields.get("M", ""))
        notes = tuple(abc_notation.parse_notes(text))
    except abc_notation.AbcError:
        return None
    compound = fields["M"] == "6/8"
    plain = dance in RUNNING_NOTES_A_BAR and compound == (dance == "jig") and bar <= 1
    if not plain or key not in grammar.KEYS or len(notes) < 40:
        return None
    return Tune(name, fields.get("T", name), dance, key, notes, bar)


@functools.cache
def load_tunes() -> tuple[Tune, ...]:
    """All reels, jigs and hornpipes in major or minor, sorted by name."""
    folder = assets.package_path("music21", "corpus", "ryansMammoth")
    files = sorted(folder.glob("*.abc"))
    tunes = (_read(path.stem, path.read_text("utf-8", errors="replace")) for path in files)
    return tuple(tune for tune in tunes if tune)


PITCH_CLASSES = {
    "c": 0, "d": 2, "e flat": 3, "e": 4, "f": 5, "g": 7, "a": 9, "b flat": 10, "b": 11
}  # fmt: skip


def transpose(tune: Tune, key: str) -> Tune:
    """The same melody in another key of its mode, by the smaller interval: at most a tritone away."""
    tonic, to = (PITCH_CLASSES[k.rsplit(" ", 1)[0]] for k in (tune.key, key))
    by = (to - tonic + 5) % 12 - 5
    notes = tuple(dataclasses.replace(note, pitch=note.pitch + by) for note in tune.notes)
    return dataclasses.replace(tune, key=key, notes=notes)


@functools.cache
def tunes(split: str, dance: str) -> tuple[Tune, ...]:
    """The tunes of a split that are such a dance."""
    return tuple(t for t in load_tunes() if t.split == split and t.dance == dance)


def clip_notes(tune: Tune, tempo: str, seconds: float = SECONDS) -> list[tuple[float, float, int]]:
    """(onset, duration, MIDI pitch) of the first `seconds`, in seconds; the last notes are cut short."""
    bar_seconds = RUNNING_NOTES_A_BAR[tune.dance] / NOTES_PER_SECOND[tempo]
    scale = bar_seconds / float(tune.bar)
    found = []
    for note in tune.notes:
        onset = round(float(note.onset) * scale, 4)
        # A note that barely starts cannot be heard.
        if onset < seconds - 0.05:
            found.append((onset, round(min(float(note.duration) * scale, seconds - onset), 4), note.pitch))
    return found


@functools.cache
def _synthesizer():
    assets.require("tinysoundfont")
    import tinysoundfont

    synthesizer = tinysoundfont.Synth(samplerate=SAMPLE_RATE)
    font = synthesizer.sfload(str(assets.package_path("pretty_midi", "TimGM6mb.sf2")))
    for channel, program in enumerate(PROGRAMS.values()):
        synthesizer.program_select(channel, font, 0, program)
    return synthesizer


def play(notes: list[tuple[float, float, int]], instrument: str, seconds: float = SECONDS) -> Audio:
    """Notes played on one of `PROGRAMS`: float32 mono at 16 kHz, exactly `seconds` long."""
    synthesizer = _synthesizer()
    channel = list(PROGRAMS).index(instrument)
    events = [(round(onset * SAMPLE_RATE), 1, pitch) for onset, _, pitch in notes]
    events += [(round((onset + ARTICULATION * length) * SAMPLE_RATE), 0, pitch) for onset, length, pitch in notes]
    total = round(seconds * SAMPLE_RATE)
    pieces, now = [], 0

    def advance(until: int) -> None:
        nonlocal now
        if until > now:
            stereo = np.frombuffer(synthesizer.generate(until - now), np.float32).reshape(-1, 2)
            pieces.append(stereo.mean(axis=1))
            now = until

    for at, on, pitch in sorted(events):
        if at >= total:
            break
        advance(at)
        if on:
            synthesizer.noteon(channel, pitch, 100)
        else:
            synthesizer.noteoff(channel, pitch)
    advance(total)
    synthesizer.sounds_off(channel)
    # What still sounds must not reach the next clip.
    synthesizer.generate(SAMPLE_RATE // 10)
    samples = np.concatenate(pieces).astype(np.float32)
    samples[-320:] *= np.linspace(1, 0, 320, dtype=np.float32)
    samples *= LEVEL / max(float(np.sqrt(np.mean(samples**2))), 1e-6)
    return Audio(np.clip(samples, -1, 1), SAMPLE_RATE)


def render(tune: Tune, instrument: str, tempo: str) -> tuple[Audio, list[tuple[float, int]]]:
    """(the clip, its notes as (onset in seconds, MIDI pitch))."""
    notes = clip_notes(tune, tempo)
    return play(notes, instrument), [(onset, pitch) for onset, _, pitch in notes]
