"""How fast hosts must read, and how fast this machine reads the run's own cache."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import time
from collections.abc import Mapping

import ml_collections
import numpy as np

from anygpt_jax.data.history import Stage, settings_of
from anygpt_jax.data.loader import BatchSource, packers
from anygpt_jax.data.store import Store
from anygpt_jax.model.sharding import BATCH_AXES
from anygpt_jax.vocabulary import Vocabulary

# Where there is no cache to measure: tokens a CPU-second of tests/benchmarks/reader.py, rows of 4096 (docs/data.md).
BENCHMARK_TOKENS = 28.7e6
BENCHMARK = "tests/benchmarks/reader.py on a core of the developers' machine (docs/data.md)"
MEASURED = "measured on the cache in the workdir, by this machine, now"
SECONDS = 1.5  # of measuring
ROWS = 8  # read at once while measuring


@dataclasses.dataclass(frozen=True)
class Feed:
    """Of one host."""

    rows: float  # a second that its devices take
    tokens: float
    bytes: float  # of token records a second, before compression or as the cache holds them
    bytes_a_token: float
    reader_rows: float  # a second and core that the reader gives
    source: str  # of `reader_rows`

    @property
    def cores(self) -> float:
        """That reading keeps busy."""
        return self.rows / self.reader_rows


def rows_a_host(batch_size: int, mesh: Mapping[str, int], hosts: int) -> float:
    """Rows of a step that each host reads. Hosts along tensor or context read the same ones."""
    return batch_size / min(hosts, math.prod(mesh.get(axis, 1) for axis in BATCH_AXES))


def feed(
    batch_size: int, seq_len: int, step_seconds: float, mesh: Mapping[str, int], hosts: int, bytes_a_token: float,
    reader: tuple[float, str],
) -> Feed:  # fmt: skip
    """`reader` is (tokens a second, where that is from)."""
    rows = rows_a_host(batch_size, mesh, hosts) / step_seconds
    tokens = rows * seq_len
    return Feed(rows, tokens, tokens * bytes_a_token, bytes_a_token, reader[0] / seq_len, reader[1])


def token_bytes(config: ml_collections.ConfigDict, vocabulary: Vocabulary) -> float:
    """Of a token in the cache's train split, as stored; without a cache that of its id alone (`TokenRecord.to_bytes`)."""
    cache = _cache(config)
    if cache is None:
        return 2.0 if vocabulary.size <= 2**16 else 4.0
    store = Store(cache, "train")
    shards = [shard for task in settings_of(config).weights for shard in store.shards(task)]
    return sum((cache / shard.path).stat().st_size for shard in shards) / sum(shard.tokens for shard in shards)


def reader_tokens(
    config: ml_collections.ConfigDict, vocabulary: Vocabulary, seconds: float = SECONDS
) -> tuple[float, str]:
    """Tokens a CPU-second of the run's own reader, and where the figure is from. UserError if the cache is not whole."""
    cache = _cache(config)
    if cache is None:
        return BENCHMARK_TOKENS, BENCHMARK
    train = config.train
    plans = packers(
        Store(cache, "train"), (Stage(0, settings_of(config)),), batch_size=ROWS, pack_rows=train.pack_rows,
        seq_len=train.seq_len, seed=config.seed, long_records=train.get("long_records") or "drop",
    )  # fmt: skip
    source = BatchSource(plans, vocabulary, ROWS, 2**31)
    tokens, step = 0, 0
    _ = source[0]  # opens the files
    began, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        step += 1
        tokens += int(np.count_nonzero(source[step]["segment_ids"]))
    return tokens / (time.process_time() - cpu), MEASURED


def _cache(config: ml_collections.ConfigDict) -> pathlib.Path | None:
    cache = pathlib.Path(config.workdir) / "cache"
    return cache if (cache / "manifest.json").is_file() and "mixture" in config else None
