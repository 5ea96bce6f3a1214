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
from anygpt_jax.evaluation.examples import Example, Part, read_split, stable_order
from anygpt_jax.evaluation.originals import beginning
from anygpt_jax.evaluation.protocols import PROMPT_SECONDS, SPLIT, Protocol
from anygpt_jax.evaluation.scoring import read_lines
from anygpt_jax.evaluation.segments import decode, modalities
from anygpt_jax.generation import voice
from anygpt_jax.generation.answer import Answer
from anygpt_jax.generation.automaton import ANY, Plan
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
    s = pipeline.engine.settings
    made_by = {"model": model, "task": protocol.recipe(), "format": type(pipeline.formatter).__name__, "seed": seed}
    _claim(folder, {**made_by, "engine": f"weights {s.weights}, cache {s.cache}, context {s.context}"})
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
    free = protocol.target is None
    plan: Plan = ANY if protocol.target is None else (protocol.target,)
    written = (TEXT, *pipeline.tokenizers) if protocol.target is None else (protocol.target,)
    for example, turns in _turns(pipeline, protocol, examples):
        try:
            if isinstance(turns, UserError):
                raise turns
            cap = None if protocol.target != TEXT else protocol.max_new_tokens
            drawn = stable_order(example.key, str(seed))
            sampling = dict.fromkeys(written, protocol.sampling)
            request = Request(pipeline.prompt(turns, plan), plan, drawn, cap, sampling)
            pipeline.engine.prepare(request)  # says at once what cannot be answered
        except UserError as e:
            yield {"key": example.key, "error": str(e)}
            continue
        requests.append(request)
        asked.append(example)
    answers = pipeline.answers(requests, beams=protocol.beams)
    found = _free(pipeline, answers) if free else _media(pipeline, protocol, asked, answers)

    def line(example: Example, answer: Answer, segments: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        name = urllib.parse.quote(example.key, safe="")
        kept = [
            _kept(pipeline, folder, f"{name}-{i}" if free else name, *segment) for i, segment in enumerate(segments, 1)
        ]
        row = {"key": example.key, "seed": answer.seed}
        return {**row, "segments": kept} if free else {**row, **{k: v for k, v in kept[0].items() if k != "modality"}}

    with ThreadPoolExecutor(_WRITERS) as pool:  # a file is on the disk before its line is: many wait together
        yield from pool.map(line, asked, answers, found)


def _kept(pipeline: Pipeline, folder: pathlib.Path, stem: str, modality: str, medium: Any) -> dict[str, str]:
    """A segment as a line has it; a medium is saved in `folder`."""
    if modality == TEXT:
        return {"modality": TEXT, "text": medium}
    tokenizer = pipeline.tokenizers[modality]
    name = stem + extension(modality, tokenizer)
    write_atomically(folder / name, tokenizer.save(medium))
    return {"modality": modality, "file": name}


def _free(pipeline: Pipeline, answers: Sequence[Answer]) -> list[list[tuple[str, Any]]]:
    """All that was answered: (modality, str or medium)."""
    segments = [answer.segments for answer in answers]
    return [
        list(zip(modalities(said), media, strict=True))
        for said, media in zip(segments, decode(pipeline, segments), strict=True)
    ]


def _media(
    pipeline: Pipeline, protocol: Protocol, examples: Sequence[Example], answers: Sequence[Answer]
) -> list[list[tuple[str, Any]]]:
    """Of every answer the target alone."""
    target = protocol.target
    assert target is not None
    if protocol.voice is None:
        media = pipeline.media(target, answers)
        return [[(target, medium or "" if target == TEXT else medium)] for medium in media]
    tokenizer, codes = pipeline.tokenizers[target], [answer.first(target) for answer in answers]
    voices = [protocol.voice(example.attributes) for example in examples]
    return [
        [(target, voice.decode(tokenizer, np.asarray(written), path, PROMPT_SECONDS))]
        for written, path in zip(codes, voices, strict=True)
    ]


def _asked(protocol: Protocol, example: Example) -> tuple[Part, ...]:
    """What is asked: the whole dialogue, or the source and the question about it."""
    if protocol.source is None:
        return example.history
    source = Part("human", *example.source)
    if protocol.question is None:
        return (source,)
    return source, Part("human", TEXT, protocol.question(example.attributes).encode())


def _turns(
    pipeline: Pipeline, protocol: Protocol, examples: Sequence[Example]
) -> Iterator[tuple[Example, list[Segment] | UserError]]:
    """The segments of every example's prompt, media as their codes, or what is wrong with it."""
    size = pipeline.engine.settings.batch_size
    for start in range(0, len(examples), size):
        found: list[tuple[Example, tuple[Part, ...], list[Any]]] = []
        for example in examples[start : start + size]:
            parts = _asked(protocol, example)
            try:
                found.append((example, parts, [_loaded(pipeline, part) for part in parts]))
            except UserError as e:
                yield example, e
        for modality, tokenizer in pipeline.tokenizers.items():
            where = [(i, j) for i, (_, ps, _) in enumerate(found) for j, p in enumerate(ps) if p.modality == modality]
            for first in range(0, len(where), size):
                few = where[first : first + size]
                for (i, j), codes in zip(few, tokenizer.encode([found[i][2][j] for i, j in few]), strict=True):
                    found[i][2][j] = codes
        for example, parts, contents in found:
            yield example, _segments(pipeline, protocol, parts, contents)


def _loaded(pipeline: Pipeline, part: Part) -> Any:
    if part.modality == TEXT:
        return part.data.decode("utf-8")
    if part.modality not in pipeline.tokenizers:
        raise UserError(f"The model has no tokenizer of {part.modality}; take one that has, or other data.")
    tokenizer = pipeline.tokenizers[part.modality]
    return tokenizer.load(beginning(tokenizer, part.data))


def _segments(
    pipeline: Pipeline, protocol: Protocol, parts: Sequence[Part], contents: Sequence[str | np.ndarray]
) -> list[Segment]:
    if protocol.source is None or protocol.target is None or protocol.question is not None:
        return [Segment(p.modality, content, p.role) for p, content in zip(parts, contents, strict=True)]
    return pipeline.formatter.ask(protocol.source, protocol.target, contents[0], pipeline.tokenizers)
