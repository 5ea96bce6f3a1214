"""The whole job on a tiny world: what it writes, that it resumes, and what it refuses."""

import argparse
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import tiny_world

from anygpt_jax.cache import CacheReader, Manifest, load_vocabulary
from anygpt_jax.errors import UserError
from anygpt_jax.modalities import base
from anygpt_jax.tasks import tokenize

ARGS = argparse.Namespace(json=None)


@pytest.fixture(autouse=True)
def _two_shards_of_a_few_examples(monkeypatch):
    monkeypatch.setattr(tokenize, "SMALLEST_SHARD", 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    tiny_world.build(folder, {"train": 40})
    return folder / "data"


def world(data, workdir, **settings):
    workdir.mkdir(parents=True, exist_ok=True)
    if not (workdir / "data").exists():
        (workdir / "data").symlink_to(data)
    return tiny_world.config(workdir, **settings)


PAIR = ("image_to_text", "text_to_image")


def contents(cache):
    return {
        str(p.relative_to(cache)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(pathlib.Path(cache).rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A cache of every task, made once."""
    config = world(data, tmp_path_factory.mktemp("whole"))
    smallest, tokenize.SMALLEST_SHARD = tokenize.SMALLEST_SHARD, 1
    try:
        tokenize.run(config, argparse.Namespace(json=f"{config.workdir}/counts.json"))
    finally:
        tokenize.SMALLEST_SHARD = smallest
    return config


# Tasks whose test split is another split of the data.
READS = {"speech_to_music": "test_music", "image_to_music": "test_instruments"}


def test_the_trainer_reads_every_task_and_split(whole):
    cache = f"{whole.workdir}/cache"
    manifest = Manifest.load(cache)
    vocabulary = load_vocabulary(cache)
    assert set(manifest.tasks) == set(whole.tokenize.tasks)
    for task, splits in manifest.tasks.items():
        for split, shards in splits.items():
            reader = CacheReader(cache, task, split)
            assert len(reader) == sum(s.records for s in shards) > 0
            keys = set()
            for i in range(len(reader)):
                record = reader[i]
                keys.add(record.key)
                assert len(record.tokens) == reader.lengths[i]
                assert record.source == task
                assert record.tokens.max() < vocabulary.size
                assert record.key.split("/")[1] == READS.get(task, split)
            assert len(keys) == len(reader)
    assert len(CacheReader(cache, "image_to_text", "train")) == 40
    counts = json.loads(pathlib.Path(whole.workdir, "counts.json").read_text())["tasks"]
    assert counts["image_to_text"]["train"]["records"] == 40


def test_a_record_reads_back_as_its_example(whole):
    reader = CacheReader(f"{whole.workdir}/cache", "text_to_speech", "train")
    vocabulary = load_vocabulary(f"{whole.workdir}/cache")
    text, codec = tiny_world.text_tokenizer(), base.of_config(whole)["speech"]
    for i in range(len(reader)):
        record = reader[i]
        raw = tiny_world.speech_example("train", int(record.key[-5:]))
        parts = np.split(record.tokens, np.cumsum([s.length for s in record.spans])[:-1])
        said = [
            text.decode(p) for p, s in zip(parts, record.spans, strict=True) if s.modality == "text" and s.length > 1
        ]
        (codes,) = [p for p, s in zip(parts, record.spans, strict=True) if s.modality == "speech"]
        assert said[1] == raw["text"]
        expected = codec.encode([codec.load(raw["speech"])])[0]
        np.testing.assert_array_equal(vocabulary.decode_codes("speech", codes[1:-1]), expected)
        # Loss falls on the speech and on the end of the answer, and nowhere else.
        assert record.loss_mask().sum() == len(codes) + 1
        assert record.loss_mask()[-len(codes) - 1 :].all()


def test_no_held_out_example_is_in_training_by_key_or_by_content(whole):
    cache = f"{whole.workdir}/cache"
    for task, splits in Manifest.load(cache).tasks.items():
        if "train" not in splits:
            continue
        train = CacheReader(cache, task, "train")
        keys = {train[i].key for i in range(len(train))}
        for split in set(splits) - {"train"}:
            held_out = CacheReader(cache, task, split)
            assert not keys & {held_out[i].key for i in range(len(held_out))}


def test_run_again_it_does_nothing(whole, monkeypatch):
    before = contents(f"{whole.workdir}/cache")
    monkeypatch.setattr(tokenize, "_run_pipeline", lambda *_: pytest.fail("it ran again"))
    tokenize.run(whole, ARGS)
    assert contents(f"{whole.workdir}/cache") == before


@pytest.mark.parametrize(
    ("runner", "options"),
    [
        ("BundleBasedDirectRunner", ()),
        ("FnApiRunner", ("--direct_num_workers=2", "--direct_running_mode=multi_threading")),
        pytest.param(
            "FnApiRunner", ("--direct_num_workers=2", "--direct_running_mode=multi_processing"), marks=pytest.mark.slow
        ),
    ],
)
def test_every_runner_writes_the_same_bytes(whole, data, tmp_path, monkeypatch, runner, options):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    config = world(data, tmp_path, runner=runner, runner_options=options, tasks=PAIR)
    tokenize.run(config, ARGS)
    expected = contents(f"{whole.workdir}/cache")
    for path, digest in contents(tmp_path / "cache").items():
        assert path == "manifest.json" or expected[path] == digest, path


def test_damage_is_found_and_mended(data, tmp_path):
    config = world(data, tmp_path, tasks=PAIR)
    tokenize.run(config, ARGS)
    cache = tmp_path / "cache"
    undisturbed = contents(cache)
    shard = cache / "image_to_text/train/00001-of-00002.array_record"
    shard.write_bytes(shard.read_bytes()[:-1])
    (cache / "text_to_image/train/00000-of-00002.json").unlink()
    (cache / "text_to_image/test/00000-of-00002.array_record.tmp-123").write_bytes(b"half a shard")
    (cache / "text_to_image/test/00000-of-00009.json").write_text("{}")
    (cache / "manifest.json").unlink()
    tokenize.run(config, ARGS)
    assert contents(cache) == undisturbed


KILLED = """
import argparse, os, signal, sys, pathlib
import tiny_world
from anygpt_jax.tasks import tokenize
tokenize.SMALLEST_SHARD = 1
encode = tiny_world.ImageCodec.encode
def dies(self, media):
    if tiny_world.ImageCodec.encoded >= 12:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(self, media)
tiny_world.ImageCodec.encode = dies
config = tiny_world.config(pathlib.Path(sys.argv[1]), tasks=("image_to_text", "text_to_image"), batch_size=1)
tokenize.run(config, argparse.Namespace(json=None))
"""


@pytest.mark.slow
def test_killed_in_mid_shard_it_resumes_to_the_same_bytes(data, tmp_path):
    undisturbed = world(data, tmp_path / "a", tasks=PAIR, batch_size=1)
    tokenize.run(undisturbed, ARGS)
    config = world(data, tmp_path / "b", tasks=PAIR, batch_size=1)
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    killed = subprocess.run([sys.executable, "-c", KILLED, config.workdir], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    cache = tmp_path / "b" / "cache"
    assert list(cache.rglob("*.tmp-*"))
    assert not (cache / "manifest.json").exists()
    with pytest.raises(UserError, match="manifest"):
        CacheReader(cache, "image_to_text", "train")
    tokenize.run(config, ARGS)
    assert contents(cache) == contents(tmp_path / "a" / "cache")


def test_bad_inputs_are_listed_and_the_rest_goes_on(tmp_path, capsys):
    def spoil(example):
        if example["key"].endswith("00002") and "image" in example:
            return {**example, "image": example["image"][:40]}
        if example["key"].endswith("00003") and "caption" in example:
            return {**example, "caption": ""}
        return example

    tiny_world.build(tmp_path, {"train": 6}, mend=spoil)
    config = world(None, tmp_path, tasks=PAIR)
    tokenize.run(config, ARGS)
    cache = tmp_path / "cache"
    reader = CacheReader(cache, "image_to_text", "train")
    assert {reader[i].key[-1] for i in range(len(reader))} == set("0145")
    shards = Manifest.load(cache).shards("image_to_text", "train")
    assert sum(s.rejects for s in shards) == 2
    listed = [json.loads(line) for s in shards for line in (cache / s.rejects_path).read_text().splitlines()]
    assert {r["key"]: r["reason"].split(" (")[0] for r in listed} == {
        "images/train/00002": "this is not a whole image",
        "images/train/00003": "a text is empty",
    }
    printed = capsys.readouterr().out
    assert "this is not a whole image" in printed
    assert "a text is empty" in printed


def test_a_task_of_which_nothing_is_left_is_an_error(tmp_path):
    tiny_world.build(tmp_path, {"train": 4}, mend=lambda e: {**e, "image": b"?"} if "image" in e else e)
    with pytest.raises(UserError, match=r"All \d+ examples of image_to_text were rejected, .* whole image"):
        tokenize.run(world(None, tmp_path, tasks=PAIR), ARGS)
    assert not (tmp_path / "cache" / "manifest.json").exists()


def test_a_cache_of_another_vocabulary_is_refused_and_left_alone(whole, data, tmp_path, monkeypatch):
    config = world(data, tmp_path)
    shutil.copytree(f"{whole.workdir}/cache", tmp_path / "cache")
    before = contents(tmp_path / "cache")
    config.modalities = ("image", "music", "speech")
    with pytest.raises(UserError, match="made with vocabulary"):
        tokenize.run(config, ARGS)
    config.modalities = ("image", "speech", "music")
    monkeypatch.setattr(tiny_world.ImageCodec, "fingerprint", "image-2")
    with pytest.raises(UserError, match="other weights of the image tokenizer"):
        tokenize.run(config, ARGS)
    assert contents(tmp_path / "cache") == before


def test_new_data_remakes_only_its_own_shards(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    tasks = (*PAIR, "music_to_text")
    config = tiny_world.config(tmp_path, tasks=tasks)
    tokenize.run(config, ARGS)
    cache = tmp_path / "cache"
    before = {p: p.stat().st_mtime_ns for p in cache.rglob("*.array_record")}
    shutil.rmtree(tmp_path / "data")
    tiny_world.build(tmp_path, {"train": 40}, mend=lambda e: {**e, "caption": "a cat"} if "image" in e else e)
    tokenize.run(config, ARGS)
    touched = {p.relative_to(cache).parts[0] for p in before if p.stat().st_mtime_ns != before[p]}
    assert touched == set(PAIR)


def test_data_that_changes_under_the_job_is_not_taken_for_either(data, tmp_path, monkeypatch):
    shutil.copytree(data, tmp_path / "data")
    config = tiny_world.config(tmp_path, tasks=PAIR)
    run_pipeline = tokenize._run_pipeline

    def changes_the_data(*job):
        run_pipeline(*job)
        for path in (tmp_path / "data").rglob("images/**/*train.tfrecord*"):
            path.write_bytes(path.read_bytes() + b"more")

    monkeypatch.setattr(tokenize, "_run_pipeline", changes_the_data)
    with pytest.raises(UserError, match="changed while"):
        tokenize.run(config, ARGS)
    assert not (tmp_path / "cache" / "manifest.json").exists()


def test_a_cache_that_is_being_remade_is_not_taken_for_whole(whole, data, tmp_path, monkeypatch):
    config = world(data, tmp_path)
    shutil.copytree(f"{whole.workdir}/cache", tmp_path / "cache")
    (tmp_path / "cache" / "documents/train/00000-of-00002.json").unlink()
    monkeypatch.setattr(tokenize, "_run_pipeline", lambda *_: None)  # as if the workers had all died
    with pytest.raises(UserError, match="documents/train/00000-of-00002 was not written"):
        tokenize.run(config, ARGS)
    with pytest.raises(UserError, match=r"manifest\.json is missing"):
        CacheReader(tmp_path / "cache", "image_to_text", "train")


def test_no_data_is_said_with_the_remedy(tmp_path):
    with pytest.raises(UserError, match="anygpt build-data"):
        tokenize.run(tiny_world.config(tmp_path), ARGS)
