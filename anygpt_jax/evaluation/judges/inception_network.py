"""The network of FID: Inception v3 (Szegedy et al. 2015, arXiv 1512.00567) as the TensorFlow graph of 2015-12-05 has it.

It differs from torchvision's network of that name in its weights and in two poolings: averages are over the pixels that
are there, without the padding, and the last block takes a maximum where the others average.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from anygpt_jax.interop.tokenizers.rules import Layout, made

SIZE = 299  # pixels of the square picture
WIDTH = 2048
EPSILON = 1e-3  # of the batch norms
# The classifier of 1,008 classes, and counters of training.
IGNORED = (r"fc\.(weight|bias)", r".*\.bn\.num_batches_tracked")


@dataclasses.dataclass(frozen=True)
class Conv:
    """`name` as in the published file. Without stride the picture keeps its size, unless it is `cropped`."""

    name: str
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    cropped: bool = False


Pool = Callable[[Array], Array]
Step = Conv | Pool | tuple[Conv, Conv]  # of two convolutions side by side the channels of both go on
Branch = tuple[Step, ...]


def average(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """Of 3 × 3 pixels around each, of those that are within the picture."""
    return nnx.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def maximum(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """Of 3 × 3 pixels around each: the pooling of the last block alone."""
    return nnx.max_pool(x, (3, 3), padding="SAME")


def halved(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    """The maximum of 3 × 3 pixels, two apart and without padding: h is (H - 1) // 2, w likewise."""
    return nnx.max_pool(x, (3, 3), strides=(2, 2))


def _block_a(pooled: int) -> tuple[Branch, ...]:
    return (
        (Conv("branch1x1", 64),),
        (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
        (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3))),
        (average, Conv("branch_pool", pooled)),
    )


def _block_b() -> tuple[Branch, ...]:
    return (
        (Conv("branch3x3", 384, (3, 3), stride=2),),
        (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3), stride=2)),
        (halved,),
    )


def _block_c(width: int) -> tuple[Branch, ...]:
    return (
        (Conv("branch1x1", 192),),
        (Conv("branch7x7_1", width), Conv("branch7x7_2", width, (1, 7)), Conv("branch7x7_3", 192, (7, 1))),
        (
            Conv("branch7x7dbl_1", width),
            Conv("branch7x7dbl_2", width, (7, 1)),
            Conv("branch7x7dbl_3", width, (1, 7)),
            Conv("branch7x7dbl_4", width, (7, 1)),
            Conv("branch7x7dbl_5", 192, (1, 7)),
        ),
        (average, Conv("branch_pool", 192)),
    )


def _block_d() -> tuple[Branch, ...]:
    return (
        (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), stride=2)),
        (
            Conv("branch7x7x3_1", 192),
            Conv("branch7x7x3_2", 192, (1, 7)),
            Conv("branch7x7x3_3", 192, (7, 1)),
            Conv("branch7x7x3_4", 192, (3, 3), stride=2),
        ),
        (halved,),
    )


def _block_e(pool: Pool) -> tuple[Branch, ...]:
    return (
        (Conv("branch1x1", 320),),
        (Conv("branch3x3_1", 384), (Conv("branch3x3_2a", 384, (1, 3)), Conv("branch3x3_2b", 384, (3, 1)))),
        (
            Conv("branch3x3dbl_1", 448),
            Conv("branch3x3dbl_2", 384, (3, 3)),
            (Conv("branch3x3dbl_3a", 384, (1, 3)), Conv("branch3x3dbl_3b", 384, (3, 1))),
        ),
        (pool, Conv("branch_pool", 192)),
    )


