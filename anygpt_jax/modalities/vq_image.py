"""Pictures by the VQ of Janus and LlamaGen: a code for every 16 × 16 pixels, and a decoder without diffusion."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from anygpt_jax.errors import UserError
from anygpt_jax.modalities import pictures
from anygpt_jax.modalities.base import SYMBOLS, Grammar
from anygpt_jax.modalities.codecs import batching, released


class VQImages:
    """uint8[H, W, 3] of any size ↔ int32[(size / 16)²]; decoded pictures are `size` x `size`.

    `weights` is a converted file. A picture of another size is resized to the square (its aspect is not kept).
    `batch` pictures are coded at a time.
    """

    def __init__(self, weights: str, modality: str = "image", size: int = 384, batch: int = 8):
        loaded = released.load(weights, "janus_vq")
        self._codec = codec = loaded.module
        if size < codec.factor or size % codec.factor:
            raise UserError(f"The size of pictures must be a multiple of {codec.factor}, not {size}.")
        self.name, self.symbol = modality, SYMBOLS.get(modality, modality)
        self.fingerprint = released.fingerprint(loaded.fingerprint, size=size)
        self.codebook_size, self._size, self._batch = codec.codebook_size, size, batch
        length = (size // codec.factor) ** 2
        self.rate = float(length)
        self.grammar = Grammar(((0, self.codebook_size),), length, length)
        self.load, self.save = pictures.load_picture, pictures.save_png

    def encode(self, media: Sequence[UInt8[np.ndarray, "H W 3"]]) -> list[np.ndarray]:
        """A batch of pictures → their codes, row by row."""
        squares = [self._square(pictures.check(m)) for m in media]
        return batching.filled(self._encode, squares, self._batch)

    def decode(self, codes: Sequence[np.ndarray]) -> list[UInt8[np.ndarray, "S S 3"]]:
        """ValueError for codes the grammar forbids."""
        rows = [np.asarray(row, np.int32) for row in codes]
        for i, row in enumerate(rows):
            if problem := self.grammar.problem(row):
                raise ValueError(f"{self.name} {i} cannot be decoded: {problem}")
        return batching.filled(self._decode, rows, self._batch)

    def _square(self, picture: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(picture).resize((self._size, self._size), Image.Resampling.BICUBIC))

    @functools.cached_property
    def _encode(self):
        def encode(codec, pixels):
            return codec.encode(pixels.astype(jnp.float32) / 127.5 - 1)

        return released.program(encode, self._codec, exact=True)

    @functools.cached_property
    def _decode(self):
        def decode(codec, codes):
            pixels = jnp.clip(codec.decode(codes), -1, 1)
            return jnp.round((pixels + 1) * 127.5).astype(jnp.uint8)

        return released.program(decode, self._codec)
