"""VGGish (Hershey et al. 2017, arXiv 1609.09430): what the Fréchet audio distance hears (Kilgour et al. 2019).

The distance (arXiv 1812.08466) is between the network's 128 numbers before AudioSet's PCA. They are taken before any
activation, as TensorFlow's code and the ports of the distance have it; torchvggish puts a ReLU after them. Google's code
of the distance brings sounds to a common peak and takes overlapping seconds; here, as in the ports, sounds stay as they
are and examples follow one another.
"""

from __future__ import annotations

import functools
import itertools
import pathlib
from collections.abc import Iterable

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation import judges
from anygpt_jax.evaluation.judges import legacy_pickles
from anygpt_jax.interop.tokenizers.rules import Layout, conv2d, conv_layer, linear
from anygpt_jax.modalities.audio import resample
from anygpt_jax.modalities.base import Audio
from anygpt_jax.modalities.codecs import batching, released, weights

FILE = "vggish-10086976.pth"
SAMPLE_RATE = 16_000
FRAME, HOP, N_FFT = 400, 160, 512  # 25 ms, 10 ms apart, and zeros after them
MELS, LOWEST, HIGHEST = 64, 125.0, 7500.0
OFFSET = 0.01
FRAMES = 96  # of an example: 0.96 s
WIDTH = 128
CHANNELS = (64, 128, 256, 256, 512, 512)
POOLED = (0, 1, 3, 5)  # convolutions after which 2 × 2 become one
CONVOLUTIONS = (0, 3, 6, 8, 11, 13)  # their places in torchvggish's list, where activations and poolings count
DENSE = (0, 2, 4)
BATCH = 32


class VggishNetwork(nnx.Module):
    """Logarithmic mels of an example → its embedding."""

    def __init__(self, *, rngs: nnx.Rngs):
        inputs = (1, *CHANNELS)
        self.convs = nnx.List(
            [nnx.Conv(i, o, (3, 3), padding="SAME", rngs=rngs) for i, o in zip(inputs, CHANNELS, strict=False)]
        )
        flat = FRAMES // 16 * (MELS // 16) * CHANNELS[-1]
        widths = ((flat, 4096), (4096, 4096), (4096, WIDTH))
        self.dense = nnx.List([nnx.Linear(i, o, rngs=rngs) for i, o in widths])

    def __call__(self, mels: Float[Array, "B T M"]) -> Float[Array, "B D"]:
        """T is FRAMES, M is MELS and D WIDTH. Nothing is activated or whitened after the last layer."""
        x = mels[..., None]
        for i, conv in enumerate(self.convs):
            x = jax.nn.relu(conv(x))
            if i in POOLED:
                x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        for layer in self.dense[:-1]:
            x = jax.nn.relu(layer(x))
        found: Array = self.dense[-1](x)
        return found


def layout() -> Layout:
    """torchvggish's tensors → `VggishNetwork`."""
    found: Layout = {}
    for i, place in enumerate(CONVOLUTIONS):
        found |= conv_layer(f"convs.{i}", f"features.{place}", kernel=conv2d)
    for i, place in enumerate(DENSE):
        found |= conv_layer(f"dense.{i}", f"embeddings.{place}", kernel=linear)
    return found


@functools.cache
def filterbank() -> Float[np.ndarray, "bins mels"]:
    """Triangles of height 1, straight on the mel scale (not in Hz), with corners equally spaced on it; none hears 0 Hz.

    The scale is HTK's: 1127 ln(1 + f / 700).
    """
    lowest, highest, *bins = 1127 * np.log1p(np.array([LOWEST, HIGHEST, *np.linspace(0, 8000, N_FFT // 2 + 1)]) / 700)
    corners = np.linspace(lowest, highest, MELS + 2)
    at = np.array(bins)[:, None]
    rising = (at - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - at) / (corners[2:] - corners[1:-1])
    return np.maximum(0, np.minimum(rising, falling)) * (np.arange(len(at)) > 0)[:, None]


def examples(sound: Audio) -> Float[np.ndarray, "E 96 64"]:
    """float32: log(mels + 0.01) of magnitudes under a periodic Hann window, in examples of 0.96 s one after another.

    What is left at the end is not heard. A sound that is too short for one example goes on in silence.
    """
    samples = resample(sound, SAMPLE_RATE).samples.astype(np.float64)
    samples = np.pad(samples, (0, max(0, FRAME + (FRAMES - 1) * HOP - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(samples, FRAME)[::HOP]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME)
    mels = np.abs(np.fft.rfft(frames * window, N_FFT)) @ filterbank()
    whole = len(mels) // FRAMES
    return np.log(mels[: whole * FRAMES] + OFFSET).astype(np.float32).reshape(whole, FRAMES, MELS)


class Vggish:
    """VGGish on this process's first chip, in full float32. Make it by `load`."""

    width = WIDTH
    sample_rate = SAMPLE_RATE

    def __init__(self, network: VggishNetwork):
        self._run = released.program(VggishNetwork.__call__, network, exact=True)

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> Vggish:
        """Of the folder that holds FILE. UserError if it is not there, or of another network."""
        path = pathlib.Path(folder) / FILE
        if not path.is_file():
            raise UserError(f"There is no {path}; it is among the releases of github.com/harritaylor/torchvggish.")

        def build() -> VggishNetwork:
            return VggishNetwork(rngs=weights.rngs())

        return cls(judges.filled(build, layout(), legacy_pickles.read(path), (r"pproc\..*",), str(path)))

    def sounds(self, sounds: Iterable[Audio]) -> list[Float[np.ndarray, "E 128"]]:
        """float32: of each sound those of its examples. Sounds are taken a batch at a time, so that thousands may be read
        one by one."""
        found: list[np.ndarray] = []
        rest = iter(sounds)
        while batch := [examples(sound) for sound in itertools.islice(rest, BATCH)]:
            rows = np.array(batching.filled(self._run, list(np.concatenate(batch)), BATCH))
            found += np.split(rows, np.cumsum([len(own) for own in batch])[:-1])
        return found
