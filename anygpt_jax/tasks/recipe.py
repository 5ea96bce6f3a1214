"""Hashes of everything that decides a shard's bytes: a shard is reused only under the same recipe.

A recipe is written "part:hash part:hash …", so that two of them say what has changed:

    format      of the cache's files
    tokenizers  vocabulary, text tokenizer and codecs
    task        the task's steps, rules and their settings; instructions, templates and the layout of records
    limit       the longest record in tokens
    data        the files of the source that the shard is made of

Code is compared by what it does: comments, docstrings and layout do not count. What a step's module imports is not
looked at.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import inspect
import json
import pathlib
import re
import types
from collections.abc import Mapping, Sequence

import seqio

from anygpt_jax import records, templates
from anygpt_jax.cache import FORMAT_VERSION, WRITER_OPTIONS
from anygpt_jax.tasks import instructions

SAMPLE = 1 << 16  # bytes hashed at either end of a data file: reading terabytes twice is not an option
SHOWN = 32  # hexadecimal digits of a part's hash


def digest(*parts: object) -> str:
    """SHA-256 in hexadecimal of the parts as JSON, where the order of keys does not count; what JSON lacks is str()."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@functools.cache
def _file_fingerprint(path: pathlib.Path, size: int, modified: int) -> str:
    with path.open("rb") as f:
        ends = f.read(SAMPLE)
        f.seek(max(0, size - SAMPLE))
        ends += f.read(SAMPLE)
    return digest(path.name, size, hashlib.sha256(ends).hexdigest())


def file_fingerprint(file: str) -> str:
    """Of a file's name, size and ends; of what is not a file, its name."""
    path = pathlib.Path(file)
    if not path.is_file():
        return str(file)
    stat = path.stat()
    return _file_fingerprint(path, stat.st_size, stat.st_mtime_ns)


def data_fingerprint(task: seqio.Task, files: Sequence[str], split: str) -> str:
    """Of the files that are read; for a generator and for sources of other packages, their code and settings too.

    A source with a method `fingerprint(split) -> str` knows best what its settings are, and is asked.
    """
    source = task.source
    parts: list[str] = [type(source).__name__, *map(file_fingerprint, files)]
    if callable(own := getattr(source, "fingerprint", None)):
        parts.append(own(split))
    elif isinstance(source, seqio.FunctionDataSource):
        parts.append(value_digest(source._dataset_fn))
    elif not type(source).__module__.startswith("seqio."):
        parts.append(digest(module_code(type(source)), value_digest(vars(source))))
    return digest(parts)


@functools.cache
def _logic(source: str) -> str:
    """Python code without comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def module_code(thing: object) -> str:
    """Without comments and docstrings, of the module that `thing` is or comes from; its name where it has no source."""
    module = inspect.getmodule(thing)
    try:
        return _logic(inspect.getsource(module)) if module else repr(thing)
    except (OSError, TypeError):  # no source: built in, or typed at a prompt
        return getattr(module, "__name__", "")


def value_digest(value: object, within: tuple[int, ...] = ()) -> str:
    """A setting, as text that is the same in every process. Functions and settings classes count with their code.

    `within` are the ids of the objects that it is a part of, some of which it may refer to.
    """
    if id(value) in within:
        return "itself"
    within = (*within, id(value))

    def of(*parts: object) -> str:
        return digest(type(value).__qualname__, [value_digest(part, within) for part in parts])

    if isinstance(value, functools.partial):
        return of(value.func, value.args, value.keywords)
    if isinstance(value, types.MethodType):
        return of(value.__func__, value.__self__)
    if isinstance(value, types.FunctionType):
        enclosed = [cell.cell_contents for cell in value.__closure__ or ()]
        return digest(value.__qualname__, module_code(value), of(enclosed, value.__defaults__, value.__kwdefaults__))
    if isinstance(value, Mapping):
        return digest("map", sorted((value_digest(k, within), value_digest(v, within)) for k, v in value.items()))
    if isinstance(value, set | frozenset):
        return digest("set", sorted(value_digest(v, within) for v in value))
    if isinstance(value, list | tuple):
        return digest("list", [value_digest(v, within) for v in value])
    if isinstance(value, str | pathlib.Path):
        path = pathlib.Path(value)
        return path.name if path.is_absolute() else str(value)  # data that moved is the same data
    if (dataclasses.is_dataclass(value) or callable(value)) and not isinstance(value, type):
        return digest(module_code(type(value)), of(getattr(value, "__dict__", {})))
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def task_definition(task: seqio.Task) -> str:
    """A task's preprocessors and the text they are made with: instructions, templates, layout of a record."""
    written = [module_code(module) for module in (instructions, templates, records)]
    return digest(task.name, [value_digest(step) for step in task.preprocessors], written)


def shard_recipe(
    *, task: str, data: str, place: Sequence[object], vocabulary: str, text: str, codecs: Mapping[str, str], limit: int
) -> str:
    """`task` is a definition, `data` a fingerprint; `place` tells the shards of the same data apart."""
    parts = {
        "format": digest(FORMAT_VERSION, WRITER_OPTIONS),
        "tokenizers": digest(vocabulary, text, dict(codecs)),
        "task": task,
        "limit": digest(limit),
        "data": digest(data, place),
    }
    return " ".join(f"{name}:{value[:SHOWN]}" for name, value in parts.items())


def changed_parts(before: str, after: str) -> list[str]:
    """The names of the parts in which two recipes differ; "format" for a recipe of an older program."""
    old = dict(part.split(":", 1) for part in before.split() if ":" in part)
    new = dict(part.split(":", 1) for part in after.split())
    if old.keys() != new.keys() or old["format"] != new["format"]:
        return ["format"]
    return [name for name in new if old[name] != new[name]]
