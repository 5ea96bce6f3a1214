"""One file of metadata with a row an example, JSONL, JSON, CSV, TSV or Parquet, that names media beside it."""

from __future__ import annotations

import csv
import functools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow.parquet

from anygpt_jax.tasks.paths import OUTSIDE, below
from anygpt_jax.tasks.sources.source import LARGEST, Example, File, MediaSource, Unit, Unreadable, cause, read_medium

READ = 1 << 20  # bytes of a JSON file that are parsed together
Row = dict[str, Any]


def metadata(
    splits: Mapping[str, str | Sequence[str]],
    media: Mapping[str, str],
    texts: Mapping[str, str],
    *,
    root: str | None = None,
    key: str | None = None,
) -> MediaSource:
    """`media` and `texts` give the column of every field; a medium's column has its path below `root`.

    By default `root` is the folder of the metadata file and an example is named by its row; `key` is a column of
    unique names instead. All other columns become attributes. An example whose path leads out of `root`, by ".." or as
    an absolute one, is rejected: metadata often come from elsewhere. root="/" takes any path. The shards of the cache are held against the metadata
    file, not against every file it names: write it anew when media change.
    """
    reader = functools.partial(
        read, media=media, texts=texts, root=None if root is None else pathlib.Path(root), key=key
    )
    return MediaSource(splits, reader, fields=(*media, *texts), count=count)


def count(file: File) -> int:
    """Rows: of Parquet by its footer, of the other forms by reading the file."""
    if file.path.suffix.lower() == ".parquet":
        return pyarrow.parquet.read_metadata(file.path).num_rows
    return sum(1 for _ in rows(file.path))


def read(
    file: File, media: Mapping[str, str], texts: Mapping[str, str], root: pathlib.Path | None, key: str | None
) -> Iterator[Unit]:
    """A unit is one row, which reads its own media; `root` None is the file's folder."""
    for n, row in enumerate(rows(file.path)):
        yield functools.partial(_one, n, row, media, texts, root or file.path.parent, key)


def _one(
    n: int,
    row: Row | Unreadable,
    media: Mapping[str, str],
    texts: Mapping[str, str],
    root: pathlib.Path,
    key: str | None,
) -> Iterator[Example]:
    if isinstance(row, Unreadable):
        yield {"key": f"{n:08d}", "unreadable": row.reason}
        return
    values: dict[str, Any] = {field: medium(root, row.get(column)) for field, column in media.items()}
    values |= {field: row.get(column) for field, column in texts.items()}
    used = {*media.values(), *texts.values()}
    named = str(row.get(key) or "") if key else ""
    yield {"key": named or f"{n:08d}", **values, "attributes": {c: v for c, v in row.items() if c not in used}}


def medium(root: pathlib.Path, path: object) -> bytes | Unreadable:
    """The file at this path, which must be below `root` (`paths.below`); `path` is whatever the row has for it."""
    if not isinstance(path, str) or not path:
        return Unreadable("its row names no file")
    inside = below(root, path)
    return Unreadable(OUTSIDE) if inside is None else read_medium(inside)


def rows(path: pathlib.Path) -> Iterator[Row | Unreadable]:
    """The rows of a metadata file by its extension. A line that is not JSON is one unreadable row."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches():
                yield from batch.to_pylist()
    elif kind in (".jsonl", ".ndjson"):
        yield from _lines(path)
    elif kind == ".json":
        yield from json_items(path)
    else:
        yield from table_rows(path, "\t" if kind == ".tsv" else ",", quoted=kind != ".tsv")


def table_rows(path: pathlib.Path, separator: str, *, quoted: bool) -> Iterator[Row]:
    """Rows by the names of the first line: text, or None where a line is short; what a line has beyond is left out.
    `quoted` says whether quotation marks hold a value together. What is not UTF-8 is kept as lone surrogates.
    """
    csv.field_size_limit(LARGEST)
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as f:
        for row in csv.DictReader(f, delimiter=separator, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE):
            yield {name: value for name, value in row.items() if name is not None}


def _lines(path: pathlib.Path) -> Iterator[Row | Unreadable]:
    with path.open("rb") as f:
        for line in f:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                yield row if isinstance(row, dict) else Unreadable("its line is not a JSON object")
            except ValueError as e:
                yield Unreadable(f"its line is not JSON ({cause(e)})")


def json_items(path: pathlib.Path, name: str | None = None) -> Iterator[Any]:
    """The items of a file's array, or of the array `name` of its object, one by one: files of gigabytes are not loaded.

    Raises ValueError where the file stops being JSON.
    """
    decoder = json.JSONDecoder()
    opening = "[" if name is None else f'"{name}"'
    with path.open(encoding="utf-8-sig") as f:
        text = ""
        while opening not in text:
            if not (more := f.read(READ)):
                raise ValueError(f"there is no array {name or ''} in it")
            text = text[-len(opening) :] + more
        text = text[text.index(opening) + len(opening) :]
        if name is not None:
            while not (start := text.lstrip().removeprefix(":").lstrip()):
                text += f.read(READ)
            if not start.startswith("["):
                raise ValueError(f"'{name}' is not an array")
            text = start[1:]
        ended = False
        while True:
            text = text.lstrip(" \t\r\n,")
            if text.startswith("]"):
                return
            try:
                item, used = decoder.raw_decode(text)
                rest = text[used:].lstrip()
                if rest.startswith((",", "]")):  # or else a number may go on in what is not read yet
                    yield item
                    text = rest
                    continue
                if ended:
                    raise ValueError(f"an array ends without a bracket at {rest[:20]!r}")
            except json.JSONDecodeError:
                if ended:
                    raise
            more = f.read(max(READ, len(text)))  # doubling: an item is parsed a few times at most
            ended = not more
            text += more
