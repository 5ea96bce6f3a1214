"""What checkpoints cost a run on this machine: the stall of a save, restoring, and coming back after a restart.

    .venv/bin/python tests/benchmarks/checkpoint.py [--interval 30] [--repeats 4] [--json PATH]

The trainer's own program steps on one batch. Blocks of `--interval` steps take turns: none saved; one asynchronous save
of ours at its beginning (checksums and commit included, in the background); one synchronous save of Orbax (the peer:
StandardCheckpointer of the same state, no checksums). A save's stall is what the block's loop waited in it, and the
share is of the time of the interval's steps without saving; whole blocks beside one another show in addition what the
background takes from the steps, but also whatever else the machine does.

On a CPU the copy from device to host is a copy within the memory, and writing, summing and training share the cores. On
a TPU the copy goes over PCIe (16 GB/s and more a host, so about 0.4 s for 6 GB of state a host), the step waits for it,
and the cores that write have nothing else to do. None of that is measured here.

Coming back is a new process: from the start of Python to the end of the first step after restoring, with and without
jax's persistent compilation cache (JAX_COMPILATION_CACHE_DIR).
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp

from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.sharding import make_mesh
from anygpt_jax.training import step as train_step
from anygpt_jax.training.checkpoints import Checkpoints
from anygpt_jax.training.retention import CheckpointSettings, Retention
from anygpt_jax.vocabulary import Vocabulary

VOCABULARY = Vocabulary.build(text_size=16000, text_fingerprint="none", blocks=[])
ROWS, LENGTH = 2, 256


def config(width: int, layers: int) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict({
        "kind": "decoder",
        "model": {
            "d_model": width, "n_layers": layers, "n_heads": width // 64, "n_kv_heads": width // 64, "head_dim": 64,
            "d_ff": 8 * width // 3 // 64 * 64, "rope_theta": 1e4, "norm_eps": 1e-5, "tied_embeddings": True,
            "qk_norm": False, "vocab_multiple": 128, "param_dtype": "float32", "compute_dtype": "float32",
            "remat": "none",
        },
        "train": {
            "batch_size": ROWS, "seq_len": LENGTH, "optimizer": "adamw", "learning_rate": 1e-4, "schedule": "cosine",
            "warmup_steps": 0, "steps": 10000, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "clip_norm": 1.0,
            "z_loss": 0.0, "microbatches": 1, "loss_chunks": 1,
        },
    })  # fmt: skip


def prepared(about: ml_collections.ConfigDict) -> tuple[train_step.Program, dict[str, jax.Array]]:
    """The trainer's program, and one batch on its devices."""
    model = ModelConfig.from_config(about.model, VOCABULARY)
    program = train_step.build(model, about.train, make_mesh({}), 1)
    ids = np.random.default_rng(0).integers(3, VOCABULARY.text_size, (ROWS, LENGTH)).astype(np.int32)
    batch = {
        "tokens": ids,
        "targets": np.roll(ids, -1, axis=1),
        "positions": np.broadcast_to(np.arange(LENGTH, dtype=np.int32), ids.shape).copy(),
        "segment_ids": np.ones_like(ids),
        "loss_weights": np.ones((ROWS, LENGTH), np.float32),
        "modality": np.zeros_like(ids),
    }
    return program, program.place(batch, range(ROWS), ROWS)


def result(name: str, ours: list[float], peer: list[float], unit: str, conditions: str) -> dict[str, Any]:
    """Smaller is better; the ratio is of the medians, the spread of the pairs."""
    pairs = sorted(b / a for a, b in zip(ours, peer, strict=True))
    return {
        "name": name,
        "ours": round(statistics.median(ours), 4),
        "peer": round(statistics.median(peer), 4),
        "unit": unit,
        "ratio": round(statistics.median(peer) / statistics.median(ours), 3),
        "spread": [round(pairs[0], 3), round(pairs[-1], 3)],
        "conditions": conditions,
    }


