"""What the tokenization job costs beside the codecs: time in `encode` and time elsewhere, with one and two workers.

    .venv/bin/python tests/benchmarks/pipeline.py [--media 240] [--milliseconds 50] [--repeats 3] [--json PATH]

Pictures (256 px JPEG) and utterances (10 s FLAC) go through `anygpt tokenize` in both directions. Their codecs decode
the media as the shipped ones do, and then spend a fixed time a medium: either on the CPU, in one thread (`burn`, as a
codec on the CPU does), or waiting (`wait`, as for an accelerator). 50 ms is 7 times less than what the fastest of the
published tokenizers takes for 10 s of sound on this kind of machine (docs/tokenizers.md). Every worker process writes down
its clocks after each call; what is counted begins with the end of its first call and ends with the end of its last, so
it holds reading, decoding, `encode`, formatting and writing, and not the start of the process, told separately.

On a machine with other work the wall clock says little of `burn`: CPU seconds are told too, and the load. There the
scaling is that of `wait`, whose workers do not compete for cores while they encode.

No other package has this job: the "peer" is the codec alone, and the ratio is of the codec's time to all of it.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parent)]  # tests/: the tiny world's tasks and data sets

import seqio  # noqa: E402
import tiny_world  # noqa: E402
from PIL import Image  # noqa: E402

from anygpt_jax.embedded import settings as embedded  # noqa: E402
from anygpt_jax.modalities.base import Audio  # noqa: E402
from anygpt_jax.tasks import preprocessors, registry  # noqa: E402

SECONDS = 10.0  # of an utterance
PIXELS = 256
SHARDS = 2  # of every task: to open one costs the same for ten examples as for ten thousand
DATA = "ANYGPT_PIPELINE_BENCHMARK_DATA"  # the environment variable that tells workers where the data set is
PAIRS = [
    registry.PairTask(*pair, "image_attributes", ("train",))
    for pair in (("image", "text", "images"), ("text", "image", "images"),
                 ("speech", "text", "speech"), ("text", "speech", "speech"))
]  # fmt: skip
TASKS = tuple(f"timed_{pair.name}" for pair in PAIRS)


class TimedCodec:
    """Codes of no meaning, after a fixed time a medium; clocks go to a file of the process."""

    def __init__(self, modality: str, *, milliseconds: float, waits: bool, log: str):
        small = tiny_world.ImageCodec() if modality == "image" else tiny_world.SoundCodec(modality)
        self.name, self.symbol, self.codebook_size, self.rate = modality, small.symbol, small.codebook_size, small.rate
        self.grammar, self.fingerprint = small.grammar, f"{modality}-timed"
        self._small, self._seconds, self._waits, self._log = small, milliseconds / 1000, waits, log

    def load(self, data: bytes) -> np.ndarray | Audio:
        wall, cpu = time.perf_counter(), time.thread_time()
        media = self._small.load(data)
        CLOCKS["load_wall"] += time.perf_counter() - wall
        CLOCKS["load_cpu"] += time.thread_time() - cpu
        return media

    def encode(self, media: list) -> list[np.ndarray]:
        wall, cpu = time.perf_counter(), time.thread_time()
        if self._waits:
            time.sleep(self._seconds * len(media))
        else:
            while time.thread_time() - cpu < self._seconds * len(media):
                pass
        codes = [np.zeros(4 if self.name == "image" else 25, np.int32) for _ in media]
        CLOCKS["media"] += len(media)
        CLOCKS["encode_wall"] += time.perf_counter() - wall
        CLOCKS["encode_cpu"] += time.thread_time() - cpu
        now = {"pid": os.getpid(), "wall": time.time(), "cpu": time.process_time(), **CLOCKS}
        with open(f"{self._log}-{os.getpid()}", "a") as log:
            log.write(json.dumps(now) + "\n")
        return codes


CLOCKS = {"media": 0, "load_wall": 0.0, "load_cpu": 0.0, "encode_wall": 0.0, "encode_cpu": 0.0}
# What `config.tokenize.modules` names is imported by every worker.
tiny_world.ENTRY_POINTS["timed"] = tiny_world.EntryPoint(TimedCodec)
for pair, task in zip(PAIRS if DATA in os.environ else (), TASKS, strict=False):
    if task not in seqio.TaskRegistry.names():
        seqio.TaskRegistry.add(
            task,
            source=seqio.TfdsDataSource(
                f"{registry.DATASET}/{pair.data}:{embedded.VERSION}", tfds_data_dir=os.environ[DATA], splits=("train",)
            ),
            preprocessors=pair.preprocessors(),
            output_features=preprocessors.OUTPUT_FEATURES,
        )


@functools.cache
def jpeg(colour: str, seed: int) -> bytes:
    """A picture with some detail: about 20 kB."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((PIXELS, PIXELS), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@functools.cache
