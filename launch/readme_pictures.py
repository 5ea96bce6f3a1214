"""Draws the README's two pictures from what the shipped model answers: `python launch/readme_pictures.py [FOLDER]`.

walk.png shows what the system does, strip.png real outputs, each with the words that were asked. Nothing is chosen
among several draws: one seed, and every prompt's first answer.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
import pathlib

import matplotlib

matplotlib.use("Agg")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

from anygpt_jax.cache import write_atomically
from anygpt_jax.cli import shipped_config
from anygpt_jax.generation.pipeline import Pipeline
from anygpt_jax.generation.request import Request
from anygpt_jax.modalities.base import Audio
from anygpt_jax.modalities.text import TextTokenizer
from anygpt_jax.tasks.instructions import pair_segments

FOLDER = pathlib.Path(__file__).parents[1] / "docs" / "images"
SEED = 0
SCENES = (
    "a penguin left of a pizza on a green background",
    "a large robot in the middle on a purple background",
    "a pink scene with a small snowman in the middle",
    "the background is yellow and a tiny chair is on the left side",
    "a big panda is in the top right and everything else is green",
    "a picture of a rocket above a cookie against a blue background",
)
SENTENCE = "please paint a large fox on blue"
TUNE = "a fast reel in d major played on the violin"
PAPER, INK, GREY = "#fbfaf7", "#22252a", "#6b7078"  # a card of its own colour is legible on any page
COLOURS = {"text": "#3d6fb0", "speech": "#d1742f", "image": "#3f8f5b", "music": "#8a5aa8"}


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What the model answered. Pictures are uint8[72, 72, 3]."""

    pictures: list[np.ndarray]  # of SCENES
    caption: str  # of the first picture, by the model
    speech: Audio  # of SENTENCE
    transcript: str  # of that speech, by the model
    music: Audio  # of TUNE
    tune: str  # what the model says of that music
    codes: dict[str, np.ndarray]  # modality -> int32[N] of one medium of it, or text pieces


def make() -> Outputs:
    """All answers, each by the trained pair's own instruction."""
    pipeline = Pipeline.load(shipped_config())

    def ask(source: str, target: str, contents: list) -> tuple[list, list]:
        prompts = [pipeline.prompt(pair_segments(source, target, content), (target,)) for content in contents]
        answers = pipeline.answers([Request(prompt, (target,), SEED) for prompt in prompts])
        return pipeline.media(target, answers), [answer.first(target) for answer in answers]

    pictures, drawn = ask("text", "image", list(SCENES))
    (speech,), (said,) = ask("text", "speech", [SENTENCE])
    (music,), (played,) = ask("text", "music", [TUNE])
    # The model reads its own media as anyone would: made into a medium, and coded again.
    read = {
        modality: pipeline.tokenizers[modality].encode([medium])[0]
        for modality, medium in (("image", pictures[0]), ("speech", speech), ("music", music))
    }
    (caption,), _ = ask("image", "text", [read["image"]])
    (transcript,), _ = ask("speech", "text", [read["speech"]])
    (tune,), _ = ask("music", "text", [read["music"]])
    codes = {"text": TextTokenizer.load().encode(SCENES[0]), "image": drawn[0], "speech": said, "music": played}
    return Outputs(pictures, caption, speech, transcript, music, tune, codes)


def canvas(width: float, height: float) -> tuple[plt.Figure, Axes]:
    """A card of `width` × `height` inches, whose axes count in hundredths of an inch from the upper left."""
    figure = plt.figure(figsize=(width, height), facecolor="none")
    axes = figure.add_axes((0, 0, 1, 1), facecolor="none")
    axes.set(xlim=(0, 100 * width), ylim=(100 * height, 0))
    axes.axis("off")
    card = FancyBboxPatch(
        (6, 6),
        100 * width - 12,
        100 * height - 12,
        boxstyle="round,pad=0,rounding_size=14",
        fc=PAPER,
        ec="#c9c6bd",
        lw=1,
    )
    axes.add_patch(card)
    return figure, axes


def picture(axes: Axes, x: float, y: float, side: float, pixels: np.ndarray) -> None:
    axes.imshow(pixels, extent=(x, x + side, y + side, y), interpolation="nearest", zorder=2)


def waveform(axes: Axes, x: float, y: float, width: float, height: float, sound: Audio) -> None:
    columns = np.array_split(sound.samples / np.abs(sound.samples).max(), int(width))
    low, high = ([f(c) for c in columns] for f in (np.min, np.max))
    middle, half = y + height / 2, height / 2
    axes.vlines(x + np.arange(int(width)), middle - half * np.array(high), middle - half * np.array(low), lw=0.8,
                color=COLOURS["speech"])  # fmt: skip


