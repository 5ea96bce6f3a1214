"""The built data set: contents, splits, resumption."""

import argparse
import io
import itertools
import json

import ml_collections
import numpy as np
import pytest
import soundfile
from PIL import Image

tfds = pytest.importorskip("tensorflow_datasets")

from anygpt_jax.embedded import build, interleaved, parts, scenes, sentences, tunes  # noqa: E402
from anygpt_jax.embedded.settings import BUILDER_CONFIGS, Settings, data_dir  # noqa: E402
from anygpt_jax.embedded.splits import pair_split, split_of  # noqa: E402
from anygpt_jax.errors import UserError  # noqa: E402
from anygpt_jax.locks import alone  # noqa: E402
from anygpt_jax.modalities import pictures  # noqa: E402

SIZES = {
    "objects": 12, "scenes": 60, "two_objects": 30, "sentences": 40, "espeak_sentences": 4, "clips": 24, "dialogues": 60, "held_out": 9
}  # fmt: skip


def config_for(workdir, **changes) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict({"workdir": str(workdir), "seed": 0, "data": {**SIZES, **changes}})


def files(folder) -> dict[str, bytes]:
    """Every record file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.tfrecord*"))}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config = config_for(tmp_path_factory.mktemp("world"))
    build.run(config, argparse.Namespace())
    return config


@pytest.fixture(scope="module")
def world(config):
    """part -> split -> examples."""
    found = {}
    for part in BUILDER_CONFIGS:
        builder = tfds.builder_from_directory(build.part_dir(data_dir(config), part))
        found[part] = {
            split: list(tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False)))
            for split in builder.info.splits
        }
    return found


def texts_of(example) -> list[str]:
    """Every text of an example, of any part."""
    found = [example[f].decode() for f in ("caption", "text") if f in example]
    if "modality" in example:
        found += [c.decode() for m, c in zip(example["modality"], example["content"], strict=True) if m == b"text"]
    return found


def test_every_part_has_its_splits_and_sizes(world):
    for part, splits in world.items():
        assert tuple(sorted(splits)) == tuple(sorted(parts.SPLITS[part]))
        for split, examples in splits.items():
            assert len(examples) == parts.size(Settings(**SIZES), part, split)
    assert len(world["speech"]["train"]) == 2 * 40 + 4


def test_keys_are_unique(world):
    keys = [e["key"] for splits in world.values() for examples in splits.values() for e in examples]
    assert len(keys) == len(set(keys))


def test_media_decode(world):
    for example in itertools.chain(*world["images"].values()):
        assert np.asarray(Image.open(io.BytesIO(example["image"]))).shape == (72, 72, 3)
    for part in ("speech", "music"):
        for split, example in ((split, e) for split, examples in world[part].items() for e in examples):
            info = soundfile.info(io.BytesIO(example[part]))
            assert (info.format, info.samplerate, info.channels) == ("FLAC", 16_000, 1)
            longest = 8 if split == "test_librivox" else 5  # a novel's sentences are longer than ours
            assert info.duration == 4.0 if part == "music" else 0.7 < info.duration < longest


def test_a_picture_is_what_its_attributes_say(world):
    for split, examples in world["images"].items():
        for example in examples:
            attributes = json.loads(example["attributes"])
            artist = "openmoji" if split == "test_openmoji" else "twemoji"
            pixels = np.asarray(Image.open(io.BytesIO(example["image"])))
            np.testing.assert_array_equal(pixels, scenes.render(attributes, artist))
            assert scenes.split(attributes) == {"test_openmoji": "train", "test_instruments": "test"}.get(split, split)
            assert split != "test_instruments" or attributes["object"] in scenes.INSTRUMENTS


def test_training_holds_no_held_out_sentence_pair_or_tune(world):
    """Over all parts: held-out texts are compared with every text of training, spoken or written."""
    known = {pictures.save_png(scenes.render(a)): a for a in all_scenes()}
    held_out_speech = {e["text"].decode() for s in ("validation", "test") for e in world["speech"][s]}
    held_out_media = {
        e[field] for part, field in (("images", "image"), ("speech", "speech"), ("music", "music"))
        for s in world[part] if s != "train" for e in world[part][s]
    }  # fmt: skip
    for example in itertools.chain(*(world[part]["train"] for part in world)):
        assert not held_out_speech & set(texts_of(example))
        attributes = json.loads(example["attributes"])
        if {"object", "colour"} <= set(attributes):
            assert pair_split(attributes["object"], attributes["colour"]) == "train"
        if "tune" in attributes:
            assert next(t for t in tunes.load_tunes() if t.name == attributes["tune"]).split == "train"
        media = [example[f] for f in ("image", "speech", "music") if f in example] + list(example.get("content", ()))
        assert not held_out_media & set(media)
        for picture in (known[m] for m in media if m in known):
            assert pair_split(picture["object"], picture["colour"]) == "train"
    for example in itertools.chain(world["images"]["train"], world["music"]["train"], world["speech"]["train"]):
        assert all(split_of("sentence", text) == "train" for text in texts_of(example))


def all_scenes():
    names = scenes.objects(SIZES["objects"])
    for values in itertools.product(names, scenes.COLOURS, scenes.SIZES, scenes.PLACES):
        yield dict(zip(("object", "colour", "size", "place"), values, strict=True))


def test_the_unheard_voice_speaks_the_test_sentences(world):
    voices = {s: {json.loads(e["attributes"])["voice"] for e in of} for s, of in world["speech"].items()}
    assert voices["test_voice"] == {"dora"}
    assert "dora" not in voices["train"] | voices["test"] | voices["validation"]
    assert {e["text"] for e in world["speech"]["test_voice"]} == {e["text"] for e in world["speech"]["test"]}


def test_media_never_meet_without_text_between(world):
    for split in world["interleaved"].values():
        for example in split:
            modality = [m.decode() for m in example["modality"]]
            role = [r.decode() for r in example["role"]]
            assert len(modality) == len(role) == len(example["content"])
            for (m, r), (n, s) in itertools.pairwise(zip(modality, role, strict=True)):
                assert "text" in (m, n), example["attributes"]
                assert r != "document" or s == "document"
            if example["kind"] == b"dialogue":
                assert (role[0], role[-1]) == ("human", "assistant")
            else:
                assert set(role) == {"document"}


def test_what_the_assistant_speaks_is_written_before_it(world):
    sounds = {e["speech"]: e["text"].decode() for of in world["speech"].values() for e in of}
    said = 0
    for example in itertools.chain(*world["interleaved"].values()):
        segments = list(zip(example["modality"], example["role"], example["content"], strict=True))
        written = [c.decode() for m, _, c in segments if m == b"text"]
        for modality, role, content in segments:
            if modality == b"speech":
                assert any(sounds[content] in text for text in written)  # as the answer's own text, or in the request
                said += 1
                assert example["kind"] == b"document" or role == b"human" or not sentences.is_request(sounds[content])
    assert said > 10


def test_all_forms_occur(world):
    forms = {json.loads(e["attributes"])["form"] for e in world["interleaved"]["train"]}
    assert forms == {f.__name__ for f in (*interleaved.DIALOGUES, *interleaved.DOCUMENTS)}


def test_a_second_run_touches_nothing(config):
    before = {p: p.stat().st_mtime_ns for p in data_dir(config).rglob("*.tfrecord*")}
    build.run(config, argparse.Namespace())
    assert {p: p.stat().st_mtime_ns for p in data_dir(config).rglob("*.tfrecord*")} == before


def test_the_same_settings_give_the_same_bytes(config, tmp_path):
    build.run(config_for(tmp_path), argparse.Namespace())
    first, second = files(data_dir(config)), files(data_dir(config_for(tmp_path)))
    assert len(first) == sum(map(len, parts.SPLITS.values())) == 18
    assert first == second


def test_other_settings_get_their_own_place(config):
    other = config_for(config.workdir, scenes=10)
    assert data_dir(other) != data_dir(config)
    assert data_dir(other).parent == data_dir(config).parent
    seeded = config_for(config.workdir)
    seeded.seed = 1
    assert data_dir(seeded) != data_dir(config)


def test_an_interrupted_part_is_redone_whole(config, tmp_path, monkeypatch):
    settings, folder = Settings(**SIZES), tmp_path
    real = parts.PARTS["images"]

    def interrupted(settings, split):
        yield from itertools.islice(real(settings, split), 5)
        raise KeyboardInterrupt

    monkeypatch.setattr(parts, "PARTS", {**parts.PARTS, "images": interrupted})
    with pytest.raises(KeyboardInterrupt):
        build.build_part(settings, folder, "images")
    assert not build.is_built(folder, "images")
    # What a killed process leaves, which had no time to clean up.
    leftover = build.part_dir(folder, "images").parent / "incomplete.ABCDEF_1.0.0"
    leftover.mkdir(parents=True, exist_ok=True)
    (leftover / "embedded_world-train.tfrecord-00000-of-00001").write_bytes(b"half")
    monkeypatch.undo()
    assert build.build_part(settings, folder, "images")["train"] == SIZES["scenes"]
    assert not leftover.exists()
    whole = files(build.part_dir(data_dir(config), "images"))
    assert files(build.part_dir(folder, "images")) == whole


def test_dialogues_need_the_speech(tmp_path):
    with pytest.raises(UserError, match="run `anygpt build-data`"):
        build.build_part(Settings(**SIZES), tmp_path, "interleaved")
    assert not build.is_built(tmp_path, "interleaved")


def test_a_split_with_next_to_no_speech_still_has_stories():
    said = interleaved.Spoken("draw a fox on blue", "ada", "image", {"object": "fox", "colour": "blue"}, b"")
    for utterances in ([], [said]):
        examples = list(interleaved.interleaved(Settings(**SIZES), "test", utterances))
        assert len(examples) == 2 * SIZES["held_out"]


def test_a_full_disk_is_told_apart(tmp_path, monkeypatch):
    def full(settings, split):
        yield from ()
        raise RuntimeError("ResourceExhaustedError: train.tfrecord; No space left on device")

    monkeypatch.setattr(parts, "PARTS", {**parts.PARTS, "images": full})
    with pytest.raises(OSError, match="No space left") as caught:
        build.build_part(Settings(**SIZES), tmp_path, "images")
    assert caught.value.errno == 28
    assert not build.is_built(tmp_path, "images")


def test_a_workdir_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="name another one with --workdir"):
        build.run(config_for(tmp_path / "file"), argparse.Namespace())


def test_two_builds_do_not_write_to_one_place(tmp_path):
    config = config_for(tmp_path)
    folder = data_dir(config)
    folder.mkdir(parents=True)
    with alone(folder / ".lock", "no other is there yet"), pytest.raises(UserError, match="Another build"):
        build.run(config, argparse.Namespace())


def test_a_misspelt_setting_is_named(tmp_path):
    with pytest.raises(UserError, match=r"config\.data\.sentance is not a setting"):
        data_dir(config_for(tmp_path, sentance=3))


def test_the_card_names_every_source_and_this_build(config):
    card = (data_dir(config).parent / "README.md").read_text()
    for word in (
        "CC BY 4.0",
        "CC BY-SA 4.0",
        "Apache-2.0",
        "GPL-3.0",
        "1883",
        "TimGM6mb",
        "Twemoji",
        "OpenMoji",
        "hibari",
    ):
        assert word in card
    assert "train 60" in card
