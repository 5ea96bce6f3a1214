"""1-D convolutions of audio codecs on rows of unequal length, channels last.

Every layer pads at each row's own end, so what a row gives does not depend on how far its batch is padded: its
codes are those of the row alone. What a layer leaves beyond a row's length is undefined; the next one reads zeros.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

PAD_MODES = ("reflect", "constant", "replicate")


def zero_beyond(x: Float[Array, "B T C"], lengths: Int[Array, " B"]) -> Float[Array, "B T C"]:
    """x with zeros from each row's end on."""
    return jnp.where((jnp.arange(x.shape[1]) < lengths[:, None])[..., None], x, 0)


def pad(
    x: Float[Array, "B T C"],
    lengths: Int[Array, " B"],
    left: int,
    right: Int[Array, " B"],
    most: int,
    mode: str,
) -> Float[Array, "B left+T+most C"]:
    """Each row continued by `left` steps before its start and right[b] ≤ `most` steps after its own end.

    "constant" continues with zeros, "replicate" with the first and last step, "reflect" with the mirror image
    that does not repeat the edge; a row no longer than its padding is extended by zeros first and mirrored then
    (audiocraft's `pad1d`, which EnCodec, SpeechTokenizer and Mimi share). Beyond `most` steps after a row's end is
    what was there.
    """
    ends = lengths[:, None]
    before = jnp.broadcast_to(jnp.arange(-left, 0), (x.shape[0], left))
    after = ends + jnp.arange(most)
    if mode == "replicate":
        before, after = jnp.zeros_like(before), jnp.broadcast_to(ends - 1, after.shape)
    elif mode == "reflect":
        extended = jnp.maximum(ends, jnp.maximum(left, right[:, None]) + 1)
        before, after = -before, jnp.where(after < extended, after, 2 * (extended - 1) - after)

    def taken(steps: Int[Array, "B n"]) -> Float[Array, "B n C"]:
        found = jnp.take_along_axis(x, jnp.clip(steps, 0, x.shape[1] - 1)[..., None], axis=1)
        return jnp.where(((steps >= 0) & (steps < ends))[..., None], found, 0)

    heads, tails = taken(before), taken(after)
    # One copy and a few steps written into it: a row is not gone through again for its ends.
    x = jnp.pad(x, ((0, 0), (left, most), (0, 0))).at[:, :left].set(heads)
    return jax.vmap(lambda row, tail, end: jax.lax.dynamic_update_slice(row, tail, (end, 0)))(x, tails, left + lengths)


def convolve(
    x: Float[Array, "B T I"], kernel: Float[Array, "k I/g O"], stride: int = 1, dilation: int = 1, groups: int = 1
) -> Float[Array, "B T2 O"]:
    """Cross-correlation without padding: PyTorch's Conv1d, channels last."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride,), "VALID", rhs_dilation=(dilation,), feature_group_count=groups,
        dimension_numbers=("NWC", "WIO", "NWC"),
    )  # fmt: skip


def convolve_transposed(
    x: Float[Array, "B T I"], kernel: Float[Array, "k I/g O"], stride: int, groups: int = 1
) -> Float[Array, "B (T-1)*stride+k O"]:
    """y[t·stride + j] += x[t] · kernel[j]: PyTorch's ConvTranspose1d without padding, channels last."""
    k = kernel.shape[0]
    if groups == 1 and k % stride == 0:
        # One product for all taps, whose k / stride parts are added where they overlap. XLA's convolution would
        # multiply the stride - 1 zeros between steps.
        batch, steps, parts = *x.shape[:2], k // stride
        taps = jnp.einsum("bti,kio->btko", x, kernel).reshape(batch, steps, parts, -1)
        shifted = [jnp.pad(taps[:, :, i], ((0, 0), (i, parts - 1 - i), (0, 0))) for i in range(parts)]
        return functools.reduce(jnp.add, shifted).reshape(batch, (steps + parts - 1) * stride, -1)
    return jax.lax.conv_general_dilated(
        x, kernel[::-1], (1,), [(k - 1, k - 1)], lhs_dilation=(stride,), feature_group_count=groups,
        dimension_numbers=("NWC", "WIO", "NWC"),
    )  # fmt: skip


