"""PyTorch's zip checkpoints without PyTorch: the pickle is read by a loader that can build tensors and nothing else.

A .bin file is a zip archive of data.pkl, a pickle whose tensors name their storages, and data/KEY, the storages,
stored without compression. The pickle could call anything; ours answers every name but the few that describe a
tensor with a refusal, and those make a description of where the tensor lies, which is read later by rows.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import pathlib
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from anygpt_jax.errors import UserError
from anygpt_jax.interop.source import Tensor, read_file_rows

MAX_PICKLE = 256 << 20  # a state dict's own pickle is far below; it alone is held in memory

STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    # Positions, counters and flags that some networks keep beside their weights.
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}


@dataclasses.dataclass(frozen=True)
class Storage:
    """The numbers of one or more tensors: the entry data/`key` of the archive."""

    dtype: np.dtype
    key: str
    size: int  # elements


@dataclasses.dataclass(frozen=True)
class Placed:
    """Where a tensor lies in its storage, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(storage: Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> Placed:
    return Placed(storage, offset, tuple(shape), tuple(strides))


def _parameter(data: Placed, *_: Any) -> Placed:
    return data


ALLOWED: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
}


class Restricted(pickle.Unpickler):
    """Builds dictionaries of `Placed` tensors; any other name in the pickle is refused."""

    def __init__(self, data: bytes, path: pathlib.Path):
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """What `ALLOWED` has for a global that the pickle names; UserError for any other. Nothing is imported."""
        if (module, name) not in ALLOWED:
            raise UserError(
                f"{self._path} asks for {module}.{name}, which a file of weights does not need: it is refused. "
                "Take a safetensors file of the model instead."
            )
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        """The storage of an id ('storage', dtype, key, device, elements); UserError for an id of anything else."""
        kind, dtype, key, _, size = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise UserError(f"{self._path} refers to a '{kind}' of {dtype}, not to a storage of numbers.")
        return Storage(dtype, str(key), int(size))


def read(path: pathlib.Path) -> dict[str, Tensor]:
    """The tensors of one .bin, .pt or .pth file. UserError for what holds no state dict of contiguous tensors.

    The state dict may be the only one among other things that are no tensors, as in {"state_dict": …, "step": 1}.
    """
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{path} is not a zip checkpoint of PyTorch 1.6 or newer, or it is cut off; "
            "copy it again, or save it anew with torch.save."
        )
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename.split("/", 1)[-1]: entry for entry in archive.infolist()}
        if "data.pkl" not in entries or entries["data.pkl"].file_size > MAX_PICKLE:
            raise UserError(f"{path} has no data.pkl of a sane size; it is no PyTorch checkpoint.")
        if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
            raise UserError(f"{path} was written on a big-endian machine; save it anew on a little-endian one.")
        state = _load(archive.read(entries["data.pkl"]), path)
    tensors = {}
    for name, placed in state.items():
        entry = entries.get(f"data/{placed.storage.key}")
        tensors[name] = _tensor_in(path, name, placed, entry)
    return tensors


def _load(data: bytes, path: pathlib.Path) -> Mapping[str, Placed]:
    try:
        state = Restricted(data, path).load()
    except UserError:
        raise
    except Exception as e:  # a broken pickle raises almost anything
        raise UserError(f"{path} holds a broken pickle ({type(e).__name__}: {e}); copy or download it again.") from e
    if _is_state(state):
        return state
    within = [value for value in state.values() if value and _is_state(value)] if isinstance(state, dict) else []
    if len(within) != 1:
        raise UserError(f"{path} is no plain state dict of tensors, nor holds one; save model.state_dict() alone.")
    return within[0]


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(tensor, Placed) for tensor in value.values())


def _tensor_in(path: pathlib.Path, name: str, placed: Placed, entry: zipfile.ZipInfo | None) -> Tensor:
    shape, dtype = placed.shape, placed.storage.dtype
    if not _contiguous(placed):
        raise UserError(f"{path} keeps {name} transposed or as a part of another tensor; save it contiguous.")
    if entry is None or entry.compress_type != zipfile.ZIP_STORED:
        raise UserError(f"{path} has no uncompressed storage for {name}; save it anew with torch.save.")
    if placed.offset < 0 or (placed.offset + int(np.prod(shape))) * dtype.itemsize > entry.file_size:
        raise UserError(f"{path} ends before {name} does; copy or download it again.")
    return read_file_rows(path, _data_offset(path, entry) + placed.offset * dtype.itemsize, shape, dtype)


def _contiguous(placed: Placed) -> bool:
    """As torch.Tensor.is_contiguous says: along an axis of length 1, and in an empty tensor, no stride is used."""
    if 0 in placed.shape:
        return True
    expected = 1
    for length, stride in zip(reversed(placed.shape), reversed(placed.strides), strict=True):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True


def _data_offset(path: pathlib.Path, entry: zipfile.ZipInfo) -> int:
    """Where an entry's bytes begin: after its local header, whose name and extra field have their own lengths."""
    with open(path, "rb") as file:
        file.seek(entry.header_offset)
        header = file.read(30)
    return entry.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