def utterance(seed: int) -> bytes:
    """10 s of noise that swells: about 200 kB of FLAC."""
    import soundfile

    rng = np.random.default_rng(seed)
    time_of = np.arange(int(SECONDS * tiny_world.RATE)) / tiny_world.RATE
    sound = 0.1 * np.sin(2 * np.pi * time_of) * rng.standard_normal(len(time_of))
    buffer = io.BytesIO()
    soundfile.write(buffer, sound.astype(np.float32), tiny_world.RATE, format="FLAC")
    return buffer.getvalue()


def realistic(example: dict) -> dict:
    seed = int.from_bytes(example["key"].encode()[-5:], "big") % 2**31 if "key" in example else 0
    if "image" in example:
        return {**example, "image": jpeg("", seed)}
    if "speech" in example and isinstance(example["speech"], bytes):
        return {**example, "speech": utterance(seed)}
    return example


def job(arguments: argparse.Namespace, workers: int, waits: bool, data: pathlib.Path) -> dict:
    """Runs the job in a process of its own; what its workers wrote down, summed over them."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder)
        (workdir / "data").symlink_to(data.parent)
        settings = {
            "workers": workers,
            "waits": waits,
            "milliseconds": arguments.milliseconds,
            "workdir": folder,
        }
        paths = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
        environment = {
            **os.environ,
            "PYTHONPATH": paths,
            "OMP_NUM_THREADS": "1",
            "JAX_PLATFORMS": "cpu",
            DATA: str(data),
        }
        began, load = time.time(), os.getloadavg()[0]
        subprocess.run(
            [sys.executable, __file__, "--job", json.dumps(settings)], env=environment, check=True, capture_output=True
        )
        took = time.time() - began
        lines = {p.name: p.read_text().splitlines() for p in workdir.glob("clocks-*")}
    spans = [(json.loads(of_worker[0]), json.loads(of_worker[-1])) for of_worker in lines.values()]
    assert len(spans) == workers, f"{len(spans)} workers instead of {workers}"
    total = {
        key: sum(last[key] - first[key] for first, last in spans) for key in spans[0][0] if key not in ("pid", "wall")
    }
    total["worker_wall"] = sum(last["wall"] - first["wall"] for first, last in spans)
    total["wall"] = max(last["wall"] for _, last in spans) - min(first["wall"] for first, _ in spans)
    total["all_media"] = sum(last["media"] for _, last in spans)
    total["start"] = min(first["wall"] for first, _ in spans) - began
    return {**total, "job": took, "load": load}


def inside(settings: dict) -> None:
    """The job itself."""
    from anygpt_jax.tasks import tokenize

    tokenize.SMALLEST_SHARD = 1
    config = tiny_world.config(
        pathlib.Path(settings["workdir"]),
        tasks=TASKS,
        shards=SHARDS,
        modules=(pathlib.Path(__file__).stem,),
        runner_options=(
            f"--direct_num_workers={settings['workers']}",
            "--direct_running_mode=multi_processing",
        ),
    )
    timed = {"entry": "timed", "milliseconds": settings["milliseconds"], "waits": settings["waits"]}
    timed["log"] = f"{settings['workdir']}/clocks"
    config.modalities = ("image", "speech")
    config.tokenizers = {modality: timed for modality in config.modalities}
    config.mixture = {TASKS[0]: 1.0}
    tokenize.run(config, argparse.Namespace(json=None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", type=int, default=240, help="pictures, and as many utterances")
    parser.add_argument("--milliseconds", type=float, default=50.0, help="of `encode`, a medium")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", metavar="PATH")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        inside(json.loads(arguments.job))
        return
    with tempfile.TemporaryDirectory() as folder:
        tiny_world.build(pathlib.Path(folder), {"train": arguments.media}, mend=realistic)
        data = embedded.data_dir(tiny_world.config(pathlib.Path(folder)))
        results = []
        for waits in (False, True):
            runs: dict[int, list[dict]] = {1: [], 2: []}
            for _ in range(arguments.repeats):
                for workers, of_count in runs.items():
                    of_count.append(job(arguments, workers, waits, data))
            results += report(arguments, "wait" if waits else "burn", runs)
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(results, indent=1))


def report(arguments: argparse.Namespace, kind: str, runs: dict[int, list[dict]]) -> list[dict]:
    def of(workers: int, measure) -> list[float]:
        return [measure(run) for run in runs[workers]]

    loads = of(1, lambda r: r["load"]) + of(2, lambda r: r["load"])
    conditions = (
        f"{arguments.media} pictures and {arguments.media} utterances, {arguments.milliseconds:g} ms each ({kind}), "
        f"two records a medium; {os.cpu_count()} cores shared with other work, load {min(loads):.1f} to {max(loads):.1f}; "
        f"{arguments.repeats} repetitions; start of the job and its workers {statistics.median(of(2, lambda r: r['start'])):.0f} s"
    )
    results = []

    def add(name: str, unit: str, ours: list[float], peer: list[float], ratios: list[float]) -> None:
        result = {
            "name": f"{name}, {kind}",
            "ours": round(statistics.median(ours), 4),
            "peer": round(statistics.median(peer), 4),
            "unit": unit,
            "ratio": round(statistics.median(ratios), 3),
            "spread": [round(min(ratios), 3), round(max(ratios), 3)],
            "conditions": conditions,
        }
        results.append(result)
        print(f"{result['name']:<44} {result['ours']:>9.3f} {result['peer']:>9.3f}  {result['ratio']:.3f} "
              f"({result['spread'][0]:.3f}–{result['spread'][1]:.3f})  {unit}", flush=True)  # fmt: skip

    for workers in runs:
        ours = of(workers, lambda r: r["worker_wall"] / r["media"] * 1000)
        peer = of(workers, lambda r: r["encode_wall"] / r["media"] * 1000)
        ratios = [p / o for o, p in zip(ours, peer, strict=True)]
        add(f"wall ms a medium, {workers} workers", "ms: whole, in encode", ours, peer, ratios)
        busy = [(r["cpu"] - r["encode_cpu"]) / r["media"] * 1000 for r in runs[workers]]
        decoding = [r["load_cpu"] / r["media"] * 1000 for r in runs[workers]]
        share = [1 - b / arguments.milliseconds for b in busy]
        add(f"CPU ms beside encode, {workers} workers", "ms: beside encode, of it decoding", busy, decoding, share)
    speeds = {workers: of(workers, lambda r: r["media"] / r["wall"]) for workers in runs}
    ratios = [two / one for one, two in zip(speeds[1], speeds[2], strict=True)]
    add("media a second, 2 workers beside 1", "media/s", speeds[2], speeds[1], ratios)
    print(conditions)
    return results


if __name__ == "__main__":
    main()