def _uniform(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> Array:
    bound = 1 / math.sqrt(fan_in)
    return jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)


class Conv(nnx.Module):
    """ceil(length / stride) steps out, padded as audiocraft's `StreamableConv1d`.

    All padding is on the left if `causal`; otherwise the right side gets half of it, rounded down. The last
    output's window is completed on the right.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, dilation: int = 1, groups: int = 1,
        causal: bool = False, pad_mode: str = "reflect", use_bias: bool = True, rngs: nnx.Rngs,
    ):  # fmt: skip
        if pad_mode not in PAD_MODES:
            raise ValueError(f"the padding mode is one of {', '.join(PAD_MODES)}, not {pad_mode!r}")
        self.stride, self.dilation, self.groups, self.pad_mode = stride, dilation, groups, pad_mode
        total = (kernel - 1) * dilation + 1 - stride
        self.right = 0 if causal else total // 2
        self.left = total - self.right
        fan_in = inputs // groups * kernel
        self.kernel = nnx.Param(_uniform(rngs, (kernel, inputs // groups, outputs), fan_in))
        self.bias = nnx.Param(_uniform(rngs, (outputs,), fan_in)) if use_bias else None

    def __call__(self, x: Float[Array, "B T I"], lengths: Int[Array, " B"]) -> tuple[Array, Int[Array, " B"]]:
        """(steps, their number in each row)."""
        right = self.right + (-lengths) % self.stride
        # T itself may stop within a window too.
        x = pad(x, lengths, self.left, right, self.right + self.stride - 1, self.pad_mode)
        x = convolve(x, self.kernel[...], self.stride, self.dilation, self.groups)
        return (x if self.bias is None else x + self.bias[...]), -(-lengths // self.stride)

    def reads(self, low: int, high: int) -> tuple[int, int]:
        """The first and last input step that output steps low..high depend on, far from the start of a row."""
        span = (self.kernel.shape[0] - 1) * self.dilation
        # The end of a row may be mirrored so far back.
        mirrored = self.right + self.stride - 1 if self.pad_mode == "reflect" else 0
        return low * self.stride - max(self.left, mirrored), high * self.stride - self.left + span


class ConvTransposed(nnx.Module):
    """length · stride steps out: of the kernel - stride too many, `causal` trims the share `trim_right_ratio`,
    rounded up, on the right, else half of them, rounded down, and the rest on the left."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int, groups: int = 1, causal: bool = False,
        trim_right_ratio: float = 1.0, use_bias: bool = True, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.stride, self.groups = stride, groups
        total = kernel - stride
        self.left = total - (math.ceil(total * trim_right_ratio) if causal else total // 2)
        fan_in = outputs * kernel // groups
        self.kernel = nnx.Param(_uniform(rngs, (kernel, inputs // groups, outputs), fan_in))
        self.bias = nnx.Param(_uniform(rngs, (outputs,), fan_in)) if use_bias else None

    def __call__(self, x: Float[Array, "B T I"], lengths: Int[Array, " B"]) -> tuple[Array, Int[Array, " B"]]:
        """(steps, their number in each row)."""
        steps = x.shape[1] * self.stride
        x = convolve_transposed(zero_beyond(x, lengths), self.kernel[...], self.stride, self.groups)
        x = x[:, self.left : self.left + steps]
        return (x if self.bias is None else x + self.bias[...]), lengths * self.stride

    def reads(self, low: int, high: int) -> tuple[int, int]:
        """The first and last input step that output steps low..high depend on."""
        # y[n] has those x[t] for which 0 ≤ n + left - t·stride < kernel.
        return -(-(low + self.left - self.kernel.shape[0] + 1) // self.stride), (high + self.left) // self.stride
