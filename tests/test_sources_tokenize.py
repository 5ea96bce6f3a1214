"""docs/data.md as it stands, from a folder of pictures to the token cache; and a cache of every kind of source."""

import argparse
import functools
import hashlib
import importlib
import io
import json
import os
import pathlib
import re
import sys

import pytest
import seqio
import test_sources_tar as tars
import tiny_world
from PIL import Image

from anygpt_jax import cli
from anygpt_jax.cache import CacheReader, Manifest, load_vocabulary
from anygpt_jax.data.inspect import readable
from anygpt_jax.errors import UserError
from anygpt_jax.modalities.text import TextTokenizer
from anygpt_jax.tasks import filters, instructions, tokenize
from anygpt_jax.tasks.sources import pairs
from anygpt_jax.tasks.sources.folder import folder
from anygpt_jax.tasks.sources.webdataset import webdataset

REPOSITORY = pathlib.Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8")
MODULE, CONFIG = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)[:2]
(COMMAND,) = re.findall(r"```console\nPYTHONPATH=\. anygpt (.*?)\n```", PAGE)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    yield tmp_path
    for name in ("photo", "tar"):
        for task in (f"{name}_to_text", f"text_to_{name}"):
            if task in seqio.TaskRegistry.names():
                seqio.TaskRegistry.remove(task)
    sys.modules.pop("photos", None)


def wide(width, height):
    out = io.BytesIO()
    Image.new("RGB", (width, height), (0, 200, 0)).save(out, "PNG")
    return out.getvalue()


def photographs(folder, n):
    folder.mkdir(parents=True)
    for i in range(n):
        (folder / f"{i:03d}.png").write_bytes(tiny_world.png("red", i))
        (folder / f"{i:03d}.txt").write_text(f"a red fox, number {i}")
    (folder / "short.png").write_bytes(tiny_world.png("red", 300))
    (folder / "short.txt").write_text("a")
    (folder / "strip.png").write_bytes(wide(64, 8))
    (folder / "strip.txt").write_text("a green strip")
    (folder / "cut.png").write_bytes(tiny_world.png("blue", 301)[:45])
    (folder / "cut.txt").write_text("a cut picture")
    (folder / "lonely.txt").write_text("a caption of nothing")


def records(cache, task, split):
    reader = CacheReader(cache, task, split)
    return [reader[i] for i in range(len(reader))]


@pytest.mark.slow
def test_the_page_from_a_folder_to_the_cache(here, capsys):
    photographs(here / "photos/train", 30)
    photographs(here / "photos/test", 6)
    (here / "photos.py").write_text(MODULE)
    (here / "photos_config.py").write_text(CONFIG)
    assert len([line for line in MODULE.splitlines() if line]) == 5
    assert cli.main(COMMAND.split()) == 0, capsys.readouterr().err
    cache = here / "runs/photos/cache"
    manifest = Manifest.load(cache)
    keys = {}
    for split, n in (("train", 30), ("test", 6)):
        for task in ("photo_to_text", "text_to_photo"):
            counts = manifest.counts(task, split)
            assert counts.inputs == n + 4 == counts.records + sum(counts.filtered.values()) + counts.rejects
            assert counts.filtered["text_length"] == 1 and counts.filtered["image_shape"] == 1
            keys[task, split] = {r.key for r in records(cache, task, split)}
        there, back = keys["photo_to_text", split], keys["text_to_photo", split]
        assert not there & back
        assert there | back == {f"{split}/{i:03d}" for i in range(n)}
        assert there and back
        for task, own in (("photo_to_text", there), ("text_to_photo", back)):
            rejects = [
                json.loads(x)
                for s in manifest.shards(task, split)
                for x in (cache / s.rejects_path).read_text().splitlines()
            ]
            reasons = {r["key"]: r["reason"] for r in rejects}
            assert "it has no jpg, png file" in reasons.pop(f"{split}/lonely")
            assert set(reasons) <= {f"{split}/cut"}
            assert manifest.counts(task, split).filtered.get("direction", 0) == n + 1 - len(own) - len(reasons)
        cut = [t for t in ("photo_to_text", "text_to_photo") if filters.goes(f"{split}/cut".encode(), x_to_text=0.5, to_text=t == "photo_to_text")]  # fmt: skip
        assert len(cut) == 1
    assert "direction" in capsys.readouterr().out


