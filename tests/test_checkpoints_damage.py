"""Checkpoints that were damaged, cut off or killed while being written: none of them is taken for whole."""

import json
import logging
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import checkpoint_world as world
import jax
import numpy as np
import pytest
from compiling import QUICK
from orbax.checkpoint._src.metadata import checkpoint as orbax_metadata

from anygpt_jax.errors import UserError
from anygpt_jax.training import checkpoints as module
from anygpt_jax.training.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("written")
    world.write(directory, [1, 2])
    return directory


@pytest.fixture
def run(written, tmp_path):
    shutil.copytree(written, tmp_path / "run")
    return tmp_path / "run"


def newest_whole(directory, **rest):
    checkpoints = Checkpoints(directory, **rest)
    try:
        return checkpoints.newest_whole()
    finally:
        checkpoints.close()


def files_of(checkpoint):
    """All but the file that says a save was committed, which only buckets are asked for."""
    return sorted(p for p in checkpoint.rglob("*") if p.is_file() and p != checkpoint / "commit_success.txt")


def flip(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def flip_in_metadata(path, rng):
    """Outside of the time of the commit, which is written after the checksums."""
    content = bytearray(path.read_bytes())
    start = content.index(b'"commit_timestamp_nsecs"')
    stamp = range(start + len(b'"commit_timestamp_nsecs":'), content.index(b",", start))
    content[rng.choice([i for i in range(len(content)) if i not in stamp])] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def truncate(path, rng):
    with open(path, "r+b") as file:
        file.truncate(rng.randrange(path.stat().st_size))


def remove(path, rng):
    path.unlink()


def test_a_whole_one_is_found_whole(run):
    assert newest_whole(run) == 2
    assert world.held(run) == ["1", "2"]


@pytest.mark.parametrize("harm", [flip, truncate, remove])
def test_any_damaged_file_is_found_and_named(written, tmp_path, harm):
    """Every file of a checkpoint in turn; the one before it is taken instead."""
    rng = random.Random(0)
    count = len(files_of(written / "2"))
    assert count > 40
    for i in range(count):
        broken = tmp_path / "broken"
        shutil.copytree(written / "2", broken)
        path = files_of(broken)[i]
        if path.stat().st_size == 0 and harm is not remove:
            shutil.rmtree(broken)
            continue
        if harm is flip and path.name == "_CHECKPOINT_METADATA":
            flip_in_metadata(path, rng)
        else:
            harm(path, rng)
        found = list(module.checksums.problems(module.folders.absolute(broken)))
        assert len(found) == 1, (path, found)
        assert str(path.relative_to(broken)) in found[0]
        shutil.rmtree(broken)


def test_flips_in_orbaxs_metadata_are_found_unless_they_change_no_field(written, tmp_path):
    shutil.copytree(written / "2", tmp_path / "2")
    path = tmp_path / "2" / "_CHECKPOINT_METADATA"
    content = path.read_bytes()
    checked = module.folders.absolute(tmp_path / "2")
    fields = {**json.loads(content), "commit_timestamp_nsecs": 0}
    for i in range(0, 8 * len(content), 29):
        changed = bytearray(content)
        changed[i // 8] ^= 1 << i % 8
        path.write_bytes(changed)
        try:
            same = {**json.loads(changed), "commit_timestamp_nsecs": 0} == fields
        except ValueError:
            same = False
        assert bool(list(module.checksums.problems(checked))) is not same, changed


def test_a_slow_writer_of_orbaxs_metadata_is_waited_for(tmp_path, monkeypatch):
    """It is a thread of its own, which may come after the thread that takes the checksums."""
    real = orbax_metadata._MetadataStoreImpl.update

    def update(self, file_path, **fields):
        time.sleep(0.3)
        real(self, file_path, **fields)

    monkeypatch.setattr(orbax_metadata._MetadataStoreImpl, "update", update)
    world.write(tmp_path, [1])
    assert newest_whole(tmp_path) == 1


def test_damaged_ones_are_set_aside_with_a_warning_and_never_deleted(run, caplog):
    broken = next(p for p in files_of(run / "2") if "optimizer/ocdbt.process_0/d/" in str(p))
    truncate(broken, random.Random(0))
    content = {p.relative_to(run / "2"): p.read_bytes() for p in files_of(run / "2")}
    (run / "2.damaged").mkdir()
    with caplog.at_level(logging.WARNING):
        assert newest_whole(run) == 1
    assert world.held(run) == ["1", "2.damaged", "2.damaged.2"]
    aside = run / "2.damaged.2"
    assert content == {p.relative_to(aside): p.read_bytes() for p in files_of(aside)}
    [warning] = [r.getMessage() for r in caplog.records if r.name == module.__name__]
    assert f"Checkpoint {run}/2 is damaged: {broken.relative_to(run / '2')} has " in warning
    flip(run / "1" / "vocabulary" / "metadata", random.Random(0))
    assert newest_whole(run) is None
    # The next run may write these steps anew.
    world.write(run, [2])
    assert newest_whole(run) == 2


def test_a_removed_item_is_damage(run):
    shutil.rmtree(run / "2" / "optimizer")
    assert newest_whole(run) == 1


def test_a_reader_leaves_a_damaged_one_where_it_is(run, caplog):
    flip(files_of(run / "2")[-1], random.Random(0))
    with caplog.at_level(logging.WARNING):
        assert newest_whole(run, read_only=True) == 1
    assert world.held(run) == ["1", "2"]
    assert "It is left out." in caplog.text


def test_restoring_reads_only_its_own_parts_and_refuses_damaged_ones(run):
    broken = next(p for p in files_of(run / "2") if "params/ocdbt.process_0/d/" in str(p))
    flip(broken, random.Random(1))
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), world.state(2))
    checkpoints = Checkpoints(run)
    with pytest.raises(UserError, match=r"2 is damaged: params/ocdbt.process_0/d/\w+ is not what was written"):
        checkpoints.restore(2, wanted)
    ema = checkpoints.restore(2, {"ema": wanted["ema"]})["ema"]
    np.testing.assert_array_equal(ema["gate"], world.state(2)["ema"]["gate"])
    assert checkpoints.newest_whole(["ema"]) == 2
    checkpoints.close()
    assert newest_whole(run, settings=world.settings(verify=False)) == 2


