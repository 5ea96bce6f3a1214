"""Depth maps as a modality: how far away everything in a picture is.

A map is float32[48, 48] in metres. Its tokens are the mean depths of 64 squares, row by row, in 64 steps of equal
ratio from 0.5 m to 20 m, so that a step is 6 % of the distance near and far. There is nothing to train.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from PIL import Image

from anygpt_jax.errors import UserError
from anygpt_jax.modalities.base import Grammar

SIZE, SQUARE, LEVELS = 48, 6, 64
NEAREST, FARTHEST = 0.5, 20.0  # m
MILLIMETRES = 1000.0  # a 16-bit PNG in millimetres, 0 where nothing was measured: what depth cameras write


class DepthTokenizer:
    """float32[48, 48] in metres ↔ int32[64]."""

    name = "depth"
    symbol = "📏"
    codebook_size = LEVELS
    rate = float((SIZE // SQUARE) ** 2)
    grammar = Grammar(cycle=((0, LEVELS),), min_length=int(rate), max_length=int(rate))
    fingerprint = hashlib.sha256(f"depth 1 {SIZE} {SQUARE} {LEVELS} {NEAREST} {FARTHEST}".encode()).hexdigest()

    # Optional: how files are called, how the pairs are asked for, and how the report shows a map.
    extension = ".png"
    instructions: ClassVar = {
        ("text", "depth"): ("measure this", "show how far this is", "make a depth map"),
        ("depth", "text"): ("describe the depth map", "what is in the depth map", "where is the ball"),
    }

    def load(self, data: bytes) -> np.ndarray:
        try:
            image = Image.open(io.BytesIO(data))
            image.load()
        except OSError as e:
            raise UserError(f"This depth map cannot be read ({e}); give a 16-bit PNG in millimetres.") from e
        if image.mode not in ("I;16", "I") or image.size != (SIZE, SIZE):
            raise UserError(f"A depth map is a 16-bit grey PNG of {SIZE} x {SIZE}; this is {image.mode} {image.size}.")
        metres = np.asarray(image).astype(np.float32) / MILLIMETRES
        if (metres == 0).any():
            raise UserError("This depth map has pixels without a measurement (0); fill them in first.")
        return metres

    def save(self, media: np.ndarray) -> bytes:
        out = io.BytesIO()
        Image.fromarray(np.clip(media * MILLIMETRES, 1, 65_535).round().astype(np.uint16)).save(out, "PNG")
        return out.getvalue()

    def encode(self, media: Sequence[np.ndarray]) -> list[np.ndarray]:
        codes = []
        for depth in media:
            if depth.shape != (SIZE, SIZE) or not (depth > 0).all():
                raise UserError(f"A depth map must be positive and {SIZE} x {SIZE}; this is {list(depth.shape)}.")
            squares = np.log(depth).reshape(SIZE // SQUARE, SQUARE, SIZE // SQUARE, SQUARE).mean((1, 3)).reshape(-1)
            share = (squares - np.log(NEAREST)) / np.log(FARTHEST / NEAREST)
            codes.append(np.clip(np.floor(share * LEVELS), 0, LEVELS - 1).astype(np.int32))
        return codes

    def decode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        media = []
        for row in codes:
            if problem := self.grammar.problem(row):
                raise ValueError(f"this depth map cannot be decoded: {problem}")
            share = (np.asarray(row).reshape(SIZE // SQUARE, -1) + 0.5) / LEVELS
            squares = NEAREST * (FARTHEST / NEAREST) ** share
            media.append(np.kron(squares, np.ones((SQUARE, SQUARE))).astype(np.float32))
        return media

    def html(self, media: np.ndarray) -> str:
        """Near is bright; the shades are even in the logarithm of the distance."""
        share = np.log(np.clip(media, NEAREST, FARTHEST) / NEAREST) / np.log(FARTHEST / NEAREST)
        out = io.BytesIO()
        Image.fromarray((255 * (1 - share)).round().astype(np.uint8)).save(out, "PNG")
        uri = f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
        return f'<img class="scene" alt="depth, nearest {media.min():.1f} m" src="{uri}">'


def load() -> DepthTokenizer:
    """The entry point."""
    return DepthTokenizer()
