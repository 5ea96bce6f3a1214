"""Media as data URIs, small enough to travel inside one HTML file."""

from __future__ import annotations

import base64
import io
import pathlib

import numpy as np
import soundfile
from PIL import Image

# Anchors of a dark-to-bright map that reads on light and on dark pages.
_INK = np.array([[24, 24, 38], [74, 44, 110], [178, 62, 98], [240, 140, 70], [252, 232, 178]], np.float64)
SPECTROGRAM_HEIGHT = 64


def data_uri(data: bytes, mime: str) -> str:
    """In base64; `mime` as in "image/png"."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def image_uri(path: pathlib.Path) -> str:
    """Of a PNG file, its bytes as they are."""
    return data_uri(path.read_bytes(), "image/png")


def audio_uri(path: pathlib.Path) -> str:
    """MP3, which every browser plays and which is a tenth of the WAV."""
    samples, rate = soundfile.read(path, dtype="float32")
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(samples, -1, 1), rate, format="MP3")
    return data_uri(buffer.getvalue(), "audio/mpeg")


def spectrogram_uri(path: pathlib.Path) -> str:
    """A PNG of the log spectrogram, 0 to 4 kHz upwards, a column every 16 ms."""
    samples, rate = soundfile.read(path, dtype="float32")
    window, hop = rate * 64 // 1000, rate * 16 // 1000
    samples = np.pad(samples, (window // 2, window))
    frames = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(window), axis=1))
    edges = np.rint(np.linspace(0, 4000 * window / rate, SPECTROGRAM_HEIGHT + 1)).astype(int)  # about four bins a row
    above = max(0, edges[-1] - power.shape[1])  # a sound of few samples a second has nothing there
    power = np.pad(power, ((0, 0), (0, above)))[:, : edges[-1]]
    bins = np.maximum.reduceat(power, edges[:-1], axis=1)
    level = np.log10(bins + 1e-3)
    level = np.clip((level - level.max() + 3) / 3, 0, 1)  # the loudest 60 dB
    at = level.T[::-1] * (len(_INK) - 1)
    low = np.minimum(at.astype(int), len(_INK) - 2)
    pixels = _INK[low] + (at - low)[..., None] * (_INK[low + 1] - _INK[low])
    buffer = io.BytesIO()
    image = Image.fromarray(np.rint(pixels).astype(np.uint8)).quantize(48)
    image.save(buffer, "PNG", optimize=True)
    return data_uri(buffer.getvalue(), "image/png")
