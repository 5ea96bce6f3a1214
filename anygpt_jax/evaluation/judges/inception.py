"""Pictures as the Fréchet Inception distance sees them (Heusel et al. 2017, arXiv 1706.08500), as pytorch-fid has it.

A distance is "FID" only between these features. TensorFlow's own code resizes pictures in another way, so that its
figures differ a little from those of pytorch-fid.
"""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, UInt8

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation import judges
from anygpt_jax.evaluation.judges import legacy_pickles
from anygpt_jax.evaluation.judges.inception_network import IGNORED, SIZE, WIDTH, InceptionNetwork, layout
from anygpt_jax.modalities.codecs import batching, released, weights

FILE = "pt_inception-2015-12-05-6726825d.pth"
BATCH = 32


def prepare(picture: UInt8[np.ndarray, "h w 3"], size: int = SIZE) -> Float[np.ndarray, "S S 3"]:
    """float32 in [-1, 1], the whole picture made square: bilinear between pixels' centres, without smoothing before.

    ValueError for what is no uint8[h, w, 3].
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
        raise ValueError(f"pictures are uint8[h, w, 3], not {picture.dtype}{list(picture.shape)}")
    x = picture.astype(np.float32) / np.float32(255)
    for axis in (0, 1):
        length = picture.shape[axis]
        at = ((np.arange(size) + 0.5) * (length / size) - 0.5).clip(0, length - 1)
        low = at.astype(np.int64)
        part = np.expand_dims((at - low).astype(np.float32), (2, 1 - axis))
        x = x.take(low, axis) * (1 - part) + x.take((low + 1).clip(max=length - 1), axis) * part
    return 2 * x - 1


class Inception:
    """The network of FID on this process's first chip, in full float32. Make it by `load`."""

    width = WIDTH

    def __init__(self, network: InceptionNetwork):
        self._run = released.program(InceptionNetwork.__call__, network, exact=True)

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> Inception:
        """Of the folder that holds FILE. UserError if it is not there, or of another network."""
        path = pathlib.Path(folder) / FILE
        if not path.is_file():
            raise UserError(f"There is no {path}; it is among the releases of github.com/mseitzer/pytorch-fid.")

        def build() -> InceptionNetwork:
            return InceptionNetwork(rngs=weights.rngs())

        return cls(judges.filled(build, layout(), legacy_pickles.read(path), IGNORED, str(path)))

    def images(self, pictures: Iterable[UInt8[np.ndarray, "h w 3"]]) -> Float[np.ndarray, "N 2048"]:
        """float32. The pictures may be of any sizes, and are taken a batch at a time."""
        rows: list[np.ndarray] = []
        rest = iter(pictures)
        while batch := [prepare(picture) for picture in itertools.islice(rest, BATCH)]:
            rows += batching.filled(self._run, batch, BATCH)
        return np.array(rows, np.float32).reshape(-1, WIDTH)
