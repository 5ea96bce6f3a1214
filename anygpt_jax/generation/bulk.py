"""`anygpt generate --requests FILE`: many requests, one JSON object a line, answered with all slots busy.

    {"key": "a", "prompt": "a red fox", "to": "image", "seed": 3}
    {"key": "b", "image": "fox.png", "to": "text"}

A line stands for the command line of its names (`--best-of 3` is "best_of": 3), and goes over the one that was given; paths
are relative to the file. FOLDER/answers.jsonl gets a line as soon as a request is answered, or what was wrong with it;
those that are there already are not answered again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from tqdm.auto import tqdm

from anygpt_jax.cache import whole_lines
from anygpt_jax.errors import UserError
from anygpt_jax.generation import delivery, media
from anygpt_jax.generation.answer import Answer, likeliest
from anygpt_jax.generation.pipeline import Pipeline
from anygpt_jax.generation.request import Request

ANSWERS = "answers.jsonl"
_AHEAD = 4  # requests that are read beforehand, for every slot


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a line asks for: `best_of` draws in a row of every answer, and the voice to speak in."""

    requests: Sequence[Request]
    best_of: int
    voice: pathlib.Path | None


Ask = Callable[[Mapping[str, Any]], Asked]


class LineParser(argparse.ArgumentParser):
    """Its errors are a line's, not the command's."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{message[:1].upper()}{message[1:]}.")


def read(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The lines by key; UserError names the line that is no object, has no key of its own, or says what it cannot."""
    found: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n"), 1):
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
        for key, asked, outcome in _outcomes(todo, pipeline, ask):
            line: dict[str, Any] = {"key": key}
            if isinstance(outcome, UserError):
                failed += 1
                line["error"] = str(outcome)
            else:
                assert asked is not None
                answers = likeliest(outcome, asked.best_of)
                told = [_told(folder, key, n, one, asked.voice, pipeline) for n, one in enumerate(answers, 1)]
                line |= told[0] if len(told) == 1 else {"answers": told}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            bar.update()
    return failed


Drawn = list[tuple[Answer, float]]  # with log probabilities, 0 where nothing is chosen by them


def _outcomes(
    rows: Mapping[str, Mapping[str, Any]], pipeline: Pipeline, ask: Ask
) -> Iterator[tuple[str, Asked | None, Drawn | UserError]]:
    """Every key with what it asked for and what was drawn, or with what was wrong, as they come."""
    engine, waiting = pipeline.engine, iter(rows.items())
    running: dict[int, tuple[str, int]] = {}  # job -> key, and which of its requests
    drawn: dict[str, tuple[Asked, dict[int, tuple[Answer, float]]]] = {}
    searched: list[tuple[str, Asked]] = []  # to be answered by beams, together when they fill the slots
    exhausted = False

    def full() -> bool:
        rows_needed = engine.settings.beams * sum(len(asked.requests) for _, asked in searched)
        return bool(searched) and rows_needed >= engine.settings.batch_size

    while True:
        while not exhausted and not full() and len(running) < (1 + _AHEAD) * engine.settings.batch_size:
            key, row = next(waiting, ("", None))
            if row is None:
                exhausted = True
                break
            try:
                asked = ask(row)
                if asked.best_of == 1 and all(map(pipeline.may_search, asked.requests)):
                    searched.append((key, asked))
                    continue
                for i, request in enumerate(asked.requests):
                    running[engine.submit(request, scored=asked.best_of > 1)] = key, i
                drawn[key] = asked, {}
            except UserError as e:
                yield key, None, e
        if full() or (exhausted and searched):
            found = iter(pipeline.answers([request for _, asked in searched for request in asked.requests]))
            for key, asked in searched:
                yield key, asked, [(next(found), 0.0) for _ in asked.requests]
            searched = []
        if exhausted and not running:
            return
        for written in engine.step() if running else ():
            if written.answer is None:
                continue
            key, i = running.pop(written.job)
            asked, answers = drawn[key]
            answers[i] = written.answer, written.score or 0.0
            if len(answers) == len(asked.requests):
                del drawn[key]
                yield key, asked, [answers[i] for i in range(len(answers))]


def arguments(row: Mapping[str, Any], args: argparse.Namespace, parser: LineParser) -> argparse.Namespace:
    """The command line that a line of --requests stands for, whose flags `parser` knows. UserError if there is none."""
    defaults, base = vars(parser.parse_args([])), pathlib.Path(args.requests).parent
    words: list[str] = []
    for name, value in row.items():
        if name not in defaults:
            raise UserError(f"'{name}' cannot be said in a line of requests.")
        flag, several = f"--{name.replace('_', '-')}", isinstance(defaults[name], list)
        if isinstance(defaults[name], bool) and isinstance(value, bool):
            words += [flag] * value
            continue
        for one in value if several and isinstance(value, list) else [value]:
            if isinstance(one, bool) or not isinstance(one, str | int | float) or isinstance(defaults[name], bool):
                raise UserError(f"'{name}' cannot be {value!r}.")
            words.append(f"{flag}={_from(base, name, str(one))}")
    given = {**vars(args), "out": None, "json": None}
    if {"via", "direct"} & row.keys():  # a line's own way goes over the command's
        given |= {"via": None, "direct": False}
    given |= {name: False for name, value in row.items() if value is False}
    return parser.parse_args(words, argparse.Namespace(**given))


def _from(base: pathlib.Path, name: str, value: str) -> str:
    """A value in which the path is relative to `base`, where the option has one."""
    if name == "input":
        modality, equals, path = value.partition("=")
        return f"{modality}={base / path}" if equals else value
    return str(base / value) if name in (*media.SHORTCUTS, "voice") else value


def _told(
    folder: pathlib.Path, key: str, n: int, answer: Answer, voice: pathlib.Path | None, pipeline: Pipeline
) -> dict[str, Any]:
    """The n-th answer to a request. Its media are saved as KEY-PLACE.EXT; from the second answer on, as KEY+N-PLACE.EXT."""
    name = urllib.parse.quote(key, safe="") + (f"+{n}" if n > 1 else "")  # a + of the key's own is quoted

    def path_of(modality: str, place: int) -> pathlib.Path:
        return folder / f"{name}-{place}{media.extension(modality, pipeline.tokenizers[modality])}"

    segments = delivery.saved(pipeline, answer, voice, path_of)
    named = [{**one, "file": pathlib.Path(one["file"]).name} if "file" in one else one for one in segments]
    return {"seed": answer.seed, "segments": named}
