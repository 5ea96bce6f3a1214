"""Pictures: 37 codes, one for the flat ground and 36 for patches of 12 px of a 72 px picture."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import UInt8
from PIL import Image

from anygpt_jax.modalities import pictures
from anygpt_jax.modalities.base import Grammar
from anygpt_jax.modalities.codecs import weights
from anygpt_jax.modalities.codecs.patches import PatchCodec, PatchSettings

BATCH = 32


class ImageTokenizer:
    """uint8[H, W, 3] of any size ↔ int32[37]; decoded pictures are 72 x 72.

    A picture of another size is resized to the square, as SEED's tokenizer does (its aspect is not kept).
    """

    name = "image"
    symbol = "👀"

    def __init__(self, path: pathlib.Path = weights.SHIPPED / "image.safetensors"):
        tensors, settings = weights.read(path)
        self.fingerprint = weights.fingerprint(tensors, settings)
        self.settings = s = PatchSettings(**settings["codec"])
        self._codec = weights.fill(lambda: PatchCodec(s, rngs=nnx.Rngs(0)), tensors)
        self.codebook_size = s.grounds + s.codes
        self.rate = float(1 + s.patches)
        length = 1 + s.patches
        self.grammar = Grammar(
            cycle=((s.grounds, self.codebook_size),), min_length=length, max_length=length, prefix=((0, s.grounds),)
        )

    def load(self, data: bytes) -> UInt8[np.ndarray, "H W 3"]:
        """A picture file → RGB (see `pictures.load_picture`). UserError if it cannot be read whole."""
        return pictures.load_picture(data)

    def save(self, media: UInt8[np.ndarray, "H W 3"]) -> bytes:
        """A PNG file."""
        return pictures.save_png(media)

    def encode(self, media: Sequence[UInt8[np.ndarray, "H W 3"]]) -> list[np.ndarray]:
        """The ground's code first, then the patches' in reading order. UserError for what is not uint8[H, W, 3]."""
        squares = [self._square(image) for image in media]
        codes: list[np.ndarray] = []
        for batch in _batches(squares):
            codes.extend(np.asarray(self._encode(batch)))
        return codes[: len(squares)]

    def decode(self, codes: Sequence[np.ndarray]) -> list[UInt8[np.ndarray, "72 72 3"]]:
        """ValueError for codes the grammar forbids."""
        rows = [np.asarray(c, np.int32) for c in codes]
        for i, row in enumerate(rows):
            if problem := self.grammar.problem(row):
                raise ValueError(f"image {i} cannot be decoded: {problem}")
        images: list[np.ndarray] = []
        for batch in _batches(rows, alone=len(rows) == 1):
            images.extend(np.asarray(self._decode(batch)))
        return images[: len(rows)]

    def _square(self, image: np.ndarray) -> np.ndarray:
        image = pictures.check(image)
        size = self.settings.size
        if image.shape[:2] == (size, size):
            return image
        return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))

    @functools.cached_property
    def _encode(self):
        return jax.jit(lambda images: self._codec.encode(images.astype(jnp.float32) / 255))

    @functools.cached_property
    def _decode(self):
        return jax.jit(lambda codes: jnp.round(self._codec.decode(codes) * 255).astype(jnp.uint8))


def _batches(items: Sequence[np.ndarray], alone: bool = False):
    """Stacks of always `BATCH` items, the last one filled up with copies: one compiled program for all.

    `alone`: of one item, for whom it is that waits.
    """
    size = 1 if alone else BATCH
    for start in range(0, len(items), size):
        chunk = list(items[start : start + size])
        yield np.stack(chunk + chunk[-1:] * (size - len(chunk)))


def load() -> ImageTokenizer:
    """The shipped tokenizer (entry point)."""
    return ImageTokenizer()
