"""Log-mel spectrograms and their inversion by Griffin-Lim, in JAX with static shapes.

Frame t is centred on sample (t + 1/2)·hop and the signal is taken as silent outside its bounds: T frames
stand for exactly T·hop samples, and nothing before a sound's end depends on how far it was padded.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class MelSettings:
    """Lengths are in samples; `n_fft` must be an even multiple of `hop`. Magnitudes, not powers, are summed."""

    sample_rate: int
    n_fft: int
    hop: int
    n_mels: int
    floor: float = 1e-3  # of a mel magnitude, before the logarithm
    iterations: int = 32  # of Griffin-Lim

    def __post_init__(self):
        if self.n_fft % (2 * self.hop):
            raise ValueError(f"n_fft {self.n_fft} must be an even multiple of hop {self.hop}")


def hz_to_mel(hz: np.ndarray | float) -> np.ndarray:
    """O'Shaughnessy's formula, as in HTK."""
    return 2595.0 * np.log10(1.0 + np.asarray(hz) / 700.0)


def mel_to_hz(mel: np.ndarray | float) -> np.ndarray:
    """The inverse of `hz_to_mel`."""
    return 700.0 * (10.0 ** (np.asarray(mel) / 2595.0) - 1.0)


@functools.cache
def filterbank(settings: MelSettings) -> Float[np.ndarray, "bins mels"]:
    """Triangles of height 1 whose corners are equally spaced in mel from 0 to the Nyquist frequency."""
    corners = mel_to_hz(np.linspace(0.0, hz_to_mel(settings.sample_rate / 2), settings.n_mels + 2))
    bins = np.linspace(0.0, settings.sample_rate / 2, settings.n_fft // 2 + 1)[:, None]
    rising = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    bank = np.maximum(0.0, np.minimum(rising, falling))
    # A triangle narrower than a bin may hold no bin at all: give it its nearest one.
    empty = np.flatnonzero(bank.sum(0) == 0)
    bank[np.abs(bins - corners[1:-1][empty]).argmin(0), empty] = 1.0
    return bank.astype(np.float32)


def _window(n_fft: int) -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)).astype(np.float32)


def stft(samples: Float[Array, "B N"], n_fft: int, hop: int) -> Array:
    """complex64[B, N // hop, n_fft // 2 + 1] with a periodic Hann window; N must be a multiple of hop."""
    overlap = n_fft // hop
    edge = (n_fft - hop) // 2
    chunks = jnp.pad(samples, ((0, 0), (edge, edge))).reshape(samples.shape[0], -1, hop)
    frames = samples.shape[1] // hop
    parts = [chunks[:, r : r + frames] for r in range(overlap)]
    return jnp.fft.rfft(jnp.concatenate(parts, -1) * _window(n_fft))


def istft(spectrum: Array, n_fft: int, hop: int) -> Float[Array, "B N"]:
    """The signal whose `stft` is nearest in the least-squares sense (Griffin and Lim, 1984, eq. 6)."""
    frames = spectrum.shape[1]
    window = _window(n_fft)
    overlap = n_fft // hop

    def add(parts):  # [B, frames, n_fft] -> [B, (frames + overlap - 1) * hop]
        parts = parts.reshape(parts.shape[0], frames, overlap, hop)
        shifted = [jnp.pad(parts[:, :, r], ((0, 0), (r, overlap - 1 - r), (0, 0))) for r in range(overlap)]
        return functools.reduce(jnp.add, shifted).reshape(parts.shape[0], -1)

    signal = add(jnp.fft.irfft(spectrum, n_fft) * window)
    weight = add(jnp.broadcast_to(jnp.asarray(window**2), (1, frames, n_fft)))
    edge = (n_fft - hop) // 2
    return (signal / jnp.maximum(weight, 1e-6))[:, edge : edge + frames * hop]


def log_mel(samples: Float[Array, "B N"], settings: MelSettings) -> Float[Array, "B T M"]:
    """Natural logarithm of mel magnitudes; T = N // hop, N a multiple of hop."""
    magnitude = jnp.abs(stft(samples, settings.n_fft, settings.hop))
    return jnp.log(jnp.maximum(magnitude @ filterbank(settings), settings.floor))


def _linear_magnitude(mel: Float[Array, "B T M"], settings: MelSettings, steps: int = 24) -> Float[Array, "B T F"]:
    """Non-negative least squares by multiplicative updates (Lee and Seung, 2001), from a smooth start."""
    bank = jnp.asarray(filterbank(settings))  # [F, M]
    target = mel @ bank.T
    start = (mel / bank.sum(0)) @ bank.T / jnp.maximum(bank.sum(1), 1e-3)

    def update(_, magnitude):
        return magnitude * target / jnp.maximum((magnitude @ bank) @ bank.T, 1e-8)

    return jax.lax.fori_loop(0, steps, update, start)


def invert(log_mels: Float[Array, "B T M"], settings: MelSettings) -> Float[Array, "B N"]:
    """A signal with about these log-mels, N = T·hop: fast Griffin-Lim (Perraudin et al., 2013, momentum 0.99).

    The first phases are drawn from a fixed seed: the same input always gives the same sound.
    """
    magnitudes = jnp.exp(log_mels)
    magnitudes = jnp.where(magnitudes > 1.05 * settings.floor, magnitudes, 0.0)
    magnitude = _linear_magnitude(magnitudes, settings)
    # The same phases for every item, so that a sound does not depend on its place in a batch.
    phase = jax.random.uniform(jax.random.key(0), magnitude.shape[1:], maxval=2 * jnp.pi)
    spectrum = magnitude * jnp.exp(1j * phase)

    def step(_, carry):
        spectrum, previous = carry
        projected = stft(istft(spectrum, settings.n_fft, settings.hop), settings.n_fft, settings.hop)
        accelerated = projected + 0.99 * (projected - previous)
        unit = accelerated / jnp.maximum(jnp.abs(accelerated), 1e-8)
        return magnitude * unit, projected

    spectrum, _ = jax.lax.fori_loop(0, settings.iterations, step, (spectrum, jnp.zeros_like(spectrum)))
    return istft(spectrum, settings.n_fft, settings.hop)
