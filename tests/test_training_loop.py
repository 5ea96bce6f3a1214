"""Whole runs on a small cache: interrupted ones end with the same bits as undisturbed ones."""

import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import synthetic
from flax import nnx

from anygpt_jax.data import inspect
from anygpt_jax.errors import UserError
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.sharding import make_mesh
from anygpt_jax.training import loop, main
from anygpt_jax.training import step as train_step
from anygpt_jax.training.checkpoints import Checkpoints, restore_model
from anygpt_jax.training.metrics import MetricsWriter


def start_run(workdir, **train):
    """A cache and its config, nothing trained yet."""
    synthetic.write_cache(workdir / "cache")
    return synthetic.config(workdir, **train)


def final_state(config):
    """Every array of the newest checkpoint."""
    checkpoints = Checkpoints(pathlib.Path(config.workdir) / "checkpoints")
    model = ModelConfig.from_config(config.model, synthetic.vocabulary())
    program = train_step.build(model, config.train, make_mesh({}), 3)
    state = checkpoints.restore(checkpoints.latest(), program.abstract_state)
    checkpoints.close()
    return jax.device_get(state)


def lines(config, split="train"):
    path = pathlib.Path(config.workdir) / "logs" / "metrics.jsonl"
    return [entry for entry in map(json.loads, path.read_text().splitlines()) if entry["split"] == split]


def equal_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    config = start_run(tmp_path_factory.mktemp("undisturbed"))
    main.run(config, argparse.Namespace())
    return config


def test_a_run_learns_and_writes_what_it_measured(undisturbed):
    train, validation = lines(undisturbed), lines(undisturbed, "validation")
    assert [entry["step"] for entry in train] == [4, 8, 12]
    assert [entry["step"] for entry in validation] == [8, 12]
    assert train[-1]["loss"] < train[0]["loss"] - 0.3
    assert set(train[0]["loss_by_modality"]) == {"text", "image"}
    for entry in train:
        assert entry["tokens_per_second"] > 0
        assert 0 < entry["mfu"] < 1
        assert 0 <= entry["data_wait"] < 1
    logs = pathlib.Path(undisturbed.workdir) / "logs"
    assert list(logs.glob("events.out.tfevents.*"))


def test_only_the_newest_checkpoints_are_kept_and_hold_config_and_vocabulary(undisturbed):
    checkpoints = pathlib.Path(undisturbed.workdir) / "checkpoints"
    assert sorted(int(p.name) for p in checkpoints.iterdir() if p.name.isdigit()) == [8, 12]
    loaded = restore_model(checkpoints)
    assert loaded.step == 12
    assert loaded.vocabulary == synthetic.vocabulary()
    equal_bits(nnx.to_pure_dict(nnx.state(loaded.decoder, nnx.Param)), final_state(undisturbed)["params"])


def test_a_finished_run_does_nothing(undisturbed):
    root = pathlib.Path(undisturbed.workdir)
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}
    loop.run(undisturbed)
    assert before == {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}


def launch(config):
    """The same run in a process of its own, so that it can be killed."""
    code = (
        "import json, sys, ml_collections; from anygpt_jax.training import loop; "
        "loop.run(ml_collections.ConfigDict(json.loads(sys.argv[1])))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, config.to_json()],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(loop.__file__).parents[2])},
    )


def wait_for(process, path, seconds=120):
    until = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(tmp_path):
    """Long enough that the signal comes well before the end; compared bit by bit with an undisturbed run."""
    calm = start_run(tmp_path / "calm", steps=300, save_every=50, eval_every=0)
    shutil.copytree(tmp_path / "calm", tmp_path / "stopped")
    stopped = synthetic.config(tmp_path / "stopped", **calm.train)
    process = launch(stopped)
    wait_for(process, tmp_path / "stopped" / "checkpoints" / "50")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    reached = Checkpoints(tmp_path / "stopped" / "checkpoints")
    step = reached.latest()
    reached.close()
    assert 50 <= step < 300
    assert lines(stopped)[-1]["step"] == step
    loop.run(stopped)
    loop.run(calm)
    equal_bits(final_state(stopped), final_state(calm))
    # Each step is logged once, with the same loss.
    assert [e["step"] for e in lines(stopped)] == sorted({e["step"] for e in lines(stopped)})
    assert lines(stopped)[-1]["loss"] == lines(calm)[-1]["loss"]


