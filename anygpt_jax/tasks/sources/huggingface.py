"""Hugging Face datasets on disk: Arrow files of `save_to_disk` and plain Parquet. `datasets` itself is not needed."""

from __future__ import annotations

import functools
import glob
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from anygpt_jax.errors import UserError
from anygpt_jax.tasks.sources.source import Example, File, MediaSource, Unit, Unreadable, cause, damaged, read_medium


def huggingface(splits: Mapping[str, str | Sequence[str]], columns: Mapping[str, str]) -> MediaSource:
    """Splits are folders of `save_to_disk` (`{"train": "coco/train"}`), or files and patterns of Parquet or Arrow.

    `columns` gives the column of every field; image and audio columns are their encoded bytes. Columns of plain
    values that are not asked for become attributes.
    """
    reader = functools.partial(read, columns=columns)
    return MediaSource({s: _files(p) for s, p in splits.items()}, reader, fields=tuple(columns), count=count)


def _files(paths: str | Sequence[str]) -> Sequence[str]:
    if not isinstance(paths, str):
        return paths
    if paths.lower().endswith((".arrow", ".parquet")):
        return [paths]
    # Not every *.arrow: `datasets` leaves results of its own, cache-*.arrow, in the same folder.
    return [f"{glob.escape(paths)}/{name}" for name in ("data-*.arrow", "dataset.arrow", "*.parquet")]


def count(file: File) -> int:
    """Rows: of Parquet by its footer, of Arrow by walking through its record batches."""
    if file.path.suffix.lower() == ".parquet":
        return pyarrow.parquet.read_metadata(file.path).num_rows
    with pyarrow.memory_map(str(file.path)) as memory, pyarrow.ipc.open_stream(memory) as stream:
        return sum(batch.num_rows for batch in stream)


def read(file: File, columns: Mapping[str, str]) -> Iterator[Unit]:
    """A unit is a row group of Parquet or a record batch of Arrow."""
    state = file.path.parent / "state.json"
    if state.is_file() and json.loads(state.read_text()).get("_indices_data_files"):
        raise UserError("its rows are chosen by an index; call flatten_indices() before save_to_disk()")
    if file.path.suffix.lower() == ".parquet":
        with pyarrow.parquet.ParquetFile(file.path) as table:
            names, start = _columns(table.schema_arrow, columns), 0
            for group in range(table.num_row_groups):
                length = table.metadata.row_group(group).num_rows
                whole = functools.partial(table.read_row_group, group, names)
                yield functools.partial(_rows, whole, start, length, columns, file.path.parent)
                start += length
        return
    with pyarrow.memory_map(str(file.path)) as memory, pyarrow.ipc.open_stream(memory) as stream:
        names, start = _columns(stream.schema, columns), 0
        for batch in stream:
            chosen = functools.partial(batch.select, names)
            yield functools.partial(_rows, chosen, start, batch.num_rows, columns, file.path.parent)
            start += batch.num_rows


def _columns(schema: pyarrow.Schema, columns: Mapping[str, str]) -> list[str]:
    missing = set(columns.values()) - set(schema.names)
    if missing:
        raise UserError(f"it has no column {', '.join(sorted(missing))}; its columns are {', '.join(schema.names)}")
    return [f.name for f in schema if f.name in set(columns.values()) or _is_plain(f.type)]


def _is_plain(kind: pyarrow.DataType) -> bool:
    types = pyarrow.types
    return types.is_string(kind) or types.is_large_string(kind) or types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind)  # fmt: skip


def _rows(table: Any, start: int, length: int, columns: Mapping[str, str], folder: pathlib.Path) -> Iterator[Example]:
    """`table` is a function that reads the unit; if that fails, each of its rows is an unreadable example."""
    try:
        batches = table()
    except (pyarrow.ArrowException, OSError) as e:
        for row in range(start, start + length):
            yield damaged(f"{row:08d}", f"its row group cannot be read ({cause(e)})")
        return
    for n in range(length):  # one row at a time: a row group of media is a large Python object
        (row,) = batches.slice(n, 1).to_pylist()
        values = {field: _value(row[column], folder) for field, column in columns.items()}
        attributes = {name: value for name, value in row.items() if name not in columns.values()}
        yield {"key": f"{start + n:08d}", **values, "attributes": attributes}


def _value(value: Any, folder: pathlib.Path) -> Any:
    """Images and audio are `{"bytes": …, "path": …}`: without bytes the path is a file's."""
    if not isinstance(value, dict):
        return value
    if value.get("bytes") is not None:
        return value["bytes"]
    return read_medium(folder / value["path"]) if value.get("path") else Unreadable("its medium is null")
