"""`anygpt generate --requests FILE`: many requests, one JSON object a line, answered with all slots busy.

    {"key": "a", "prompt": "a red fox", "to": "image", "seed": 3}
    {"key": "b", "image": "fox.png", "to": "text"}

The names are those of the command line's options; paths are relative to the file. FOLDER/answers.jsonl gets a line as
soon as an answer is whole, or what was wrong with its request; lines that are there already are not answered again.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from anygpt_jax.cache import whole_lines
from anygpt_jax.errors import UserError
from anygpt_jax.generation import media
from anygpt_jax.generation.answer import Answer
from anygpt_jax.generation.pipeline import Pipeline
from anygpt_jax.generation.request import Request
from anygpt_jax.generation.voice import decode
from anygpt_jax.templates import TEXT

ANSWERS = "answers.jsonl"
_AHEAD = 4  # requests that are read beforehand, for every slot
OWN = (
    "requests",
    "out",
    "json",
    "n",
    "best_of",
    "beams",
    "temperature",
    "sampling",
)  # what a line cannot say of its own

Ask = Callable[[argparse.Namespace], tuple[Request, pathlib.Path | None]]  # what it asks for, and the voice to speak in


def read(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The lines by key; UserError names the line that is no object, has no key of its own, or says what it cannot."""
    found: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as e:
            raise UserError(f"{path}:{number}: not JSON ({e}).") from e
        if not isinstance(row, dict) or not isinstance(row.get("key"), str) or not row["key"]:
            raise UserError(f'{path}:{number}: a line must be an object with a "key" of its own.')
        if row["key"] in found:
            raise UserError(f'{path}:{number}: the key "{row["key"]}" is there already; give each line its own.')
        found[row.pop("key")] = row
    return found


def answered(folder: pathlib.Path) -> set[str]:
    """The keys of the whole lines of answers.jsonl; a last line that was cut off is removed from the file."""
    return {json.loads(line)["key"] for line in whole_lines(folder / ANSWERS)}


def run(args: argparse.Namespace, pipeline: Pipeline, ask: Ask) -> int:
    """Answers what is not answered yet; returns how many requests could not be."""
    source, folder = pathlib.Path(args.requests), pathlib.Path(args.out)
    rows = read(source)
    folder.mkdir(parents=True, exist_ok=True)
    done = answered(folder)
    todo = {key: row for key, row in rows.items() if key not in done}
    failed = 0
    with (
        (folder / ANSWERS).open("a", encoding="utf-8") as file,
        tqdm(total=len(rows), initial=len(rows) - len(todo), desc="generate", unit="answer") as bar,
    ):
        for key, outcome in _outcomes(todo, args, source.parent, pipeline, ask):
            if isinstance(outcome, UserError):
                failed += 1
                line: dict[str, Any] = {"key": key, "error": str(outcome)}
            else:
                answer, voice = outcome
                line = {"key": key, "seed": answer.seed, "segments": _save(folder, key, answer, voice, pipeline)}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            bar.update()
    return failed


def _outcomes(
    rows: dict[str, dict[str, Any]], args: argparse.Namespace, base: pathlib.Path, pipeline: Pipeline, ask: Ask
) -> Iterator[tuple[str, tuple[Answer, pathlib.Path | None] | UserError]]:
    """Every key with its answer and voice, or with what was wrong, as they come."""
    engine, waiting = pipeline.engine, iter(rows.items())
    running: dict[int, tuple[str, pathlib.Path | None]] = {}
    exhausted = False
    while True:
        while not exhausted and len(running) < (1 + _AHEAD) * engine.settings.batch_size:
            key, row = next(waiting, ("", None))
            if row is None:
                exhausted = True
                break
            try:
                request, voice = ask(_arguments(row, args, base, pipeline))
                running[engine.submit(request)] = key, voice
            except UserError as e:
                yield key, e
        if not running:
            return
        for written in engine.step():
            if written.answer is not None:
                key, voice = running.pop(written.job)
                yield key, (written.answer, voice)


def _arguments(
    row: dict[str, Any], args: argparse.Namespace, base: pathlib.Path, pipeline: Pipeline
) -> argparse.Namespace:
    """The command line that a line stands for."""
    unknown = sorted(name for name in row if not hasattr(args, name) or name in OWN)
    if unknown:
        raise UserError(f"'{unknown[0]}' cannot be said in a line of requests.")
    wrong = [n for n, v in row.items() if not isinstance(v, bool if isinstance(getattr(args, n), bool) else int | str)]
    if wrong:
        raise UserError(f"'{wrong[0]}' cannot be {row[wrong[0]]!r}.")
    files = {n: str(base / row[n]) for n in (*pipeline.tokenizers, "voice") if n in row}
    return argparse.Namespace(**{**vars(args), "out": None, "json": None, **row, **files})


def _save(
    folder: pathlib.Path, key: str, answer: Answer, voice: pathlib.Path | None, pipeline: Pipeline
) -> list[dict[str, Any]]:
    """Saves the media of an answer as KEY-N.EXT and describes its segments."""
    described: list[dict[str, Any]] = []
    for i, (modality, content) in enumerate(answer.segments):
        if modality == TEXT:
            described.append({"modality": TEXT, "text": content})
            continue
        tokenizer = pipeline.tokenizers[modality]
        name = f"{urllib.parse.quote(key, safe='')}-{i + 1}{media.extension(modality, tokenizer)}"
        media.write_media(folder / name, decode(tokenizer, np.asarray(content), voice), tokenizer)
        described.append({"modality": modality, "file": name, "codes": np.asarray(content).tolist()})
    return described
