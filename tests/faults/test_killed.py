"""Two processes, killed at random moments, end with the bits of a run that nobody disturbed."""

import contextlib
import json
import os
import random
import shutil
import signal
import time

import jax
import numpy as np
import pod
import pytest
import synthetic

from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.sharding import make_mesh
from anygpt_jax.training import step as train_step
from anygpt_jax.training.checkpoints import Checkpoints

KILLS = int(os.environ.get("ANYGPT_KILLS", "3"))  # the set that a release is held to: 50
SAVE_EVERY = 10

pytestmark = pytest.mark.slow


def make(workdir, **train):
    """A device in each of two processes; every step is logged."""
    config = synthetic.config(
        workdir,
        steps=60 + 2 * SAVE_EVERY * KILLS,
        save_every=SAVE_EVERY,
        keep_checkpoints=3,
        log_every=1,
        eval_every=0,
        **train,
    )
    config.mesh.update(fsdp=2)
    config.heartbeat_seconds = 10
    return config


def losses(workdir):
    """step -> what was logged; a line that was cut off does not count."""
    path = workdir / "logs" / "metrics.jsonl"
    lines = [line for line in (path.read_text().split("\n")[:-1] if path.is_file() else []) if line]
    return {line["step"]: line.get("loss") for line in map(json.loads, lines)}


def final_steps(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit())


def resumed(workdir):
    """The steps that the run's starts went on from."""
    path = workdir / "logs" / "goodput.jsonl"
    lines = [json.loads(line) for line in path.read_text().split("\n")[:-1] if line.endswith("}")]
    return [line["step"] for line in lines if line["event"] == "resume"]


def arrays(workdir, step):
    """Every array of a checkpoint, on one device."""
    config = make(workdir)
    model = ModelConfig.from_config(config.model, synthetic.vocabulary())
    program = train_step.build(model, config.train, make_mesh({}), 3, synthetic.vocabulary())
    with contextlib.closing(Checkpoints(workdir / "checkpoints", read_only=True)) as checkpoints:
        return jax.device_get(checkpoints.restore(step, program.abstract_state))


def assert_same_end(ours, theirs):
    step = final_steps(theirs)[-1]
    assert final_steps(ours)[-1] == step
    jax.tree.map(np.testing.assert_array_equal, arrays(ours, step), arrays(theirs, step))
    assert losses(ours) == losses(theirs)


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("calm")
    synthetic.write_cache(workdir / "cache")
    pod.whole_run(make(workdir), workdir / "said", devices=1)
    return workdir


def disturb(job, workdir, draw):
    """Waits for some moment of a job's life, and kills one of its processes or both. False: it was over before."""
    reached, known = max(losses(workdir), default=0), final_steps(workdir)
    further = draw.randrange(1, 3 * SAVE_EVERY)

    def saving():
        return any((workdir / "checkpoints").glob("*checkpoint-tmp*"))

    when = draw.random()
    if when < 0.15:
        time.sleep(3 * draw.random())  # while it starts
    elif when < 0.6:
        job.wait_for(lambda: final_steps(workdir) != known)
        job.wait_for(saving)
    else:
        job.wait_for(lambda: max(losses(workdir), default=0) >= reached + further)
    if not all(process.is_alive() for process in job.processes):
        return False
    job.send(signal.SIGKILL, *draw.choice([(0,), (1,), (0, 1)]))
    return True


def test_killed_at_random_moments(calm, tmp_path):
    """Often in the middle of a save; one process or both; from the first second of a start on."""
    shutil.copytree(calm / "cache", tmp_path / "cache")
    config, draw = make(tmp_path), random.Random(20240812)
    kills, in_a_save, lost = 0, 0, []
    while kills < KILLS:
        with pod.running(config, tmp_path / f"said_{kills}", devices=1) as job:
            killed = disturb(job, tmp_path, draw)
            codes = job.wait(60)  # who is left must not hang
            assert killed and -signal.SIGKILL in codes, job.said()
        kills += 1
        in_a_save += any((tmp_path / "checkpoints").glob("*checkpoint-tmp*"))
        lost.append(max(losses(tmp_path), default=0) - (final_steps(tmp_path) or [0])[-1])
    pod.whole_run(config, tmp_path / "said", devices=1)
    print(f"{kills} kills, {in_a_save} of them in the middle of a save; {len(resumed(tmp_path))} starts came to "
          f"training; steps lost: at most {max(lost)}, {np.mean(lost):.1f} on average")  # fmt: skip
    # A save that was cut off counts for nothing: then the one before it is the last, and no more than that is lost.
    assert max(lost) <= 2 * SAVE_EVERY
    assert_same_end(tmp_path, calm)


def test_a_preempted_process_takes_the_other_with_it_after_the_same_step(calm, tmp_path):
    shutil.copytree(calm / "cache", tmp_path / "cache")
    config = make(tmp_path)
    with pod.running(config, tmp_path / "said", devices=1) as job:
        assert job.wait_for(lambda: max(losses(tmp_path), default=0) >= 13)
        job.send(signal.SIGTERM, 1)
        assert job.wait() == [128 + signal.SIGTERM] * 2, job.said()
    step = final_steps(tmp_path)[-1]
    assert step == max(losses(tmp_path)) > 13
    said = job.said()
    assert said.count(f"after step {step}; step {step} is saved") == 2, said
    pod.whole_run(config, tmp_path / "said", devices=1)
    assert resumed(tmp_path) == [0, step]
    assert_same_end(tmp_path, calm)


def test_two_processes_go_back_from_bad_steps_together(calm, tmp_path):
    """A guard so narrow that ordinary steps are bad; killed on the way, the end is the same."""
    ends = []
    for name in ("calm", "killed"):
        shutil.copytree(calm / "cache", tmp_path / name / "cache")
        config = make(tmp_path / name, guard_factor=1.1, guard_warmup=25, guard_patience=2)
        config.train.steps = 60
        if name == "killed":
            with pod.running(config, tmp_path / "said", devices=1) as job:
                assert job.wait_for(lambda: max(losses(tmp_path / "killed"), default=0) >= 33)
                job.send(signal.SIGTERM, 0)
                job.wait()
        pod.whole_run(config, tmp_path / "said", devices=1)
        with contextlib.closing(Checkpoints(tmp_path / name / "checkpoints", read_only=True)) as checkpoints:
            ends.append(checkpoints.description(60).progress)
    assert ends[0] == ends[1] and ends[0]["rollbacks"], ends
    assert_same_end(tmp_path / "killed", tmp_path / "calm")
