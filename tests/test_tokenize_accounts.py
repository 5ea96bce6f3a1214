"""Every input of a job ends as a record, filtered by a rule, or rejected with a reason, and the counts add up."""

import argparse
import collections
import io
import json
import pathlib
import struct
import zlib

import numpy as np
import pytest
import seqio
import soundfile
import tensorflow as tf
import tiny_world
from PIL import Image

from anygpt_jax.cache import CacheReader, Manifest
from anygpt_jax.errors import UserError
from anygpt_jax.evaluation import examples
from anygpt_jax.modalities import audio, pictures
from anygpt_jax.tasks import accounts, preprocessors, tokenize

ARGS = argparse.Namespace(json=None)


@pytest.fixture(autouse=True)
def _two_shards_of_a_few_examples(monkeypatch):
    monkeypatch.setattr(tokenize, "SMALLEST_SHARD", 1)


def dataset(rows):
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return tf.data.Dataset.from_tensor_slices(columns)


def test_the_first_rule_that_refuses_is_named_and_later_ones_do_not_see_it():
    rows = [{"key": str(i), "attributes": json.dumps({"n": i}), "text": "x" * i} for i in range(6)]
    seen = collections.defaultdict(list)

    def odd(attributes):
        seen["odd"].append(attributes["n"])
        return attributes["n"] % 2 == 0

    def short(attributes, text):
        seen["short"].append((attributes["n"], text))
        return len(text) < 4

    marked = preprocessors.keep(dataset(rows), odd, name="odd")
    marked = preprocessors.keep(marked, short, name="short", fields=("attributes", "text"))
    got = {e["key"].decode(): e["filtered"].decode() for e in marked.as_numpy_iterator()}
    assert got == {"0": "", "1": "odd", "2": "", "3": "odd", "4": "short", "5": "odd"}
    assert sorted(seen["odd"]) == [0, 1, 2, 3, 4, 5]
    assert sorted(seen["short"]) == [(0, b""), (2, b"xx"), (4, b"xxxx")]


def test_lists_reach_a_rule_as_lists_of_bytes():
    ds = tf.data.Dataset.from_tensors({"content": tf.constant(["a", "b"]), "key": "k"})
    (example,) = preprocessors.keep(ds, lambda content: content == [b"a", b"b"], name="two", fields=("content",))
    assert example["filtered"].numpy() == b""


def test_a_step_that_fails_on_an_example_rejects_it_alone():
    rows = [{"key": str(i), "attributes": json.dumps({"n": i} if i else {})} for i in range(3)]
    marked = preprocessors.keep(dataset(rows), lambda attributes: attributes["n"] > 1, name="large")
    derived = preprocessors.derive_attributes(marked, lambda attributes: {"m": 1 / (attributes["n"] - 2)})
    got = [e["filtered"].decode() for e in derived.as_numpy_iterator()]
    assert got == ["!large: KeyError: 'n'", "large", "!<lambda>: ZeroDivisionError: division by zero"]


def png_bomb():
    """A PNG of 60,000 × 60,000 pixels in a few hundred bytes: its header alone is honest."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    packed = zlib.compress(b"\0" * 100_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def wav(samples):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, tiny_world.RATE, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def jpeg():
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


GOOD_PNG, GOOD_FLAC = tiny_world.png("red", 1), tiny_world.flac(1.0, 0.3, 1)
PICTURES = {
    3: GOOD_PNG[: len(GOOD_PNG) // 2],
    4: b"",
    5: png_bomb(),
    6: GOOD_FLAC,  # a sound that is called a picture
    7: jpeg()[:-600],
    8: b"<html>404</html>",
}
SOUNDS = {
    3: GOOD_FLAC[: len(GOOD_FLAC) // 2],
    4: b"",
    5: wav(np.array([0.1, np.nan, 0.2] * 4000, np.float32)),
    6: wav(np.full(8000, np.inf, np.float32)),
    7: GOOD_PNG,
    8: wav(np.full(40 * tiny_world.RATE, 0.2, np.float32)),  # longer than is read
    9: b"RIFF\xff\xff\xff\xffWAVE",
}


def spoil(example):
    split, number = example["key"].split("/")[1:]
    if split != "train":
        return example
    if "image" in example and int(number) in PICTURES:
        return {**example, "image": PICTURES[int(number)]}
    if "speech" in example and int(number) in SOUNDS:
        return {**example, "speech": SOUNDS[int(number)]}
    return example


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    """A job over broken files, read by the project's own readers of pictures and sound."""
    folder = tmp_path_factory.mktemp("poisoned")
    tiny_world.build(folder, {"train": 24}, mend=spoil)
    tasks = ("image_to_text", "text_to_speech", "speech_to_text", "documents", "dialogues")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_world.ImageCodec, "load", lambda self, data: pictures.load_picture(data))
        patch.setattr(tiny_world.SoundCodec, "load", lambda self, data: audio.load_audio(data, longest=30.0))
        patch.setattr(tokenize, "SMALLEST_SHARD", 1)
        config = tiny_world.config(folder, tasks=tasks)
        tokenize.run(config, argparse.Namespace(json=f"{folder}/counts.json"))
    return config


