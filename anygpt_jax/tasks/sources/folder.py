"""A folder of media with sidecar files: `cat.jpg` and `cat.txt` beside it, at any depth."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator, Mapping

from anygpt_jax.tasks.sources import grouped
from anygpt_jax.tasks.sources.source import Example, File, MediaSource, Unit, read_medium


def folder(splits: Mapping[str, str], fields: grouped.Fields, attributes: str | None = "json") -> MediaSource:
    """Splits are folders; fields are extensions, `{"image": "jpg;png", "caption": "txt"}`.

    For thousands of files. Millions of small files are slow to list anywhere: put them into tars.
    """
    reader = functools.partial(read, fields=fields, attributes=attributes)
    return MediaSource(splits, reader, fields=tuple(fields), count=count)


def count(file: File) -> int:
    """Examples of a folder; no file is opened."""
    return sum(1 for _ in grouped.consecutive(_named(file.path), grouped.at_last_dot))


def read(file: File, fields: grouped.Fields, attributes: str | None) -> Iterator[Unit]:
    """A unit is what has one name up to its last dot, in the order of these names."""
    for key, group in grouped.consecutive(_named(file.path), grouped.at_last_dot):
        yield functools.partial(_one, key, group, fields, attributes)


def _one(
    key: str, group: Mapping[str, pathlib.Path], fields: grouped.Fields, attributes: str | None
) -> Iterator[Example]:
    yield grouped.example(key, group, fields, attributes, read_medium)


def _named(folder: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    """Sorted by name without extension, so that what belongs together is together; hidden files are not data."""
    named = [(p.relative_to(folder).as_posix(), p) for p in folder.rglob("*") if p.is_file()]
    visible = [(name, path) for name, path in named if not any(part.startswith(".") for part in name.split("/"))]
    return sorted(visible, key=lambda item: grouped.at_last_dot(item[0]))