STEM: Branch = (
    Conv("Conv2d_1a_3x3", 32, (3, 3), stride=2),
    Conv("Conv2d_2a_3x3", 32, (3, 3), cropped=True),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    halved,
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, (3, 3), cropped=True),
    halved,
)
# name in the published file -> (its channels, what it does)
BLOCKS: Mapping[str, tuple[int, tuple[Branch, ...]]] = {
    "Mixed_5b": (192, _block_a(32)),
    "Mixed_5c": (256, _block_a(64)),
    "Mixed_5d": (288, _block_a(64)),
    "Mixed_6a": (288, _block_b()),
    "Mixed_6b": (768, _block_c(128)),
    "Mixed_6c": (768, _block_c(160)),
    "Mixed_6d": (768, _block_c(160)),
    "Mixed_6e": (768, _block_c(192)),
    "Mixed_7a": (768, _block_d()),
    "Mixed_7b": (1280, _block_e(average)),
    "Mixed_7c": (2048, _block_e(maximum)),
}


class Mixed(nnx.Module):
    """Branches from one input, whose channels go on one after another."""

    def __init__(self, channels: int, branches: tuple[Branch, ...], *, rngs: nnx.Rngs):
        self.branches = branches
        for branch in branches:
            inputs = channels
            for step in branch:
                convs = step if isinstance(step, tuple) else (step,) if isinstance(step, Conv) else ()
                for conv in convs:
                    setattr(self, conv.name, _layer(inputs, conv, rngs))
                inputs = sum(conv.outputs for conv in convs) or inputs

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """D is the sum of the branches' channels; h and w are smaller after a stride or a cropped convolution."""
        return jnp.concatenate([self._follow(branch, x) for branch in self.branches], -1)

    def _follow(self, branch: Branch, x: Array) -> Array:
        for step in branch:
            if isinstance(step, tuple):
                x = jnp.concatenate([self._convolve(conv, x) for conv in step], -1)
            else:
                x = self._convolve(step, x) if isinstance(step, Conv) else step(x)
        return x

    def _convolve(self, conv: Conv, x: Array) -> Array:
        found: Array = jax.nn.relu(getattr(self, conv.name)(x))
        return found


def _layer(inputs: int, conv: Conv, rngs: nnx.Rngs) -> nnx.Conv:
    padding = "VALID" if conv.cropped or conv.stride > 1 else "SAME"
    return nnx.Conv(inputs, conv.outputs, conv.kernel, conv.stride, padding=padding, rngs=rngs)


class InceptionNetwork(nnx.Module):
    """Pixels in [-1, 1] → the features before the classifier."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.stem = Mixed(3, (STEM,), rngs=rngs)
        for name, (channels, branches) in BLOCKS.items():
            setattr(self, name, Mixed(channels, branches, rngs=rngs))

    def __call__(self, pixels: Float[Array, "B S S 3"]) -> Float[Array, "B D"]:
        """S is SIZE and D WIDTH: the mean over the 8 × 8 places that the last block gives."""
        x = self.stem(pixels)
        for name in BLOCKS:
            x = getattr(self, name)(x)
        return x.mean((1, 2))


def layout() -> Layout:
    """The tensors of pytorch-fid's file → `InceptionNetwork`; each batch norm goes into the convolution before it."""
    found: Layout = {}
    for prefix, branches in (("stem.", (STEM,)), *((f"{name}.", blocks) for name, (_, blocks) in BLOCKS.items())):
        for step in (step for branch in branches for step in branch):
            for conv in step if isinstance(step, tuple) else (step,) if isinstance(step, Conv) else ():
                theirs = f"{prefix.removeprefix('stem.')}{conv.name}"
                scale = (f"{theirs}.bn.weight", f"{theirs}.bn.running_var")
                found[f"{prefix}{conv.name}.kernel"] = made(_kernel, f"{theirs}.conv.weight", *scale)
                found[f"{prefix}{conv.name}.bias"] = made(
                    _bias, f"{theirs}.bn.bias", f"{theirs}.bn.running_mean", *scale
                )
    return found


def _kernel(weight: np.ndarray, gain: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """[out, in, kh, kw] → [kh, kw, in, out]."""
    return weight.transpose(2, 3, 1, 0) * (gain / np.sqrt(variance + EPSILON))


def _bias(bias: np.ndarray, mean: np.ndarray, gain: np.ndarray, variance: np.ndarray) -> np.ndarray:
    return bias - mean * gain / np.sqrt(variance + EPSILON)
