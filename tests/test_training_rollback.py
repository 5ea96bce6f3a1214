"""Bad steps: left out, told with the keys of their batch, and gone back from; the same however a run is stopped."""

import contextlib
import json
import logging
import os
import re
import shutil
import signal

import jax
import numpy as np
import pytest
import synthetic

from anygpt_jax.data.history import Stage, settings_of
from anygpt_jax.data.loader import BatchSource, packers
from anygpt_jax.data.store import Store
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.sharding import make_mesh
from anygpt_jax.training import loop
from anygpt_jax.training import step as train_step
from anygpt_jax.training.checkpoints import Checkpoints

STEPS = 60


def make(workdir, **more):
    """So narrow a guard that ordinary steps are bad, sometimes two in a row."""
    return synthetic.config(
        workdir, log_every=1, eval_every=0, keep_checkpoints=1,
        **{"steps": STEPS, "save_every": 6, "guard_factor": 1.1, "guard_warmup": 25, "guard_patience": 2} | more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("calm")
    synthetic.write_cache(workdir / "cache")
    loop.run(make(workdir))
    return workdir


def lines(workdir, name):
    return [json.loads(line) for line in (workdir / "logs" / f"{name}.jsonl").read_text().splitlines()]


def end(workdir):
    """(state, progress) of the last checkpoint."""
    config = make(workdir)
    model = ModelConfig.from_config(config.model, synthetic.vocabulary())
    program = train_step.build(model, config.train, make_mesh({}), 3, synthetic.vocabulary())
    with contextlib.closing(Checkpoints(workdir / "checkpoints", read_only=True)) as checkpoints:
        assert checkpoints.latest() == STEPS
        return (
            jax.device_get(checkpoints.restore(STEPS, program.abstract_state)),
            checkpoints.description(STEPS).progress,
        )


def test_bad_steps_in_a_row_send_the_run_back_and_past_their_batches(calm):
    _, progress = end(calm)
    rollbacks = progress["rollbacks"]
    assert rollbacks, "the guard was meant to be narrow enough"
    assert progress["batch_offset"] == sum(reached - to for reached, to in rollbacks) > 0
    for reached, to in rollbacks:
        assert to % 6 == 0 and reached - to >= 3
    events = [e for e in lines(calm, "goodput") if e["event"] == "rollback"]
    assert [[e["reached"], e["step"]] for e in events] == [list(r) for r in rollbacks]
    # Every step that the run still has is logged once.
    assert [line["step"] for line in lines(calm, "metrics")] == list(range(1, STEPS + 1))


def test_what_was_skipped_is_told_with_the_keys_of_its_batch(calm):
    config, skipped = make(calm), lines(calm, "skipped")
    assert len(skipped) >= 3
    store = Store(calm / "cache", "train")
    plan = packers(store, (Stage(0, settings_of(config)),), batch_size=4, pack_rows=8, seq_len=64, seed=0)
    source = BatchSource(plan, synthetic.vocabulary(), 4, 1000)
    by_key = {
        record.key: record.tokens
        for t, task in enumerate(synthetic.TASKS)
        for s, n in ((0, 60),)
        for record in (
            synthetic.record(synthetic.vocabulary(), task, i, np.random.default_rng((t, s, i))) for i in range(n)
        )
    }
    for line in skipped:
        rows = source[line["batch"]]
        for r in range(4):
            keys = [record["key"] for record in line["records"] if record["row"] == r]
            tokens = np.concatenate([by_key[key] for key in keys])
            np.testing.assert_array_equal(rows["tokens"][r][rows["segment_ids"][r] > 0], tokens)


class StopAt(logging.Handler):
    """A real SIGTERM when a step is logged."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def emit(self, record):
        if re.match(rf"step {self.step}/", record.getMessage()):
            os.kill(os.getpid(), signal.SIGTERM)


def stopped_at(config, step):
    handler = StopAt(step)
    logger = logging.getLogger("anygpt_jax.training.loop")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        with pytest.raises(SystemExit):
            loop.run(config)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def test_a_run_that_is_stopped_goes_back_to_the_same_steps(calm, tmp_path):
    """Stopped around each place where the undisturbed run had bad steps."""
    (_, first_progress) = end(calm)
    reached, to = first_progress["rollbacks"][0]
    shutil.copytree(calm / "cache", tmp_path / "cache")
    config = make(tmp_path)
    for step in (to + 2, reached - 1, to + 3):  # the last one after it has gone back
        stopped_at(config, step)
    loop.run(config)
    ours, expected = end(tmp_path), end(calm)
    assert ours[1] == expected[1]
    jax.tree.map(np.testing.assert_array_equal, ours[0], expected[0])
    assert [e["loss"] for e in lines(tmp_path, "metrics") if "loss" in e] == [
        e["loss"] for e in lines(calm, "metrics") if "loss" in e
    ]


@pytest.mark.slow
def test_a_run_stopped_before_its_first_save_goes_back_to_its_beginning(calm, tmp_path):
    rare = {"save_every": 45, "guard_factor": 1.15, "guard_warmup": 20}
    for name in ("calm", "stopped"):
        shutil.copytree(calm / "cache", tmp_path / name / "cache")
    loop.run(make(tmp_path / "calm", **rare))
    expected = end(tmp_path / "calm")
    reached, to = expected[1]["rollbacks"][0]
    assert to == 0 and reached > 20
    config = make(tmp_path / "stopped", **rare)
    stopped_at(config, 15)  # before any step can be bad
    left = [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()]
    loop.run(config)
    ours = end(tmp_path / "stopped")
    assert ours[1] == expected[1]
    jax.tree.map(np.testing.assert_array_equal, ours[0], expected[0])
    assert len(left) == 1
    assert [path.name for path in (tmp_path / "stopped" / "checkpoints").glob("*.left")] == [f"{left[0]}.left"]
