"""The synthesis job as a Beam pipeline: a step a stage, one element a shard, idempotent.

Run it by `anygpt synthesize`; Beam's own options go into `config.synthesize.runner_options`, as those of the
tokenization job do. The shards go through the stages independently up to the selection, which waits for all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import apache_beam as beam

from anygpt_jax.synthesis import stages
from anygpt_jax.synthesis.job import Job
from data_pipelines.tokenize import pipeline_options, users_errors

# Runners give a process several elements at a time, in threads. They would share models, and load them twice.
_one_shard_at_a_time = threading.Lock()


class MakeShard(beam.DoFn):
    """The index of a shard → the same, when its items of this stage are on the disk."""

    def __init__(self, job: Job, stage: str):
        self._job = job
        self._stage = stage

    def process(self, index: int) -> Iterator[int]:
        """One element at a time in a process, which shares its models."""
        with _one_shard_at_a_time:
            stages.run_shard(self._job, self._stage, index)
        yield index


def run(job: Job, runner: str, options: Sequence[str] = ()) -> None:
    """Blocks until every stage is whole."""
    with users_errors(), beam.Pipeline(options=pipeline_options(runner, options)) as pipeline:
        add_steps(pipeline, job)


def add_steps(pipeline: beam.Pipeline, job: Job) -> None:
    """A shard goes through a stage as one element; the selection is one element that waits for all of them."""
    shards = pipeline | beam.Create(range(job.shards)) | "spread" >> beam.Reshuffle()
    for stage in stages.BEFORE:
        shards = shards | stage >> beam.ParDo(MakeShard(job, stage))
    whole = shards | beam.combiners.Count.Globally() | beam.Map(lambda _: 0)
    selected = whole | stages.SELECTED >> beam.ParDo(MakeShard(job, stages.SELECTED))
    shards = selected | beam.FlatMap(lambda _, n: range(n), job.shards) | "spread again" >> beam.Reshuffle()
    for stage in stages.AFTER:
        shards = shards | stage >> beam.ParDo(MakeShard(job, stage))
