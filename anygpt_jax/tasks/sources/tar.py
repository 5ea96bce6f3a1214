"""The members of a tar, by place: what is damaged is passed over and told, not a reason to stop."""

from __future__ import annotations

import dataclasses
import pathlib
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from anygpt_jax.tasks.sources.source import Unreadable, too_large

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


@dataclasses.dataclass(frozen=True)
class Member:
    """A regular file; `name` is without a leading "./", as some tars have it."""

    name: str
    offset: int  # of its bytes in the tar
    size: int


@dataclasses.dataclass(frozen=True)
class Damage:
    """A stretch of the tar where no header can be found."""

    offset: int
    reason: str


def members(path: pathlib.Path) -> Iterator[Member | Damage]:
    """Regular files in the tar's order, and the places between them that hold something else than zeros."""
    size = path.stat().st_size
    with path.open("rb") as f:
        if not size:
            yield Damage(0, "the tar is empty")
            return
        if kind := COMPRESSED.get(f.read(2)):
            yield Damage(0, f"the tar is compressed by {kind}; unpack it first, so that its members can be found")
            return
        f.seek(0)
        end, told = 0, True  # the end of what has been understood; whether it tells itself that it is cut short
        try:
            with _opened(f) as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # it would remember every one
                    if _holds_bytes(f, end, member.offset):
                        yield Damage(end, f"the tar is damaged between bytes {end:,} and {member.offset:,}")
                    end = tar.offset  # where the next header should be
                    told = member.isreg() and member.offset_data + member.size > size
                    if member.isreg():
                        yield Member(member.name.removeprefix("./"), member.offset_data, member.size)
        except (tarfile.TarError, OSError, ValueError) as e:
            if end < size:
                yield Damage(end, f"the tar is damaged after byte {end:,} ({e})")
                return
        if _holds_bytes(f, end, size):
            yield Damage(end, f"the tar is damaged after byte {end:,}")
        elif size - end < tarfile.BLOCKSIZE and not told:
            yield Damage(end, "the tar lacks the zeros that end a tar; it is cut short after this member")


def read_member(f: BinaryIO, member: Member) -> bytes | Unreadable:
    """Its bytes, or why there are none. `f` is the tar, read from where the member is."""
    if refused := too_large(member.size):
        return refused
    f.seek(member.offset)
    data = f.read(member.size)
    if len(data) < member.size:
        return Unreadable(f"{member.name} is cut short: the tar has {len(data):,} of its {member.size:,} bytes")
    return data


def _opened(f: BinaryIO) -> tarfile.TarFile:
    # Zeros end a tar, but tars are also put one after another; and behind a damaged header there are good ones.
    return tarfile.TarFile(fileobj=f, mode="r", ignore_zeros=True, errors="surrogateescape")


def _holds_bytes(f: BinaryIO, start: int, end: int) -> bool:
    """Whether a stretch of the file is anything but zeros; its start is evidence enough."""
    if end <= start:
        return False
    f.seek(start)
    return bool(f.read(min(end - start, 1 << 20)).strip(b"\0"))