def test_another_mesh_goes_on_from_the_same_checkpoint(undisturbed, tmp_path):
    shutil.copytree(undisturbed.workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "12")
    config = synthetic.config(tmp_path / "run")
    config.mesh.update(data=2, fsdp=2, tensor=2)
    loop.run(config)
    ours, expected = final_state(config), final_state(undisturbed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), ours["params"], expected["params"])
    assert lines(config)[-1]["loss"] == pytest.approx(lines(undisturbed)[-1]["loss"], rel=1e-4)


def test_a_checkpoint_of_another_vocabulary_or_model_is_refused(undisturbed, tmp_path):
    shutil.copytree(undisturbed.workdir, tmp_path / "run")
    config = synthetic.config(tmp_path / "run", steps=20)
    config.model.d_ff = 56
    with pytest.raises(UserError, match="d_ff"):
        loop.run(config)
    shutil.rmtree(tmp_path / "run" / "cache")
    synthetic.write_cache(tmp_path / "run" / "cache", vocab=synthetic.vocabulary(image=15))
    with pytest.raises(UserError, match="vocabulary"):
        loop.run(synthetic.config(tmp_path / "run", steps=20))


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match="anygpt train"):
        restore_model(tmp_path / "nowhere")
    with pytest.raises(UserError, match="anygpt tokenize"):
        loop.run(synthetic.config(tmp_path))
    config = synthetic.config(tmp_path)
    config.kind = "poem"
    with pytest.raises(UserError, match="poem"):
        main.run(config, argparse.Namespace())


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path):
    config = start_run(tmp_path, learning_rate=1e30, clip_norm=0.0, warmup_steps=0, eval_every=0)
    with pytest.raises(UserError, match="does not get past step 0: after 3 returns to it 10 steps"):
        loop.run(config)
    assert not [p for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]


def test_the_log_forgets_what_a_dead_run_wrote_after_its_checkpoint(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    for step in (4, 8, 12):
        writer.write(step, "train", {"loss": 1.0})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 16, "spl')
    MetricsWriter(tmp_path, 8).close()
    assert [json.loads(text)["step"] for text in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [4, 8]


def test_inspect_counts_and_shows(undisturbed, tmp_path, capsys, monkeypatch):
    class Words:
        fingerprint = "none"

        def decode(self, ids):
            return " ".join(f"w{i}" for i in ids)

    monkeypatch.setattr(inspect.TextTokenizer, "load", lambda: Words())
    args = argparse.Namespace(task="text_to_image", split="train", limit=2, json=str(tmp_path / "out.json"))
    inspect.run(undisturbed, args)
    printed, found = capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())
    assert len(found["summary"]) == 9
    assert len(found["records"]) == 2
    row = next(r for r in found["summary"] if (r["task"], r["split"]) == ("documents", "train"))
    assert row["records"] == 60
    assert row["lengths"] == sorted(row["lengths"])
    text = found["records"][0]["text"]
    assert text.startswith("<s> [Human] w")
    assert text.endswith("<eoh> [AnyGPT] « <image:6 codes> <eos> »")
    assert text in printed


def test_adapters_are_trained_beside_another_runs_parameters(undisturbed, tmp_path):
    """A stage from another run, with LoRA: its base keeps every bit, and it goes on from its own checkpoints."""
    shutil.copytree(pathlib.Path(undisturbed.workdir) / "cache", tmp_path / "cache")

    def config(steps):
        made = synthetic.config(
            tmp_path, steps=steps, keep_checkpoints=9, eval_every=0, start_from=str(undisturbed.workdir),
            trainable=(".*_lora_[ab]",), ema_decay=0.9,
        )  # fmt: skip
        made.model.update(lora_rank=2, lora_alpha=4.0, lora_targets="q,v")
        return made

    def params(step, item="params"):
        return nnx.to_pure_dict(
            nnx.state(restore_model(tmp_path / "checkpoints", step=step, ema=item == "ema").decoder, nnx.Param)
        )

    loop.run(config(8))
    loop.run(config(12))
    base, first, last = final_state(undisturbed)["params"], params(0), params(12)
    adapters = {name for name in last["blocks"] if "_lora_" in name}
    assert adapters == {"q_lora_a", "q_lora_b", "v_lora_a", "v_lora_b"}
    for name, array in base["blocks"].items():
        np.testing.assert_array_equal(array, last["blocks"][name])
    np.testing.assert_array_equal(base["embedding"], last["embedding"])
    assert not np.any(first["blocks"]["q_lora_b"]) and np.any(last["blocks"]["q_lora_b"])
    assert np.any(params(12, "ema")["blocks"]["q_lora_b"])
    assert lines(config(12))[-1]["loss"] < lines(undisturbed)[-1]["loss"]
    events = [json.loads(x) for x in (tmp_path / "logs" / "goodput.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e["event"] == "resume"] == [0, 8]
