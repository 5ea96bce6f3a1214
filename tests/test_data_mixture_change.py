"""A run whose mixture changes: refused unless it is stated, recorded in the checkpoint, and resumed as one run."""

import json
import pathlib

import ml_collections
import pytest
import synthetic

from anygpt_jax.data.packing import PLAN_VERSION
from anygpt_jax.errors import UserError
from anygpt_jax.training import loop
from anygpt_jax.training.checkpoints import Checkpoints


def losses(workdir):
    lines = map(json.loads, pathlib.Path(workdir, "logs", "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if line["split"] == "train"}


@pytest.mark.slow
def test_another_mixture_needs_its_step_and_is_recorded(tmp_path):
    def config(steps, **values):
        made = synthetic.config(tmp_path, steps=steps, save_every=2, log_every=2, eval_every=0)
        return ml_collections.ConfigDict({**made.to_dict(), **values})

    synthetic.write_cache(tmp_path / "cache")
    loop.run(config(4))
    other = {"documents": 1.0}
    with pytest.raises(UserError, match="mixture_from_step=4"):
        loop.run(config(8, mixture=other))
    with pytest.raises(UserError, match="from 4 on"):
        loop.run(config(8, mixture=other, mixture_from_step=3))
    assert set(losses(tmp_path)) == {2, 4}
    loop.run(config(8, mixture=other, mixture_from_step=6))
    assert set(losses(tmp_path)) == {2, 4, 6, 8}
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    kept = checkpoints.description(8).config
    checkpoints.close()
    assert kept["plan_version"] == PLAN_VERSION
    assert [(stage["step"], stage["weights"]) for stage in kept["mixture_history"]] == [
        (0, dict.fromkeys(synthetic.TASKS, 1.0)),
        (6, other),
    ]
    loop.run(config(10, mixture=other))
    assert max(losses(tmp_path)) == 10
