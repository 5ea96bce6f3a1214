"""A second directory: finished checkpoints are copied there, kept by its own rules, and restored from if need be."""

import json
import logging
import shutil
import threading

import checkpoint_world as world
import jax
import numpy as np
import pytest
import synthetic

from anygpt_jax.errors import UserError
from anygpt_jax.training import checksums, folders, mirror
from anygpt_jax.training.checkpoints import Checkpoints
from anygpt_jax.training.retention import CheckpointSettings, Retention

TWO, ONE_AND_EVEN = Retention(2), Retention(1, 2)


def mirrored(tmp_path, here=TWO, there=ONE_AND_EVEN):
    return CheckpointSettings(here, str(tmp_path / "far" / "run"), there)


def restored(checkpoints, step):
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), world.state(step))
    return checkpoints.restore(step, wanted)


def test_finished_checkpoints_are_copied_and_kept_by_the_mirrors_own_rules(tmp_path):
    world.write(tmp_path / "run", range(1, 6), mirrored(tmp_path))
    assert world.held(tmp_path / "run") == ["4", "5"]
    assert world.held(tmp_path / "far" / "run") == ["2", "4", "5"]
    for step in ("4", "5"):
        here, there = tmp_path / "run" / step, tmp_path / "far" / "run" / step
        files = {p.relative_to(here) for p in here.rglob("*") if p.is_file()}
        assert files == {p.relative_to(there) for p in there.rglob("*") if p.is_file()}
        for name in files - {type(here)("commit_success.txt")}:
            assert (here / name).read_bytes() == (there / name).read_bytes()
    # It is a folder of checkpoints like any other.
    world.write(tmp_path / "far" / "run", [6])


def test_the_newest_whole_of_both_is_restored(tmp_path, caplog):
    settings = mirrored(tmp_path)
    world.write(tmp_path / "run", range(1, 4), settings)
    near, far = tmp_path / "run", tmp_path / "far" / "run"

    # Damaged here, whole there.
    with open(near / "3" / "params" / "_METADATA", "a") as file:
        file.write(" ")
    checkpoints = Checkpoints(near, settings)
    with caplog.at_level(logging.WARNING):
        assert checkpoints.newest_whole() == 3
    assert world.held(near) == ["2", "3.damaged"]
    jax.tree.map(np.testing.assert_array_equal, restored(checkpoints, 3), world.state(3))
    assert checkpoints.description(3).progress == {"batch_offset": 3, "rollbacks": [3]}
    assert checkpoints.has_optimizer(3)
    # The run goes on from there.
    checkpoints.save(4, world.state(4), world.CONFIG, synthetic.vocabulary())
    checkpoints.close()
    assert world.held(far) == ["2", "4"]

    # Damaged there, whole here.
    (far / "4" / "checksums.json").unlink()
    checkpoints = Checkpoints(near, settings)
    assert checkpoints.newest_whole() == 4
    checkpoints.close()

    # Nothing is left here: another machine.
    shutil.rmtree(near)
    checkpoints = Checkpoints(near, settings)
    assert checkpoints.newest_whole() == 2
    assert world.held(far) == ["2", "4.damaged"]
    jax.tree.map(np.testing.assert_array_equal, restored(checkpoints, 2), world.state(2))
    checkpoints.close()
    with pytest.raises(UserError, match="no whole checkpoint of step 4"):
        Checkpoints(near, settings).description(4)


def test_what_a_killed_run_did_not_come_to_copy_is_copied_by_the_next(tmp_path):
    world.write(tmp_path / "run", [1, 2])
    Checkpoints(tmp_path / "run", mirrored(tmp_path)).close()
    assert world.held(tmp_path / "far" / "run") == ["2"]


def test_a_damaged_checkpoint_is_not_copied_and_leaves_nothing_behind(tmp_path, caplog):
    world.write(tmp_path / "run", [1])
    path = next((tmp_path / "run" / "1").glob("optimizer/ocdbt.process_0/d/*"))
    path.write_bytes(path.read_bytes()[:-1])
    with caplog.at_level(logging.ERROR):
        mirror.bring(1, folders.absolute(tmp_path / "run"), folders.absolute(tmp_path / "far"), Retention())
    assert "is not what was written" in caplog.text
    assert world.held(tmp_path / "far") == []


def test_a_mirror_that_cannot_be_written_stops_nothing(tmp_path, caplog):
    (tmp_path / "far").write_text("a file where a folder should be")
    with caplog.at_level(logging.ERROR):
        world.write(tmp_path / "run", [1, 2], mirrored(tmp_path))
    assert world.held(tmp_path / "run") == ["1", "2"]
    assert "Checkpoint 2 was not copied to" in caplog.text


def test_saving_does_not_wait_for_the_mirror(tmp_path, monkeypatch):
    """The copy of the first one is held up until the third is saved."""
    may_go, real, copied = threading.Event(), mirror.copy, []

    def held_up(source, target):
        assert may_go.wait(60)
        real(source, target)
        copied.append(target.name)

    monkeypatch.setattr(mirror, "copy", held_up)
    checkpoints = Checkpoints(tmp_path / "run", mirrored(tmp_path, Retention(), Retention()))
    for step in (1, 2, 3):
        checkpoints.save(step, world.state(step), world.CONFIG, synthetic.vocabulary())
    checkpoints.wait()
    assert checkpoints.latest() == 3 and not copied
    may_go.set()
    checkpoints.close()
    assert copied == ["1", "2", "3"]


def test_a_copy_that_was_cut_off_is_not_taken_for_a_checkpoint(tmp_path):
    world.write(tmp_path / "run", [1, 2], mirrored(tmp_path))
    far = tmp_path / "far" / "run"
    (far / "2").rename(far / "2.orbax-checkpoint-tmp")
    shutil.rmtree(tmp_path / "run" / "2")
    checkpoints = Checkpoints(tmp_path / "run", mirrored(tmp_path))
    assert checkpoints.newest_whole() == 1
    checkpoints.close()
    assert world.held(far) == ["1"]  # cleaned by the next run


def test_checksums_travel_with_the_copy(tmp_path):
    world.write(tmp_path / "run", [1], mirrored(tmp_path))
    copy = folders.absolute(tmp_path / "far" / "run" / "1")
    assert list(checksums.problems(copy)) == []
    assert len(json.loads((copy / "checksums.json").read_text())["files"]) > 40
