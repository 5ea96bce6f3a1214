"""docs/synthesis_108k.md "With the released set" as it stands: the release and a made set, tokenized in one job."""

import argparse
import json
import pathlib
import re
import sys

import ml_collections
import pytest
import seqio
import synthesis_dialogues as made_up
import test_sources_tar as tars
import tiny_world

from anygpt_jax.cache import CacheReader, Manifest
from anygpt_jax.synthesis import export
from anygpt_jax.synthesis.dialogue import Medium, Said
from anygpt_jax.tasks import registry, tokenize

PAGE = (pathlib.Path(__file__).parents[1] / "docs" / "synthesis_108k.md").read_text(encoding="utf-8")
MODULE, CONFIG = re.findall(r"```python\n(.*?)```", PAGE.partition("## With the released set")[2], flags=re.DOTALL)

MEDIA = {"released": ["speech", "image", "music", "speech"], "any_instruct": ["speech", "image", "speech"]}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for task in ("released", "any_instruct"):
        if task in seqio.TaskRegistry.names():
            seqio.TaskRegistry.remove(task)
    sys.modules.pop("released", None)


def released(folder: pathlib.Path) -> None:
    """The outer form of AnyInstruct's part1: one JSON array, and a tar of each modality with a top folder."""
    folder.mkdir()
    chats = []
    for i in range(3):
        asked = {"role": "USER", "message": f"draw fox {i}", "speech": f"{i}a.flac"}
        answer = {
            "role": "CHATBOT",
            "message": "here",
            "speech": f"{i}b.flac",
            "images": [f"{i}.png"],
            "music": [f"{i}.flac"],
        }
        chats.append({"id": f"r{i}", "chat": [asked, answer]})
    (folder / "metadata.json").write_text(json.dumps(chats))
    sounds = {f"{i}{who}.flac": tiny_world.flac(0.5, 0.3, 10 * i + ord(who)) for i in range(3) for who in "ab"}
    tars.make_tar(folder / "images_224.tar", [(f"images_224/{i}.png", tiny_world.png("red", i)) for i in range(3)])
    tars.make_tar(folder / "music.tar", [(f"music/{i}.flac", tiny_world.flac(2.0, 0.6, i)) for i in range(3)])
    tars.make_tar(folder / "speech.tar", [(f"speech/{name}", data) for name, data in sounds.items()])


def made(workdir: pathlib.Path) -> None:
    """A set of `anygpt synthesize`, as its last stage writes it: spoken, four of training and one each held out."""
    out = workdir / "synthesis"
    (out / "answers").mkdir(parents=True)
    dialogues = []
    for i, split in enumerate(("train", "train", "train", "train", "validation", "test")):
        (out / f"answers/{i}.png").write_bytes(tiny_world.png("blue", i))
        for who in "ab":
            (out / f"answers/{i}{who}.flac").write_bytes(tiny_world.flac(0.4, 0.5, 10 * i + ord(who)))
        voices = [Medium("speech", "words", f"answers/{i}{who}.flac", voice="ada") for who in "ab"]
        picture = Medium("image", "a fox", f"answers/{i}.png")
        turns = (Said("human", f"cat {i} please", (), voices[0]), Said("assistant", "a cat", (picture,), voices[1]))
        dialogues.append(made_up.dialogue(name=f"m{i}", split=split, turns=turns))
    export.shard(workdir / export.FOLDER, out, 0, dialogues)


def test_both_sets_are_one_job_of_two_tasks_and_two_weights(here):
    released(here / "part1")
    made(here / "runs/synthesize_108k")
    (here / "released.py").write_text(MODULE)
    c = tiny_world.config(here / "run", shards=2)
    with c.unlocked():  # as in a config's own file
        exec(CONFIG, {"c": c, "ml_collections": ml_collections})
    assert c.tokenize.tasks == ("any_instruct", "released")
    tokenize.run(c, argparse.Namespace(json=None))

    cache = f"{c.workdir}/cache"
    manifest = Manifest.load(cache)
    for task, split, names in (
        ("released", "train", ["train/metadata.json/r0", "train/metadata.json/r1", "train/metadata.json/r2"]),
        ("any_instruct", "train", [f"train/metadata-00000.jsonl/m{i}" for i in range(4)]),
        ("any_instruct", "test", ["test/metadata-00000.jsonl/m5"]),
    ):
        reader = CacheReader(cache, task, split)
        records = sorted((reader[i] for i in range(len(reader))), key=lambda record: record.key)
        assert [record.key for record in records] == names
        counts = manifest.counts(task, split)
        assert counts.records == len(names) and not counts.rejects
        for record in records:
            assert [m for m in record.modalities() if m != "text"] == MEDIA[task]
    mixture = seqio.MixtureRegistry.get(registry.MIXTURE)
    assert {task.name: mixture.get_rate(task) for task in mixture.tasks} == {"any_instruct": 0.5, "released": 0.5}
