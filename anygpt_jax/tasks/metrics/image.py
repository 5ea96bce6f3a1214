"""The judge of images: reads a scene from its pixels, without our tokenizer or our model.

The background is the named colour nearest to the median of the border. Every sprite of the world, at every
size and place, is then laid on that background, and so is every two small sprites in one row or column; the
nearest picture is what the scene shows. A picture that no sprite explains (noise, an empty background) shows
nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

from anygpt_jax.tasks.metrics.scores import IMAGE_ATTRIBUTES, attribute_scores

# Pictures are compared by the means of 3 x 3 px, in which the sprites still differ from one another: finer detail
# is what a codec loses first. Sprites and places are multiples of it.
GRAIN = 3
# The part of its square's distance from the empty background that the best sprite must explain.
EXPLAINED = 0.35
# One of two sprites must explain more of its square, and this much squared distance: what a codec leaves beside
# the only one is no object. (The faintest sprite, a blue anchor on blue, has more than twice that.)
SECOND_EXPLAINED = 0.4
SECOND_LEAST = 0.1
# Median distance (of 0..1) of the border's pixels from their median in a picture with one background.
UNEVEN = 0.12


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity
class SceneReader:
    """`sprites[size]` is float32[objects, S, S, 4], RGBA in 0..1; `places[size]` name -> (top, left)."""

    objects: tuple[str, ...]
    colours: Mapping[str, tuple[int, int, int]]
    sprites: Mapping[str, np.ndarray]
    places: Mapping[str, Mapping[str, tuple[int, int]]]

    def read(self, images: Sequence[UInt8[np.ndarray, "h w 3"] | None]) -> list[dict[str, str]]:
        """The attributes of every image; those that cannot be told are absent."""
        readings: list[dict[str, str]] = [{} for _ in images]
        by_colour: dict[str, list[int]] = {}
        rests: dict[int, np.ndarray] = {}
        for i, image in enumerate(images):
            if image is not None:
                background = self._background(np.asarray(image, np.float32) / 255)
                if background is not None:
                    readings[i]["colour"], rests[i] = background
                    by_colour.setdefault(background[0], []).append(i)
        for colour, members in by_colour.items():
            for i, found in zip(members, self._sprites(np.stack([rests[i] for i in members]), colour), strict=True):
                readings[i] |= found
        return readings

    def _background(self, image: Float[np.ndarray, "h w 3"]) -> tuple[str, Float[np.ndarray, "h w 3"]] | None:
        """(named colour, the image less its background), or None if there is not one background."""
        border = np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])
        middle = np.median(border, axis=0)
        if np.median(np.abs(border - middle)) > UNEVEN:
            return None
        names = list(self.colours)
        palette = np.array([self.colours[name] for name in names], np.float32) / 255
        return names[int(np.argmin(np.square(palette - middle).sum(1)))], image - middle

    def _sprites(self, rests: Float[np.ndarray, "n h w 3"], colour: str) -> list[dict[str, str]]:
        """Object, size and place, or object, second and relation, in every image on this colour."""
        found: list[dict[str, str]] = [{} for _ in rests]
        rests = _coarse(rests)
        best = np.zeros(len(rests))
        for size, corners in self.places.items():
            # The best object at every place: what holds for one place holds for two that do not overlap.
            gains, explained, objects = self._gains(rests, size, colour)
            gains = np.where(explained >= EXPLAINED, gains, 0)
            for i in np.flatnonzero(gains.max(1) > best):
                place = int(gains[i].argmax())
                best[i] = gains[i, place]
                found[i] = {"object": self.objects[objects[i, place]], "size": size, "place": list(corners)[place]}
            if size == self.small:
                clear = (explained >= SECOND_EXPLAINED) & (gains >= SECOND_LEAST)
                for first, second, relation in self._neighbours():
                    both = np.where(clear[:, first] & clear[:, second], gains[:, first] + gains[:, second], 0)
                    for i in np.flatnonzero(both > best):
                        best[i] = both[i]
                        names = (self.objects[objects[i, place]] for place in (first, second))
                        found[i] = dict(zip(("object", "second"), names, strict=True)) | {"relation": relation}
        return found

    def _gains(
        self, rests: Float[np.ndarray, "n rows columns 3"], size: str, colour: str
    ) -> tuple[Float[np.ndarray, "n places"], Float[np.ndarray, "n places"], Int[np.ndarray, "n places"]]:
        """At every place the best object's gain, that as a share of the square's distance, and which it is.

        The gain is how much nearer a square x is to the sprite t than to nothing: |x|² - |x - t|² = 2 x·t - |t|².
        """
        side, templates = self.sprites[size].shape[1] // GRAIN, self._templates(size, colour)
        corners = [(y // GRAIN, x // GRAIN) for y, x in self.places[size].values()]
        crops = np.stack([rests[:, y : y + side, x : x + side] for y, x in corners], axis=1)
        crops = crops.reshape(len(rests) * len(self.places[size]), -1)
        gains = 2 * crops @ templates.T - np.square(templates).sum(1)
        objects, best = gains.argmax(1), gains.max(1)
        explained = best / np.maximum(np.square(crops).sum(1), 1e-9)
        shape = (len(rests), len(self.places[size]))
        return best.reshape(shape), explained.reshape(shape), objects.reshape(shape)

    @property
    def small(self) -> str:
        """The size of which two fit beside one another."""
        return min(self.sprites, key=lambda size: self.sprites[size].shape[1])

    def _neighbours(self) -> Iterator[tuple[int, int, str]]:
        """(place, place right of or below it, what the first is to the second) of the small sprites."""
        corners = list(self.places[self.small].values())
        for (i, (y, x)), (j, (other_y, other_x)) in itertools.permutations(enumerate(corners), 2):
            if y == other_y and x < other_x:
                yield i, j, "left of"
            elif x == other_x and y < other_y:
                yield i, j, "above"

    @functools.cache  # noqa: B019 - a reader lives as long as the process
    def _templates(self, size: str, colour: str) -> Float[np.ndarray, "objects values"]:
        """Every sprite on a colour, less that colour."""
        sprites = self.sprites[size]
        background = np.array(self.colours[colour], np.float32) / 255
        return _coarse(sprites[..., 3:] * (sprites[..., :3] - background)).reshape(len(sprites), -1)


def _coarse(images: Float[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n rows columns 3"]:
    """Means of `GRAIN` x `GRAIN` px."""
    n, height, width, channels = images.shape
    return images.reshape(n, height // GRAIN, GRAIN, width // GRAIN, GRAIN, channels).mean((2, 4))


@functools.cache
def scene_reader(artist: str = "twemoji") -> SceneReader:
    """The reader of the embedded world's scenes as one artist drew them."""
    from anygpt_jax.embedded import scenes

    return SceneReader(
        objects=scenes.OBJECTS,
        colours=scenes.COLOURS,
        sprites={
            size: np.stack([scenes.sprite(name, pixels, artist) for name in scenes.OBJECTS]).astype(np.float32) / 255
            for size, pixels in scenes.SIZES.items()
        },
        places={size: {place: scenes.offset(size, place) for place in scenes.PLACES} for size in scenes.SIZES},
    )


_artist = ["twemoji"]


@contextlib.contextmanager
def reading_scenes_of(artist: str) -> Iterator[None]:
    """Scenes are read by this artist's drawings meanwhile: SeqIO's metric functions have no argument to say so."""
    _artist.append(artist)
    try:
        yield
    finally:
        _artist.pop()


def image_attributes(targets: Sequence[dict], predictions: Sequence[np.ndarray | None]) -> dict[str, float]:
    """Images: the share of the reference's attributes that the picture shows."""
    return attribute_scores(targets, scene_reader(_artist[-1]).read(predictions), IMAGE_ATTRIBUTES)
