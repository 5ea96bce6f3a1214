"""A dialogue as it is written before its media are made: lines of two speakers, media as descriptions in brackets.

    User: what does this instrument sound like [image: a violin]
    Assistant: that is a violin, it sounds like this [music: a slow jig on the violin]

This is what language models are asked for (AnyGPT, appendix; its brackets are [image: …] and [music: …]).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

HUMAN, ASSISTANT = "human", "assistant"
SPEAKERS = {"user": HUMAN, "human": HUMAN, "assistant": ASSISTANT, "chatbot": ASSISTANT, "bot": ASSISTANT}
MEDIA = ("image", "music")
_LINE = re.compile(r"^\s*\**\s*(\w+)\s*\**\s*:\s*\**\s*(.*)$")
_MEDIUM = re.compile(r"\[\s*(\w+)\s*:\s*([^\[\]]*)\]")


class ScriptError(ValueError):
    """A text is no script; the message says why."""


@dataclasses.dataclass(frozen=True)
class Described:
    """A medium that is to be made."""

    modality: str  # one of MEDIA
    description: str


@dataclasses.dataclass(frozen=True)
class Turn:
    role: str  # HUMAN or ASSISTANT
    text: str  # without the descriptions
    media: tuple[Described, ...] = ()

    def written(self) -> str:
        speaker = "User" if self.role == HUMAN else "Assistant"
        described = [f"[{medium.modality}: {medium.description}]" for medium in self.media]
        return f"{speaker}: {' '.join(filter(None, [self.text, *described]))}"


def write(turns: Sequence[Turn]) -> str:
    return "\n".join(turn.written() for turn in turns)


def parse(text: str) -> tuple[Turn, ...]:
    """The turns of a script; lines before the first speaker are left out, others go on with the turn before.

    ScriptError for brackets that name no medium we make, an empty description, or a text without any turn.
    """
    lines: list[tuple[str, str]] = []
    for line in text.splitlines():
        found = _LINE.match(line)
        if found and found[1].lower() in SPEAKERS:
            lines.append((SPEAKERS[found[1].lower()], found[2].strip()))
        elif lines and line.strip():
            role, said = lines[-1]
            lines[-1] = role, f"{said} {line.strip()}"
    if not lines:
        raise ScriptError("no line begins with a speaker")
    return tuple(_turn(role, said) for role, said in lines)


def _turn(role: str, said: str) -> Turn:
    media = []
    for found in _MEDIUM.finditer(said):
        modality, description = found[1].lower(), " ".join(found[2].split())
        if modality not in MEDIA:
            raise ScriptError(f"[{modality}: …] is no medium of a script ({', '.join(MEDIA)})")
        if not description:
            raise ScriptError(f"[{modality}: ] describes nothing")
        media.append(Described(modality, description))
    left = _MEDIUM.sub(" ", said)
    if "[" in left or "]" in left:
        raise ScriptError("a bracket is not closed, or describes no medium")
    return Turn(role, " ".join(left.split()), tuple(media))
