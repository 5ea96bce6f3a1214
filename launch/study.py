"""Runs the miniature study of docs/study.md: every arm of configs/study.py with every seed, one core an arm at a time.

    python launch/study.py                     # resumes; two hours on two cores with other work beside
    python launch/study.py --seeds 0 --arms any_to_any image_to_text

A seed decides data, initialisation and order of the examples alike. Each finished arm adds a line to
WORKDIR/results.jsonl; `python -m anygpt_jax.evaluation.study WORKDIR/results.jsonl` makes the tables.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.util
import json
import os
import pathlib
import queue
import subprocess
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "study.py"
SHARED = ("data", "cache", "compiled")


def study() -> Any:
    spec = importlib.util.spec_from_file_location("study", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def verb(name: str, arm: str, seed: int, workdir: pathlib.Path, core: int | None) -> None:
    """One verb, its output in WORKDIR/NAME.log; raises RuntimeError if it fails."""
    command = [sys.executable, "-m", "anygpt_jax.cli", name, "--config", f"{CONFIG}:{arm}"]
    command += ["--workdir", str(workdir), f"--config.seed={seed}"]
    pinned = (lambda: os.sched_setaffinity(0, {core})) if core is not None else None
    with (workdir / f"{name}.log").open("ab") as log:
        code = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, preexec_fn=pinned).returncode
    if code:
        raise RuntimeError(f"{name} of {arm}, seed {seed}, ended with status {code}; see {workdir / f'{name}.log'}")


def check_lengths(folder: pathlib.Path, told: dict[str, int]) -> None:
    """The mean lengths that the config turns shares with are those of this cache, to 5 %."""
    from anygpt_jax.cache import Manifest

    for task, tokens in told.items():
        shards = Manifest.load(folder / "cache").tasks[task]["train"]
        mean = sum(shard.tokens for shard in shards) / sum(shard.records for shard in shards)
        if abs(mean / tokens - 1) > 0.05:
            raise RuntimeError(
                f"{task} has {mean:.1f} tokens a record and configs/study.py says {tokens}; mend TOKENS."
            )


def prepare(folder: pathlib.Path, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("build-data", "tokenize"):
        verb(name, "any_to_any", seed, folder, None)
    (folder / "compiled").mkdir(exist_ok=True)


def run_arm(folder: pathlib.Path, arm: str, seed: int, core: int) -> dict[str, Any]:
    """Trains and scores one arm; what an earlier call has done is kept."""
    workdir = folder / arm
    workdir.mkdir(exist_ok=True)
    for name in SHARED:
        if not (workdir / name).exists():
            (workdir / name).symlink_to((folder / name).resolve())
    began = time.monotonic()
    for name in ("train", "evaluate"):
        verb(name, arm, seed, workdir, core)
    lines = [json.loads(line) for line in (workdir / "logs" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss_by_task"] for line in lines if line["split"] == "validation"][-1]
    measured = json.loads((workdir / "report" / "metrics.json").read_text())["quickstart"]
    return {
        "arm": arm, "seed": seed, "step": measured["step"], "seconds": round(time.monotonic() - began, 1),
        "validation": {task: loss["loss"] for task, loss in losses.items()}, "matrix": measured["matrix"], "dialogues": measured.get("dialogues"),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("--workdir", default="runs/study", type=pathlib.Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(study().ARMS))
    args = parser.parse_args()
    args.workdir = args.workdir.resolve()
    results = args.workdir / "results.jsonl"
    done = set()
    if results.is_file():
        done = {(r["arm"], r["seed"]) for r in map(json.loads, results.read_text().splitlines())}
    cores: queue.Queue[int] = queue.Queue()
    for core in sorted(os.sched_getaffinity(0)):
        cores.put(core)
    failed = 0

    def one(arm: str, seed: int) -> dict[str, Any]:
        core = cores.get()
        try:
            return run_arm(args.workdir / f"seed_{seed}", arm, seed, core)
        finally:
            cores.put(core)

    for seed in args.seeds:
        arms = [arm for arm in args.arms if (arm, seed) not in done]
        if not arms:
            continue
        prepare(args.workdir / f"seed_{seed}", seed)
        check_lengths(args.workdir / f"seed_{seed}", study().TOKENS)
        with concurrent.futures.ThreadPoolExecutor(cores.qsize()) as pool:
            jobs = {pool.submit(one, arm, seed): arm for arm in arms}
            for job in concurrent.futures.as_completed(jobs):
                try:
                    row = job.result()
                except Exception as e:  # the other arms go on
                    print(f"{jobs[job]}, seed {seed}: {type(e).__name__}: {e}", file=sys.stderr)
                    failed += 1
                    continue
                with results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"seed {seed}, {row['arm']}: {row['step']} steps, {row['seconds']:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
