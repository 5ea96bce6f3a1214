"""`anygpt tokenize`: plan the shards, run the Beam job, write the manifest last.

The unit of work is a shard. With `tokenize.shards=N` every split is dealt out to at most N shards; when its data
changes, all of them are made again. With `tokenize.shards=0` each file of a source is a shard of its own, named after
the file and its contents: files that are added later add shards, and no other shard is read or written again.
"""

from __future__ import annotations

import argparse
import collections
import json
import logging
import os
import pathlib
import re
import threading
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported: it reports missing GPUs

import ml_collections
import seqio
from tqdm import tqdm

from anygpt_jax.cache import Manifest, Shard, finished_shard, write_atomically
from anygpt_jax.embedded import settings
from anygpt_jax.errors import UserError
from anygpt_jax.modalities import base
from anygpt_jax.modalities.text import TextTokenizer
from anygpt_jax.tasks import accounts, recipe, registry, resume
from anygpt_jax.tasks.shards import Job, Plan, TaskShard, Work, vocabulary_of
from anygpt_jax.vocabulary import Vocabulary

SMALLEST_SHARD = 256  # examples: opening a source costs more than tokenizing a few


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is made is for the config to say; these are about the run."""
    parser.add_argument("--json", metavar="PATH", help="write the counts of every task and split to this file")
    parser.add_argument(
        "--remake", action="store_true", help="replace shards that other definitions of tasks have made"
    )


def run(config: ml_collections.ConfigDict, args: argparse.Namespace) -> None:
    """Raises UserError if the data is missing, the cache belongs to another vocabulary, or nothing was usable."""
    started = time.monotonic()
    _quieten()
    cache = pathlib.Path(config.workdir) / "cache"
    registry.register(config)
    text, tokenizers = TextTokenizer.load(), base.of_config(config)
    vocabulary = vocabulary_of(text, tokenizers)
    fingerprints = {name: t.fingerprint for name, t in tokenizers.items()}
    plan = _make_plan(config, vocabulary, text, fingerprints)
    with resume.locked(cache):
        resume.require_same_tokenizers(cache, vocabulary, fingerprints)
        resume.require_same_recipes(cache, plan, getattr(args, "remake", False))
        resume.sweep(cache, plan)
        unfinished = resume.unfinished(cache, plan)
        listed = (vocabulary.to_json() + "\n").encode()
        if not (cache / "vocabulary.json").is_file() or (cache / "vocabulary.json").read_bytes() != listed:
            write_atomically(cache / "vocabulary.json", listed)
        if unfinished.works:
            # From here until the end the cache is not whole, and must not be taken for it.
            (cache / "manifest.json").unlink(missing_ok=True)
            _run_pipeline(Job(config.to_json(), str(cache)), unfinished, config.tokenize)
            if _make_plan(config, vocabulary, text, fingerprints) != plan:
                raise UserError(f"The data of {cache} changed while it was tokenized; run the same command again.")
        manifest = _manifest(cache, plan, vocabulary, text, fingerprints)
        counted = accounts.summary(manifest)
        accounts.require_few_rejects(manifest, accounts.max_reject_share(config))
        manifest.save(cache)
    print(accounts.table(counted))
    seconds = time.monotonic() - started
    print(f"{len(unfinished.shards())} shards made in {seconds:.0f} s; the token cache is {cache}")
    if getattr(args, "json", None):
        pathlib.Path(args.json).write_text(json.dumps({"seconds": seconds, "tasks": counted}, indent=1))


def _quieten() -> None:
    """Beam, SeqIO and TFDS narrate every step at level INFO."""
    for name in ("absl", "apache_beam"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _make_plan(
    config: ml_collections.ConfigDict, vocabulary: Vocabulary, text: TextTokenizer, fingerprints: dict[str, str]
) -> Plan:
    """Shards of every task and split, those that read the same files together. Tasks must be registered."""
    groups: dict[tuple[str, int, tuple[str, ...]], list[list[TaskShard]]] = collections.defaultdict(list)
    for name in config.tokenize.tasks:
        task = seqio.get_mixture_or_task(name)
        definition = recipe.task_definition(task)
        for split in task.splits:
            files = _files(task, split, config)
            shards = []
            for stem, read, place in _units(task, split, files, config.tokenize.shards):
                made = recipe.shard_recipe(
                    task=definition,
                    data=recipe.data_fingerprint(task, read, split),
                    place=place,
                    vocabulary=vocabulary.fingerprint,
                    text=text.fingerprint,
                    codecs=fingerprints,
                    limit=config.tokenize.max_tokens,
                )
                shards.append(TaskShard(name, f"{name}/{split}/{stem}", made))
            groups[split, len(shards), files].append(shards)
    works = []
    for (split, count, _), tasks in groups.items():
        works += [Work(split, i, count, tuple(shards[i] for shards in tasks)) for i in range(count)]
    return Plan(tuple(works))


def _units(
    task: seqio.Task, split: str, files: tuple[str, ...], shards: int
) -> list[tuple[str, tuple[str, ...], tuple[object, ...]]]:
    """Of every shard: the end of its stem, the files that it is made of, and its place among shards of the same files.

    `shards` is config.tokenize.shards. SeqIO gives the i-th of n shards the i-th of n files.
    """
    if shards:
        examples = task.num_input_examples(split)
        count = shards if examples is None else max(1, min(shards, examples // SMALLEST_SHARD))
        return [(f"{i:05d}-of-{count:05d}", files, (split, count)) for i in range(count)]
    # What a source lists beside files says how they are read: that is known from its settings.
    real = [file for file in files if pathlib.Path(file).is_file()]
    if not real:
        return [("all", files, (split,))]
    units: list[tuple[str, tuple[str, ...], tuple[object, ...]]] = []
    taken = collections.Counter[str]()
    for file in real:
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", pathlib.Path(file).name)[:100]
        stem = f"{name}-{recipe.digest(recipe.file_fingerprint(file))[:12]}"
        units.append((f"{stem}-{taken[stem]}" if taken[stem] else stem, (file,), (split,)))
        taken[stem] += 1
    return units


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


def _run_pipeline(job: Job, todo: Plan, options: ml_collections.ConfigDict) -> None:
    logging.disable(logging.WARNING)  # Beam warns of Google Cloud packages that only some runners need
    from data_pipelines import tokenize as pipeline  # here, because Beam takes seconds to import

    logging.disable(logging.NOTSET)
    with _progress(pathlib.Path(job.cache), todo):
        pipeline.run(job, todo.works, options.runner, tuple(options.runner_options))


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
    sources = {
        name: {
            split: examples
            for split in splits
            if (examples := seqio.get_mixture_or_task(name).num_input_examples(split)) is not None
        }
        for name, splits in tasks.items()
    }
    return Manifest(vocabulary.fingerprint, text.fingerprint, fingerprints, tasks, sources=sources)
