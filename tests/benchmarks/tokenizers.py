"""Published tokenizers in their published sizes: ours beside the PyTorch class on this machine, and compiled for a TPU.

    .venv/bin/python tests/benchmarks/tokenizers.py [--only encodec_32khz …] [--repeats 5] [--json PATH]
    .venv/bin/python tests/benchmarks/tokenizers.py --tpu v5e:1x1 [--only …]

On the CPU both sides have the same (random) weights and inputs, float32, all cores, batch 1, and take turns; the ratio
is of the medians. Peak memory is of a process that does nothing else, from what it holds after its imports. Compiling
is left out. For a TPU nothing is measured: our program is compiled ahead of time for one chip at growing batches and
read by `anygpt plan`'s reader; the best batch that fits is told. Weights are float32; products are so too where codes
are made, as the product has it, and at the chip's default (bfloat16) elsewhere.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Last instead of first: there is a package of this file's name.
HERE = str(pathlib.Path(__file__).parent)
sys.path[:] = [p for p in sys.path if p != HERE] + [HERE]

import jax
import jax.numpy as jnp
import torch
import transformers
from flax import nnx
from tokenizer_cases import CASES, Case, program

from anygpt_jax.planning.chips import GIB, Topology
from anygpt_jax.planning.compile import topology_devices
from anygpt_jax.planning.hlo import parse
from anygpt_jax.planning.timeline import Timeline


def on_cpu(name: str, case: Case, repeats: int) -> list[dict]:
    model = case.theirs()
    state = model.state_dict()
    ours_module = case.ours(state).filled(state)
    theirs = case.run_theirs(model)
    results = []
    for direction, (function, arrays) in case.run_ours.items():
        sides = {"ours": program(ours_module, function, arrays), "peer": theirs[direction]}
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for run in sides.values():
            run()  # compiles
        for _ in range(repeats):
            for side, run in sides.items():
                began = time.perf_counter()
                run()
                seconds[side].append(time.perf_counter() - began)
        speed = {side: [case.amount / t for t in times] for side, times in seconds.items()}
        ratios = [o / p for o, p in zip(speed["ours"], speed["peer"], strict=True)]
        result = {
            "name": f"{name} {direction}",
            "ours": round(statistics.median(speed["ours"]), 3),
            "peer": round(statistics.median(speed["peer"]), 3),
            "unit": f"{case.unit} a second",
            "ratio": round(statistics.median(speed["ours"]) / statistics.median(speed["peer"]), 3),
            "spread": [round(min(ratios), 3), round(max(ratios), 3)],
            "peak_memory_gib": {side: memory(name, direction, side) for side in sides},
            "conditions": f"{case.amount:.4g} {case.unit}, batch 1, float32, {os.cpu_count()} cores, "
            f"jax {jax.__version__}, torch {torch.__version__}, transformers {transformers.__version__}",
        }
        print(
            f"{result['name']:<26} ours {result['ours']:>9.3f}  peer {result['peer']:>9.3f} {result['unit']:<16} "
            f"ratio {result['ratio']:.2f} ({result['spread'][0]:.2f}–{result['spread'][1]:.2f})  "
            f"GiB {result['peak_memory_gib']['ours']} / {result['peak_memory_gib']['peer']}",
            flush=True,
        )
        results.append(result)
    return results


def memory(name: str, direction: str, side: str) -> float:
    """Peak memory of one side in a process of its own, GiB beyond what the imports take."""
    command = [sys.executable, __file__, "--only", name, "--memory-of", f"{direction}:{side}"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def memory_of(case: Case, direction: str, side: str) -> None:
    def status(field: str) -> int:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024

    jax.devices()
    before = status("VmRSS")
    if side == "peer":
        run = case.run_theirs(case.theirs())[direction]
    else:
        graph, state = nnx.split(case.abstract())
        module = nnx.merge(graph, jax.tree.map(lambda x: jnp.full(x.shape, 0.01, x.dtype), state))
        function, arrays = case.run_ours[direction]
        run = program(module, function, arrays)
    run()
    run()
    print(round((status("VmHWM") - before) / GIB, 2))


def on_tpu(name: str, case: Case, topology: Topology) -> list[dict]:
    """The best batch of each direction by estimated throughput: larger while it fits and gains over a tenth."""
    from jax.sharding import SingleDeviceSharding

    here = SingleDeviceSharding(topology_devices(topology)[0])
    graph, state = nnx.split(case.abstract())
    results = []
    for direction, (function, arrays) in case.run_ours.items():
        best: dict | None = None
        for batch in (1, 4, 16, 64, 256):
            shapes = [jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype) for a in arrays]
            jitted = jax.jit(
                lambda state, *a, function=function: function(nnx.merge(graph, state), *a),
                in_shardings=here,
                out_shardings=here,
            )
            # As the product encodes: codes are not to differ for the chip's rounding.
            with jax.default_matmul_precision("highest" if direction == "encode" else "default"):
                lowered = jitted.lower(state, *shapes)
            try:
                compiled = lowered.compile()
            except jax.errors.JaxRuntimeError as e:
                if "RESOURCE_EXHAUSTED" not in str(e):
                    raise
                break
            text, stats = compiled.as_text(), compiled.memory_analysis()
            assert text is not None and stats is not None
            spent = Timeline(parse(text), topology).step()
            found = {
                "name": f"{name} {direction}, {topology.name}",
                "ours": round(case.amount * batch / spent.seconds, 1),
                "unit": f"{case.unit} a second (estimated)",
                "batch": batch,
                "hbm_gib": round(stats.peak_memory_in_bytes / GIB, 2),
                "share_of_products": round(spent.matmul / spent.seconds, 3),
                "of_peak": round(spent.matmul_flops / spent.seconds / topology.chip.bf16, 3),
                "unknown_loops": spent.unknown_loops,
            }
            if best is not None and found["ours"] < 1.1 * best["ours"]:
                break
            best = found
        assert best is not None, f"{name} {direction} does not fit at batch 1"
        print(json.dumps(best), flush=True)
        results.append(best)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=tuple(CASES), default=tuple(CASES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tpu", metavar="TOPOLOGY", help="for example v5e:1x1: estimate instead of measuring")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        return memory_of(CASES[args.only[0]](), *args.memory_of.split(":"))
    results = []
    for name in args.only:
        case = CASES[name]()
        results += on_tpu(name, case, Topology.parse(args.tpu)) if args.tpu else on_cpu(name, case, args.repeats)
    if not args.tpu:
        gain = math.exp(statistics.fmean(math.log(r["ratio"]) for r in results))
        print(f"geometric mean of the ratios: {gain:.2f}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
