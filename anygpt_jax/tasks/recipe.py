"""Hashes of everything that decides a shard's bytes: a shard is reused only under the same recipe."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import pathlib
from collections.abc import Callable, Mapping

import seqio

from anygpt_jax import records, templates
from anygpt_jax.cache import FORMAT_VERSION, WRITER_OPTIONS
from anygpt_jax.tasks import instructions

SAMPLE = 1 << 16  # bytes hashed at either end of a data file: reading terabytes twice is not an option


def digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@functools.cache
def _file_fingerprint(path: pathlib.Path, size: int, modified: int) -> str:
    with path.open("rb") as f:
        ends = f.read(SAMPLE)
        f.seek(max(0, size - SAMPLE))
        ends += f.read(SAMPLE)
    return digest(path.name, size, hashlib.sha256(ends).hexdigest())


def data_fingerprint(task: seqio.Task, split: str) -> str:
    """The names, sizes and ends of the files a split is read from; for a generator, its source code."""
    source = task.source
    parts: list[str] = [type(source).__name__]
    for shard in source.list_shards(split):
        path = pathlib.Path(shard)
        if path.is_file():
            stat = path.stat()
            parts.append(_file_fingerprint(path, stat.st_size, stat.st_mtime_ns))
        else:
            parts.append(str(shard))
    if isinstance(source, seqio.FunctionDataSource):
        parts.append(_code(source._dataset_fn))
    return digest(parts)


def _code(step: Callable) -> str:
    """The text of the module that defines a function, and its bound arguments, functions among them."""
    bound: list[object] = []
    while isinstance(step, functools.partial):
        bound.append([*step.args, sorted(step.keywords.items())])
        step = step.func
    module = inspect.getmodule(step)
    arguments = json.dumps(bound, default=lambda value: _code(value) if callable(value) else repr(value))
    return digest(getattr(step, "__qualname__", ""), inspect.getsource(module) if module else repr(step), arguments)


def task_definition(task: seqio.Task) -> str:
    """A task's preprocessors and the text they are made with: instructions, templates, layout of a record."""
    written = [inspect.getsource(module) for module in (instructions, templates, records)]
    return digest(task.name, [_code(step) for step in task.preprocessors], written)


def shard_recipe(
    task: seqio.Task, split: str, shards: int, vocabulary: str, text: str, tokenizers: Mapping[str, str], limit: int
) -> str:
    """`vocabulary`, `text` and `tokenizers` are fingerprints; `limit` is the longest record in tokens."""
    data = data_fingerprint(task, split)
    return digest(
        FORMAT_VERSION, WRITER_OPTIONS, task_definition(task), data, split, shards, vocabulary, text,
        dict(tokenizers), limit,
    )  # fmt: skip
