"""One job at a time trains in a workdir: on one machine by a lock, on several by a lease that is kept alive."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
import synthetic

from anygpt_jax.errors import UserError
from anygpt_jax.training import lease, loop
from anygpt_jax.training.lease import Lease


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in {"BEAT": 0.05, "SILENT": 0.4, "PATIENCE": 2.0, "POLL": 0.02, "CLOCKS_APART": 0.2}.items():
        monkeypatch.setattr(lease, name, seconds)


def elsewhere(workdir, machine="another"):
    """A job of another machine: it has the lease, and not the lock, which does not reach so far."""
    found = Lease(workdir)
    found.mine["machine"] = machine
    found._write()
    return found


@pytest.fixture
def beating():
    """Keeps leases alive as their own machines would, until the test ends."""
    ended, threads = threading.Event(), []

    def keep(other, until=lambda: False):
        def run():
            while not ended.wait(0.05) and not until():
                other._write()

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    yield keep
    ended.set()
    for thread in threads:
        thread.join()


def test_it_is_kept_alive_and_given_back(tmp_path):
    mine = Lease(tmp_path)
    mine.take()
    first = json.loads(mine.path.read_text())
    assert first["job"] == mine.mine["job"]
    until = time.monotonic() + 10
    while json.loads(mine.path.read_text())["time"] == first["time"]:
        assert time.monotonic() < until
        time.sleep(0.01)
    mine.require()
    mine.close()
    assert not mine.path.exists()
    other = Lease(tmp_path)
    other.take()
    other.close()


def test_on_one_machine_the_second_is_refused_at_once(tmp_path):
    mine = Lease(tmp_path)
    mine.take()
    with pytest.raises(UserError, match=r"Another job trains in .*take another --workdir"):
        Lease(tmp_path).take()
    mine.close()


def test_a_job_that_was_killed_is_started_again_without_waiting(tmp_path, monkeypatch):
    code = f"""
import os, pathlib, signal
from anygpt_jax.training.lease import Lease
Lease(pathlib.Path({str(tmp_path)!r})).take()
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == -9
    assert (tmp_path / "lease.json").is_file()
    monkeypatch.setattr(lease.time, "sleep", lambda _: pytest.fail("it waits"))
    mine = Lease(tmp_path)
    mine.take()
    mine.close()


def test_of_a_dead_machine_the_lease_runs_out(tmp_path):
    elsewhere(tmp_path)
    began = time.monotonic()
    mine = Lease(tmp_path)
    mine.take()
    assert time.monotonic() - began >= 0.4
    mine.close()


def test_an_old_lease_is_no_reason_to_wait(tmp_path, monkeypatch):
    other = elsewhere(tmp_path)
    other.path.write_text(json.dumps({**other.mine, "time": time.time() - 3600}))
    monkeypatch.setattr(lease.time, "sleep", lambda _: pytest.fail("it waits"))
    mine = Lease(tmp_path)
    mine.take()
    mine.close()


def test_a_job_of_another_machine_is_waited_for_until_it_has_saved(tmp_path, beating, caplog):
    other, began = elsewhere(tmp_path), time.monotonic()
    beating(other, until=lambda: time.monotonic() - began > 1)
    mine = Lease(tmp_path)
    mine.take()
    assert time.monotonic() - began > 1
    mine.close()


def test_a_living_one_of_another_machine_is_not_pushed_aside(tmp_path, beating):
    other = elsewhere(tmp_path)
    beating(other)
    with pytest.raises(UserError, match=r"Another job trains in .*\(another\)"):
        Lease(tmp_path).take()
    assert json.loads(other.path.read_text())["job"] == other.mine["job"]
    Lease(tmp_path / "..").close()


def test_of_two_that_start_at_once_one_leaves(tmp_path):
    """Both have found no lease; the last to write has it."""
    mine = Lease(tmp_path)
    mine.take()
    other = elsewhere(tmp_path)
    until = time.monotonic() + 10
    while mine._taken_by is None:  # as long as it overwrites ours at the same moment, nobody sees it
        assert time.monotonic() < until
        other._write()
        time.sleep(0.02)
    with pytest.raises(UserError, match="Nothing more of this one is written"):
        mine.require()
    mine.close()
    assert json.loads(other.path.read_text())["job"] == other.mine["job"]


def test_training_gives_way(tmp_path, monkeypatch):
    """Nothing is saved after another job has the lease; and a second start touches no checkpoint of the first."""
    synthetic.write_cache(tmp_path / "cache")
    config = synthetic.config(tmp_path, steps=40, eval_every=0)
    config.train.update(log_every=1, save_every=5)
    saves = loop.Training._save

    def then_another_comes(self, done, *rest):
        saves(self, done, *rest)
        self.checkpoints.wait()
        half = tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp"
        half.mkdir()
        with pytest.raises(UserError, match="Another job trains"):
            loop.run(config)
        assert half.is_dir()  # as if the first were writing it
        half.rmdir()
        other, until = elsewhere(tmp_path), time.monotonic() + 10
        while self.lease._taken_by is None:
            assert time.monotonic() < until
            other._write()
            time.sleep(0.02)

    monkeypatch.setattr(loop.Training, "_save", then_another_comes)
    with pytest.raises(UserError, match="Nothing more of this one is written"):
        loop.run(config)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()] == ["5"]
