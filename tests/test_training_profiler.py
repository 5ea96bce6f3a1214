"""Traces by a real signal and by step, stacks of a run that hangs, and a profiler that fails."""

import logging
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest
import synthetic
from compiling import QUICK

from anygpt_jax.training import loop, profiler
from anygpt_jax.training.profiler import Profiler

ROOT = pathlib.Path(profiler.__file__).parents[2]
STEP = jax.jit(lambda x: jnp.tanh(x @ x))


def traces(directory):
    return sorted(path.relative_to(directory).parts[0] for path in directory.rglob("*.xplane.pb"))


def steps(made, n, signalled_after=()):
    x = jnp.ones((8, 8))
    with made.listening():
        for done in range(1, n + 1):
            x = STEP(x)
            if done in signalled_after:
                os.kill(os.getpid(), signal.SIGUSR1)
                time.sleep(0.01)  # Python runs a handler between two instructions
            made.after(done, x)


def test_steps_are_traced_by_signal_and_by_step(tmp_path, caplog):
    before = signal.getsignal(signal.SIGUSR1)
    with caplog.at_level(logging.INFO):
        # A signal while a trace runs asks for another one after it.
        steps(Profiler(tmp_path / "profile", steps=2, at=3), 12, signalled_after=(6, 7))
    assert traces(tmp_path / "profile") == ["3", "6", "8"]
    assert signal.getsignal(signal.SIGUSR1) == before
    said = [record.getMessage() for record in caplog.records]
    assert "Tracing steps 4 to 5." in said
    assert any(str(tmp_path / "profile" / "6") in line for line in said)


def test_a_run_that_ends_ends_its_trace(tmp_path):
    steps(Profiler(tmp_path, steps=50, at=2), 4)
    assert traces(tmp_path) == ["2"]


def test_a_profiler_that_fails_costs_no_step(tmp_path, caplog):
    jax.profiler.start_trace(str(tmp_path / "other"))
    try:
        with caplog.at_level(logging.WARNING):
            steps(Profiler(tmp_path / "profile", steps=2, at=1), 3)
    finally:
        jax.profiler.stop_trace()
    assert traces(tmp_path / "profile") == []
    assert "No trace" in caplog.text
    (tmp_path / "file").write_text("in the way")
    steps(Profiler(tmp_path / "file", at=1), 3)
    assert caplog.text.count("No trace") == 2


def test_a_hanging_process_tells_where_it_hangs():
    code = (
        "import pathlib, time\n"
        "from anygpt_jax.training.profiler import Profiler\n"
        "def stuck():\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "with Profiler(pathlib.Path('/nowhere')).listening():\n    stuck()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR2)
        line, until = "", time.monotonic() + 20
        while "stuck" not in line and time.monotonic() < until:
            line = process.stderr.readline()
        assert "in stuck" in line
        assert process.poll() is None  # it goes on
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_training_run_traces_on_a_signal_and_goes_on(tmp_path):
    synthetic.write_cache(tmp_path / "cache")
    config = synthetic.config(tmp_path, steps=600, save_every=600, eval_every=0, log_every=10, profile_steps=3)
    code = (
        "import json, logging, sys, ml_collections; logging.basicConfig(level=logging.INFO); "
        "from anygpt_jax.training import loop; loop.run(ml_collections.ConfigDict(json.loads(sys.argv[1])))"
    )
    environment = {**os.environ, "XLA_FLAGS": QUICK, "PYTHONPATH": str(pathlib.Path(loop.__file__).parents[2])}
    command = [sys.executable, "-c", code, config.to_json()]
    metrics, until = tmp_path / "logs" / "metrics.jsonl", time.monotonic() + 400
    with (
        (tmp_path / "said").open("w+") as log,
        subprocess.Popen(command, env=environment, stderr=log) as process,
    ):
        try:
            while not (metrics.is_file() and metrics.stat().st_size):
                assert process.poll() is None and time.monotonic() < until
                time.sleep(0.01)
            process.send_signal(signal.SIGUSR2)
            process.send_signal(signal.SIGUSR1)
            process.wait(timeout=400)
        finally:
            process.kill()
    said = (tmp_path / "said").read_text()
    assert process.returncode == 0, said
    (step,) = traces(tmp_path / "logs" / "profile")
    assert f"Tracing steps {int(step) + 1} to {int(step) + 3}." in said
    assert "in _steps" in said or "in run" in said
    assert (tmp_path / "checkpoints" / "600").is_dir()
