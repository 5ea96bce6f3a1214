"""Packed tokens a second from one cache: ours beside Grain's packers, SeqIO's tf.data packing and an np.memmap copy.

    .venv/bin/python tests/benchmarks/reader.py [--records 12000] [--repeats 5] [--json PATH]
    .venv/bin/python tests/benchmarks/reader.py --scale [--json PATH]

All read the same records from the page cache, in batches of 8 rows of 4096, and take turns; a ratio is of the medians.
Rates are of tokens that are not padding, by CPU-second (all threads of the process) and by wall second. The peers do
less than ours: Grain's give tokens, segments and positions, SeqIO's the same and in the order of the file, the copy
tokens alone (`memmap, tokens`) or the arrays of our batches (`memmap, whole batch`), at random records, as ours.
SeqIO reads TFRecords of tf.Examples (its own form of a cache) of the same tokens.

--scale writes the lengths of 10^6 and 10^8 records without their tokens, and measures what a process pays to start
and to plan 2000 batches.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import grain
import msgpack
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from anygpt_jax.cache import Manifest, Shard, write_shard
from anygpt_jax.data.history import Stage
from anygpt_jax.data.loader import BatchSource, iterate, packers
from anygpt_jax.data.mixture import MixtureSettings
from anygpt_jax.data.store import Store
from anygpt_jax.records import Span, TokenRecord
from anygpt_jax.vocabulary import BlockSpec, Vocabulary

SEQ_LEN, ROWS, BINS = 4096, 8, 32
PEER_THREADS = 2
WEIGHTS = {"long": 0.7, "short": 0.3}
BOUNDS = {"long": (200, 3000), "short": (50, 800)}
SHARDS = 4
VOCABULARY = Vocabulary.build(
    text_size=32000, text_fingerprint="none", blocks=[BlockSpec("image", 8192), BlockSpec("speech", 1024)]
)


def write_cache(root: pathlib.Path, records: int) -> None:
    rng = np.random.default_rng(0)
    held: dict = {}
    for task, (low, high) in BOUNDS.items():
        made = []
        for i in range(records):
            n = int(rng.integers(low, high))
            tokens = np.minimum(rng.zipf(1.1, n), VOCABULARY.size - 1).astype(np.int32)
            spans = (Span(n // 2, "text", "human", False), Span(n - n // 2, "image", "assistant", True))
            made.append(TokenRecord(f"{task}-{i}", task, tokens, spans))
        parts = [made[s::SHARDS] for s in range(SHARDS)]
        stems = [f"{task}/train/{s:05d}-of-{SHARDS:05d}" for s in range(SHARDS)]
        held[task] = {"train": [write_shard(root, stem, part) for stem, part in zip(stems, parts, strict=True)]}
    VOCABULARY.save(root / "vocabulary.json")
    Manifest(VOCABULARY.fingerprint, "none", {}, held).save(root)


def our_source(root: pathlib.Path, steps: int) -> BatchSource:
    history = [Stage(0, MixtureSettings(WEIGHTS))]
    plans = packers(Store(root, "train"), history, batch_size=ROWS, pack_rows=256, seq_len=SEQ_LEN, seed=0)
    return BatchSource(plans, VOCABULARY, ROWS, steps)


def ours(root: pathlib.Path) -> Iterator[int]:
    """The real tokens of each batch, as all of these give."""
    for _, batch in iterate(our_source(root, 10**6), 0):
        yield int((batch["segment_ids"] > 0).sum())


def decode(data: bytes) -> dict[str, np.ndarray]:
    fields = msgpack.unpackb(data)
    return {"tokens": np.frombuffer(fields["tokens"], fields["dtype"]).astype(np.int32)}


def grains(root: pathlib.Path, packing: type) -> Iterator[int]:
    sources = []
    for task in WEIGHTS:
        paths = [str(root / shard.path) for shard in Manifest.load(root).shards(task, "train")]
        sources.append(grain.MapDataset.source(ArrayRecordDataSource(paths)).shuffle(0).repeat().map(decode))
    mixed = grain.MapDataset.mix(sources, list(WEIGHTS.values()))
    ahead = mixed.to_iter_dataset(grain.ReadOptions(num_threads=PEER_THREADS, prefetch_buffer_size=64))
    packed = packing(ahead, length_struct={"tokens": SEQ_LEN}, num_packing_bins=BINS).batch(ROWS)
    for batch in packed:
        yield int((batch["tokens_segment_ids"] > 0).sum())


def write_tfrecords(root: pathlib.Path) -> None:
    import tensorflow as tf

    for task in WEIGHTS:
        store = Store(root, "train")
        with tf.io.TFRecordWriter(str(root / f"{task}.tfrecord")) as writer:
            for data in store.read(task, np.arange(int(store.offsets(task)[-1]))):
                ids = tf.train.Int64List(value=decode(data)["tokens"].tolist())
                feature = {"targets": tf.train.Feature(int64_list=ids)}
                writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


def seqios(root: pathlib.Path) -> Iterator[int]:
    import seqio
    import tensorflow as tf

    spec = {"targets": tf.io.RaggedFeature(tf.int64)}

    def parse(data):
        return {"targets": tf.cast(tf.io.parse_single_example(data, spec)["targets"], tf.int32)}

    parts = [tf.data.TFRecordDataset(str(root / f"{task}.tfrecord")).repeat().map(parse) for task in WEIGHTS]
    mixed = tf.data.Dataset.sample_from_datasets(parts, list(WEIGHTS.values()), seed=0)
    packed = seqio.trim_and_pack_dataset(mixed, {"targets": SEQ_LEN}).batch(ROWS).prefetch(2)
    options = tf.data.Options()
    options.threading.private_threadpool_size = PEER_THREADS
    for batch in packed.with_options(options).as_numpy_iterator():
        yield int((batch["targets_segment_ids"] > 0).sum())


def write_memmap(root: pathlib.Path) -> None:
    store = Store(root, "train")
    for task in WEIGHTS:
        every = store.read(task, np.arange(int(store.offsets(task)[-1])))
        np.concatenate([decode(data)["tokens"] for data in every]).tofile(root / f"{task}.tokens")


def memmaps(root: pathlib.Path, whole_batch: bool) -> Iterator[int]:
    """Random records, copied from a map of int32 tokens to where our plan has them (planning is not counted)."""
    source = our_source(root, 0)
    (_, packer), *_ = source.stages
    maps, begins = [], []
    for task in packer.mixture.tasks:
        maps.append(np.memmap(root / f"{task}.tokens", np.int32, "r"))
        lengths = packer.mixture.store.lengths(task, np.arange(int(packer.mixture.store.offsets(task)[-1])))
        begins.append(np.cumsum(lengths) - lengths)
    modality_of = VOCABULARY.modality_ids().astype(np.int32)
    plans = []
    for step in range(400):
        items, starts = packer.plan(step * ROWS, (step + 1) * ROWS)
        row = np.repeat(np.arange(ROWS), np.diff(starts))
        before = np.cumsum(items.length) - items.length
        at = row * SEQ_LEN + before - before[starts[:-1][row]]
        begin = np.array([begins[t][r] for t, r in zip(items.task, items.record, strict=True)])
        plans.append((items.task.tolist(), begin.tolist(), items.length.tolist(), at.tolist()))
    positions = np.arange(SEQ_LEN, dtype=np.int32)
    yield 0  # all that was not to be counted
    for tasks, begin, lengths, places in itertools.cycle(plans):
        tokens = np.zeros(ROWS * SEQ_LEN, np.int32)
        if whole_batch:
            arrays = {name: np.zeros_like(tokens) for name in ("targets", "segments", "positions")}
            weights = np.zeros(tokens.shape, np.float32)
        for i, (t, b, n, at) in enumerate(zip(tasks, begin, lengths, places, strict=True)):
            tokens[at : at + n] = maps[t][b : b + n]
            if whole_batch:
                arrays["targets"][at : at + n - 1] = tokens[at + 1 : at + n]
                arrays["segments"][at : at + n] = i + 1
                arrays["positions"][at : at + n] = positions[:n]
                weights[at + n // 2 : at + n - 1] = 1
        if whole_batch:
            arrays["modality"] = modality_of[arrays["targets"]]
        yield sum(lengths)


def rates(batches: Iterator[int], seconds: float) -> tuple[float, float]:
    """Tokens a CPU-second and a wall second, after a second or two batches of warming up."""
    warm = time.perf_counter() + 0.5
    for _ in range(2):
        next(batches)
    while time.perf_counter() < warm:
        next(batches)
    tokens, cpu, wall = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - wall < seconds:
        tokens += next(batches)
    return tokens / (time.process_time() - cpu), tokens / (time.perf_counter() - wall)


def compare(args: argparse.Namespace) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        write_cache(root, args.records)
        write_memmap(root)
        write_tfrecords(root)
        packing = grain.experimental
        sides: dict[str, Callable[[], Iterator[int]]] = {
            "ours": lambda: ours(root),
            "grain FirstFit": lambda: grains(root, packing.FirstFitPackIterDataset),
            "grain BestFit": lambda: grains(root, packing.BestFitPackIterDataset),
            "seqio trim_and_pack": lambda: seqios(root),
            "memmap, tokens": lambda: memmaps(root, False),
            "memmap, whole batch": lambda: memmaps(root, True),
        }
        found: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
        for _ in range(args.repeats):
            for side, make in sides.items():
                found[side].append(rates(make(), args.seconds))
                print(f"{side:<22} {found[side][-1][0] / 1e6:8.2f} M tokens/CPU s", flush=True)
        (_, packer), *_ = our_source(root, 1).stages
        fill = statistics.mean(packer.fill(w) for w in range(min(8, packer.windows)))
    results = []
    for side in list(sides)[1:]:
        for k, unit in enumerate(("tokens a CPU-second", "tokens a wall second")):
            mine, other = ([rate[k] for rate in found[name]] for name in ("ours", side))
            each = [a / b for a, b in zip(mine, other, strict=True)]
            result = {
                "name": f"reader beside {side}",
                "ours": round(statistics.median(mine)),
                "peer": round(statistics.median(other)),
                "unit": unit,
                "ratio": round(statistics.median(mine) / statistics.median(other), 3),
                "spread": [round(min(each), 3), round(max(each), 3)],
                "conditions": f"{args.records} records of {BOUNDS['long']} and of {BOUNDS['short']} tokens at "
                f"{WEIGHTS}, rows of {SEQ_LEN}, our fill {fill:.4f}, {PEER_THREADS} read threads of the peers and one of ours, "
                f"{args.repeats} repetitions of {args.seconds} s, {os.cpu_count()} cores shared with other work, "
                f"load {os.getloadavg()[0]:.1f}, grain {grain.__version__}",
            }
            results.append(result)
            ratio = f"ratio {result['ratio']:.2f} ({result['spread'][0]:.2f}–{result['spread'][1]:.2f})"
            print(
                f"{side:<22} ours {result['ours'] / 1e6:7.2f} M  peer {result['peer'] / 1e6:7.2f} M {unit:<20} {ratio}"
            )
    return results


def write_lengths(root: pathlib.Path, shards: int, records: int) -> None:
    """A cache of lengths alone: captions, speech and documents."""
    rng = np.random.default_rng(0)
    held: dict = {}
    for task, (mu, sigma) in {"captions": (4.3, 0.3), "speech": (6.5, 0.3), "documents": (6.8, 0.8)}.items():
        (root / task / "train").mkdir(parents=True)
        lengths = np.clip(rng.lognormal(mu, sigma, records), 8, 20000).astype(np.uint32)
        held[task] = {"train": []}
        for s in range(shards):
            stem = f"{task}/train/{s:05d}-of-{shards:05d}"
            np.save(root / f"{stem}.lengths.npy", np.roll(lengths, s))
            (root / f"{stem}.array_record").touch()
            held[task]["train"].append(
                Shard(
                    path=f"{stem}.array_record",
                    lengths_path=f"{stem}.lengths.npy",
                    rejects_path=f"{stem}.rejects.jsonl",
                    records=records,
                    tokens=int(lengths.sum()),
                    rejects=0,
                    sha256="0" * 64,
                    lengths_sha256="0" * 64,
                )
            )
    Manifest("none", "none", {}, held).save(root)


def memory(field: str) -> float:
    """MiB of this process, as the kernel counts."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def start(root: pathlib.Path) -> None:
    before, began, cpu = memory("RssAnon"), time.perf_counter(), time.process_time()
    weights = dict.fromkeys(("captions", "speech", "documents"), 1.0)
    history = [Stage(0, MixtureSettings(weights))]
    (_, packer), *_ = packers(Store(root, "train"), history, batch_size=ROWS, pack_rows=256, seq_len=SEQ_LEN, seed=0)
    packer.plan(0, ROWS)
    started = time.perf_counter() - began, time.process_time() - cpu
    began = time.perf_counter()
    packer.plan(10**9, 10**9 + ROWS)
    jumped = time.perf_counter() - began
    most, fills, began = 0.0, [], time.perf_counter()
    for w in range(63):
        fills.append(packer.fill(w))
        most = max(most, memory("RssAnon"))
    planned = time.perf_counter() - began
    print(
        json.dumps(
            {
                "start_seconds": round(started[0], 2),
                "start_cpu_seconds": round(started[1], 2),
                "jump_seconds": round(jumped, 2),
                "plan_seconds_of_2016_batches": round(planned, 2),
                "anonymous_mib": round(most - before, 1),
                "fill": round(statistics.mean(fills), 4),
            }
        )
    )


def scale() -> list[dict]:
    found = {}
    for total, shards in ((10**6, 10), (10**8, 1000)):
        with tempfile.TemporaryDirectory() as folder:
            write_lengths(pathlib.Path(folder), shards // 2, total // 3 // (shards // 2))
            command = [sys.executable, __file__, "--start", folder]
            found[total] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"{total:>11,} records: {found[total]}", flush=True)
    small, large = found.values()
    names = {"start-up": ("start_seconds", "s"), "planning's memory": ("anonymous_mib", "MiB of anonymous memory")}
    return [
        {
            "name": f"reader's {name} at 10^8 records beside itself at 10^6",
            "ours": large[field],
            "peer": small[field],
            "unit": unit,
            "ratio": round(small[field] / large[field], 3),
            "spread": [round(small[field] / large[field], 3)] * 2,
            "conditions": {"10^6": small, "10^8": large, "load": os.getloadavg()[0]},
        }
        for name, (field, unit) in names.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=12000, help="of each of the two tasks")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each repetition")
    parser.add_argument("--scale", action="store_true")
    parser.add_argument("--start", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    if args.start:
        return start(args.start)
    results = scale() if args.scale else compare(args)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
