"""The reader of pixels: exact on clean scenes, robust to what a codec does, silent on noise."""

import numpy as np
import pytest

from anygpt_jax.embedded import scenes
from anygpt_jax.tasks.metrics import image_attributes
from anygpt_jax.tasks.metrics.image import reading_scenes_of, scene_reader


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    attributes = [scenes.sample(rng, "train") for _ in range(256)]
    return attributes, [scenes.render(a) for a in attributes]


def test_clean_scenes_are_read_exactly(world):
    assert set(image_attributes(*world).values()) == {1.0}


def test_every_object_colour_and_size_is_told_apart():
    places = np.random.default_rng(1)
    targets = [
        {"object": o, "colour": c, "size": s, "place": scenes.PLACES[places.integers(9)]}
        for o in scenes.OBJECTS for c in scenes.COLOURS for s in scenes.SIZES
    ]  # fmt: skip
    assert image_attributes(targets, [scenes.render(t) for t in targets])["all"] == 1.0


def test_codec_like_damage_costs_little(world):
    attributes, images = world
    rng = np.random.default_rng(0)
    noisy = [np.clip(x + rng.normal(0, 13, x.shape), 0, 255).astype(np.uint8) for x in images]
    assert image_attributes(attributes, noisy)["attributes"] > 0.99
    # Means of 3 x 3 px: the grain of a coarse codec.
    coarse = [x.reshape(24, 3, 24, 3, 3).mean((1, 3)).repeat(3, 0).repeat(3, 1).astype(np.uint8) for x in images]
    assert image_attributes(attributes, coarse)["attributes"] > 0.95


def test_shuffled_scenes_are_at_chance(world):
    attributes, images = world
    scores = image_attributes(attributes, images[1:] + images[:1])
    assert scores["attributes"] == pytest.approx((1 / 40 + 1 / 8 + 1 / 2 + 1 / 9) / 4, abs=0.04)


def test_noise_and_empty_pictures_score_nothing_for_the_sprite(world):
    attributes, _ = world
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (72, 72, 3)).astype(np.uint8) for _ in attributes]
    assert image_attributes(attributes, noise)["attributes"] == 0.0
    empty = [np.broadcast_to(np.uint8(scenes.COLOURS[a["colour"]]), (72, 72, 3)) for a in attributes]
    scores = image_attributes(attributes, empty)
    assert (scores["colour"], scores["object"], scores["size"], scores["place"]) == (1.0, 0.0, 0.0, 0.0)
    assert image_attributes(attributes[:1], [None])["attributes"] == 0.0


def test_openmoji_is_read_by_its_own_drawings(world):
    attributes = world[0][:64]
    images = [scenes.render(a, "openmoji") for a in attributes]
    with reading_scenes_of("openmoji"):
        assert image_attributes(attributes, images)["all"] == 1.0
    assert image_attributes(attributes, images)["object"] < 0.5
    assert scene_reader("twemoji") is not scene_reader("openmoji")
