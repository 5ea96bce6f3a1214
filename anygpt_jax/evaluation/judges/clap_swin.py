"""HTS-AT (Chen et al. 2022, arXiv 2202.00874): a Swin transformer over a mel spectrogram that is cut up into a square.

Patches see one another within square windows, which every second layer shifts by half their side (Liu et al. 2021,
arXiv 2103.14030); between stages four neighbours become one of twice the width.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from anygpt_jax.modalities.codecs import vit

CUBIC = -0.75  # PyTorch's a in the cubic convolution of Keys 1981
APART = -100.0  # added to the score of patches that only the shift has brought into one window
A = TypeVar("A", jax.Array, np.ndarray)


@dataclasses.dataclass(frozen=True)
class SwinSettings:
    """`size`: of the square; `patch`, in cells of it; `window`, in patches; `epsilon`: of the norms in the layers."""

    mels: int
    size: int
    patch: int
    window: int
    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    inner_ratio: float
    epsilon: float

    def __post_init__(self):
        if self.size % self.mels or self.size % self.patch or len(self.depths) != len(self.heads):
            raise ValueError(f"a square of {self.size} is no whole number of {self.mels} mels and of patches")
        if any(side % self.window for side in self.sides):
            raise ValueError(
                f"windows of {self.window} do not fill stages of {', '.join(map(str, self.sides))} patches"
            )
        if any(width % heads for width, heads in zip(self.widths, self.heads, strict=True)):
            raise ValueError(f"widths {self.widths} are no multiples of the numbers of heads {self.heads}")

    @property
    def sides(self) -> tuple[int, ...]:
        """In patches, of every stage."""
        return tuple(self.size // self.patch // 2**i for i in range(len(self.depths)))

    @property
    def widths(self) -> tuple[int, ...]:
        """Of a patch's vector, of every stage."""
        return tuple(self.width * 2**i for i in range(len(self.depths)))

    @property
    def strips(self) -> int:
        """How many stretches of time lie above one another in the square."""
        return self.size // self.mels

    @property
    def frames(self) -> int:
        """The most that fit."""
        return self.size * self.strips


def stretching(frames: int, out: int) -> Float[np.ndarray, "out frames"]:
    """The matrix of PyTorch's bicubic interpolation of a line, its ends on the line's ends, in its float32."""
    at = np.arange(out, dtype=np.float32) * (np.float32(frames - 1) / np.float32(out - 1))
    before = np.floor(at).astype(int)
    matrix, a = np.zeros((out, frames), np.float32), CUBIC
    for tap in (-1, 0, 1, 2):
        d = np.abs(at - (before + tap).astype(np.float32))
        near, far = ((a + 2) * d - (a + 3)) * d * d + 1, ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        np.add.at(matrix, (np.arange(out), (before + tap).clip(0, frames - 1)), np.where(d <= 1, near, far))
    return matrix


def relative(window: int) -> Int[np.ndarray, "T T"]:
    """Which row of a table of biases each pair of a window's patches has: by how far they are apart, down and right."""
    rows, columns = np.divmod(np.arange(window * window), window)
    down, right = rows[:, None] - rows + window - 1, columns[:, None] - columns + window - 1
    return down * (2 * window - 1) + right


def apart(side: int, window: int, shift: int) -> Float[np.ndarray, "W T T"]:
    """APART for the pairs of each window that were not neighbours before the shift, else 0."""
    region = np.zeros(side, int)
    region[side - window :] = 1
    region[side - shift :] = 2
    regions = _windows(3 * region[None, :, None, None] + region[None, None, :, None], window)[0, :, :, 0]
    return np.where(regions[:, :, None] != regions[:, None], np.float32(APART), np.float32(0))


