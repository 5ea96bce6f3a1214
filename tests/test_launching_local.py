"""A pod on this machine: its restarts, its end, and that nothing of it is left; with a stand-in for the program."""

import argparse
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import ml_collections
import numpy as np
import pytest
import synthetic
from faults.test_killed import arrays, final_steps, losses

from anygpt_jax.errors import UserError
from anygpt_jax.launching import local, local_processes
from anygpt_jax.launching.job import Job
from anygpt_jax.model.sharding import MESH_AXES
from anygpt_jax.training.goodput import read_events

KILLS = int(os.environ.get("ANYGPT_LOCAL_KILLS", "2"))  # the set that a release is held to: 20
SAVE_EVERY = 10
SECONDS = 600  # that anything may take

# What process i does in start s is PLAN[s][i]: an exit code, minus a signal, or to wait for one.
STAND_IN = """
import faulthandler, json, os, pathlib, signal, sys, time
folder, index = pathlib.Path(__file__).parent, int(os.environ["JAX_PROCESS_ID"])
said = (pathlib.Path(sys.argv[2].partition("=")[2]).parent / f"process_{index}.txt").read_text()
start = max(said.count("--- start") - 1, 0)
what = json.loads((folder / "plan.json").read_text())[start][index]
print(f"process {index} of {os.environ['JAX_NUM_PROCESSES']}, start {start}: {what}", *sys.argv[1:], sep="\\n")
def wait_for_a_signal():
    time.sleep(60)
if what == "saves":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    faulthandler.register(signal.SIGUSR2)
if what == "ignores":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
(folder / f"began_{index}_{start}").touch()
if not isinstance(what, int):
    wait_for_a_signal()
if what < 0:
    os.kill(os.getpid(), -what)
sys.exit(what)
"""

LAUNCHER = """
import argparse, json, logging, pathlib, sys
import ml_collections
from anygpt_jax.errors import UserError
from anygpt_jax.launching import local, local_processes
from anygpt_jax.launching.job import Job
from anygpt_jax.model.sharding import MESH_AXES
logging.basicConfig(level=logging.INFO)
given = json.loads(sys.argv[1])
if given["program"]:
    local_processes.PROGRAM = (sys.executable, given["program"])
job = Job("tiny", "train", ml_collections.ConfigDict(given["config"]))
try:
    args = dict(processes=2, devices_per_process=1, stacks=False, dry_run=False, vocab_size=None)
    local.run(job, argparse.Namespace(**args))
except UserError as e:
    sys.exit(f"anygpt: {e}")
"""


def arguments(**given):
    return argparse.Namespace(
        **{"processes": 2, "devices_per_process": 1, "stacks": False, "dry_run": False, "vocab_size": None} | given
    )


def tiny_job(workdir, verb="train", **more):
    train = {"batch_size": 12, "microbatches": 1, "seq_len": 8, "loss_chunks": 1}
    config = {"kind": "decoder", "workdir": str(workdir), "mesh": {"fsdp": 1}, "train": train}
    return Job("tiny", verb, ml_collections.ConfigDict(config), **more)


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """Writes what the stand-in will do; returns its path."""

    def write(*starts):
        (tmp_path / "plan.json").write_text(json.dumps(starts))
        (tmp_path / "program.py").write_text(STAND_IN)
        monkeypatch.setattr(local_processes, "PROGRAM", (sys.executable, str(tmp_path / "program.py")))
        return tmp_path / "program.py"

    return write


