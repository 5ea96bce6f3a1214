"""What the batch runner of evaluations costs beside bare generation: the same captions to pictures by the shipped model.

    .venv/bin/python tests/benchmarks/evaluate.py DATA [--examples 512] [--repeats 3] [--json PATH]

DATA is what `python -m anygpt_jax.evaluation.stand_ins DATA --config … --examples 512` writes. The peer gets all requests
at once and decodes all pictures at once, from prompts that are ready; the runner reads, asks, saves every picture and
its line. The two take turns; the ratio is of the medians.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.remove(str(pathlib.Path(__file__).parent))  # a file beside this one has the name of a package

from anygpt_jax import cli
from anygpt_jax.evaluation.batch import Share, examples_of, predict
from anygpt_jax.evaluation.examples import stable_order
from anygpt_jax.evaluation.protocols import by_name
from anygpt_jax.generation.pipeline import Pipeline
from anygpt_jax.generation.request import Request


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    protocol, pipeline = by_name("coco_image"), Pipeline.load(cli.shipped_config())
    protocol.register(args.data / protocol.name)
    examples = examples_of(protocol, args.examples)
    turns = [pipeline.formatter.ask("text", "image", e.source[1].decode()) for e in examples]
    requests = [
        Request(
            pipeline.prompt(turn, "image"), ("image",), stable_order(e.key, "0"), None, {"image": protocol.sampling}
        )
        for turn, e in zip(turns, examples, strict=True)
    ]
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    for i in range(args.repeats + 1):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            predict(pipeline, protocol, examples, pathlib.Path(folder), Share())
            middle = time.perf_counter()
            pipeline.media("image", pipeline.engine.answer(requests))
            if i:  # the first of each compiles
                seconds["ours"].append(middle - began)
                seconds["peer"].append(time.perf_counter() - middle)
    rates = {side: len(examples) / statistics.median(times) for side, times in seconds.items()}
    ratios = [p / o for o, p in zip(seconds["ours"], seconds["peer"], strict=True)]
    result = {
        "name": f"evaluation runner, {len(examples)} captions to pictures",
        "ours": round(rates["ours"], 2),
        "peer": round(rates["peer"], 2),
        "unit": "answers a second",
        "ratio": round(rates["ours"] / rates["peer"], 3),
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "conditions": f"shipped model, {os.cpu_count()} cores, batches of {pipeline.engine.settings.batch_size}",
    }
    print(json.dumps(result))
    if args.json:
        args.json.write_text(json.dumps([result], indent=1) + "\n")


if __name__ == "__main__":
    main()
