"""The reader of pixels: exact on clean scenes, robust to what a codec does, silent on noise."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image, ImageFilter

from anygpt_jax.embedded import scenes
from anygpt_jax.tasks.metrics import image_attributes
from anygpt_jax.tasks.metrics.image import reading_scenes_of, scene_reader


def _drawn(draw, count):
    rng = np.random.default_rng(0)
    attributes = [draw(rng, "train") for _ in range(count)]
    return attributes, [scenes.render(a) for a in attributes]


@pytest.fixture(scope="module")
def world():
    return _drawn(scenes.sample, 256)


@pytest.fixture(scope="module")
def world_of_two():
    return _drawn(scenes.sample_two, 256)


def _noisy(images):
    rng = np.random.default_rng(0)
    return [np.clip(x + rng.normal(0, 13, x.shape), 0, 255).astype(np.uint8) for x in images]


def _coarse(images):
    """Means of 4 x 4 px: a grain that fits neither the sprites nor the reader."""
    return [x.reshape(18, 4, 18, 4, 3).mean((1, 3)).repeat(4, 0).repeat(4, 1).astype(np.uint8) for x in images]


def _blurred(images):
    return [np.asarray(Image.fromarray(x).filter(ImageFilter.GaussianBlur(1.5))) for x in images]


def _jpeg(images):
    def squeeze(x):
        buffer = io.BytesIO()
        Image.fromarray(x).save(buffer, "JPEG", quality=20)
        return np.asarray(Image.open(buffer).convert("RGB"))

    return [squeeze(x) for x in images]


def test_clean_scenes_are_read_exactly(world):
    assert set(image_attributes(*world).values()) == {1.0}


def test_every_object_colour_and_size_is_told_apart():
    places = np.random.default_rng(1)
    targets = [
        {"object": o, "colour": c, "size": s, "place": scenes.PLACES[places.integers(9)]}
        for o in scenes.OBJECTS for c in scenes.COLOURS for s in scenes.SIZES
    ]  # fmt: skip
    assert image_attributes(targets, [scenes.render(t) for t in targets])["all"] == 1.0


def test_every_two_objects_side_by_side_are_told_apart():
    rng = np.random.default_rng(2)
    cells = [
        (places, "left of") for row in range(3) for places in itertools.combinations(range(3 * row, 3 * row + 3), 2)
    ]
    cells += [(places, "above") for column in range(3) for places in itertools.combinations(range(column, 9, 3), 2)]
    targets: list[dict[str, str]] = []
    for name, colour, second_first in itertools.product(scenes.OBJECTS, scenes.COLOURS, (False, True)):
        names = [name, scenes.OBJECTS[rng.integers(len(scenes.OBJECTS))]]
        (first, second), relation = cells[len(targets) % len(cells)]
        names = names[::-1] if second_first else names
        places = f"{scenes.PLACES[first]} / {scenes.PLACES[second]}"
        targets.append(
            {"object": names[0], "second": names[1], "relation": relation, "colour": colour, "places": places}
        )
    scores = image_attributes(targets, [scenes.render(t) for t in targets])
    assert scores == {"attributes": 1, "all": 1, "object": 1, "second": 1, "relation": 1, "colour": 1}


def test_readings_have_the_attributes_of_their_kind_of_scene(world, world_of_two):
    for (attributes, images), kind in ((world, {"size", "place"}), (world_of_two, {"second", "relation"})):
        for reading, told in zip(scene_reader().read(images), attributes, strict=True):
            assert set(reading) == {"object", "colour"} | kind
            assert reading.items() <= told.items()


@pytest.mark.parametrize("damage", [_noisy, _coarse, _blurred, _jpeg])
@pytest.mark.parametrize("count", ["world", "world_of_two"])
def test_codec_like_damage_costs_little(damage, count, request):
    attributes, images = request.getfixturevalue(count)
    damaged = damage(images)
    errors = np.square(np.float64(damaged) - np.float64(images)).mean((1, 2, 3))
    assert 23 < np.median(10 * np.log10(255**2 / errors)) < 30  # dB: the damage is that of a codec
    readings = scene_reader().read(damaged)
    assert np.mean(["second" in r for r in readings]) == pytest.approx(float(count == "world_of_two"), abs=0.02)
    assert image_attributes(attributes, damaged)["attributes"] > 0.97


def test_two_in_different_rows_and_columns_are_no_pair():
    target = {"object": "fox", "second": "crab", "relation": "above", "colour": "blue", "places": "top left / right"}
    assert "second" not in scene_reader().read([scenes.render(target)])[0]


def test_shuffled_scenes_are_at_chance(world):
    attributes, images = world
    scores = image_attributes(attributes, images[1:] + images[:1])
    assert scores["attributes"] == pytest.approx((1 / len(scenes.OBJECTS) + 1 / 8 + 1 / 2 + 1 / 9) / 4, abs=0.04)


def test_shuffled_scenes_of_two_are_at_chance(world_of_two):
    attributes, images = world_of_two
    scores = image_attributes(attributes, images[1:] + images[:1])
    assert scores["attributes"] == pytest.approx((2 / len(scenes.OBJECTS) + 1 / 8 + 1 / 2) / 4, abs=0.04)


def test_noise_and_empty_pictures_score_nothing_for_the_sprite(world):
    attributes, _ = world
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (72, 72, 3)).astype(np.uint8) for _ in attributes]
    assert image_attributes(attributes, noise)["attributes"] == 0.0
    empty = [np.broadcast_to(np.uint8(scenes.COLOURS[a["colour"]]), (72, 72, 3)) for a in attributes]
    scores = image_attributes(attributes, empty)
    assert not any("second" in reading for reading in scene_reader().read(noise + empty))
    assert (scores["colour"], scores["object"], scores["size"], scores["place"]) == (1.0, 0.0, 0.0, 0.0)
    assert image_attributes(attributes[:1], [None])["attributes"] == 0.0


def test_openmoji_is_read_by_its_own_drawings(world):
    attributes = world[0][:64]
    images = [scenes.render(a, "openmoji") for a in attributes]
    with reading_scenes_of("openmoji"):
        assert image_attributes(attributes, images)["all"] == 1.0
    assert image_attributes(attributes, images)["object"] < 0.5
    assert scene_reader("twemoji") is not scene_reader("openmoji")