@pytest.mark.slow
def test_the_same_records_however_a_source_is_divided(here, monkeypatch):
    monkeypatch.setattr(tokenize, "SMALLEST_SHARD", 1)
    for t in range(2):
        files = []
        for i in range(5):
            files += [(f"{t}{i}.png", tiny_world.png("green", 10 * t + i)), (f"{t}{i}.txt", b"a green cat")]
        path = tars.make_tar(here / f"tars/{t}.tar", files)
    data = bytearray(path.read_bytes())
    data[2 * 2048] ^= 0x55  # the header of 12.png: header and content take 1,024 bytes a file
    path.write_bytes(data)
    source = webdataset({"train": f"{here}/tars/*.tar"}, {"image": "jpg;png", "caption": "txt"})
    pairs.add_pairs("tar", source, "image", "image", "caption")
    found = {}
    for shards in (1, 3, 0):
        config = tiny_world.config(here / f"run{shards}", tasks=("tar_to_text",), shards=shards)
        tokenize.run(config, argparse.Namespace(json=None))
        made = records(f"{config.workdir}/cache", "tar_to_text", "train")
        counts = Manifest.load(f"{config.workdir}/cache").counts("tar_to_text", "train")
        assert {r.key for r in made} == {
            f"train/{t}.tar/{t}{i}" for t in range(2) for i in range(5) if (t, i) != (1, 2)
        }
        assert (counts.inputs, counts.records, counts.rejects) == (11, 9, 2)  # 12.txt alone, and the damage
        found[shards] = sorted((r.key, r.to_bytes()) for r in made)
    assert found[1] == found[3] == found[0]


def test_every_source_of_the_page_exists():
    named = re.findall(r"\| `(\w+)\.(\w+)\(", PAGE)
    assert len(named) >= 20
    for module, name in named:
        package = "anygpt_jax.tasks" if module in ("filters", "text_normalization") else "anygpt_jax.tasks.sources"
        found = seqio if module == "seqio" else importlib.import_module(f"{package}.{module}")
        assert callable(getattr(found, name)), (module, name)


def job_of(here, steps=()):
    """The config of a job over the folder `media`, whose task is registered."""
    source = folder({"train": f"{here}/media"}, {"image": "png", "caption": "txt"})
    pairs.add_pairs("photo", source, "image", "image", "caption", steps=steps)
    return tiny_world.config(here / "run", tasks=("photo_to_text",), shards=1)


def test_a_name_that_is_not_utf_8_is_tokenized_like_any_other(here):
    (here / "media").mkdir()
    for i, name in enumerate((b"caf\xe9", "caf\u00e9".encode(), b"fox")):
        path = os.fsencode(here / "media") + b"/" + name
        for end, data in ((b".png", tiny_world.png("red", i)), (b".txt", b"a red fox")):
            with open(path + end, "wb") as f:
                f.write(data)
    config = job_of(here)
    tokenize.run(config, argparse.Namespace(json=None))
    cache = f"{config.workdir}/cache"
    made = {r.key: r for r in records(cache, "photo_to_text", "train")}
    assert set(made) == {"train/caf\\xe9", "train/caf\u00e9", "train/fox"}
    assert Manifest.load(cache).counts("photo_to_text", "train").rejects == 0
    variants, text = instructions.instructions("image", "text"), TextTokenizer.load()
    for key, record in made.items():
        first = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
        assert f" {variants[first % len(variants)]} <image" in readable(record, load_vocabulary(cache), text), key


def test_a_list_of_duplicates_that_changes_in_use_stops_the_job(here):
    photographs(here / "media", 4)
    listed = here / "duplicates.json"
    listed.write_text('{"train": []}')
    config = job_of(here, [filters.unique(listed)])
    listed.write_text('{"train": ["train/000"]}')  # by another process, while this one is about to tokenize
    with pytest.raises(
        UserError, match=r"^.*duplicates\.json changed while it was in use; run the same command again\.$"
    ):
        tokenize.run(config, argparse.Namespace(json=None))
    assert not list((here / "run").rglob("*.array_record")), "what was refused by another list is no shard"


def test_a_medium_that_a_rule_cannot_read_costs_itself_alone(here):
    from anygpt_jax.modalities.pictures import load_picture
    from anygpt_jax.tasks import preprocessors

    photographs(here / "media", 4)
    (here / "media/lonely.txt").unlink()
    rule = functools.partial(preprocessors.keep, rule=lambda data: load_picture(data) is not None, fields=("image",))
    config = job_of(here, [rule])
    tokenize.run(config, argparse.Namespace(json=None))
    counts = Manifest.load(f"{config.workdir}/cache").counts("photo_to_text", "train")
    assert (counts.records, counts.rejects) == (6, 1)
    assert ["UserError: The image file" in reason for reason in counts.rejected] == [True]