def spectrogram(axes: Axes, x: float, y: float, width: float, height: float, sound: Audio) -> None:
    """Up to 4 kHz, 60 dB below the loudest."""
    window, hop = 1024, 256
    frames = np.lib.stride_tricks.sliding_window_view(sound.samples, window)[::hop] * np.hanning(window)
    power = 20 * np.log10(np.abs(np.fft.rfft(frames)).T[: window * 4000 // sound.sample_rate] + 1e-9)
    axes.imshow(
        np.clip(power - power.max(), -60, 0)[::-1],
        extent=(x, x + width, y + height, y),
        aspect="auto",
        cmap="magma",
        zorder=2,
    )


def tokens(axes: Axes, x: float, y: float, modality: str, codes: np.ndarray, n: int) -> float:
    """The first n codes as squares in shades that tell codes apart; returns where they end."""
    for i, code in enumerate(codes[:n]):
        shade = 0.35 + 0.65 * (37 * int(code) % 101) / 100
        axes.add_patch(
            FancyBboxPatch(
                (x + 13 * i, y),
                10,
                16,
                boxstyle="round,pad=0,rounding_size=2",
                fc=COLOURS[modality],
                ec="none",
                alpha=shade,
            )
        )
    return x + 13 * n


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=GREY, lw=1.2, shrinkA=0, shrinkB=0)
    )


def medium(axes: Axes, modality: str, x: float, y: float, made: Outputs, words: str) -> None:
    """A thumbnail of 150 × 62 that says what the modality is; of text, these words."""
    axes.text(x, y - 5, modality, color=COLOURS[modality], fontsize=9, weight="bold")
    if modality == "text":
        axes.text(
            x, y + 27, "\n".join(wrapped(f"“{words}”", 26)), color=INK, fontsize=7.5, va="center", linespacing=1.4
        )
    elif modality == "image":
        picture(axes, x, y + 2, 60, made.pictures[0])
    elif modality == "speech":
        waveform(axes, x, y + 6, 150, 48, made.speech)
    else:
        spectrogram(axes, x, y + 4, 150, 52, made.music)


def walk(made: Outputs) -> plt.Figure:
    figure, axes = canvas(10.4, 4.3)
    order = ("text", "speech", "image", "music")
    for column, heading in ((30, "in"), (226, "tokens"), (752, "tokens"), (862, "out")):
        axes.text(column, 34, heading, color=GREY, fontsize=9)
    for row, modality in enumerate(order):
        y = 62 + 89 * row
        medium(axes, modality, 30, y, made, SCENES[0])
        end = tokens(axes, 226, y + 20, modality, made.codes[modality], 8)
        arrow(axes, (190, y + 28), (218, y + 28))
        arrow(axes, (end + 4, y + 28), (398, 215))
        arrow(axes, (662, 215), (744, y + 28))
        end = tokens(axes, 752, y + 20, modality, made.codes[modality][-5:], 5)
        arrow(axes, (end + 2, y + 28), (852, y + 28))
        medium(axes, modality, 862, y, made, made.caption)
    box = FancyBboxPatch(
        (406, 145), 248, 140, boxstyle="round,pad=0,rounding_size=12", fc="#e9edf3", ec="#8c9bb0", lw=1.2
    )
    axes.add_patch(box)
    axes.text(530, 178, "one decoder", color=INK, fontsize=14, weight="bold", ha="center", va="center")
    axes.text(530, 203, "predicts the next token, of any modality", color=INK, fontsize=7.5, ha="center", va="center")
    x = 424.0
    for modality, n in (("text", 3), ("image", 5), ("text", 2), ("speech", 4), ("music", 2)):
        x = tokens(axes, x, 232, modality, made.codes[modality][3:], n)
    axes.text(530, 264, "one vocabulary: a block of ids a modality", color=GREY, fontsize=7.5, ha="center", va="center")
    return figure


def strip(made: Outputs) -> plt.Figure:
    figure, axes = canvas(10.4, 4.2)
    axes.text(30, 32, "text → image", color=COLOURS["image"], fontsize=9, weight="bold")
    for i, (prompt, pixels) in enumerate(zip(SCENES, made.pictures, strict=True)):
        x = 30 + 165 * i
        picture(axes, x, 42, 150, pixels)
        axes.text(x, 202, "\n".join(wrapped(prompt, 28)), color=INK, fontsize=7, va="top", linespacing=1.35)
    for x, modality, heading in ((30, "speech", "text → speech → text"), (535, "music", "text → music → text")):
        axes.text(x, 272, heading, color=COLOURS[modality], fontsize=9, weight="bold")
    waveform(axes, 30, 284, 470, 70, made.speech)
    spectrogram(axes, 535, 284, 475, 70, made.music)
    heard = (
        (30, "asked to say", SENTENCE, "heard in it", made.transcript),
        (535, "asked for", TUNE, "heard in it", made.tune),
    )
    for x, asked, words, read, answer in heard:
        axes.text(x, 374, f"{asked}:  “{words}”", color=INK, fontsize=7.5)
        axes.text(x, 392, f"{read}:  “{answer}”", color=INK, fontsize=7.5)
    return figure


def wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def png(figure: plt.Figure) -> bytes:
    """In 255 colours and transparent outside of the card; without a date, so that the same drawing is the same file."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=150, transparent=True)
    plt.close(figure)
    small = Image.open(drawn).quantize(255, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    out = io.BytesIO()
    small.save(out, "PNG", optimize=True)
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("folder", nargs="?", default=FOLDER, type=pathlib.Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    made = make()
    for name, figure in (("walk.png", walk(made)), ("strip.png", strip(made))):
        write_atomically(folder / name, png(figure))
        print(f"{folder / name}: {(folder / name).stat().st_size:,} bytes")
    print(f"caption: {made.caption}\ntranscript: {made.transcript}\ntune: {made.tune}")


if __name__ == "__main__":
    main()
