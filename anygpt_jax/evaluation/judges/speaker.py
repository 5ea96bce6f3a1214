"""Who speaks: the encoder of Wan et al. 2018 (GE2E, arXiv 1710.10467) in Resemblyzer 0.1.4 (Apache-2.0).

The cosine of two sounds' vectors is how alike their voices are. The speaker similarity that papers print (VALL-E,
AnyGPT) is a cosine of WavLM-TDNN's vectors: another network and another scale, whose figures cannot be set beside
these. Of two seconds of speech a vector is unsure: compare sounds of four and more.
"""

from __future__ import annotations

import importlib.util
import math
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation import judges
from anygpt_jax.evaluation.judges import legacy_pickles, mels
from anygpt_jax.interop.tokenizers.rules import Layout, linear, made, same
from anygpt_jax.modalities.audio import resample
from anygpt_jax.modalities.base import Audio
from anygpt_jax.modalities.codecs import batching, released, weights
from anygpt_jax.modalities.codecs.lstm import Direction

SAMPLE_RATE = 16_000
N_FFT, HOP, MELS = 400, 160, 40  # 25 ms windows, 10 ms apart
WIDTH, LAYERS = 256, 3
FRAMES, STEP = 160, 77  # of a window of sound that is judged by itself, and from one to the next: 1.3 a second
COVERAGE = 0.75  # the part of the last window that must be sound, where there are others
LEVEL = 10 ** (-30 / 20)  # root mean square that quieter sounds are brought to: the network hears how loud they are
BATCH = 32
# Of the loss.
IGNORED = ("similarity_weight", "similarity_bias")


class SpeakerNetwork(nnx.Module):
    """Mel powers of one window → a vector of unit length."""

    def __init__(self, *, rngs: nnx.Rngs):
        widths = [MELS] + [WIDTH] * (LAYERS - 1)
        self.layers = nnx.List([Direction(inputs, WIDTH, rngs=rngs) for inputs in widths])
        self.out = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, mels: Float[Array, "B T M"]) -> Float[Array, "B D"]:
        """M is MELS, D is WIDTH: of the state after the last frame, by a ReLU, so that no number is negative."""
        x, valid = mels, jnp.ones(mels.shape[:2], bool)
        for layer in self.layers:
            x, _ = layer(x, valid, layer.zeros(x))
        found = jax.nn.relu(self.out(x[:, -1]))
        return found / jnp.maximum(jnp.linalg.norm(found, axis=-1, keepdims=True), 1e-12)


def layout() -> Layout:
    """PyTorch's LSTM has matrices [gates, in] and two biases that are added."""
    found: Layout = {"out.kernel": linear("linear"), "out.bias": same("linear.bias")}
    for i in range(LAYERS):
        found[f"layers.{i}.kernel"] = made(np.transpose, f"lstm.weight_ih_l{i}")
        found[f"layers.{i}.recurrent"] = made(np.transpose, f"lstm.weight_hh_l{i}")
        found[f"layers.{i}.bias"] = made(np.add, f"lstm.bias_ih_l{i}", f"lstm.bias_hh_l{i}")
    return found


def mel_powers(samples: Float[np.ndarray, " N"]) -> Float[np.ndarray, "T M"]:
    """float32, T = 1 + N // 160; frame t is centred on sample 160·t, and beyond its ends the sound is silent.

    What librosa's `melspectrogram` gives since version 0.10: squared magnitudes under a periodic Hann window.
    """
    padded = np.pad(np.asarray(samples, np.float64), N_FFT // 2)
    bank = mels.filterbank(SAMPLE_RATE, N_FFT, MELS, 0, SAMPLE_RATE / 2)
    return mels.powers(padded, HOP, bank).astype(np.float32)


def windows(samples: Float[np.ndarray, " N"]) -> Float[np.ndarray, "W T M"]:
    """Mel powers of the windows of a sound, at least one; the last goes on in silence.

    A window is left out if less than COVERAGE of it is sound and it is not the only one.
    """
    frames = math.ceil((len(samples) + 1) / HOP)
    starts = list(range(0, max(1, frames - FRAMES + STEP + 1), STEP))
    if len(starts) > 1 and len(samples) - starts[-1] * HOP < COVERAGE * FRAMES * HOP:
        starts.pop()
    needed = (starts[-1] + FRAMES) * HOP
    mels = mel_powers(np.pad(samples, (0, max(0, needed - len(samples)))))
    return np.stack([mels[start : start + FRAMES] for start in starts])


def prepare(audio: Audio) -> Float[np.ndarray, " N"]:
    """float32 at 16 kHz, not quieter than LEVEL unless it is silent.

    Pauses are kept, which the package cuts out by WebRTC's detector of voices: over ten recordings of 3 to 10 s the
    cosine of a vector with the package's own was 0.988 and more.
    """
    samples = resample(audio, SAMPLE_RATE).samples
    level = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if len(samples) else 0.0
    return samples * np.float32(LEVEL / level) if 0 < level < LEVEL else samples


class SpeakerEncoder:
    """The encoder on this process's first chip, in full float32. Make it by `load`."""

    def __init__(self, network: SpeakerNetwork):
        self._run = released.program(SpeakerNetwork.__call__, network, exact=True)

    @classmethod
    def load(cls, path: str | pathlib.Path | None = None) -> SpeakerEncoder:
        """Of a pretrained.pt, by default that of the installed package Resemblyzer, which is not imported.

        UserError if it is not installed, or the file is of another network.
        """
        path = pathlib.Path(path) if path else _installed()
        if not path.is_file():
            raise UserError(f"There is no {path}; name the pretrained.pt of Resemblyzer 0.1.4.")
        tensors = legacy_pickles.read(path, "model_state")

        def build() -> SpeakerNetwork:
            return SpeakerNetwork(rngs=weights.rngs())

        return cls(judges.filled(build, layout(), tensors, IGNORED, str(path)))

    def embed(self, sounds: Sequence[Audio]) -> Float[np.ndarray, "N 256"]:
        """float32, of unit length: the direction of the mean of what windows of 1.6 s give, 0.77 s apart.

        ValueError for a sound without samples.
        """
        if empty := [i for i, sound in enumerate(sounds) if not len(sound.samples)]:
            raise ValueError(f"sounds {empty} have no samples")
        found: list[np.ndarray] = []
        for start in range(0, len(sounds), BATCH):
            parts = [windows(prepare(sound)) for sound in sounds[start : start + BATCH]]
            rows = np.array(batching.filled(self._run, list(np.concatenate(parts)), BATCH))
            ends = np.cumsum([len(part) for part in parts])
            found += [np.mean(own, 0) for own in np.split(rows, ends[:-1])]
        means = np.array(found, np.float32).reshape(-1, WIDTH)
        return means / np.linalg.norm(means, axis=-1, keepdims=True)


def _installed() -> pathlib.Path:
    spec = importlib.util.find_spec("resemblyzer")
    folders = (spec.submodule_search_locations or ()) if spec else ()
    for folder in folders:
        if (path := pathlib.Path(folder) / "pretrained.pt").is_file():
            return path
    raise UserError(
        "The judge of voices needs the weights in the package Resemblyzer; run "
        "`pip install --no-deps Resemblyzer==0.1.4`."
    )
