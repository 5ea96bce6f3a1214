"""Dialogues of text, speech, images and music: metadata as JSON, and the media it names in tars beside it.

This is the outer form of AnyInstruct (huggingface.co/datasets/fnlp/AnyInstruct: part1/metadata.json, images_224.tar,
music.tar, speech.tar; speech_conv/metadata.jsonl, speech.tar). The names inside its metadata are not documented, so
they are settings: `Names` is to be held against the first record of the file at hand.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from anygpt_jax.tasks.sources.metadata import json_items, rows
from anygpt_jax.tasks.sources.mmc4 import FIELDS, LISTS
from anygpt_jax.tasks.sources.source import Example, File, MediaSource, Unit, Unreadable
from anygpt_jax.tasks.sources.tar import Damage, Member, members, read_member

HUMAN = ("user", "human", "prompter")
ASSISTANT = ("assistant", "chatbot", "bot", "gpt", "anygpt", "mmgpt")


@dataclasses.dataclass(frozen=True)
class Names:
    """Where a record has its parts. Media values are names of tar members, or lists of such names."""

    turns: str = "chat"
    role: str = "role"
    text: str = "message"
    media: tuple[tuple[str, str], ...] = (("image", "images"), ("music", "music"), ("speech", "speech"))
    key: str = "id"


def any_instruct(
    splits: Mapping[str, str],
    tars: Mapping[str, Sequence[str]],
    names: Names = Names(),
    *,
    spoken: bool = False,
    heard: str = "",
) -> MediaSource:
    """Splits are metadata files (.json or .jsonl); `tars` gives the tars of every modality.

    If `spoken`, the voice of a human turn takes the place of its text, and an answer is text and voice (paper, 3.3);
    else voices are left out. In a human turn media come before the text, in an answer after it. `heard`, such as
    "you said {} :", writes what was spoken before the answer to it (the paper's chain of modality).
    Examples are for `preprocessors.interleaved` with kind "dialogue".
    """
    paths = {m: tuple(pathlib.Path(p) for p in of) for m, of in tars.items() if spoken or m != "speech"}
    reader = functools.partial(read, tars=paths, names=dataclasses.astuple(names), spoken=spoken, heard=heard)
    return MediaSource(splits, reader, fields=FIELDS, lists=LISTS)


@functools.cache
def index(tar: pathlib.Path) -> dict[str, Member]:
    """Where every member is. Half a million of them take about 150 MB in each process that cuts dialogues."""
    return {posixpath.normpath(m.name): m for m in members(tar) if not isinstance(m, Damage)}


def read(
    file: File, tars: Mapping[str, Sequence[pathlib.Path]], names: tuple[Any, ...], spoken: bool, heard: str = ""
) -> Iterator[Unit]:
    """A unit is one dialogue. `names` has the values of `Names` in its fields' order."""
    items = rows(file.path) if file.path.suffix == ".jsonl" else json_items(file.path)
    for n, row in enumerate(items):
        yield functools.partial(dialogue, n, row, tars, Names(*names), spoken, heard)


def dialogue(
    n: int, row: Any, tars: Mapping[str, Sequence[pathlib.Path]], names: Names, spoken: bool, heard: str = ""
) -> Iterator[Example]:
    """One example, whose media are read from the tars; its key is the record's own, or else its place `n`."""
    if isinstance(row, Unreadable) or not isinstance(row, dict) or not isinstance(row.get(names.turns), list):
        reason = row.reason if isinstance(row, Unreadable) else f"the record has no list '{names.turns}'"
        yield {"key": f"{n:08d}", "unreadable": reason}
        return
    turns = row[names.turns]
    if spoken and heard:
        turns = list(_with_transcripts(turns, names, heard))
    segments = [(role, *part) for turn in turns for role, part in _turn(turn, tars, names, spoken)]
    said = {k: v for k, v in row.items() if k not in (names.turns, names.key) and not isinstance(v, list | dict)}
    yield {
        "key": str(row.get(names.key, f"{n:08d}")),
        "kind": "dialogue",
        "role": [role for role, _, _ in segments],
        "modality": [modality for _, modality, _ in segments],
        "content": [content for _, _, content in segments],
        "attributes": said,
    }


def _with_transcripts(turns: Sequence[Mapping[str, Any]], names: Names, heard: str) -> Iterator[Mapping[str, Any]]:
    """Answers to speech begin with its words."""
    voice, said = dict(names.media).get("speech", ""), []
    for turn in turns:
        if str(turn.get(names.role, "")).strip().lower() in HUMAN:
            said += [str(turn[names.text])] if turn.get(voice) and turn.get(names.text) else []
            yield turn
            continue
        transcript = heard.format(" ".join(said)) if said else ""
        text = " ".join(filter(None, (transcript, turn.get(names.text))))
        yield {**turn, names.text: text}
        said = []


def _turn(
    turn: Mapping[str, Any], tars: Mapping[str, Sequence[pathlib.Path]], names: Names, spoken: bool
) -> Iterator[tuple[str, tuple[str, Any]]]:
    speaker = str(turn.get(names.role, "")).strip().lower()
    role = "human" if speaker in HUMAN else "assistant"
    if role == "assistant" and speaker not in ASSISTANT:
        yield role, ("text", Unreadable(f"a turn has the role '{speaker}'"))
        return
    media = []
    for modality, name in names.media:
        found = turn.get(name) or ()
        if modality in tars:
            media += [(modality, _member(tars[modality], p)) for p in ([found] if isinstance(found, str) else found)]
    heard = [part for part in media if part[0] == "speech"]
    text = [("text", turn[names.text])] if turn.get(names.text) and not (heard and role == "human") else []
    for part in [*media, *text] if role == "human" else [*text, *media]:
        yield role, part


def _member(tars: Sequence[pathlib.Path], name: str) -> bytes | Unreadable:
    """A medium by its name in one of the tars, with or without the tar's own top folder."""
    wanted = posixpath.normpath(name)
    for tar in tars:
        members_of = index(tar)
        for candidate in (wanted, posixpath.join(tar.stem, wanted)):
            if candidate in members_of:
                with tar.open("rb") as f:
                    return read_member(f, members_of[candidate])
    return Unreadable(f"no tar of {json.dumps([t.name for t in tars])} has {name}")