def keys(config, task, split="train"):
    reader = CacheReader(f"{config.workdir}/cache", task, split)
    return {reader[i].key for i in range(len(reader))}


def rejected(config, task):
    cache = pathlib.Path(config.workdir) / "cache"
    lines = [
        line
        for shard in Manifest.load(cache).shards(task, "train")
        for line in (cache / shard.rejects_path).read_text().splitlines()
    ]
    return {row["key"]: row["reason"] for row in map(json.loads, lines)}


@pytest.mark.parametrize(
    ("task", "data", "broken"),
    [("image_to_text", "images", PICTURES), ("speech_to_text", "speech", SOUNDS)],
)
def test_a_poisoned_input_costs_only_itself(poisoned, task, data, broken):
    found = rejected(poisoned, task)
    assert set(found) == {f"{data}/train/{i:05d}" for i in broken}
    assert keys(poisoned, task) == {f"{data}/train/{i:05d}" for i in range(24) if i not in broken}
    assert not [reason for reason in found.values() if " at 0x" in reason or "\n" in reason]


def test_the_counts_add_up_to_the_inputs_of_the_source(poisoned):
    manifest = Manifest.load(f"{poisoned.workdir}/cache")
    for task, splits in manifest.tasks.items():
        for split in splits:
            counts = manifest.counts(task, split)
            source = seqio.get_mixture_or_task(task).num_input_examples(split)
            assert source == counts.inputs == counts.records + sum(counts.filtered.values()) + counts.rejects
    # Every fourth voice is not one to imitate; 3 and 7 are broken too, but the rule was first.
    counts = manifest.counts("text_to_speech", "train")
    assert counts.filtered == {"in_a_voice_to_imitate": 6}
    assert counts.rejects == len(set(SOUNDS) - {3, 7})
    documents, dialogues = (manifest.counts(kind, "train") for kind in ("documents", "dialogues"))
    assert documents.filtered == {"kind": 12} == dialogues.filtered
    told = json.loads(pathlib.Path(poisoned.workdir, "counts.json").read_text())["tasks"]
    assert told["text_to_speech"]["train"]["filtered"] == {"in_a_voice_to_imitate": 6}


def test_the_table_shows_every_count(poisoned):
    shown = accounts.table(accounts.summary(Manifest.load(f"{poisoned.workdir}/cache")))
    row = next(line for line in shown.splitlines() if line.split()[:2] == ["text_to_speech", "train"])
    assert row.split()[2:6] == ["24", "13", "6", "5"]
    assert "    filtered 6: in_a_voice_to_imitate" in shown
    assert "rejected" in shown


def test_evaluation_passes_over_what_is_filtered(poisoned):
    read = [example.key for example in examples.read_split("text_to_speech", "train")]
    assert read == [f"speech/train/{i:05d}" for i in range(24) if i % 4 != 3]


@pytest.fixture
def many(tmp_path, monkeypatch):
    """320 pictures, every fifth of them broken, at a place of its own in every file."""

    def mend(example):
        number = int(example["key"][-5:])
        return {**example, "image": GOOD_PNG[: 40 + number % 3]} if "image" in example and number % 5 == 0 else example

    tiny_world.build(tmp_path, {"train": 320}, mend=mend)
    config = tiny_world.config(tmp_path, tasks=("image_to_text",), shards=1)
    with config.unlocked():
        config.tokenize.max_reject_share = 0.1
    return config


def test_too_many_rejects_stop_the_job_with_their_reasons(many):
    with pytest.raises(UserError, match=r"(\d+) of \d+ inputs of image_to_text/train .*max_reject_share=0.1: (\d+) × "):
        tokenize.run(many, ARGS)
    cache = pathlib.Path(many.workdir) / "cache"
    assert not (cache / "manifest.json").exists()
    assert not list(cache.rglob("*.tmp-*"))
    many.tokenize.max_reject_share = 0.25
    tokenize.run(many, ARGS)
    assert Manifest.load(cache).counts("image_to_text", "train").rejects == 64


def test_small_shards_stop_the_job_together(many, monkeypatch):
    """No shard alone has enough inputs to say so; the job ends before the last of them."""
    monkeypatch.setattr(accounts, "LEAST_INPUTS", 100)
    many.tokenize.shards = 8
    with pytest.raises(UserError, match=r"of 120 inputs of image_to_text/train were rejected"):
        tokenize.run(many, ARGS)
    made = list((pathlib.Path(many.workdir) / "cache/image_to_text/train").glob("*.json"))
    assert len(made) == 3


def test_the_end_of_the_job_looks_at_all_shards(many, monkeypatch):
    """As when every worker process has seen too little."""
    many.tokenize.shards = 8
    monkeypatch.setattr(accounts.Tally, "check", lambda *_: None)
    with pytest.raises(UserError, match="64 of 320 inputs"):
        tokenize.run(many, ARGS)
    assert not (pathlib.Path(many.workdir) / "cache" / "manifest.json").exists()


def test_few_inputs_say_nothing_about_their_share():
    assert not accounts.too_many(299, 299, 0.1)
    assert accounts.too_many(300, 31, 0.1)
    assert not accounts.too_many(300, 30, 0.1)
