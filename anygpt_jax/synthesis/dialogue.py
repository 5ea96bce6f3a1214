"""A dialogue on its way through the stages, as one JSON object a line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

Place = tuple[int, int]  # turn, and which medium of it
SPEECH = -1  # the medium of a Place that is its turn's speech


@dataclasses.dataclass(frozen=True)
class Made:
    """Where something came from: enough to ask for it again."""

    backend: str
    prompt: str  # the description, the words to be spoken, or by name and version what a language model was given
    seed: int
    digest: str  # of the request, under which the response cache has the whole of it and the answer


@dataclasses.dataclass(frozen=True)
class Medium:
    """A medium in a turn. `file` is relative to the run's folder; "" while it is only described."""

    modality: str  # "image", "music" or "speech"
    description: str  # of speech: the words
    file: str = ""
    sha256: str = ""
    voice: str = ""
    made: Made | None = None
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)  # of the filters that looked at it


@dataclasses.dataclass(frozen=True)
class Said:
    """A turn: what is written, the media in it, and the same words spoken if they are."""

    role: str  # "human" or "assistant"
    text: str
    media: tuple[Medium, ...] = ()
    speech: Medium | None = None


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """From the stage `dialogues` on. A filter that refuses it leaves it there, with its name in `removed_by`."""

    id: str
    meta_topic: str
    topic: str
    split: str  # by its topic: train, validation or test
    requirement: str  # which media the scenario was to have, by name
    scenario: str
    turns: tuple[Said, ...]
    made: Mapping[str, Made]  # by stage: topics, scenarios, dialogues
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    removed_by: str = ""  # the first filter that refused it
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Fields by name, all the way down, as JSON can hold them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Dialogue:
        """The inverse of `to_json`, of a row that JSON gives back; TypeError for a field that there is not."""
        made = {stage: Made(**one) for stage, one in row["made"].items()}
        return cls(**{**row, "turns": tuple(map(_said, row["turns"])), "made": made})


def media_of(dialogue: Dialogue) -> Iterator[tuple[Place, Medium]]:
    """Every medium with its place: of each turn the media, then the speech."""
    for i, said in enumerate(dialogue.turns):
        yield from (((i, j), medium) for j, medium in enumerate(said.media))
        if said.speech is not None:
            yield (i, SPEECH), said.speech


def with_media(dialogue: Dialogue, found: Mapping[Place, Medium]) -> Dialogue:
    """The dialogue with other media in these places."""

    def said(i: int, old: Said) -> Said:
        media = tuple(found.get((i, j), medium) for j, medium in enumerate(old.media))
        return dataclasses.replace(old, media=media, speech=found.get((i, SPEECH), old.speech))

    return dataclasses.replace(dialogue, turns=tuple(said(i, old) for i, old in enumerate(dialogue.turns)))


def _said(row: Mapping[str, Any]) -> Said:
    speech = None if row["speech"] is None else _medium(row["speech"])
    return Said(row["role"], row["text"], tuple(map(_medium, row["media"])), speech)


def _medium(row: Mapping[str, Any]) -> Medium:
    return Medium(**{**row, "made": None if row["made"] is None else Made(**row["made"])})
