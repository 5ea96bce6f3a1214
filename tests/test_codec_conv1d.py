"""Convolutions on rows of unequal length against PyTorch's on each row alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from anygpt_jax.modalities.codecs.conv1d import Conv, ConvTransposed, convolve_transposed, pad


@pytest.fixture(autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


def noise(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def padded_alone(row, left, right, mode):
    """Of one row [T, C], by PyTorch; mirrored only once it is longer than its padding."""
    x = torch.from_numpy(row.T)[None]
    extra = max(0, max(left, right) + 1 - len(row)) if mode == "reflect" else 0
    x = torch.nn.functional.pad(torch.nn.functional.pad(x, (0, extra)), (left, right), mode)
    return x[0, :, : x.shape[-1] - extra].numpy().T


@pytest.mark.parametrize("mode", ["reflect", "constant", "replicate"])
@pytest.mark.parametrize(("left", "most"), [(3, 3), (6, 0), (2, 9), (0, 4)])
def test_each_row_is_padded_at_its_own_end(mode, left, most):
    lengths = np.array([1, 2, 5, 12, 9])
    right = np.minimum(most, np.array([0, 2, 1, 9, 4]))
    x = noise(0, 5, 12, 2)
    found = np.asarray(pad(jnp.asarray(x), jnp.asarray(lengths), left, jnp.asarray(right), most, mode))
    assert found.shape == (5, left + 12 + most, 2)
    for row, (n, r) in enumerate(zip(lengths, right, strict=True)):
        expected = padded_alone(x[row, :n], left, int(r), mode)
        np.testing.assert_array_equal(found[row, : left + n + r], expected)


@pytest.mark.parametrize(
    ("kernel", "stride", "groups"), [(8, 4, 1), (6, 2, 1), (3, 1, 1), (5, 2, 1), (2, 3, 1), (4, 2, 3)]
)
def test_transposed_convolution_is_pytorchs(kernel, stride, groups):
    x, weight = noise(1, 2, 7, 6), noise(2, 6, 9 // groups, kernel)
    expected = torch.nn.functional.conv_transpose1d(
        torch.from_numpy(x).transpose(1, 2), torch.from_numpy(weight), stride=stride, groups=groups
    ).transpose(1, 2)
    ours = weight.reshape(groups, 6 // groups, 9 // groups, kernel).transpose(3, 1, 0, 2).reshape(kernel, -1, 9)
    np.testing.assert_allclose(
        convolve_transposed(jnp.asarray(x), jnp.asarray(ours), stride, groups), expected, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("ratio", [1.0, 0.25])
def test_a_transposed_row_sees_silence_beyond_its_end(causal, ratio):
    layer = ConvTransposed(3, 2, 7, stride=3, causal=causal, trim_right_ratio=ratio, rngs=nnx.Rngs(0))
    x, lengths = jnp.asarray(noise(3, 2, 9, 3)), jnp.array([4, 9])
    found, steps = layer(x, lengths)
    assert steps.tolist() == [12, 27]
    assert found.shape == (2, 27, 2)
    alone, _ = layer(x[:1, :4], lengths[:1])
    np.testing.assert_allclose(found[:1, :12], alone, rtol=0, atol=1e-6)
    weight = torch.from_numpy(np.array(layer.kernel[...])).permute(1, 2, 0)
    bias = torch.from_numpy(np.array(layer.bias[...]))
    whole = torch.nn.functional.conv_transpose1d(
        torch.from_numpy(np.array(x)).transpose(1, 2), weight, bias, stride=3
    ).transpose(1, 2)
    # Of the four steps too many: two on each side, or the share on the right rounded up.
    left = {(False, 1.0): 2, (False, 0.25): 2, (True, 1.0): 0, (True, 0.25): 3}[causal, ratio]
    np.testing.assert_allclose(found[1], whole[1, left : left + 27], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        Conv(1, 1, 7, rngs=nnx.Rngs(0)),
        Conv(1, 1, 5, dilation=3, causal=True, rngs=nnx.Rngs(0)),
        Conv(1, 1, 10, stride=5, pad_mode="constant", rngs=nnx.Rngs(0)),
        ConvTransposed(1, 1, 8, stride=4, rngs=nnx.Rngs(0)),
        ConvTransposed(1, 1, 7, stride=3, causal=True, rngs=nnx.Rngs(0)),
    ],
)
def test_steps_depend_on_the_steps_a_layer_says_it_reads(layer):
    """A change of input step t reaches output step n exactly if t is within reads(n, n), in the middle of a row."""
    steps = 60
    impulses = jnp.eye(steps)[..., None]
    lengths = jnp.full(steps, steps)
    silence, _ = layer(jnp.zeros_like(impulses), lengths)
    reached = np.abs(np.asarray(layer(impulses, lengths)[0] - silence))[..., 0] > 0
    for n in range(reached.shape[1] // 3, reached.shape[1] // 3 * 2):
        read = np.flatnonzero(reached[:, n])
        assert layer.reads(n, n) == (read.min(), read.max())


def test_an_unknown_padding_is_refused():
    with pytest.raises(ValueError, match="reflect, constant, replicate"):
        Conv(1, 1, 3, pad_mode="zeros", rngs=nnx.Rngs(0))
