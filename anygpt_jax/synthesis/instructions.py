"""Voice dialogues: conversations of text instruction sets, whose words are to be spoken (AnyGPT, section 3.3).

A record is {"instruction", "input", "output"} as in Alpaca, {"conversations": [{"from", "value"}]} as in ShareGPT, or
{"messages": [{"role", "content"}]}; files are JSONL, or JSON with one array. What is to be spoken keeps its lines, so that
the filters can tell lists and code. A system message is kept as the scenario and not spoken.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from anygpt_jax.errors import UserError
from anygpt_jax.synthesis import prompts, script
from anygpt_jax.synthesis.backends import Backend, Failure, text_request
from anygpt_jax.synthesis.dialogue import Dialogue, Made, Said
from anygpt_jax.synthesis.job import Job
from anygpt_jax.tasks.sources.metadata import json_items

REQUIREMENT = "speech"  # of these dialogues, where others say which media they are to have
LONGEST = 600  # words of a conversation that a language model is to rewrite
SPEAKERS = {
    "human": script.HUMAN, "user": script.HUMAN, "gpt": script.ASSISTANT, "assistant": script.ASSISTANT,
    "chatgpt": script.ASSISTANT, "model": script.ASSISTANT,
}  # fmt: skip
SYSTEM = ("system", "developer")
LAYOUTS = (("conversations", "from", "value"), ("messages", "role", "content"))


class _NoConversation(ValueError):
    """A record that cannot be read; the message says why."""


def files(job: Job) -> list[pathlib.Path]:
    """Those that `config.synthesize.instructions` names, by name. UserError if there is none, or two of one name."""
    found: dict[str, pathlib.Path] = {}
    for pattern in job.settings.instructions:
        matches = sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise UserError(f"There is no {pattern}; name JSONL or JSON files in config.synthesize.instructions.")
        for path in map(pathlib.Path, matches):
            if path.suffix not in (".jsonl", ".json"):
                raise UserError(f"{path} is neither .jsonl nor .json; name instruction sets in one of these forms.")
            if found.setdefault(path.stem, path) != path:
                raise UserError(f"{found[path.stem]} and {path} would give the same ids; rename one of them.")
    return [found[stem] for stem in sorted(found)]


def digest(job: Job) -> str:
    """Of the files' names and bytes."""
    whole = hashlib.sha256()
    for path in files(job):
        with path.open("rb") as f:
            whole.update(f"{path.name}\0{hashlib.file_digest(f, 'sha256').hexdigest()}\0".encode())
    return whole.hexdigest()


def dialogues(job: Job, index: int, writer: Backend | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Items: `Dialogue`s of this shard's records, every so-manieth of each file; their ids are file and line.

    `writer` says them again as people speak, if there is one.
    """
    items: list[Dialogue] = []
    failed = []
    for path in files(job):
        for line, record in _records(path, index, job.shards):
            row_id = f"{path.stem}-{line:08}"
            try:
                items.append(_dialogue(job, row_id, f"{path.name}:{line}", record))
            except _NoConversation as e:
                failed.append({"id": row_id, "reason": str(e)})
    if writer is not None:
        items, refused = _rewritten(job, items, writer)
        failed = sorted([*failed, *refused], key=lambda row: row["id"])
    return [one.to_json() for one in items], failed


def _records(path: pathlib.Path, index: int, shards: int) -> Iterator[tuple[int, Any]]:
    """(line, or place in the array, from 1 on; what is there) of a shard. A line that is no JSON is None."""
    if path.suffix == ".json":
        try:
            yield from ((n, item) for n, item in enumerate(json_items(path), 1) if n % shards == index)
        except ValueError as e:
            raise UserError(f"{path} is no JSON with one whole array ({e}); mend it, or give JSONL.") from e
        return
    with path.open("rb") as f:
        for line, text in enumerate(f, 1):
            if line % shards == index and text.strip():
                try:
                    yield line, json.loads(text)
                except ValueError:
                    yield line, None


def _dialogue(job: Job, row_id: str, place: str, record: Any) -> Dialogue:
    system, turns = _turns(record)
    sha256 = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    topic = turns[0].text
    return Dialogue(
        id=row_id,
        meta_topic=place.rpartition(":")[0],
        topic=topic,
        split=job.split_of(topic),
        requirement=REQUIREMENT,
        scenario=system,
        turns=turns,
        made={"instructions": Made("instructions", place, 0, sha256)},
    )


def _turns(record: Any) -> tuple[str, tuple[Said, ...]]:
    """The system message, and what is said. _NoConversation for a record of another layout."""
    if not isinstance(record, dict):
        raise _NoConversation("it is no JSON object")
    if "instruction" in record and "output" in record:
        asked = "\n".join(_text(record[name], name) for name in ("instruction", "input") if record.get(name))
        said = [("human", asked), ("assistant", _text(record["output"], "output"))]
    else:
        layout = next((names for names in LAYOUTS if isinstance(record.get(names[0]), list)), None)
        if layout is None:
            raise _NoConversation("it has neither instruction and output nor a list of conversations or messages")
        turns, role, content = layout
        said = [_one(turn, role, content) for turn in record[turns]]
    system = "\n".join(text for speaker, text in said if speaker in SYSTEM)
    spoken = [(speaker, text) for speaker, text in said if speaker not in SYSTEM]
    if not spoken:
        raise _NoConversation("nobody says anything in it")
    if unknown := [speaker for speaker, _ in spoken if speaker not in SPEAKERS]:
        raise _NoConversation(f"{unknown[0]!r} speaks in it, who is neither the human nor the assistant")
    return system, tuple(Said(SPEAKERS[speaker], text) for speaker, text in spoken)


def _one(turn: Any, role: str, content: str) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise _NoConversation("one of its turns is no JSON object")
    return str(turn.get(role)).strip().lower(), _text(turn.get(content), content)


def _text(value: Any, name: str) -> str:
    """Without space at the ends of lines, and at most one empty line after another."""
    if not isinstance(value, str):
        raise _NoConversation(f"{name} is no text")
    lines = "\n".join(line.rstrip() for line in value.strip().splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines).encode("utf-8", "replace").decode()


def _rewritten(job: Job, told: Sequence[Dialogue], writer: Backend) -> tuple[list[Dialogue], list[dict[str, Any]]]:
    """As `writer` says them, topic and split as they were; what it will not say fails."""
    asked, failed = [], []
    for one in told:
        text = script.write(one.turns)
        if (words := len(text.split())) > LONGEST:
            failed.append({"id": one.id, "reason": f"it has {words} words, too many to be rewritten ({LONGEST})"})
        else:
            messages = prompts.spoken_messages(text)
            asked.append((one, text_request("spoken", messages, {"script": text}, job.seed_of("spoken", one.id))))
    items = []
    for (one, request), answer in zip(asked, writer.make([request for _, request in asked]), strict=True):
        try:
            if isinstance(answer, Failure):
                raise script.ScriptError(answer.reason)
            turns = script.parse(answer.decode("utf-8"))
        except script.ScriptError as e:
            failed.append({"id": one.id, "reason": f"it was not rewritten: {e}"})
            continue
        request_digest = request.digest(writer.name)
        trace = Made(writer.name, request_digest, request.seed, request_digest)
        items.append(dataclasses.replace(one, turns=turns, made={**one.made, "dialogues": trace}))
    return items, failed
