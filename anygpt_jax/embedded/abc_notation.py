"""A reader of ABC, the text notation of folk tunes, as far as one melody needs it.

Read are keys with modes, unit lengths, accidentals that last a bar, broken rhythm, tuplets, ties and chords
(their highest note). Repeats are not unfolded; grace notes, chord names and ornaments are skipped.
Notation: https://abcnotation.com/wiki/abc:standard:v2.1
"""

from __future__ import annotations

import dataclasses
import re
from fractions import Fraction

STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_SHARP_ORDER = "FCGDAEB"
_FIFTHS = {"C": 0, "G": 1, "D": 2, "A": 3, "E": 4, "B": 5, "F": -1}
# How many fifths below its major key of the same tonic a mode's signature is.
_MODES = {"": 0, "maj": 0, "ion": 0, "mix": 1, "dor": 2, "m": 3, "min": 3, "aeo": 3, "phr": 4, "loc": 5, "lyd": -1}
_ACCIDENTALS = {"^": 1, "^^": 2, "_": -1, "__": -2, "=": 0}
_TUPLET_TIME = {2: 3, 3: 2, 4: 3, 5: 2, 6: 2, 7: 2, 8: 3, 9: 2}  # p notes in the time of q

_POSITIVE = r"0*([1-9]\d{0,3})(?!\d)"
_METER = re.compile(f"{_POSITIVE}/{_POSITIVE}")
_UNIT = re.compile(f"{_POSITIVE}(?:/{_POSITIVE})?")
_KEY = re.compile(r"([A-G])([#b]?)\s*([A-Za-z]*)")
_SKIP = re.compile(r'"[^"]*"|\{[^}]*\}|![^!\n]*!|\+[^+\n]*\+|%[^\n]*|\\\s*\n')
_INLINE = re.compile(r"\[([A-Za-z]):([^\]]*)\]")
_NOTE = r"(?:\^\^|\^|__|_|=)?[A-Ga-g][,']*"
_LENGTH = r"(\d*)((?:/\d*)*)"
_TOKEN = re.compile(
    rf"(?P<field>\[[A-Za-z]:[^\]]*\])|(?P<tuplet>\((\d)(?::(\d?))?(?::(\d?))?)|\[(?P<chord>(?:{_NOTE}{_LENGTH}-?)+)\]{_LENGTH}"
    rf"|(?P<note>{_NOTE}){_LENGTH}|(?P<rest>[zxZ]){_LENGTH}|(?P<broken>[<>]+)|(?P<tie>-)|(?P<bar>[|:]+[\]\[]?)"
)
_PITCH = re.compile(r"(\^\^|\^|__|_|=)?([A-Ga-g])([,']*)")


class AbcError(ValueError):
    """The text is not a tune this reader understands."""


@dataclasses.dataclass(frozen=True)
class Note:
    """Onset and duration in whole notes; pitch as a MIDI number."""

    onset: Fraction
    duration: Fraction
    pitch: int


@dataclasses.dataclass(frozen=True)
class Key:
    """What decides which steps of a tune are altered: its tonic and its mode."""

    tonic: str  # "G", "Bb", "F#"
    mode: str  # a key of _MODES

    @classmethod
    def parse(cls, text: str) -> Key:
        """Of a K: field. A mode counts by its first three letters in either case ("m" and "M" alone are minor), and
        one that is unknown is taken for major.

        Raises AbcError if the field does not begin with a tonic, A … G.
        """
        match = _KEY.match(text.strip())
        if not match:
            raise AbcError(f"key {text!r}")
        mode = match[3][:3].lower()
        return cls(match[1] + match[2], mode if mode in _MODES else "")

    @property
    def signature(self) -> dict[str, int]:
        """Semitones by which the key alters each step."""
        fifths = _FIFTHS[self.tonic[0]] + 7 * {"": 0, "#": 1, "b": -1}[self.tonic[1:]] - _MODES[self.mode]
        steps = _SHARP_ORDER[:fifths] if fifths >= 0 else _SHARP_ORDER[::-1][:-fifths]
        return {step: 1 if fifths > 0 else -1 for step in steps}

    @property
    def name(self) -> str | None:
        """ "b flat major", "e minor"; None for the other modes."""
        mode = {"": "major", "maj": "major", "m": "minor", "min": "minor"}.get(self.mode)
        sign = {"": "", "#": " sharp", "b": " flat"}[self.tonic[1:]]
        return f"{self.tonic[0].lower()}{sign} {mode}" if mode else None


def _length(number: str, slashes: str) -> Fraction:
    length = Fraction(int(number or 1))
    for part in re.findall(r"/(\d*)", slashes):
        length /= int(part or 2) or 1
    return length


