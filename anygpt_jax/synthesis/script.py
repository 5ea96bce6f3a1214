"""A dialogue as it is written before its media are made: lines of two speakers, media as descriptions in brackets.

    User: what does this instrument sound like [image: a violin]
    Assistant: that is a violin, it sounds like this [music: a slow jig on the violin]

This is what language models are asked for (AnyGPT, appendix; its brackets are [image: …] and [music: …]).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from anygpt_jax.synthesis.dialogue import Medium, Said

HUMAN, ASSISTANT = "human", "assistant"
SPEAKERS = {"user": HUMAN, "human": HUMAN, "assistant": ASSISTANT, "chatbot": ASSISTANT, "bot": ASSISTANT}
MEDIA = ("image", "music")
_LINE = re.compile(r"^\s*\**\s*(\w+)\s*\**\s*:\s*\**\s*(.*)$")
_MEDIUM = re.compile(r"\[\s*(\w+)\s*:\s*([^\[\]]*)\]")


class ScriptError(ValueError):
    """A text is no script; the message says why."""


def write(turns: Sequence[Said]) -> str:
    """Their media as descriptions, whether they are made or not."""
    return "\n".join(map(_line, turns))


def _line(said: Said) -> str:
    speaker = "User" if said.role == HUMAN else "Assistant"
    described = [f"[{medium.modality}: {medium.description}]" for medium in said.media]
    return f"{speaker}: {' '.join(filter(None, [said.text, *described]))}"


def parse(text: str) -> tuple[Said, ...]:
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
    return tuple(_said(role, line) for role, line in lines)


def _said(role: str, line: str) -> Said:
    media = []
    for found in _MEDIUM.finditer(line):
        modality, description = found[1].lower(), " ".join(found[2].split())
        if modality not in MEDIA:
            raise ScriptError(f"[{modality}: …] is no medium of a script ({', '.join(MEDIA)})")
        if not description:
            raise ScriptError(f"[{modality}: ] describes nothing")
        media.append(Medium(modality, description))
    left = _MEDIUM.sub(" ", line)
    if "[" in left or "]" in left:
        raise ScriptError("a bracket is not closed, or describes no medium")
    return Said(role, " ".join(left.split()), tuple(media))
