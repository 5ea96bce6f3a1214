"""The filter of voice dialogues: refuses what a voice cannot say, as texts of instruction sets are written to be read."""

from __future__ import annotations

import dataclasses
import re

from anygpt_jax.synthesis.dialogue import Dialogue
from anygpt_jax.synthesis.filters import Read, Verdict
from anygpt_jax.synthesis.instructions import REQUIREMENT

SHOWN = 40  # characters of what is refused
_ITEM = r"(?:[-*•–]|\(?\d{1,3}[.):])\s+\S"
# The first that is found is the reason; the last catches what no other names.
_UNSPEAKABLE = (
    ("an address", re.compile(
        r"\b(?:https?|ftp)://|\bwww\.\w|\S@\w+\.\w|\b[\w-]{2,}\.(?:com|org|net|io|edu|gov|html?|py|js|txt|pdf)\b"
        r"|(?<![\w/])/\w+/\w+|\b[a-z]:\\", re.I,
    )),
    ("a table", re.compile(r"\t|\|[^|\n]*\|")),
    ("code", re.compile(
        r"```|`[^`\n]+`|</?[a-z][^<>\n]*>|;$|[=!<>]=|=>|->|&&|\w_\w|\w\.\w+\(|^\s*(?:def|class|function|#include)\s.*[:{>]"
        r"|^\s*(?:import|from)\s+[\w.]+(?:\s+import\s.*)?$", re.M,
    )),
    ("a formula", re.compile(r"\\[a-zA-Z]+|\^|\$[^$\n]*[\\_=][^$\n]*\$|\w\s*=\s*\S|[∑∫√≤≥≠±×÷∞→]")),
    ("a list", re.compile(rf"^\s*{_ITEM}.*\n+\s*{_ITEM}", re.M)),
    ("a number too long to be said", re.compile(r"\d{7,}")),
    ("a word too long to be said", re.compile(r"[^\s-]{31,}")),
    ("a sign that is not said", re.compile(r"[^\w\s.,;:!?'\"’‘“”()…–—%$€£&°/+-]")),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Speakable:
    """Of other dialogues it asks nothing. The words of an utterance are counted by the filter `words`."""

    name: str = "speakable"

    def check(self, dialogue: Dialogue, read: Read) -> Verdict:
        """No scores. The reason has the first such turn, counted from 1, and what cannot be said in it."""
        for i, said in enumerate(dialogue.turns if dialogue.requirement == REQUIREMENT else ()):
            if reason := unspeakable(said.text):
                return Verdict(reason=f"Turn {i + 1} cannot be spoken: there is {reason}.")
        return Verdict()


def unspeakable(text: str) -> str:
    """What of a text cannot be said, and where; "" if all can."""
    for what, pattern in _UNSPEAKABLE:
        if found := pattern.search(text):
            return f"{what}, {found[0][:SHOWN]!r}"
    return ""
