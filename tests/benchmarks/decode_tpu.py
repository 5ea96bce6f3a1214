"""One token a row of the 7B on TPUs that are not there: the program compiled ahead of time, and its step estimated.

    .venv/bin/python tests/benchmarks/decode_tpu.py [--only v5e] [--length 4096] [--json PATH]

Tensor-parallel, bfloat16 weights, every row with a full cache. The limit is the time to read the weights and the
cache once at the chip's bandwidth; "of limit" is its share of the estimated step. What the estimate leaves out is told
in anygpt_jax/planning/decode.py. A program takes one to three minutes to compile on two idle cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.remove(str(pathlib.Path(__file__).parent))  # a file beside this one has the name of a package

from anygpt_jax.cli import load_config
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.planning.chips import GIB, Topology
from anygpt_jax.planning.decode import plan_decode

ROOT = pathlib.Path(__file__).resolve().parents[2]
IDS = 49_536  # the release's 49,420, padded


@dataclasses.dataclass(frozen=True)
class Setting:
    topology: str
    batch: int
    cache: str | None  # None: bfloat16


SETTINGS = (Setting("v5e:2x2", 16, None), Setting("v5p:2x2x1", 64, None), Setting("v5e:2x4", 64, "int8"))


def model_7b() -> ModelConfig:
    fields = load_config(str(ROOT / "configs" / "anygpt_7b.py")).model.to_dict()
    fields.pop("vocab_multiple")
    # Barriers and recomputation are of the backward pass.
    fields |= {"param_dtype": "bfloat16", "matmul_barriers": "none", "remat": "none"}
    return ModelConfig(vocab_size=IDS, **fields)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="settings whose topology begins so")
    parser.add_argument("--length", type=int, default=4096, help="slots of the cache")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    results = []
    for setting in (s for s in SETTINGS if s.topology.startswith(args.only)):
        plan = plan_decode(model_7b(), Topology.parse(setting.topology), setting.batch, args.length, setting.cache)
        step = plan.step
        result = {
            "name": f"decode 7B, {setting.topology}, batch {setting.batch}, {setting.cache or 'bfloat16'} cache",
            "ours": round(step.seconds * 1e3, 2),
            "peer": round(plan.limit * 1e3, 2),
            "unit": "ms a token (estimated; peer: the limit of the bandwidth)",
            "ratio": round(plan.of_limit, 3),
            "spread": None,
            "gib": {
                "weights": round(plan.weights / GIB, 2),
                "cache": round(plan.cache / GIB, 2),
                "temporaries": round(plan.temporaries / GIB, 3),
            },
            "ms": {
                "matmul": round((step.matmul + step.attention) * 1e3, 2),
                "other": round(step.elementwise * 1e3, 2),
                "collectives": round(step.exposed * 1e3, 2),
            },
            "conditions": f"cache of {args.length}, tensor-parallel, compiled in {plan.compile_seconds:.0f} s",
        }
        print(
            f"{result['name']:<52} {result['ours']:>6.2f} ms, limit {result['peer']:>6.2f} ms: {plan.of_limit:.1%} of it; "
            f"{result['ms']}; GiB {result['gib']}; {setting.batch / step.seconds:,.0f} tokens/s",
            flush=True,
        )
        results.append(result)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
