"""Encoding and decoding of sound of any length, piece by piece, in bounded memory.

The work is done in windows of one size, so that one program is compiled. A window starts a fixed number of new
frames after the one before, and overlaps it by the context that the network needs on both sides:

    window 0   [ left | new | right ]
    window 1          [ left | new | right ]

Of each window the new frames are taken; of the first also those before, which have the true start of the sound on
their left, and of the last all that are left. With enough context the result is that of the whole sound at once.
States that depend on the whole past, an LSTM's, are carried from window to window.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Context:
    """The frames before and after a frame that its result depends on, in one direction of a codec.

    An audio codec has `encode_context` and `decode_context`. Where one `carries`, the codec also has
    `encode_window(sound, lengths, carry)` → (codes, carry) and `initial_encode(batch)` → the first carry, or
    `decode_window` and `initial_decode`.
    """

    left: int
    right: int
    carries: bool = False


def encode(
    codec: Any, pieces: Iterable[Float[np.ndarray, " t"]], window: int = 500
) -> Iterator[Int[np.ndarray, "f Q"]]:
    """Pieces of one sound of any lengths → pieces of its codes, `window` new frames at a time.

    The last piece ends with the last frame that has a sample of the sound.
    """
    context, hop, carry = codec.encode_context, codec.hop, None
    if context.carries:
        carry = codec.initial_encode(1)
    size = context.left + window + context.right
    start = 0
    for sound, length, last in _windows(pieces, size * hop, window * hop):
        codes, carry = _encode(codec, sound[None], np.array([length], np.int32), carry)
        yield np.asarray(codes)[0, start : -(-length // hop) if last else context.left + window]
        start = context.left


def decode(codec: Any, pieces: Iterable[Int[np.ndarray, "f q"]], window: int = 50) -> Iterator[Float[np.ndarray, " t"]]:
    """Pieces of one sound's codes, of any numbers of frames → pieces of the sound.

    The first comes once there are more frames than one window and its context have, each further one after `window`
    frames more.
    """
    context, hop, carry = codec.decode_context, codec.hop, None
    if context.carries:
        carry = codec.initial_decode(1)
    start = 0
    for codes, length, last in _windows(pieces, context.left + window + context.right, window):
        sound, carry = _decode(codec, codes[None], np.array([length], np.int32), carry)
        yield np.asarray(sound)[0, start * hop : (length if last else context.left + window) * hop]
        start = context.left


@nnx.jit
def _encode(codec: Any, sound: np.ndarray, lengths: np.ndarray, carry: Any) -> tuple[Array, Any]:
    return (codec.encode(sound, lengths), None) if carry is None else codec.encode_window(sound, lengths, carry)


@nnx.jit
def _decode(codec: Any, codes: np.ndarray, lengths: np.ndarray, carry: Any) -> tuple[Array, Any]:
    return (codec.decode(codes, lengths), None) if carry is None else codec.decode_window(codes, lengths, carry)


def _windows(pieces: Iterable[np.ndarray], size: int, step: int) -> Iterator[tuple[np.ndarray, int, bool]]:
    """(window padded with zeros, steps of it that are there, whether it is the last), a window every `step`."""
    held: list[np.ndarray] = []
    count = 0
    for piece in pieces:
        held.append(np.asarray(piece))
        count += len(piece)
        while count > size:
            joined = np.concatenate(held)
            yield joined[:size], size, False
            # A copy, so that a long piece does not stay in memory for its end.
            held, count = [joined[step:].copy()], count - step
    if count:
        last = np.concatenate(held)
        yield np.pad(last, ((0, size - count), *[(0, 0)] * (last.ndim - 1))), count, True
