"""The format of AnyGPT-chat: a system line, then turns, each on a line of its own.

    [Human]: {image} {music} {speech} {text}<eoh>
    [MMGPT]: {text} {codes}<eos>

A spoken command is answered by a chain of modality: `<-Ins-> {transcript}`, `<-Res-> {reply}`, the reply in speech.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from anygpt_jax.formats.base import Content
from anygpt_jax.formats.released import HEARD, REPLY, Part, Released
from anygpt_jax.tasks.instructions import choose, instructions
from anygpt_jax.templates import TEXT, Segment

SYSTEM = (
    "You are an AI assistant named MMGPT who can understand and generate multimodal content, "
    "including text, speech, images and audio."
)
MEDIA_ORDER = ("image", "music", "speech")
SPOKEN_COMMAND = "Please recognize the voice command and give reply and voice"
# (source, target) -> the request of fine-tuning, which follows the source. Their grammar is the authors'.
REQUESTS = {
    ("speech", TEXT): "Please transcribe the given speech.",
    ("image", TEXT): "Please describe the picture briefly.",
    ("music", TEXT): "Please interpret the given music and provide a textual description.",
    (TEXT, "speech"): "Please read the given text.",
    (TEXT, "image"): "Please generation an image.",
    (TEXT, "music"): "Please compose a piece of music from the given text.",
}


class AnyGPTChat(Released):
    """A human turn of one text at most is put into the order above; one of several texts stays in its own.

    Speech in it is a spoken command, which a request for an answer in speech follows, unless the text asks for a
    transcript.
    """

    @property
    def dividers(self) -> tuple[int, ...]:
        """`<-Ins->`, then `<-Res->`."""
        return self.vocabulary.marker(HEARD), self.vocabulary.marker(REPLY)

    def prompt(self, segments: Sequence[Segment], answer: str | None = None) -> np.ndarray:
        """int32[N]. ValueError unless human and assistant take turns and the last is the human's."""
        turns = [(role, list(turn)) for role, turn in itertools.groupby(segments, key=lambda segment: segment.role)]
        if [role for role, _ in turns] != [*["human", "assistant"] * (len(turns) // 2), "human"]:
            raise ValueError("in a prompt human and assistant take turns, and the last one is the human's")
        return self.ids(itertools.chain(self._dialogue(turns), self.opening(answer)))

    def _dialogue(self, turns: Iterable[tuple[str, Sequence[Segment]]]) -> Iterator[Part]:
        yield f"{SYSTEM}\n"
        for role, turn in turns:
            human = role == "human"
            yield from self.marked("[Human]: " if human else "[MMGPT]: ")
            yield from self.joined(arranged(turn) if human else turn)
            yield from self.marked("<eoh>\n" if human else "<eos>\n")

    def ask(
        self, source: str, target: str, content: Content, tokenizers: Mapping[str, object] | None = None
    ) -> list[Segment]:
        """The source, then the request of fine-tuning, in one segment with a text. Speech whose target is not text
        stands alone: `prompt` adds its command."""
        if source == "speech" and target != TEXT:
            return [Segment(source, content, "human")]  # what is said is the request
        asked = REQUESTS.get((source, target)) or choose(instructions(source, target, tokenizers), None)
        if source != TEXT:
            return [Segment(source, content, "human"), Segment(TEXT, asked, "human")]
        text = str(content).strip()
        if target == "image" and not text.endswith((".", "!", "?")):
            text += "."
        return [Segment(TEXT, f"{text} {asked}", "human")]

    def decode(self, ids: np.ndarray) -> str:
        """The dividers are in it as in the training's strings: `<-Res->` begins a line."""
        written = dict(zip(self.dividers, (f" {HEARD} ", f"\n {REPLY} "), strict=True))
        cuts = [int(i) for i in np.flatnonzero(np.isin(ids, self.dividers))]
        text = self.text.decode(ids[: cuts[0]] if cuts else ids).strip()
        for cut, stop in itertools.pairwise([*cuts, len(ids)]):
            text += written[int(ids[cut])] + self.text.decode(ids[cut + 1 : stop]).strip()
        return text.strip()


def arranged(turn: Sequence[Segment]) -> list[Segment]:
    """A human turn as it was trained."""
    media = [segment for segment in turn if segment.modality != TEXT]
    texts = [segment for segment in turn if segment.modality == TEXT]
    if len(texts) < 2:
        rank = {modality: i for i, modality in enumerate(MEDIA_ORDER)}
        turn = [*sorted(media, key=lambda segment: rank.get(segment.modality, len(rank))), *texts]
    wants_transcript = any(str(segment.content).strip() == REQUESTS["speech", TEXT] for segment in texts)
    if wants_transcript or all(segment.modality != "speech" for segment in media):
        return list(turn)
    # Without a text, two spaces enclose an empty one.
    empty = [] if texts else [Segment(TEXT, "", "human")]
    return [*turn, *empty, Segment(TEXT, SPOKEN_COMMAND, "human")]