def _windows(x: A, window: int) -> A:
    """[B, S, S, D] → [B, windows, window², D]."""
    b, side, _, d = x.shape
    x = x.reshape(b, side // window, window, side // window, window, d)
    return x.swapaxes(2, 3).reshape(b, -1, window * window, d)


def _joined(x: Float[Array, "B W T D"], side: int, window: int) -> Float[Array, "B S S D"]:
    n = side // window
    return x.reshape(x.shape[0], n, n, window, window, -1).swapaxes(2, 3).reshape(x.shape[0], side, side, -1)


class Block(nnx.Module):
    """x + attention(norm(x)) within windows, then x + mlp(norm(x))."""

    def __init__(self, settings: SwinSettings, stage: int, shift: int, *, rngs: nnx.Rngs):
        width, self.heads = settings.widths[stage], settings.heads[stage]
        self.window, self.shift = settings.window, shift
        inner = int(settings.inner_ratio * width)
        self.norm1 = vit.layer_norm(width, settings.epsilon, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(((2 * self.window - 1) ** 2, self.heads)))
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.norm2 = vit.layer_norm(width, settings.epsilon, rngs=rngs)
        self.fc1 = nnx.Linear(width, inner, rngs=rngs)
        self.fc2 = nnx.Linear(inner, width, rngs=rngs)

    def __call__(self, x: Float[Array, "B S S D"]) -> Float[Array, "B S S D"]:
        """S is the stage's number of patches a side, of which windows take a whole part; patches that only the shift
        brings together do not attend to one another."""
        side, back = x.shape[1], (self.shift, self.shift)
        h = jnp.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2))
        qkv = self.qkv(_windows(h, self.window))
        q, k, v = jnp.moveaxis(qkv.reshape(*qkv.shape[:3], 3, self.heads, -1), 3, 0)
        scores = jnp.einsum("bwqhc,bwkhc->bwhqk", q, k) / math.sqrt(q.shape[-1])
        scores = scores + jnp.moveaxis(self.bias[...][relative(self.window)], 2, 0)
        if self.shift:
            scores = scores + apart(side, self.window, self.shift)[:, None]
        h = jnp.einsum("bwhqk,bwkhc->bwqhc", jax.nn.softmax(scores), v)
        h = _joined(self.out(h.reshape(*h.shape[:3], -1)), side, self.window)
        x = x + jnp.roll(h, back, (1, 2))
        return x + self.fc2(vit.gelu(self.fc1(self.norm2(x))))


class Merging(nnx.Module):
    """Four neighbours, column by column, become one of twice the width."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm = vit.layer_norm(4 * width, 1e-5, rngs=rngs)
        self.reduction = nnx.Linear(4 * width, 2 * width, use_bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "B S S D"]) -> Float[Array, "B S/2 S/2 2D"]:
        """S is even. The four go into the norm as top left, bottom left, top right, bottom right."""
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(jnp.concatenate(corners, -1)))


class Swin(nnx.Module):
    """Mel powers in dB → the mean of the patches after the last norm."""

    def __init__(self, settings: SwinSettings, *, rngs: nnx.Rngs):
        self.settings = s = settings
        # The batch norm of every mel, which only multiplies and adds once training is over.
        self.scale, self.offset = nnx.Param(jnp.ones(s.mels)), nnx.Param(jnp.zeros(s.mels))
        patch = (s.patch, s.patch)
        self.patches = nnx.Conv(1, s.width, patch, strides=patch, padding="VALID", rngs=rngs)
        self.norm_in = vit.layer_norm(s.width, 1e-5, rngs=rngs)
        self.stages = nnx.List([self._stage(i, rngs) for i in range(len(s.depths))])
        self.merging = nnx.List([Merging(width, rngs=rngs) for width in s.widths[:-1]])
        self.norm_out = vit.layer_norm(s.widths[-1], 1e-5, rngs=rngs)

    def _stage(self, i: int, rngs: nnx.Rngs) -> nnx.List[Block]:
        s = self.settings
        shift = s.window // 2 if s.sides[i] > s.window else 0  # a single window has nothing beside it
        return nnx.List([Block(s, i, shift if j % 2 else 0, rngs=rngs) for j in range(s.depths[i])])

    def __call__(self, mels: Float[Array, "B T M"]) -> Float[Array, "B D"]:
        """T is at most `settings.frames`."""
        s = self.settings
        x = mels * self.scale[...] + self.offset[...]
        if x.shape[1] < s.frames:
            x = jnp.einsum("ot,btm->bom", stretching(x.shape[1], s.frames), x)
        x = x.reshape(x.shape[0], s.strips, s.size, s.mels).swapaxes(2, 3).reshape(-1, s.size, s.size, 1)
        x = self.norm_in(self.patches(x))
        for i, blocks in enumerate(self.stages):
            for block in blocks:
                x = block(x)
            if i < len(self.merging):
                x = self.merging[i](x)
        return self.norm_out(x).mean((1, 2))
