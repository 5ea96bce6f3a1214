"""A cache that is tokenized again: what is added, what is made again, and what is never mixed."""

import argparse
import dataclasses
import functools
import hashlib
import shutil

import pytest
import tiny_world
import tokenize_lines as lines

from anygpt_jax.cache import CacheReader, Manifest, read_entry
from anygpt_jax.data import inspect_verify
from anygpt_jax.errors import UserError
from anygpt_jax.tasks import recipe, resume, tokenize
from anygpt_jax.tasks.encoding import Encoder

ARGS, REMAKE = argparse.Namespace(json=None), argparse.Namespace(json=None, remake=True)


@pytest.fixture
def world(tmp_path):
    """A finished cache of two files, a shard each."""
    data = tmp_path / "lines"
    lines.write(data, "b", 30)
    lines.write(data, "d", 20)
    lines.add(data)
    config = lines.config(tmp_path / "run")
    tokenize.run(config, ARGS)
    return config, data, tmp_path / "run" / "cache"


def contents(cache):
    return {
        str(p.relative_to(cache)): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns)
        for p in sorted(cache.rglob("*"))
        if p.is_file() and p.name != "manifest.json"
    }


def test_files_that_are_added_add_shards_and_touch_no_other(world):
    config, data, cache = world
    before = contents(cache)
    assert len(Manifest.load(cache).shards(lines.TASK, "train")) == 2
    lines.write(data, "a", 10)
    lines.write(data, "c", 40)
    lines.add(data)
    tokenize.run(config, ARGS)
    after = contents(cache)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 8
    shards = Manifest.load(cache).shards(lines.TASK, "train")
    assert [shard.path.split("/")[-1][0] for shard in shards] == ["a", "b", "c", "d"]
    assert [shard.inputs for shard in shards] == [10, 30, 40, 20]
    reader = CacheReader(cache, lines.TASK, "train")
    keys = [reader[i].key for i in range(len(reader))]
    assert len(keys) == len(set(keys)) == 100
    assert not list(inspect_verify.problems(cache))


def test_a_file_that_changes_or_goes_takes_only_its_shard_with_it(world):
    config, data, cache = world
    before = contents(cache)
    lines.write(data, "b", 31)
    lines.add(data)
    tokenize.run(config, ARGS)
    kept = {name for name, of in contents(cache).items() if before.get(name) == of}
    assert kept == {name for name in before if "/b" not in name}
    (data / "b.txt").unlink()
    lines.add(data)
    tokenize.run(config, ARGS)
    assert not [name for name in contents(cache) if "/b" in name]
    assert len(CacheReader(cache, lines.TASK, "train")) == 20
    assert not inspect_verify.unlisted(cache, Manifest.load(cache))


def test_files_give_the_same_records_as_any_number_of_shards(world, tmp_path):
    _, _, cache = world
    other = lines.config(tmp_path / "dealt", shards=1)
    tokenize.run(other, ARGS)
    one, files = CacheReader(tmp_path / "dealt" / "cache", lines.TASK, "train"), CacheReader(cache, lines.TASK, "train")
    assert {one[i].to_bytes() for i in range(len(one))} == {files[i].to_bytes() for i in range(len(files))}


def test_a_task_that_is_added_touches_no_other(world, tmp_path):
    config, data, cache = world
    before = contents(cache)
    lines.add(data, name="more")
    config.tokenize.tasks = (lines.TASK, "more")
    tokenize.run(config, ARGS)
    assert {name: of for name, of in contents(cache).items() if name in before} == before
    assert set(Manifest.load(cache).tasks) == {lines.TASK, "more"}


def test_data_that_moved_is_the_same_data(world, tmp_path):
    config, data, cache = world
    before = contents(cache)
    shutil.move(data, tmp_path / "elsewhere")
    lines.add(tmp_path / "elsewhere")
    tokenize.run(config, ARGS)
    assert contents(cache) == before


@pytest.mark.parametrize("change", ["rule", "instructions", "max_tokens"])
def test_another_definition_is_refused_until_it_is_asked_for(world, change):
    config, data, cache = world
    before = contents(cache)
    if change == "max_tokens":
        config.tokenize.max_tokens = 500
    else:
        lines.add(data, **({"shortest": 9} if change == "rule" else {"asked": "repeat it"}))
    words = "another tokenize.max_tokens" if change == "max_tokens" else "another definition of the task"
    with pytest.raises(UserError, match=rf"{words}.*; name another --workdir .* or pass --remake"):
        tokenize.run(config, ARGS)
    assert contents(cache) == before
    assert Manifest.load(cache)
    fingerprint = Manifest.load(cache).fingerprint
    tokenize.run(config, REMAKE)
    assert Manifest.load(cache).fingerprint != fingerprint
    assert {name for name, of in contents(cache).items() if before[name] == of} == {"vocabulary.json"}
    assert not list(inspect_verify.problems(cache))


