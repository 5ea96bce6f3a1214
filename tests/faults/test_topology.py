"""A run that goes on with other devices and processes sees the same batches and learns the same."""

import json
import shutil

import numpy as np
import pod
import pytest
import synthetic

STEPS, LEG = 36, 12
# (processes, devices of each, mesh) of the legs of one run.
LEGS = (
    (1, 8, {"data": 2, "fsdp": 4}),
    (1, 4, {"fsdp": 2, "tensor": 2}),
    (2, 4, {"slice": 2, "fsdp": 2, "tensor": 2}),
)

pytestmark = pytest.mark.slow


def make(workdir, steps, **mesh):
    """Learning rates are of the whole run, however far a leg goes."""
    config = synthetic.config(workdir, batch_size=8, save_every=LEG, keep_checkpoints=9, log_every=1, eval_every=0)
    config.train.steps = steps
    config.train.schedule, config.train.warmup_steps = "linear", STEPS  # the warm-up does not know where the end is
    config.mesh.update(mesh)
    return config


def losses(workdir):
    lines = map(json.loads, (workdir / "logs" / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines}


def test_eight_devices_then_four_then_two_processes_of_four(tmp_path):
    synthetic.write_cache(tmp_path / "whole" / "cache")
    shutil.copytree(tmp_path / "whole", tmp_path / "legs")
    pod.whole_run(make(tmp_path / "whole", STEPS), tmp_path / "said", processes=1, devices=1)
    for leg, (processes, devices, mesh) in enumerate(LEGS, 1):
        config = make(tmp_path / "legs", LEG * leg, **mesh)
        pod.whole_run(config, tmp_path / f"said_{leg}", processes=processes, devices=devices)
    ours, expected = losses(tmp_path / "legs"), losses(tmp_path / "whole")
    assert list(ours) == list(expected) == list(range(1, STEPS + 1))
    apart = {step: abs(ours[step] - expected[step]) / expected[step] for step in ours}
    print("largest relative difference of a loss:", max(apart.values()))
    # Sums in another order, in float32. Another batch would be off by percents.
    assert max(apart.values()) < 2e-5
    assert expected[STEPS] < 0.8 * expected[1]
    assert np.std([expected[s] - expected[s - 1] for s in range(2, STEPS)]) > 1e-3  # batches do differ
