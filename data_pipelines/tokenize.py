"""The tokenization job as a Beam pipeline: one element a shard, idempotent, the same bytes on every runner.

Run it by `anygpt tokenize`; Beam's own options go into `config.tokenize.runner_options`, for example
`("--direct_num_workers=2", "--direct_running_mode=multi_processing")`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from anygpt_jax.tasks.shards import Job, Work, tokenize_shards


class TokenizeShard(beam.DoFn):
    """Yields the stem of every shard of the cache that is whole."""

    def __init__(self, job: Job):
        self._job = job

    def process(self, work: Work) -> Iterator[str]:
        tokenize_shards(self._job, work)
        yield from (shard.stem for shard in work.shards)


def run(job: Job, works: Sequence[Work], runner: str, options: Sequence[str] = ()) -> None:
    """Blocks until every element is done. The runner is named: Beam's default one looks for a download."""
    with beam.Pipeline(options=PipelineOptions([f"--runner={runner}", *options])) as pipeline:
        _ = pipeline | beam.Create(list(works)) | beam.Reshuffle() | beam.ParDo(TokenizeShard(job))
