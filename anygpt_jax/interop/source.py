"""What is converted: tensors that are read by rows, in Hugging Face's names and layout, and what they mean."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping

import jax.numpy as jnp
import numpy as np

from anygpt_jax.errors import UserError
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.vocabulary import Vocabulary

SLAB_BYTES = 64 << 20  # of a tensor held at a time; a few such buffers live at once

DTYPES = {name: np.dtype(jnp.dtype(name)) for name in ("float32", "bfloat16", "float16")}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An array in a file. `rows(start, stop)` reads [stop - start, *shape[1:]]; both are multiples of `unit`."""

    shape: tuple[int, ...]
    dtype: np.dtype
    rows: Callable[[int, int], np.ndarray]
    unit: int = 1

    @property
    def nbytes(self) -> int:
        """Of the whole array in its own dtype, in the file or as it would be in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    def slabs(self, nbytes: int = SLAB_BYTES) -> Iterator[tuple[int, int]]:
        """Ranges of rows that cover the tensor in order, each of at most `nbytes` where the unit allows it."""
        group = self.unit * max(1, nbytes * self.shape[0] // (self.nbytes * self.unit))
        for start in range(0, self.shape[0], group):
            yield start, min(start + group, self.shape[0])


@dataclasses.dataclass(frozen=True)
class Source:
    """A model in files. `model.vocab_size` is the rows of its embedding; `tokenizer` is files by name."""

    path: pathlib.Path
    model: ModelConfig
    tensors: Mapping[str, Tensor]
    vocabulary: Vocabulary
    tokenizer: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    context: int = 0  # positions it was trained for; 0 if the source does not say


def read_file_rows(path: pathlib.Path, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> Tensor:
    """A tensor that lies row-major at `offset` of a file. Read, not mapped: mapped pages count as memory in use."""
    row = math.prod(shape[1:])

    def rows(start: int, stop: int) -> np.ndarray:
        count = (stop - start) * row
        with open(path, "rb") as file:
            file.seek(offset + start * row * dtype.itemsize)
            found = np.empty(count * dtype.itemsize, np.uint8)
            if file.readinto(found.data) != found.nbytes:
                raise UserError(f"{path} ends before its tensors do; copy or download it again.")
        return found.view(dtype).reshape(stop - start, *shape[1:])

    return Tensor(shape, dtype, rows)


def exact_dtype(tensors: Mapping[str, Tensor]) -> str:
    """The parameters' dtype that changes no value: bfloat16 if all tensors are, float32 otherwise."""
    found = {tensor.dtype for tensor in tensors.values()}
    if not found <= set(DTYPES.values()):
        wide = next(iter(found - set(DTYPES.values())))
        raise UserError(f"The weights are {wide}, which no parameter of ours holds exactly; convert them to float32.")
    return "bfloat16" if found == {DTYPES["bfloat16"]} else "float32"
