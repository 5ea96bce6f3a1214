"""PyTorch's checkpoints from before version 1.6, without PyTorch: not a zip archive, but pickles in a row.

They are a magic number, the format's version, the machine's number sizes, the saved object, the keys of its
storages in order; and then each storage, as 8 bytes of length (in elements) and its numbers. The pickles are read by
the same restricted loader as those of newer files.
"""

from __future__ import annotations

import pathlib
import pickle
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from anygpt_jax.errors import UserError
from anygpt_jax.interop import pickles
from anygpt_jax.interop.pickles import Placed, Restricted, Storage
from anygpt_jax.interop.source import Tensor, read_file_rows

START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
VERSION = 1001


class _Unpickler(Restricted):
    """Storages are named with a view of another storage too, of which files of weights have none."""

    def __init__(self, file: BinaryIO, path: pathlib.Path):
        pickle.Unpickler.__init__(self, file, encoding="utf-8")
        self._path = path
        self.storages: dict[str, Storage] = {}

    def persistent_load(self, pid: Any) -> Storage:
        *found, view = pid
        if view is not None:
            raise UserError(
                f"{self._path} keeps a tensor as a view of another one's numbers; save it anew, contiguous."
            )
        storage = super().persistent_load(tuple(found))
        return self.storages.setdefault(storage.key, storage)


def read(path: pathlib.Path, member: str | None = None) -> dict[str, Tensor]:
    """The tensors of the state dict `member` of a checkpoint, of the old format or of the zip format, where it must
    be the only one; None: the checkpoint is a state dict itself. UserError for a file that is damaged or holds no such
    thing."""
    with open(path, "rb") as file:
        if file.read(len(START)) != START:
            return pickles.read(path)
        try:
            version, sizes = _Unpickler(file, path).load(), _Unpickler(file, path).load()
            if version != VERSION or not sizes["little_endian"]:
                raise UserError(f"{path} is of format {version} or of a big-endian machine; save it anew.")
            saved = _Unpickler(file, path)
            state = saved.load() if member is None else saved.load()[member]
            offsets = _offsets(file, _Unpickler(file, path).load(), saved.storages)
            return {name: _tensor(path, name, placed, offsets) for name, placed in state.items()}
        except UserError:
            raise
        except Exception as e:  # a broken pickle raises almost anything
            wanted = "state dict" if member is None else f"'{member}'"
            raise UserError(
                f"{path} is damaged or holds no {wanted} ({type(e).__name__}: {e}); copy or download it again."
            ) from e


def _offsets(file: BinaryIO, keys: list[str], storages: Mapping[str, Storage]) -> dict[str, int]:
    """Where in the file each storage's numbers begin."""
    found = {}
    for key in keys:
        length = int.from_bytes(file.read(8), "little")
        found[key] = file.tell()
        if length != storages[key].size:
            raise ValueError(f"a storage has {length} numbers instead of {storages[key].size}")
        file.seek(length * storages[key].dtype.itemsize, 1)
    if file.tell() > file.seek(0, 2):
        raise ValueError("its numbers end early")
    return found


def _tensor(path: pathlib.Path, name: str, placed: Placed, offsets: Mapping[str, int]) -> Tensor:
    storage, shape = placed.storage, placed.shape
    if placed.strides != tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape))):
        raise UserError(f"{path} keeps {name} transposed or as a part of another tensor; save it contiguous.")
    if placed.offset < 0 or placed.offset + int(np.prod(shape)) > storage.size:
        raise UserError(f"{path} ends before {name} does; copy or download it again.")
    return read_file_rows(path, offsets[storage.key] + placed.offset * storage.dtype.itemsize, shape, storage.dtype)
