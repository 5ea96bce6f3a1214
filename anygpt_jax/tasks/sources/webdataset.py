"""WebDataset tars: neighbouring members of one name are an example (github.com/webdataset/webdataset, README)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

from anygpt_jax.tasks.sources import grouped
from anygpt_jax.tasks.sources.source import Example, File, MediaSource, Unit, damaged
from anygpt_jax.tasks.sources.tar import Damage, Member, members, read_member


def webdataset(
    splits: Mapping[str, str | Sequence[str]], fields: grouped.Fields, attributes: str | None = "json"
) -> MediaSource:
    """Splits are tars or patterns of them, `{"train": "laion/*.tar"}`; fields are extensions, `{"image": "jpg;png"}`.

    A damaged member costs its own example, a damaged header the files behind it up to the next good header.
    """
    return MediaSource(splits, functools.partial(read, fields=fields, attributes=attributes), fields=tuple(fields))


def read(file: File, fields: grouped.Fields, attributes: str | None) -> Iterator[Unit]:
    """A unit is one example, or a damage of the tar, told after the example it was met in.
    Units read from the tar, which is open until the last of them has been given.
    """
    damages: list[Damage] = []

    def good() -> Iterator[tuple[str, Member]]:
        for member in members(file.path):
            if isinstance(member, Damage):
                damages.append(member)
            else:
                yield member.name, member

    with file.path.open("rb") as tar:
        for key, group in grouped.consecutive(good(), grouped.at_first_dot):
            yield functools.partial(_one, tar, key, group, fields, attributes)
            while damages:
                yield functools.partial(_damage, damages.pop(0))
        while damages:
            yield functools.partial(_damage, damages.pop(0))


def _one(
    tar: BinaryIO, key: str, group: Mapping[str, Member], fields: grouped.Fields, attributes: str | None
) -> Iterator[Example]:
    yield grouped.example(key, group, fields, attributes, functools.partial(read_member, tar))


def _damage(damage: Damage) -> Iterator[Example]:
    yield damaged(f"#damage-{damage.offset}", damage.reason)