def test_a_checkpoint_of_before_there_were_checksums_is_used(run):
    (run / "2" / "checksums.json").unlink()
    metadata = run / "2" / "_CHECKPOINT_METADATA"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "custom_metadata": {}}))
    assert newest_whole(run) == 2


def test_what_was_never_finished_is_cleaned_and_not_set_aside(run):
    (run / "3.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    assert newest_whole(run) == 2
    world.write(run, [4])  # cleaning is done before anything is saved
    assert world.held(run) == ["1", "2", "4"]


SAVER = """
import sys
sys.path[:0] = sys.argv[2:4]
import jax.numpy as jnp, synthetic, checkpoint_world as world
from anygpt_jax.training.checkpoints import Checkpoints
checkpoints = Checkpoints(sys.argv[1], world.settings(last=3))
print("ready", flush=True)
step = checkpoints.newest_whole() or 0
while True:
    step += 1
    checkpoints.save(step, world.state(step, 2048), world.CONFIG, synthetic.vocabulary(), {"batch_offset": step})
    print(step, flush=True)
"""


@pytest.mark.slow
def test_killed_at_any_moment_of_a_save_the_newest_finished_one_is_whole(tmp_path):
    """Twelve kills in one folder: nothing is ever found damaged, and no finished checkpoint is lost."""
    rng, here = random.Random(0), pathlib.Path(__file__).parent
    reached = 0
    for _ in range(12):
        command = [sys.executable, "-c", SAVER, str(tmp_path / "run"), str(here), str(here.parent)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | {"XLA_FLAGS": QUICK}
        )
        assert process.stdout.readline() == "ready\n"
        for _ in range(rng.randrange(1, 4)):
            last = int(process.stdout.readline())
        time.sleep(rng.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        checkpoints = Checkpoints(tmp_path / "run", world.settings(last=3))
        step = checkpoints.newest_whole()
        # `save` returned for `last`, so the one before it was final.
        assert step is not None and step >= max(reached, last - 1)
        wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), world.state(step, 2048))
        found = checkpoints.restore(step, wanted)
        jax.tree.map(np.testing.assert_array_equal, found, world.state(step, 2048))
        assert checkpoints.description(step).progress == {"batch_offset": step}
        checkpoints.close()
        reached = step
        assert not [name for name in world.held(tmp_path / "run") if "damaged" in name]
