"""`anygpt tokenize`: plan the shards, run the Beam job, write the manifest last."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import logging
import os
import pathlib
import re
import threading
import time
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported: it reports missing GPUs

import ml_collections
import seqio
from tqdm import tqdm

from anygpt_jax.cache import Manifest, Shard, finished_shard, write_atomically
from anygpt_jax.embedded import settings
from anygpt_jax.errors import UserError
from anygpt_jax.modalities import base
from anygpt_jax.modalities.text import TextTokenizer
from anygpt_jax.tasks import recipe, registry
from anygpt_jax.tasks.shards import Job, TaskShard, Work, vocabulary_of
from anygpt_jax.vocabulary import Vocabulary

SMALLEST_SHARD = 256  # examples: opening a source costs more than tokenizing a few


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="PATH", help="write the counts of every task and split to this file")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Every shard of the cache, grouped as the workers will make them."""

    works: tuple[Work, ...]

    def shards(self) -> list[tuple[Work, TaskShard]]:
        return [(work, shard) for work in self.works for shard in work.shards]


def run(config: ml_collections.ConfigDict, args: argparse.Namespace) -> None:
    """Raises UserError if the data is missing, the cache belongs to another vocabulary, or nothing was usable."""
    started = time.monotonic()
    _quieten()
    cache = pathlib.Path(config.workdir) / "cache"
    registry.register(config)
    text, tokenizers = TextTokenizer.load(), base.of_config(config)
    vocabulary = vocabulary_of(text, tokenizers)
    fingerprints = {name: t.fingerprint for name, t in tokenizers.items()}
    _require_same_tokenizers(cache, vocabulary, fingerprints)

    plan = make_plan(config, vocabulary, text, fingerprints)
    unfinished = _unfinished(cache, plan)
    if unfinished.works:
        # From here until the end the cache is not whole, and must not be taken for it.
        (cache / "manifest.json").unlink(missing_ok=True)
        write_atomically(cache / "vocabulary.json", (vocabulary.to_json() + "\n").encode())
        _sweep(cache, plan)
        _run_pipeline(Job(config.to_json(), str(cache)), unfinished, config.tokenize)
        if make_plan(config, vocabulary, text, fingerprints) != plan:
            raise UserError(f"The data of {cache} changed while it was tokenized; run the same command again.")
    manifest = _manifest(cache, plan, vocabulary, text, fingerprints)
    _require_records(cache, manifest)
    manifest.save(cache)
    summary = _summary(cache, manifest)
    _print(summary, cache, len(unfinished.shards()), time.monotonic() - started)
    if getattr(args, "json", None):
        report = {"seconds": time.monotonic() - started, "tasks": summary}
        pathlib.Path(args.json).write_text(json.dumps(report, indent=1))


