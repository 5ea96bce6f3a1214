"""CTranslate2's model.bin: variables by name, in one file or in parts of one.

Little-endian: the format's version, the specification's name and revision; the number of variables, and of each its
name, rank, sizes, number type, bytes and numbers; the number of aliases, and of each two names. A name is its length
with the zero at its end, then that. As written by CTranslate2's python/ctranslate2/specs/model_spec.py (MIT).
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import struct
from collections.abc import Mapping, Sequence

import numpy as np

from anygpt_jax.errors import UserError
from anygpt_jax.interop.source import DTYPES, Tensor

VERSION = 6  # of CTranslate2 3 and 4
HIGHEST_RANK = 8
# In the order of their numbers in the file.
TYPES = (np.dtype("<f4"), np.dtype("i1"), np.dtype("<i2"), np.dtype("<i4"), np.dtype("<f2"), DTYPES["bfloat16"])


@dataclasses.dataclass(frozen=True)
class Model:
    """`tensors` have their names in the file and its aliases; `scalars` are the variables without axes."""

    specification: str
    revision: int
    tensors: Mapping[str, Tensor]
    scalars: Mapping[str, float]


def read(parts: Sequence[pathlib.Path]) -> Model:
    """The model in a file, or in parts that make one when they are put together; tensors are read when asked for.

    UserError if one is missing, or what they hold is damaged, ends early, or is of another version.
    """
    if absent := [path for path in parts if not path.is_file()]:
        raise UserError(f"There is no {absent[0]}; copy or download it.")
    file = _File(tuple(parts))
    try:
        return _model(file)
    except ValueError as e:
        raise UserError(f"{parts[0]} is no CTranslate2 model, or damaged ({e}); copy or download it again.") from e


class _File:
    """Bytes of several files as those of one, and a place in them."""

    def __init__(self, parts: tuple[pathlib.Path, ...]):
        self.parts, self.at = parts, 0
        self._sizes = [path.stat().st_size for path in parts]
        self.size = sum(self._sizes)

    def skip(self, count: int) -> int:
        """Where `count` bytes begin, of which the end is the new place. ValueError if they are not there."""
        if count > self.size - self.at:
            raise ValueError(f"{count} bytes are announced at {self.at} and {self.size - self.at} are left")
        self.at += count
        return self.at - count

    def fill(self, start: int, buffer: memoryview) -> None:
        """UserError if a file has become shorter."""
        for path, size in zip(self.parts, self._sizes, strict=True):
            inside = min(len(buffer), size - start)
            if inside > 0:
                with open(path, "rb") as file:
                    file.seek(start)
                    if file.readinto(buffer[:inside]) != inside:
                        raise UserError(f"{path} ends before its tensors do; copy or download it again.")
                start, buffer = start + inside, buffer[inside:]
            start -= size

    def take(self, count: int) -> bytes:
        found = bytearray(count)
        self.fill(self.skip(count), memoryview(found))
        return bytes(found)

    def number(self, kind: str) -> int:
        return int(struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0])

    def name(self) -> str:
        found = self.take(self.number("H"))
        if not found.endswith(b"\0"):
            raise ValueError("a name does not end with a zero")
        return found[:-1].decode("utf-8")  # UnicodeDecodeError is a ValueError


def _model(file: _File) -> Model:
    if (version := file.number("I")) != VERSION:
        raise ValueError(f"its version is {version}, where {VERSION} is read")
    specification, revision = file.name(), file.number("I")
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, float] = {}
    for _ in range(file.number("I")):
        name, tensor = file.name(), _variable(file)
        if name in tensors or name in scalars:
            raise ValueError(f"it holds {name!r} twice")
        if tensor.shape:
            tensors[name] = tensor
        else:
            scalars[name] = float(tensor.rows(0, 1)[0])
    for _ in range(file.number("I")):
        alias, name = file.name(), file.name()
        if alias in tensors or name not in tensors:
            raise ValueError(f"it calls {name!r} {alias!r}, and has no tensor of the first name or two of the second")
        tensors[alias] = tensors[name]
    if file.at != file.size:
        raise ValueError(f"{file.size - file.at} bytes follow its end")
    return Model(specification, revision, tensors, scalars)


def _variable(file: _File) -> Tensor:
    if (rank := file.number("B")) > HIGHEST_RANK:
        raise ValueError(f"a variable has {rank} axes")
    shape = tuple(file.number("I") for _ in range(rank))
    if (kind := file.number("B")) >= len(TYPES):
        raise ValueError(f"a variable's numbers are of type {kind}")
    dtype, nbytes = TYPES[kind], file.number("I")
    if nbytes != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{nbytes} bytes are no {dtype}{list(shape)}")
    offset, row = file.skip(nbytes), math.prod(shape[1:]) * dtype.itemsize

    def rows(start: int, stop: int) -> np.ndarray:
        found = np.empty((stop - start) * row, np.uint8)
        file.fill(offset + start * row, found.data)
        return found.view(dtype).reshape(stop - start, *shape[1:])

    return Tensor(shape, dtype, rows)
