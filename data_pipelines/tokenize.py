"""The tokenization job as a Beam pipeline: one element a shard, idempotent, the same bytes on every runner.

Run it by `anygpt tokenize`; Beam's own options go into `config.tokenize.runner_options`, for example
`("--direct_num_workers=2", "--direct_running_mode=multi_processing")`. docs/tokenize_job.md has every runner's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
import re
import threading
from collections.abc import Iterator, Sequence

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions

from anygpt_jax.cache import write_atomically
from anygpt_jax.errors import UserError
from anygpt_jax.tasks.shards import Job, TaskShard, Work, tokenize_shards

JOB_SERVER_SECONDS = 60  # a job server that does not answer within them is not there
LONGEST_JOB = 365 * 24 * 3600  # seconds

# Runners give a process several elements at a time, in threads. They would share the codecs, and load them twice.
_one_shard_at_a_time = threading.Lock()


class TokenizeShard(beam.DoFn):
    """The index of an element of the to-do list → the stem of every shard of the cache made of it, whole."""

    def __init__(self, job: Job, todo: str):
        self._job = job
        self._todo = todo

    def process(self, index: int) -> Iterator[str]:
        """One element at a time in a process, which shares its codecs. UserError as of `tokenize_shards`."""
        work = read_todo(self._todo)[index]
        with _one_shard_at_a_time:
            tokenize_shards(self._job, work)
        yield from (shard.stem for shard in work.shards)


def run(job: Job, works: Sequence[Work], runner: str, options: Sequence[str] = ()) -> None:
    """Blocks until every element is done. The runner is named: Beam's default one looks for a download.

    Raises UserError if the job server does not answer, or a worker does not see the cache's folder.
    """
    beam_options = pipeline_options(runner, options)
    with users_errors(), todo_list(job, works) as todo, beam.Pipeline(options=beam_options) as pipeline:
        add_steps(pipeline, job, todo, len(works))


def add_steps(pipeline: beam.Pipeline, job: Job, todo: str, count: int) -> None:
    """The indices of the `count` elements in the file `todo`, spread over the workers; they read the rest there."""
    _ = pipeline | beam.Create(range(count)) | beam.Reshuffle() | beam.ParDo(TokenizeShard(job, todo))


def pipeline_options(runner: str, options: Sequence[str]) -> PipelineOptions:
    """Beam's options. Without `--job_server_timeout`, waiting for the job to end has no limit.

    Beam 2.77 takes that option (300 s by default) for a limit of whole jobs too, where a job keeps its first id:
    JobServiceHandle.run in apache_beam/runners/portability/portable_runner.py.
    """
    chosen = PipelineOptions([f"--runner={runner}", *options])
    endpoint = chosen.view_as(PortableOptions).job_endpoint
    if endpoint in (None, "embed") or any(o.startswith(("--job_server_timeout", "--job-server-")) for o in options):
        return chosen
    with grpc.insecure_channel(endpoint) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=JOB_SERVER_SECONDS)
        except grpc.FutureTimeoutError as e:
            raise UserError(
                f"No Beam job server answers at {endpoint}; start it, or mend --job_endpoint in "
                "config.tokenize.runner_options."
            ) from e
    chosen.view_as(PortableOptions).job_server_timeout = LONGEST_JOB
    return chosen


@contextlib.contextmanager
def users_errors() -> Iterator[None]:
    """A worker's UserError is raised as one: Beam reports the exceptions of workers as text."""
    try:
        yield
    except UserError as e:  # runners in this process add the step's name
        raise UserError(str(e).partition(" [while running")[0]) from e
    except Exception as e:
        if found := re.search(r"UserError: (.+?)(?: \[while running|\n|$)", str(e)):
            raise UserError(found[1].strip()) from e
        raise


@contextlib.contextmanager
def todo_list(job: Job, works: Sequence[Work]) -> Iterator[str]:
    """The path of a file with the elements, beside the cache while the job runs.

    Within the pipeline's graph, the elements of a large job would exceed what services accept of one (Dataflow: 10 MB).
    """
    folder, name = pathlib.Path(job.cache).parent, pathlib.Path(job.cache).name
    for left_by_a_killed_run in folder.glob(f"{name}.todo-*"):
        left_by_a_killed_run.unlink()
    content = json.dumps([dataclasses.asdict(work) for work in works]).encode()
    path = folder / f"{name}.todo-{hashlib.sha256(content).hexdigest()[:16]}.json"
    write_atomically(path, content)
    try:
        yield str(path)
    finally:
        path.unlink(missing_ok=True)


@functools.lru_cache(maxsize=1)
def read_todo(path: str) -> tuple[Work, ...]:
    """The elements of a job. The name holds the content's hash: a worker that serves several jobs never mixes them."""
    try:
        works = json.loads(pathlib.Path(path).read_bytes())
    except OSError as e:
        raise UserError(
            f"A worker cannot read {path} ({e.strerror}); mount the workdir under the same path on every worker."
        ) from e
    return tuple(Work(**{**work, "shards": tuple(TaskShard(**shard) for shard in work["shards"])}) for work in works)