def _quieten() -> None:
    """Beam, SeqIO and TFDS narrate every step at level INFO."""
    for name in ("absl", "apache_beam"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _require_same_tokenizers(cache: pathlib.Path, vocabulary: Vocabulary, fingerprints: dict[str, str]) -> None:
    """A cache is of one vocabulary and one set of codecs; a checkpoint may already depend on them."""
    remedy = "name another --workdir, or delete that folder to tokenize again"
    if (cache / "vocabulary.json").is_file():
        made_with = Vocabulary.load(cache / "vocabulary.json")
        if made_with.fingerprint != vocabulary.fingerprint:
            raise UserError(
                f"{cache} was made with vocabulary {made_with.fingerprint[:12]}, but this config and its tokenizers "
                f"give {vocabulary.fingerprint[:12]}; {remedy}."
            )
    try:
        made_by = Manifest.load(cache).tokenizers
    except UserError:  # absent, damaged or of an older format: the shards speak for themselves
        return
    changed = [name for name in made_by if made_by[name] != fingerprints.get(name)]
    if changed:
        raise UserError(f"{cache} was made by other weights of the {', '.join(changed)} tokenizer; {remedy}.")


def make_plan(
    config: ml_collections.ConfigDict, vocabulary: Vocabulary, text: TextTokenizer, fingerprints: dict[str, str]
) -> Plan:
    """Shards of every task and split, those that read the same files together. Tasks must be registered."""
    groups: dict[tuple[str, int, tuple[str, ...]], list[tuple[str, str]]] = collections.defaultdict(list)
    for name in config.tokenize.tasks:
        task = seqio.get_mixture_or_task(name)
        for split in task.splits:
            files = _files(task, split, config)
            examples = task.num_input_examples(split)
            count = config.tokenize.shards
            if examples is not None:
                count = max(1, min(count, examples // SMALLEST_SHARD))
            made = recipe.shard_recipe(
                task, split, count, vocabulary.fingerprint, text.fingerprint, fingerprints, config.tokenize.max_tokens
            )
            groups[split, count, files].append((name, made))
    works = []
    for (split, count, _), tasks in groups.items():
        for index in range(count):
            stems = [(name, f"{name}/{split}/{index:05d}-of-{count:05d}", made) for name, made in tasks]
            works.append(Work(split, index, count, tuple(TaskShard(*stem) for stem in stems)))
    return Plan(tuple(works))


def _files(task: seqio.Task, split: str, config: ml_collections.ConfigDict) -> tuple[str, ...]:
    try:
        return tuple(task.source.list_shards(split))
    except (OSError, KeyError, ValueError) as e:
        if not settings.data_dir(config).is_dir():
            raise UserError(f"No data at {settings.data_dir(config)}; run `anygpt build-data` first.") from e
        cause = str(e).strip().splitlines()[0][:200]
        raise UserError(
            f"The data of {task.name}/{split} was not found ({cause}); run `anygpt build-data` again."
        ) from e
    except Exception as e:  # TFDS has error classes of its own for a data set that is not there
        if type(e).__name__ not in ("DatasetNotFoundError", "NotFoundError"):
            raise
        raise UserError(
            f"No data for {task.name} under {settings.data_dir(config)}; run `anygpt build-data` first."
        ) from e


def _unfinished(cache: pathlib.Path, plan: Plan) -> Plan:
    """What is still to do. Entries of damaged shards and of other recipes are taken away."""
    works = []
    for work in plan.works:
        todo = tuple(s for s in work.shards if finished_shard(cache, s.stem, s.recipe) is None)
        for shard in todo:
            (cache / f"{shard.stem}.json").unlink(missing_ok=True)
        if todo:
            works.append(dataclasses.replace(work, shards=todo))
    return Plan(tuple(works))


def _sweep(cache: pathlib.Path, plan: Plan) -> None:
    """Removes what a killed run left half-written, and shards of another shard count."""
    planned = {shard.stem for _, shard in plan.shards()}
    for folder in {(cache / stem).parent for stem in planned}:
        for path in folder.glob("*") if folder.is_dir() else ():
            stem = f"{folder.parent.name}/{folder.name}/{path.name.split('.')[0]}"
            if ".tmp-" in path.name or stem not in planned:
                path.unlink()


def _run_pipeline(job: Job, todo: Plan, options: ml_collections.ConfigDict) -> None:
    logging.disable(logging.WARNING)  # Beam warns of Google Cloud packages that only some runners need
    from data_pipelines import tokenize as pipeline  # here, because Beam takes seconds to import

    logging.disable(logging.NOTSET)
    with _progress(pathlib.Path(job.cache), todo):
        try:
            pipeline.run(job, todo.works, options.runner, tuple(options.runner_options))
        except UserError:
            raise
        except Exception as e:
            # Beam reports a worker's exception as text.
            found = re.search(r"UserError: (.+?)(?: \[while running|\n|$)", str(e))
            if found:
                raise UserError(found[1].strip()) from e
            raise


class _progress:
    """A bar over the shards, which counts their entries: any runner, any number of workers."""

    def __init__(self, cache: pathlib.Path, todo: Plan):
        self._entries = [cache / f"{shard.stem}.json" for _, shard in todo.shards()]
        self._done = threading.Event()

    def __enter__(self) -> None:
        self._bar = tqdm(total=len(self._entries), desc="tokenize", unit="shard", smoothing=0.1)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()
        self._update()
        self._bar.close()

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            self._update()

    def _update(self) -> None:
        self._bar.update(sum(entry.is_file() for entry in self._entries) - self._bar.n)


def _manifest(
    cache: pathlib.Path, plan: Plan, vocabulary: Vocabulary, text: TextTokenizer, fingerprints: dict[str, str]
) -> Manifest:
    tasks: dict[str, dict[str, list[Shard]]] = {}
    for work, planned in plan.shards():
        shard = finished_shard(cache, planned.stem, planned.recipe)
        if shard is None:
            raise UserError(f"{cache / planned.stem} was not written or was damaged since; run the same command again.")
        tasks.setdefault(planned.task, {}).setdefault(work.split, []).append(shard)
    return Manifest(vocabulary.fingerprint, text.fingerprint, fingerprints, tasks)


def _rejects(cache: pathlib.Path, shards: Sequence[Shard]) -> list[dict[str, str]]:
    lines = [line for s in shards if s.rejects for line in (cache / s.rejects_path).read_text().splitlines()]
    return [json.loads(line) for line in lines]


def _require_records(cache: pathlib.Path, manifest: Manifest) -> None:
    for task, splits in manifest.tasks.items():
        shards = [shard for of_split in splits.values() for shard in of_split]
        rejects = _rejects(cache, shards)
        if rejects and not any(shard.records for shard in shards):
            raise UserError(
                f"All {len(rejects)} examples of {task} were rejected, '{rejects[0]['key']}' because "
                f"{rejects[0]['reason']}; mend the data, or take the task out of config.tokenize.tasks."
            )


def _summary(cache: pathlib.Path, manifest: Manifest) -> dict[str, dict[str, dict]]:
    """task -> split -> counts, and the reasons of rejects by how often they occur."""
    return {
        task: {
            split: {
                "records": sum(s.records for s in shards),
                "tokens": sum(s.tokens for s in shards),
                "rejects": sum(s.rejects for s in shards),
                "reasons": dict(collections.Counter(r["reason"] for r in _rejects(cache, shards)).most_common(5)),
            }
            for split, shards in splits.items()
        }
        for task, splits in manifest.tasks.items()
    }


def _print(summary: dict[str, dict[str, dict]], cache: pathlib.Path, made: int, seconds: float) -> None:
    print(f"{'task':<18}{'split':<16}{'records':>9}{'tokens':>12}{'rejects':>9}")
    total = collections.Counter[str]()
    for task, splits in summary.items():
        for split, counts in splits.items():
            numbers = {name: counts[name] for name in ("records", "tokens", "rejects")}
            total.update(numbers)
            print(f"{task:<18}{split:<16}{numbers['records']:>9,}{numbers['tokens']:>12,}{numbers['rejects']:>9,}")
            for why, times in counts["reasons"].items():
                print(f"    rejected {times}: {why}")
    print(
        f"{'in all':<34}{total['records']:>9,}{total['tokens']:>12,}{total['rejects']:>9,}\n"
        f"{made} shards made in {seconds:.0f} s; the token cache is {cache}"
    )
