"""Answers every example of a protocol in batches, over hosts; what is kept already is not asked again.

An answer depends on the weights, the example and the seed alone: not on how many processes share the work, on which
examples are answered together, or on how often the work was broken off.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import urllib.parse
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_collections
import numpy as np
from tqdm.auto import tqdm

from anygpt_jax.cache import whole_lines, write_atomically
from anygpt_jax.errors import UserError
from anygpt_jax.evaluation.examples import Example, read_split, stable_order
from anygpt_jax.evaluation.originals import beginning
from anygpt_jax.evaluation.protocols import PROMPT_SECONDS, SPLIT, Protocol
from anygpt_jax.evaluation.scoring import read_lines
from anygpt_jax.generation import voice
from anygpt_jax.generation.answer import Answer
from anygpt_jax.generation.media import extension
from anygpt_jax.generation.pipeline import Pipeline, checkpoints_of
from anygpt_jax.generation.request import Request
from anygpt_jax.templates import TEXT, Segment
from anygpt_jax.training import checksums

_WRITERS = 16
RECIPE = "recipe.json"  # beside the predictions: what they were made by
_AHEAD = 8  # batches that are read, asked and written together: the slots are empty only at the end of so many


@dataclasses.dataclass(frozen=True)
class Share:
    """Which part of the examples this process answers."""

    index: int = 0
    count: int = 1


def examples_of(protocol: Protocol, limit: int | None = None) -> list[Example]:
    """Of a registered protocol, in an order that has nothing to do with their contents; the first `limit` of them."""
    found = sorted(read_split(protocol.name, SPLIT), key=lambda e: (stable_order(e.key), e.key))
    if not found:
        raise UserError(f"The data of {protocol.name} have no examples; check its files (docs/evaluation.md).")
    return found if limit is None else found[:limit]


def predict(
    pipeline: Pipeline,
    protocol: Protocol,
    examples: Sequence[Example],
    folder: pathlib.Path,
    share: Share,
    seed: int = 0,
    model: str = "",
) -> int:
    """Writes FOLDER/predictions-INDEX-of-COUNT.jsonl and the media; returns how many examples were asked anew.

    `model` says which weights these are. UserError if the folder has predictions by others, or by another protocol or seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _claim(
        folder, {"model": model, "task": protocol.recipe(), "format": type(pipeline.formatter).__name__, "seed": seed}
    )
    path = folder / f"predictions-{share.index:04}-of-{share.count:04}.jsonl"
    whole_lines(path)  # what was cut off is asked again
    done = read_lines(folder)
    todo = [e for e in examples[share.index :: share.count] if e.key not in done]
    size = _AHEAD * pipeline.engine.settings.batch_size
    with path.open("a", encoding="utf-8") as file, tqdm(total=len(todo), desc=protocol.name, unit="answer") as bar:
        for start in range(0, len(todo), size):
            for row in _answered(pipeline, protocol, todo[start : start + size], folder, seed):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                bar.update()
            file.flush()
    return len(todo)


def model_of(config: ml_collections.ConfigDict, step: int) -> str:
    """Which weights a config's checkpoint has: the digest of its files, or where it lies if it has none."""
    folder = checkpoints_of(config) / str(step)
    path = folder / checksums.NAME
    return json.loads(path.read_text())["sha256"] if path.is_file() else str(folder.absolute())


def _claim(folder: pathlib.Path, recipe: dict[str, Any]) -> None:
    path = folder / RECIPE
    if not path.is_file():
        return write_atomically(path, json.dumps(recipe, indent=1).encode())
    known = json.loads(path.read_text(encoding="utf-8"))
    if differ := [name for name in recipe if recipe[name] != known.get(name)]:
        raise UserError(
            f"{folder} has predictions by another {' and '.join(differ)}; name another --out, or remove the folder."
        )


def _answered(
    pipeline: Pipeline, protocol: Protocol, examples: Sequence[Example], folder: pathlib.Path, seed: int
) -> Iterator[dict[str, Any]]:
    requests: list[Request] = []
    asked: list[Example] = []
    for example, content in _contents(pipeline, protocol, examples):
        try:
            if isinstance(content, UserError):
                raise content
            prompt = pipeline.prompt(_turn(pipeline, protocol, example, content), (protocol.target,))
            cap = None if protocol.target != TEXT else protocol.max_new_tokens
            drawn = stable_order(example.key, str(seed))
            request = Request(prompt, (protocol.target,), drawn, cap, {protocol.target: protocol.sampling})
            pipeline.engine.prepare(request)  # says at once what cannot be answered
        except UserError as e:
            yield {"key": example.key, "error": str(e)}
            continue
        requests.append(request)
        asked.append(example)
    answers = pipeline.answers(requests, beams=protocol.beams)
    rows = [{"key": example.key, "seed": answer.seed} for example, answer in zip(asked, answers, strict=True)]
    media = _media(pipeline, protocol, asked, answers)
    if protocol.target == TEXT:
        yield from ({**row, "text": text or ""} for row, text in zip(rows, media, strict=True))
        return
    tokenizer = pipeline.tokenizers[protocol.target]

    def save(key: str, medium: Any) -> str:
        name = urllib.parse.quote(key, safe="") + extension(protocol.target, tokenizer)
        write_atomically(folder / name, tokenizer.save(medium))
        return name

    with ThreadPoolExecutor(_WRITERS) as pool:  # a file is on the disk before its line is: many wait together
        names = pool.map(save, [row["key"] for row in rows], media)
        yield from ({**row, "file": name} for row, name in zip(rows, names, strict=True))


def _media(
    pipeline: Pipeline, protocol: Protocol, examples: Sequence[Example], answers: Sequence[Answer]
) -> Sequence[Any]:
    if protocol.voice is None:
        return pipeline.media(protocol.target, answers)
    tokenizer, codes = pipeline.tokenizers[protocol.target], [answer.first(protocol.target) for answer in answers]
    voices = [protocol.voice(example.attributes) for example in examples]
    return [
        voice.decode(tokenizer, np.asarray(written), path, PROMPT_SECONDS)
        for written, path in zip(codes, voices, strict=True)
    ]


def _contents(
    pipeline: Pipeline, protocol: Protocol, examples: Sequence[Example]
) -> Iterator[tuple[Example, str | np.ndarray | UserError]]:
    """The source of every example: text, or the codes of its medium, or what is wrong with it."""
    if protocol.source == TEXT:
        yield from ((e, e.source[1].decode("utf-8")) for e in examples)
        return
    tokenizer = pipeline.tokenizers[protocol.source]
    size = pipeline.engine.settings.batch_size
    for start in range(0, len(examples), size):
        loaded: list[tuple[Example, Any]] = []
        for example in examples[start : start + size]:
            try:
                loaded.append((example, tokenizer.load(beginning(tokenizer, example.source[1]))))
            except UserError as e:
                yield example, e
        if loaded:
            yield from zip((e for e, _ in loaded), tokenizer.encode([m for _, m in loaded]), strict=True)


def _turn(pipeline: Pipeline, protocol: Protocol, example: Example, content: str | np.ndarray) -> list[Segment]:
    if protocol.question is None:
        return pipeline.formatter.ask(protocol.source, protocol.target, content, pipeline.tokenizers)
    question = protocol.question(example.attributes)
    return [Segment(protocol.source, content, "human"), Segment(TEXT, question, "human")]
