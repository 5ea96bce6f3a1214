"""What the stages write: OUT/STAGE/00003-of-00008.jsonl, a line an item, and the items that failed beside them.

A shard's file is written whole or not at all, so a stage that was killed goes on with the shards that lack one. A stage
of other settings is never mixed with this one's: OUT/STAGE/recipe.json says by which it was made.
"""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from anygpt_jax.cache import write_atomically
from anygpt_jax.errors import UserError

Row = Mapping[str, Any]
RECIPE = "recipe.json"


def _shard_name(index: int, count: int) -> str:
    """Of a shard's files, without their extension."""
    return f"{index:05}-of-{count:05}"


def _items_path(out: pathlib.Path, stage: str, index: int, count: int) -> pathlib.Path:
    """A file that is there once the shard is whole."""
    return out / stage / f"{_shard_name(index, count)}.jsonl"


def failed_path(out: pathlib.Path, stage: str, index: int, count: int) -> pathlib.Path:
    """{"id", "reason"} a line. The file is written before the items, and empty if nothing failed."""
    return out / stage / f"{_shard_name(index, count)}.failed.jsonl"


def is_whole(out: pathlib.Path, stage: str, index: int, count: int) -> bool:
    """Whether the items are there, which are written last."""
    return _items_path(out, stage, index, count).is_file()


def write(
    out: pathlib.Path, stage: str, index: int, count: int, items: Iterable[Row], failed: Iterable[Row] = ()
) -> None:
    """The items come last: with them the shard is whole."""
    write_atomically(failed_path(out, stage, index, count), _lines(failed))
    write_atomically(_items_path(out, stage, index, count), _lines(items))


def _lines(rows: Iterable[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def read(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, in order; FileNotFoundError, at the first, if it is not there."""
    with path.open("rb") as file:  # as bytes: a text may hold U+2028, which ends a line for `str.splitlines`
        for line in file:
            yield json.loads(line)


def items(out: pathlib.Path, stage: str, index: int, count: int) -> list[dict[str, Any]]:
    """Of one shard, in order; FileNotFoundError if it is not whole."""
    return list(read(_items_path(out, stage, index, count)))


def all_items(out: pathlib.Path, stage: str, count: int) -> Iterator[dict[str, Any]]:
    """Of a whole stage."""
    for index in range(count):
        yield from read(_items_path(out, stage, index, count))


def failed(out: pathlib.Path, stage: str) -> list[dict[str, Any]]:
    """{"id", "reason"} of all shards of a stage that there are."""
    return [row for path in sorted((out / stage).glob("*.failed.jsonl")) for row in read(path)]


def forget(out: pathlib.Path, stage: str, index: int, count: int) -> None:
    """Makes the shard count as not made. What failed in it stays listed until it is made again."""
    _items_path(out, stage, index, count).unlink(missing_ok=True)


def require_recipes(out: pathlib.Path, recipes: Mapping[str, str], remake: bool) -> list[str]:
    """Claims the folders of the stages, in their order; returns those that are empty now.

    UserError if one holds another recipe's and not `remake`.
    """
    stages: Sequence[str] = list(recipes)
    for at, stage in enumerate(stages):
        path = out / stage / RECIPE
        if path.is_file() and json.loads(path.read_text())["recipe"] != recipes[stage]:
            if not remake:
                raise UserError(
                    f"{out / stage} was made with other settings or prompts; give --remake to make it and all after it "
                    "again, or name another --workdir."
                )
            for later in stages[at:]:
                shutil.rmtree(out / later, ignore_errors=True)
            break
    fresh = [stage for stage in stages if not (out / stage / RECIPE).is_file()]
    for stage in fresh:
        shutil.rmtree(out / stage, ignore_errors=True)
        write_atomically(out / stage / RECIPE, json.dumps({"recipe": recipes[stage]}).encode())
    return fresh
