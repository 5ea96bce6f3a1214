"""The finished set in the outer form of AnyInstruct's release, which `tasks.sources.any_instruct` reads.

SET/SPLIT/metadata-00003.jsonl has a line a dialogue: id, chat (a list of turns with role, message, images, music,
speech), and where it and each of its media came from; the media are in SET/SPLIT/{images,music,speech}-00003.tar. The
same dialogues give the same bytes.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from anygpt_jax.cache import write_atomically
from anygpt_jax.synthesis.dialogue import Dialogue, Medium, Said, media_of
from anygpt_jax.synthesis.job import SPLITS
from anygpt_jax.synthesis.script import HUMAN

FOLDER = "any_instruct"
VERSION = 2  # of the form below
TARS = {"image": "images", "music": "music", "speech": "speech"}  # modality -> its name in the release


def shard(folder: pathlib.Path, out: pathlib.Path, index: int, dialogues: Sequence[Dialogue]) -> None:
    """Writes one shard of every split below `folder`; media are read from `out`."""
    for split in SPLITS:
        mine = [d for d in dialogues if d.split == split]
        for modality, name in TARS.items():
            files = dict.fromkeys(m.file for d in mine for _, m in media_of(d) if m.modality == modality)
            write_atomically(folder / split / f"{name}-{index:05}.tar", _tar(out, files))
        lines = "".join(json.dumps(row(d), ensure_ascii=False) + "\n" for d in mine)
        write_atomically(folder / split / f"metadata-{index:05}.jsonl", lines.encode())


def row(dialogue: Dialogue) -> dict[str, Any]:
    """A line of the metadata, as JSON. The dialogue must have at least a question and its answer."""
    about = {name: getattr(dialogue, name) for name in ("id", "meta_topic", "topic", "requirement", "scenario")}
    # What the last answer is to be, for whoever measures a model on it; texts, as attributes of an example are.
    asked, answer = dialogue.turns[-2:]
    about |= {"spoken": "yes" if asked.speech else "", "asked": asked.text, "answer_text": answer.text}
    about |= {f"answer_{m.modality}": m.description for m in answer.media}
    before = [m for turn in dialogue.turns[:-1] for m in turn.media]
    newest = {m.modality: m.description for m in before}
    about |= {"shown_image": newest.get("image", ""), "heard_music": newest.get("music", "")}
    # Where all of it came from (backend, prompt, seed, request), and what the filters found.
    media = [{**dataclasses.asdict(m), "file": _name_of(m)} for _, m in media_of(dialogue)]
    traces = {"media": media, "made": dialogue.to_json()["made"], "scores": dict(dialogue.scores)}
    return {**about, "chat": [_turn(turn) for turn in dialogue.turns], **traces}


def _name_of(medium: Medium) -> str:
    """Of the member in its tar."""
    return pathlib.PurePosixPath(medium.file).name


def _turn(said: Said) -> Mapping[str, Any]:
    turn: dict[str, Any] = {"role": "user" if said.role == HUMAN else "assistant", "message": said.text}
    for modality in ("image", "music"):
        if files := [_name_of(m) for m in said.media if m.modality == modality]:
            turn[TARS[modality]] = files
    return turn | ({"speech": _name_of(said.speech)} if said.speech else {})


def _tar(out: pathlib.Path, files: Iterable[str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for file in files:
            data = (out / file).read_bytes()
            member = tarfile.TarInfo(pathlib.PurePosixPath(file).name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()