def test_other_tokenizers_are_never_mixed_in_even_if_the_manifest_is_gone(world, monkeypatch):
    config, _, cache = world
    (cache / "manifest.json").unlink()  # as while a job runs
    before = contents(cache)
    monkeypatch.setattr(tiny_world.ImageCodec, "fingerprint", "image-2")
    for args in (ARGS, REMAKE):
        with pytest.raises(UserError, match=r"made by other tokenizers or another vocabulary; name another --workdir"):
            tokenize.run(config, args)
    assert contents(cache) == before


def test_other_data_is_made_again_and_said(world, tmp_path, capsys):
    _, data, _ = world
    config = lines.config(tmp_path / "dealt", shards=1)
    tokenize.run(config, ARGS)
    lines.write(data, "b", 32)
    lines.add(data)
    tokenize.run(config, ARGS)
    assert "lines/train: 1 shards are made again: they are of other data" in capsys.readouterr().out


def test_a_damaged_vocabulary_or_manifest_is_mended(world):
    config, _, cache = world
    good = {name: (cache / name).read_bytes() for name in ("vocabulary.json", "manifest.json")}
    for name in good:
        (cache / name).write_bytes(b"{")
        (cache / f"{name}.tmp-1-2").write_bytes(b"{")
        tokenize.run(config, ARGS)
        assert (cache / name).read_bytes() == good[name]
        assert not list(cache.rglob("*.tmp-*"))


def test_two_jobs_do_not_write_one_cache(world):
    config, _, cache = world
    with resume.locked(cache), pytest.raises(UserError, match="Another `anygpt tokenize` is writing"):
        tokenize.run(config, ARGS)
    tokenize.run(config, ARGS)


def test_a_lost_input_is_an_error_and_leaves_no_shard(world, monkeypatch):
    config, data, cache = world
    lines.write(data, "e", 10)
    lines.add(data)
    records = Encoder.records

    def loses_one(self, examples, source, ledger):
        for i, record in enumerate(records(self, examples, source, ledger)):
            if i != 4:
                yield record

    monkeypatch.setattr(Encoder, "records", loses_one)
    with pytest.raises(Exception, match="10 inputs gave 9 records, 0 filtered and 0 rejected: some are lost"):
        tokenize.run(config, ARGS)
    assert not list(cache.rglob("e_txt-*")) and not (cache / "manifest.json").exists()


@dataclasses.dataclass(frozen=True)
class Longer:
    than: int

    def __call__(self, text):
        return len(text) > self.than


def test_a_recipe_sees_the_settings_of_a_rule_and_not_where_it_is():
    def enclosed(limit):
        return lambda text: len(text) > limit

    def recursive(n):
        return n and recursive(n - 1)

    value = recipe.value_digest
    assert value(Longer(3)) == value(Longer(3)) != value(Longer(4))
    assert value(enclosed(3)) == value(enclosed(3)) != value(enclosed(4))
    assert value(Longer(3).__call__) != value(Longer(4).__call__)
    assert value(functools.partial(enclosed, limit=3)) != value(functools.partial(enclosed, limit=4))
    assert value({"a": {3, 1, 2}}) == value({"a": {2, 3, 1}}) != value({"a": {2, 3}})
    assert value(recursive) == value(recursive)
    assert value(object()) == value(object())


def test_comments_and_docstrings_do_not_make_another_recipe():
    plain = "def f(x):\n    return x + 1\n"
    assert recipe._logic('"""Says."""\n\ndef f(x):\n    """Adds."""\n    # one\n    return x+1\n') == recipe._logic(
        plain
    )
    assert recipe._logic(plain.replace("1", "2")) != recipe._logic(plain)


def test_an_entry_of_an_older_program_is_made_again(world):
    config, _, cache = world
    (entry,) = cache.rglob("b_txt-*.json")
    good = entry.read_bytes()
    shard = read_entry(cache, str(entry.relative_to(cache).with_suffix("")))
    entry.write_bytes(dataclasses.replace(shard, recipe="0" * 64).to_bytes())
    tokenize.run(config, ARGS)
    assert entry.read_bytes() == good