@contextlib.contextmanager
def launched(config, program=None):
    """A launcher in a process of its own, its output in said.txt of the workdir: a pipe that nobody reads would fill."""
    given = json.dumps({"config": config.to_dict(), "program": program and str(program)})
    with pathlib.Path(config.workdir, "said.txt").open("a") as file:
        process = subprocess.Popen([sys.executable, "-c", LAUNCHER, given], stdout=file, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def wait_until(condition, process=None, seconds=SECONDS):
    """Until the condition holds, or the process has ended; what the condition says."""
    until = time.monotonic() + seconds
    while not (found := condition()) and (process is None or process.poll() is None):
        assert time.monotonic() < until
        time.sleep(0.01)
    return found


def restarts(workdir):
    path = workdir / "logs" / "launch" / "restarts.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def processes(workdir):
    return json.loads((workdir / "logs" / "launch" / "processes.json").read_text())


def alive(pid):
    """Whether a process runs; one that only waits to be asked how it ended does not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_lost_process_starts_all_again(planned, tmp_path, capfd):
    planned(["saves", -9], [1, "saves"], [143, 143], [0, 0])
    (tmp_path / "checkpoints" / "30").mkdir(parents=True)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "goodput.jsonl").write_text(
        '{"event": "log", "step": 33}\n{"event": "end", "step": null}\n{"ev'
    )
    (tmp_path / "checkpoints" / "40.orbax-checkpoint-tmp").mkdir()
    local.run(tiny_job(tmp_path, arguments=("--more=1",)), arguments())
    for i in range(2):
        said = (tmp_path / "logs" / "launch" / f"process_{i}.txt").read_text()
        end = f"process {i} of 2, start 3: 0\ntrain\n--config={tmp_path}/logs/launch/config.py\n--more=1\n"
        assert said.endswith(end) and said.count("--- start ") == 4
    # The terminal has worker 0's lines, and of the others none.
    out = capfd.readouterr().out
    assert "process 0 of 2, start 3: 0" in out and "process 1 of 2" not in out
    told = restarts(tmp_path)
    assert [line["verdict"] for line in told] == ["restart"] * 3
    assert [line["ended"] for line in told] == [{"1": "SIGKILL"}, {"0": 1}, {"0": 143, "1": 143}]
    assert {(line["saved_step"], line["reached_step"]) for line in told} == {(30, 33)}


def test_a_user_error_is_not_tried_again(planned, tmp_path, capfd):
    planned(["saves", 2], [0, 0])
    with pytest.raises(UserError, match=r"starting it again would not help; see .*/process_1\.txt"):
        local.run(tiny_job(tmp_path), arguments())
    assert [line["verdict"] for line in restarts(tmp_path)] == ["user error"]
    assert "process 1 of 2, start 0: 2" in capfd.readouterr().out


def test_it_gives_up_after_so_many_restarts(planned, tmp_path):
    planned(*[["saves", 1]] * 3)
    with pytest.raises(UserError, match="lost again after 2 restarts"):
        local.run(tiny_job(tmp_path, max_restarts=2), arguments())
    assert [line["verdict"] for line in restarts(tmp_path)] == ["restart", "restart", "given up"]


def test_a_stop_is_handed_on_and_waited_for(planned, tmp_path):
    with launched(tiny_job(tmp_path).config, planned(["saves", "saves"])) as launcher:
        assert wait_until(lambda: len(list(tmp_path.glob("began_*"))) == 2, launcher)
        # Another launcher of the same folder is refused, and asks for stacks without ending anything.
        with pytest.raises(UserError, match="runs already"):
            local.run(tiny_job(tmp_path), arguments())
        said = local.stacks(tmp_path / "logs" / "launch", 0.5)
        assert said.count("in wait_for_a_signal") == 2
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(SECONDS) == 143
    assert restarts(tmp_path)[0]["ended"] == {"0": 143, "1": 143}
    assert restarts(tmp_path)[0]["verdict"] == "stopped"
    with pytest.raises(UserError, match="No job of --target=local runs"):
        local.stacks(tmp_path / "logs" / "launch", 0)


def test_a_second_interrupt_ends_what_does_not_listen(planned, tmp_path):
    with launched(tiny_job(tmp_path).config, planned(["ignores", "ignores"])) as launcher:
        assert wait_until(lambda: len(list(tmp_path.glob("began_*"))) == 2, launcher)
        launcher.send_signal(signal.SIGUSR2)  # of which they would die
        launcher.send_signal(signal.SIGTERM)
        assert wait_until(lambda: "waiting for the save" in (tmp_path / "said.txt").read_text(), launcher)
        launcher.send_signal(signal.SIGTERM)  # only Ctrl-C is impatient
        time.sleep(0.3)
        assert launcher.poll() is None and not restarts(tmp_path)
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(SECONDS) == 143
    assert restarts(tmp_path)[0]["ended"] == {}
    assert not any(map(alive, processes(tmp_path)["processes"]))


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_nothing_outlives_a_launcher_that_is_killed(planned, tmp_path):
    with launched(tiny_job(tmp_path).config, planned(["ignores", "ignores"])) as launcher:
        assert wait_until(lambda: len(list(tmp_path.glob("began_*"))) == 2, launcher)
        pids = processes(tmp_path)["processes"]
        assert all(map(alive, pids))
        launcher.kill()
        launcher.wait()
        wait_until(lambda: not any(map(alive, pids)), seconds=10)


def test_what_is_shown_is_what_is_run(planned, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_one=1 --xla_force_host_platform_device_count=8")
    planned([0, 0, 0])
    local.run(tiny_job(tmp_path), arguments(processes=3, devices_per_process=2, dry_run=True))
    shown = capsys.readouterr().out
    assert not (tmp_path / "logs").exists()
    assert shown.count("XLA_FLAGS=--xla_one=1 --xla_force_host_platform_device_count=2'") == 3
    subprocess.run(["bash", "-eu"], input=shown, text=True, check=True, timeout=SECONDS)
    for i in range(3):
        said = (tmp_path / "logs" / "launch" / f"process_{i}.txt").read_text()
        assert said == f"process {i} of 3, start 0: 0\ntrain\n--config={tmp_path}/logs/launch/config.py\n"
    found = {}
    exec((tmp_path / "logs" / "launch" / "config.py").read_text(), found)
    # The config is the submitted one, and a mesh of one device became FSDP over all.
    wanted = tiny_job(tmp_path).config.to_dict()
    wanted["mesh"] = dict.fromkeys(MESH_AXES, 1) | {"fsdp": 6}
    assert found["get_config"]().to_dict() == wanted


def test_what_cannot_run_as_several_processes_is_refused(tmp_path):
    with pytest.raises(UserError, match="Beam"):
        local.run(tiny_job(tmp_path, "tokenize"), arguments())
    with pytest.raises(UserError, match="with --tasks only"):
        local.run(tiny_job(tmp_path, "evaluate"), arguments(dry_run=True))
    local.run(tiny_job(tmp_path, "evaluate", arguments=("--tasks=vqav2",)), arguments(dry_run=True))
    codec = Job("codec", "train", ml_collections.ConfigDict({"kind": "tokenizer", "workdir": str(tmp_path)}))
    with pytest.raises(UserError, match="by one process"):
        local.run(codec, arguments(dry_run=True))
    job = tiny_job(tmp_path)
    job.config.mesh = ml_collections.ConfigDict({"data": 2, "fsdp": 2})
    local.run(job, arguments(devices_per_process=2, dry_run=True))
    with pytest.raises(UserError, match="is 4 devices, and there are 2"):
        local.run(job, arguments(dry_run=True))
    job.config.mesh = ml_collections.ConfigDict({})
    job.config.train.batch_size = 3
    with pytest.raises(UserError, match=r"batch_size=3 must be a multiple of .* = 2"):
        local.run(job, arguments(dry_run=True))
    with pytest.raises(UserError, match="at least 1"):
        local.run(codec, arguments(processes=0))


def make(workdir):
    config = synthetic.config(
        workdir, steps=60 + 2 * SAVE_EVERY * KILLS, save_every=SAVE_EVERY, keep_checkpoints=3, log_every=1, eval_every=0
    )
    config.mesh.update(fsdp=2)
    config.heartbeat_seconds = 10
    return config


def finish(launcher, workdir):
    assert launcher.wait(4 * SECONDS) == 0, (workdir / "said.txt").read_text()[-6000:]


@pytest.mark.slow
def test_a_pod_that_loses_a_process_at_random_ends_with_the_bits_of_one_that_did_not(tmp_path):
    calm, ours = tmp_path / "calm", tmp_path / "ours"
    synthetic.write_cache(calm / "cache")
    with launched(make(calm)) as launcher:
        finish(launcher, calm)
    shutil.copytree(calm / "cache", ours / "cache")
    draw, kills = random.Random(20261130), []

    def reached():
        return max(losses(ours), default=0)

    with launched(make(ours)) as launcher:
        for number in range(KILLS):
            # All of them are there, of this start.
            path = ours / "logs" / "launch" / "processes.json"
            assert wait_until(lambda p=path, n=number: p.is_file() and processes(ours)["restarts"] == n, launcher)
            begun, further = reached(), draw.randrange(1, 3 * SAVE_EVERY)
            if draw.random() < 0.2:
                time.sleep(5 * draw.random())  # while it starts
            else:
                wait_until(lambda b=begun, f=further: reached() >= b + f, launcher)
            saved = max(final_steps(ours), default=0)
            in_a_save = any((ours / "checkpoints").glob("*checkpoint-tmp*"))
            kills.append((time.time(), saved, in_a_save))
            os.kill(processes(ours)["processes"][draw.randrange(2)], signal.SIGKILL)
        finish(launcher, ours)
    told = restarts(ours)
    assert [line["verdict"] for line in told] == ["restart"] * KILLS
    assert all("SIGKILL" in line["ended"].values() for line in told)
    resumes = [event for event in read_events(ours / "logs" / "goodput.jsonl") if event["event"] == "resume"]
    again = []
    for (moment, saved, _), line in zip(kills, told, strict=True):
        after = [event["step"] for event in resumes if event["time"] > moment]
        assert after[0] >= saved and after[0] >= (line["saved_step"] or 0)  # none if it was killed at its start
        again.append(line["reached_step"] - after[0] if line["reached_step"] else 0)
    print(f"{KILLS} kills, {sum(k[2] for k in kills)} in the middle of a save; {len(resumes)} starts came to training; "
          f"steps done again: at most {max(again)}, {np.mean(again):.1f} on average")  # fmt: skip
    assert max(again) <= 2 * SAVE_EVERY  # a save that was cut off counts for nothing: then the one before is the last
    step = final_steps(calm)[-1]
    assert final_steps(ours)[-1] == step == make(ours).train.steps
    jax.tree.map(np.testing.assert_array_equal, arrays(ours, step), arrays(calm, step))
    assert losses(ours) == losses(calm)
