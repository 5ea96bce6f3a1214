"""The format of AnyGPT-base: one request and its answer, as in pre-training.

[Human]: {instruction} {codes}<eoh> [MMGPT]: {text}<eos>
[Human]: {instruction} This is input: {text}<eoh> [MMGPT]: {codes}<eos>
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from anygpt_jax.errors import UserError
from anygpt_jax.formats.base import Content
from anygpt_jax.formats.released import Released
from anygpt_jax.tasks.instructions import choose, instructions
from anygpt_jax.templates import TEXT, Segment

# (source, target) -> one of the hundreds that training drew from. Always the same: an answer depends on the seed alone.
INSTRUCTIONS = {
    ("speech", TEXT): "Convert the speech into a written transcript.",
    ("image", TEXT): "Write a caption for this image.",
    ("music", TEXT): "Describe the melody and rhythm of this music.",
    (TEXT, "speech"): "Please give voice to this silent text by speaking the words.",
    (TEXT, "image"): "Transform these words into a picture.",
    (TEXT, "music"): "Create a musical piece that captures the essence of this caption.",
}


class AnyGPTBase(Released):
    """Segments are written in their order, a space between two."""

    def prompt(self, segments: Sequence[Segment], answer: str | None = None) -> np.ndarray:
        """int32[N]. UserError for a dialogue: pre-training had none."""
        if any(segment.role != "human" for segment in segments):
            raise UserError("The format anygpt-base knows one request and no dialogue; begin a new one.")
        request = self.marked("[Human]: "), self.joined(segments), self.marked("<eoh> ")
        return self.ids(itertools.chain(*request, self.opening(answer)))

    def ask(
        self, source: str, target: str, content: Content, tokenizers: Mapping[str, object] | None = None
    ) -> list[Segment]:
        """The instruction before a medium's codes; before a text, in one segment with it."""
        asked = INSTRUCTIONS.get((source, target)) or choose(instructions(source, target, tokenizers), None)
        if source == TEXT:
            return [Segment(TEXT, f"{asked} This is input: {str(content).strip()}", "human")]
        return [Segment(TEXT, asked, "human"), Segment(source, content, "human")]
