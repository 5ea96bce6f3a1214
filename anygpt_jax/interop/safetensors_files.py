"""The safetensors format by rows: eight bytes of header length, a JSON header, then the tensors row-major.

The library's own writer wants every tensor of a file in memory at once.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from types import MappingProxyType

import ml_dtypes
import numpy as np
from tqdm import tqdm

from anygpt_jax.errors import UserError
from anygpt_jax.interop.source import Tensor, read_file_rows

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
MAX_HEADER = 100 << 20  # the limit of the format's own library


def read(path: pathlib.Path) -> dict[str, Tensor]:
    """The tensors of one file. UserError if it is cut off or holds another type than these."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise UserError(f"{path} is not a whole safetensors file; copy or download it again.")
        try:
            header = json.loads(file.read(length))
        except ValueError as e:
            raise UserError(f"{path} is not a safetensors file ({e}); copy or download it again.") from e
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape = DTYPES.get(entry["dtype"]), tuple(entry["shape"])
        start, stop = entry["data_offsets"]
        if dtype is None:
            raise UserError(f"{path} keeps {name} as {entry['dtype']}, which is not read.")
        if stop - start != int(np.prod(shape)) * dtype.itemsize or not 0 <= start <= stop <= size - 8 - length:
            raise UserError(f"{path} ends before {name} does; copy or download it again.")
        tensors[name] = read_file_rows(path, 8 + length + start, shape, dtype)
    return tensors


def write(
    path: pathlib.Path,
    tensors: Mapping[str, Tensor],
    dtype: np.dtype,
    progress: tqdm,
    metadata: Mapping[str, str] = MappingProxyType({"format": "pt"}),
) -> None:
    """One file of `tensors`, cast to `dtype`, a slab at a time. `progress` counts bytes written."""
    code = next(code for code, known in DTYPES.items() if known == dtype)
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, tensor in tensors.items():
        size = int(np.prod(tensor.shape)) * dtype.itemsize
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins aligned
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            for start, stop in tensor.slabs():
                rows = np.ascontiguousarray(tensor.rows(start, stop).astype(dtype, copy=False))
                file.write(rows.view(np.uint8).data)
                progress.update(rows.nbytes)