def measure_saves(
    about: ml_collections.ConfigDict, folder: pathlib.Path, interval: int, repeats: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Leaves ours in `folder`/ours and the peer's newest in `folder`/peer. Also returns what was measured besides."""
    program, batch = prepared(about)
    state = program.init(0)
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    ours = Checkpoints(folder / "ours", CheckpointSettings(keep=Retention(1)))
    peer = ocp.StandardCheckpointer()
    seconds: dict[str, list[float]] = {"none": [], "ours": [], "peer": []}
    stalls: dict[str, list[float]] = {"none": [], "ours": [], "peer": []}
    until_final, done = [], 0

    def steps(count: int) -> None:
        nonlocal state
        for _ in range(count):
            state, metrics = program.step(state, batch)
            float(metrics.loss)  # waits for the step

    steps(2)
    for _ in range(repeats):
        for arm in ("none", "ours", "peer"):
            done += 1
            began = time.perf_counter()
            if arm == "ours":
                ours.save(done, state, about, VOCABULARY)
            elif arm == "peer":
                peer.save(folder / "peer" / str(done), state)
                peer.wait_until_finished()
            stalls[arm].append(time.perf_counter() - began)
            steps(interval)
            seconds[arm].append(time.perf_counter() - began)
            if arm == "ours":
                ours.wait()  # so that nothing of it falls into the peer's block
                until_final.append(time.perf_counter() - began)
    began = time.perf_counter()
    ours.save(done + 1, state, about, VOCABULARY)
    ours.wait()
    alone = time.perf_counter() - began
    peer.save(folder / "peer" / "last", state)
    peer.close()
    ours.close()
    where = (
        f"{program.parameters:,} parameters, state {nbytes / 1e6:.0f} MB, CPU of {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    calm = statistics.median(seconds["none"])
    every = f"a save every {interval} steps of {calm / interval:.2f} s; {where}"
    rows = [
        result("stall of one save", stalls["ours"], stalls["peer"], "s", where),
        result(
            "stall, share of the interval", [100 * s / calm for s in stalls["ours"]],
            [100 * s / calm for s in stalls["peer"]], "%", every,
        ),
        result("interval with its save", seconds["ours"], seconds["peer"], "s", f"{calm:.2f} s without; {every}"),
    ]  # fmt: skip
    extra = {
        "interval_seconds": {name: [round(s, 2) for s in values] for name, values in seconds.items()},
        "stall_seconds": {name: [round(s, 4) for s in values] for name, values in stalls.items() if name != "none"},
        "seconds_until_final_beside_training": [round(s, 2) for s in until_final],
        "seconds_until_final_alone": round(alone, 2),
    }
    return rows, extra


def measure_restores(about: ml_collections.ConfigDict, folder: pathlib.Path, repeats: int) -> list[dict[str, Any]]:
    """Ours reads every byte twice: once for the checksums."""
    program, _ = prepared(about)
    seconds: dict[str, list[float]] = {"ours": [], "peer": [], "unchecked": []}
    for _ in range(repeats):
        for arm in seconds:
            began = time.perf_counter()
            if arm == "peer":
                with ocp.StandardCheckpointer() as peer:
                    state = peer.restore(folder / "peer" / "last", program.abstract_state)
            else:
                checkpoints = Checkpoints(folder / "ours", CheckpointSettings(verify=arm == "ours"), read_only=True)
                step = checkpoints.newest_whole()
                assert step is not None
                state = checkpoints.restore(step, program.abstract_state)
                checkpoints.close()
            jax.block_until_ready(state)
            seconds[arm].append(time.perf_counter() - began)
            del state
    where = "from the page cache"
    return [
        result("restore, checksums verified", seconds["ours"], seconds["peer"], "s", where),
        result("restore, not verified", seconds["unchecked"], seconds["peer"], "s", where),
    ]


def come_back(about: ml_collections.ConfigDict, folder: pathlib.Path) -> None:
    """What a restarted process does until its first step is done."""
    program, batch = prepared(about)
    checkpoints = Checkpoints(folder / "ours")
    step = checkpoints.newest_whole()
    assert step is not None
    state = checkpoints.restore(step, program.abstract_state)
    _, metrics = program.step(state, batch)
    assert np.isfinite(float(metrics.loss))
    checkpoints.close()


def measure_restarts(folder: pathlib.Path, arguments: list[str], repeats: int) -> dict[str, Any]:
    cached = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, __file__, *arguments, "--come-back", str(folder)]

    def seconds(environment: dict[str, str]) -> float:
        began = time.perf_counter()
        subprocess.run(command, check=True, env=os.environ | environment)
        return time.perf_counter() - began

    seconds(cached)  # fills it
    ours, peer = [], []
    for _ in range(repeats):
        ours.append(seconds(cached))
        peer.append(seconds({"JAX_ENABLE_COMPILATION_CACHE": "false"}))
    conditions = "ours: jax's compilation cache filled, peer: none; imports and restoring included"
    return result("from the start of Python to the first step done", ours, peer, "s", conditions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--interval", type=int, default=30, help="steps between two saves")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--width", type=int, default=448)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--come-back", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    about = config(args.width, args.layers)
    if args.come_back:
        return come_back(about, args.come_back)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        rows, extra = measure_saves(about, folder, args.interval, args.repeats)
        rows += measure_restores(about, folder, args.repeats)
        size = ["--width", str(args.width), "--layers", str(args.layers)]
        rows.append(measure_restarts(folder, size, max(2, args.repeats // 2)))
    for row in rows:
        ratio = f"ratio {row['ratio']:.2f} ({row['spread'][0]:.2f}–{row['spread'][1]:.2f})"
        print(f"{row['name']:<48} ours {row['ours']:9.3f}  peer {row['peer']:9.3f} {row['unit']:<2} {ratio}")
        print(f"    {row['conditions']}")
    print(json.dumps(extra, indent=1))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
