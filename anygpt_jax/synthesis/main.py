"""`anygpt synthesize`: dialogues of AnyInstruct's kind, from topics to a data set with its report."""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import time
from collections.abc import Iterator

import ml_collections

from anygpt_jax.cache import write_atomically
from anygpt_jax.locks import alone
from anygpt_jax.synthesis import export, filters, store
from anygpt_jax.synthesis.dialogue import Dialogue
from anygpt_jax.synthesis.job import Job


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is made is for the config to say; these are about the run."""
    parser.add_argument(
        "--remake", action="store_true", help="make stages of other settings, and all after them, again"
    )
    parser.add_argument("--json", metavar="PATH", help="also write the counts of the stages to this file")


def run(config: ml_collections.ConfigDict, args: argparse.Namespace) -> None:
    """Every stage that is not whole, then the report. UserError for settings that cannot be, before any work."""
    from anygpt_jax.synthesis import stages
    from data_pipelines import synthesize

    started = time.monotonic()
    job = Job.of(config)
    filters.check(job.settings.filters)
    job.folder.mkdir(parents=True, exist_ok=True)
    with alone(job.folder / ".lock", f"Another synthesis is writing to {job.folder}; wait for it to end."):
        if "exported" in store.require_recipes(job.folder, stages.recipes(job), args.remake):
            shutil.rmtree(job.folder.parent / export.FOLDER, ignore_errors=True)
        if job.settings.retry_failures:
            stages.forget_failures(job)
        synthesize.run(job, config.synthesize.runner, tuple(config.synthesize.runner_options))
    counted = counts(job)
    print(table(counted))
    print(f"{time.monotonic() - started:.0f} s; the set is {job.folder.parent / export.FOLDER}")
    print(f"its report is {report_of(job)}")
    if args.json:
        write_atomically(pathlib.Path(args.json), json.dumps(counted, indent=1).encode())


def counts(job: Job) -> dict[str, dict[str, int]]:
    """Of every stage: its items, those that failed, and those that a filter refused there."""
    from anygpt_jax.synthesis import stages

    found = {}
    for stage in stages.of(job):
        rows = list(store.all_items(job.folder, stage, 1 if stage == stages.SELECTED else job.shards))
        removed = sum(bool(row.get("removed_by")) for row in rows)
        found[stage] = {"items": len(rows), "failed": len(store.failed(job.folder, stage)), "removed": removed}
    return found


def table(counted: dict[str, dict[str, int]]) -> str:
    """Plain text of `counts`, a line a stage."""
    lines = [f"{'stage':<12}{'items':>9}{'failed':>9}{'removed':>9}"]
    lines += [f"{s:<12}{c['items']:>9,}{c['failed']:>9,}{c['removed']:>9,}" for s, c in counted.items()]
    return "\n".join(lines)


def removed(job: Job) -> Iterator[Dialogue]:
    """Every dialogue that a filter refused, with the filter and its reason."""
    from anygpt_jax.synthesis import stages

    left_out = {row["id"]: row for row in store.items(job.folder, stages.SELECTED, 0, 1) if row["removed_by"]}
    for row in store.all_items(job.folder, "checked", job.shards):
        if row["removed_by"] or row["id"] in left_out:
            yield Dialogue.from_json({**row, **left_out.get(row["id"], {})})
    yield from (
        Dialogue.from_json(row) for row in store.all_items(job.folder, "judged", job.shards) if row["removed_by"]
    )


def kept(job: Job) -> Iterator[Dialogue]:
    """Every dialogue of the finished set, shard by shard."""
    for row in store.all_items(job.folder, "judged", job.shards):
        if not row["removed_by"]:
            yield Dialogue.from_json(row)


def report_of(job: Job) -> pathlib.Path:
    """Writes WORKDIR/report anew from what the stages left, which must be whole; returns the path of its page."""
    from anygpt_jax.synthesis import report

    counted = [report.StageCount(stage, **count) for stage, count in counts(job).items()]
    folder = job.folder.parent / "report"
    return report.write(folder, counted, kept(job), removed(job), lambda file: (job.folder / file).read_bytes())