def header(text: str) -> dict[str, str]:
    """The first value of each information field ("T", "R", "M", "L", "K", …) of the first tune."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        match = re.match(r"([A-Za-z]):\s*([^%]*)", line)
        if match:
            fields.setdefault(match[1], match[2].strip())
            if match[1] == "K":
                break
    return fields


def meter(text: str) -> Fraction:
    """The length of a bar in whole notes. AbcError if it is not of the form 6/8, C or C|."""
    if text in ("C", "C|"):
        return Fraction(1)
    match = _METER.match(text)
    if not match:
        raise AbcError(f"meter {text!r}")
    return Fraction(int(match[1]), int(match[2]))


def _unit(text: str) -> Fraction:
    """Of an L: field, in whole notes."""
    match = _UNIT.fullmatch(text.strip())
    if not match:
        raise AbcError(f"unit length {text!r}")
    return Fraction(int(match[1]), int(match[2] or 1))


def _body(text: str) -> str:
    """The music lines after the first K:, with later K: and L: fields written inline.

    A later M: is left out: it does not change the unit length, and bars are where their lines are.
    """
    lines, started = [], False
    for line in text.splitlines():
        match = re.match(r"([A-Za-z]):(.*)", line)
        if match and started and match[1] == "X":
            break
        if match and started and match[1] in "KL":
            lines.append(f"[{match[1]}:{match[2].split('%')[0].strip()}]")
        elif match and not started:
            started = match[1] == "K"
        elif started and not match:
            lines.append(line)
    return _SKIP.sub(" ", "\n".join(lines) + "\n")


class _Melody:
    """Notes in the order they are read, with the state that ABC keeps between them."""

    def __init__(self, key: Key, unit: Fraction):
        self.signature = key.signature
        self.unit = unit
        self.notes: list[Note] = []
        self.time = Fraction(0)
        self.altered: dict[tuple[str, int], int] = {}  # accidentals of this bar
        self.tuplet = (0, Fraction(1))  # notes left, factor
        self.stretch = Fraction(1)  # what a broken rhythm leaves to the next note
        self.tied = False
        self.last_was_note = False

    def pitch(self, text: str) -> int:
        match = _PITCH.match(text)
        assert match
        step, octave = match[2].upper(), int(match[2].islower()) + match[3].count("'") - match[3].count(",")
        if match[1]:
            self.altered[step, octave] = _ACCIDENTALS[match[1]]
        return 60 + 12 * octave + STEPS[step] + self.altered.get((step, octave), self.signature.get(step, 0))

    def add(self, pitch: int | None, length: Fraction) -> None:
        duration = length * self.unit * self.stretch
        self.stretch = Fraction(1)
        left, factor = self.tuplet
        if left:
            duration, self.tuplet = duration * factor, (left - 1, factor)
        if pitch is not None:
            if self.tied and self.notes and self.notes[-1].pitch == pitch:
                last = self.notes[-1]
                self.notes[-1] = Note(last.onset, last.duration + duration, pitch)
            else:
                self.notes.append(Note(self.time, duration, pitch))
        self.time += duration
        self.tied, self.last_was_note = False, pitch is not None

    def broken(self, marks: str) -> None:
        """`a>b`: the first is lengthened by half of itself and the second shortened; `<` the other way."""
        if not self.notes or not self.last_was_note:
            return
        short = Fraction(1, 2 ** len(marks))
        first, second = (2 - short, short) if marks[0] == ">" else (short, 2 - short)
        last = self.notes[-1]
        self.notes[-1] = Note(last.onset, last.duration * first, last.pitch)
        self.time += last.duration * (first - 1)
        self.stretch = second

    def field(self, name: str, value: str) -> None:
        if name == "K":
            self.signature = Key.parse(value).signature
        elif name == "L":
            self.unit = _unit(value)


def parse_notes(text: str) -> list[Note]:
    """The melody of the first tune. Raises AbcError if it has no key, a field that is wrong, or no note."""
    fields = header(text)
    if "K" not in fields:
        raise AbcError("no K: field")
    bar = meter(fields.get("M", "4/4"))
    default = Fraction(1, 16) if bar < Fraction(3, 4) else Fraction(1, 8)
    melody = _Melody(Key.parse(fields["K"]), _unit(fields["L"]) if "L" in fields else default)
    for token in _TOKEN.finditer(_body(text)):
        if token["field"]:
            match = _INLINE.match(token["field"])
            assert match
            melody.field(match[1], match[2])
        elif token["tuplet"]:
            p = int(token[3])
            q, r = int(token[4] or _TUPLET_TIME.get(p, 2)), int(token[5] or p)
            if not p or not q:
                raise AbcError(f"tuplet {token['tuplet']!r}")
            melody.tuplet = (r, Fraction(q, p))
        elif token["chord"]:
            inside = list(re.finditer(rf"({_NOTE}){_LENGTH}", token["chord"]))
            # A chord's length is its first note's, times what follows the bracket.
            length = _length(inside[0][2], inside[0][3]) * _length(token[9], token[10])
            melody.add(max(melody.pitch(n[1]) for n in inside), length)
            melody.tied = token["chord"].endswith("-")
        elif token["note"]:
            melody.add(melody.pitch(token["note"]), _length(token[12], token[13]))
        elif token["rest"]:
            melody.add(None, _length(token[15], token[16]))
        elif token["broken"]:
            melody.broken(token["broken"])
        elif token["tie"]:
            melody.tied = True
        elif token["bar"]:
            melody.altered.clear()
    if not melody.notes:
        raise AbcError("no notes")
    return melody.notes
