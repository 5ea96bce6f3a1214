"""`anygpt evaluate`: scores the held-out splits with the tasks' own metrics and writes report/metrics.json."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import time
from typing import Any

import ml_collections

from anygpt_jax.cache import write_atomically
from anygpt_jax.embedded import settings
from anygpt_jax.errors import UserError
from anygpt_jax.templates import TEXT

HARD_SPLITS = (
    ("image", "text", "test_openmoji"),
    ("speech", "text", "test_voice"),
    ("speech", "text", "test_librivox"),
)
JUDGE_CLIPS = 600  # originals of the training split that the judge of music learns from
PACKAGES = (
    "anygpt-jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "seqio", "tensorflow-datasets", "apache-beam",
    "numpy", "pocketsphinx", "hibari-tts", "scikit-learn", "jiwer",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="PATH", help="also write the metrics to this file")


def run(config: ml_collections.ConfigDict, args: argparse.Namespace) -> None:
    """Every directed pair, the hard splits and the tokenizers. Finished pairs of an earlier run are kept.

    Of a tokenizer's config: its quality on held-out splits, into its card.
    """
    began = time.monotonic()
    quieten()
    if config.kind == "tokenizer":
        from anygpt_jax.modalities.codecs import cards

        return cards.evaluate(config)
    from tqdm import tqdm

    from anygpt_jax.evaluation import pairs

    if not settings.data_dir(config).is_dir():
        raise UserError(f"No data set at {settings.data_dir(config)} for this config; run `anygpt build-data` first.")
    evaluation = prepare(config)
    modalities, tasks = (TEXT, *config.modalities), tuple(config.tokenize.tasks)
    jobs: list[tuple[str, str, str | None]] = [(s, t, None) for s, t in pairs.directed_pairs(modalities, tasks)]
    jobs += [job for job in HARD_SPLITS if pairs.task_name(job[0], job[1]) in tasks]
    matrix: dict[str, dict[str, Any]] = {m: {} for m in modalities}
    hard: dict[str, Any] = {}
    with tqdm(total=len(jobs) + 1, desc="evaluate", unit="pair") as bar:
        for source, target, split in jobs:
            bar.set_postfix_str(f"{source} to {target}" + (f", {split}" if split else ""))
            entry = evaluation.run_pair(source, target, split)
            if split is None:
                matrix[source][target] = entry
            else:
                hard.setdefault(pairs.task_name(source, target), {})[split] = entry
            bar.update()
        bar.set_postfix_str("tokenizers")
        tokenizers = evaluation.run_tokenizers()
        bar.update()
    measured = {
        "matrix": matrix,
        "hard": hard,
        "tokenizers": tokenizers,
        "step": evaluation.trained.step,
        "seconds": round(time.monotonic() - began, 1),
    }
    write_metrics(pathlib.Path(config.workdir), measured, getattr(args, "json", None))
    print(table(matrix))


def quieten() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for name in ("absl", "tensorflow", "orbax"):
        logging.getLogger(name).setLevel(logging.WARNING)


def prepare(config: ml_collections.ConfigDict):
    """The newest checkpoint and a randomly initialised twin, the registered tasks, and the judge of music."""
    from flax import nnx

    from anygpt_jax.evaluation.runner import Evaluation
    from anygpt_jax.generation.engine import Settings
    from anygpt_jax.generation.pipeline import Pipeline
    from anygpt_jax.model.decoder import Decoder
    from anygpt_jax.tasks import registry
    from anygpt_jax.tasks.metrics.music import use_judge
    from anygpt_jax.training.checkpoints import LoadedModel, restore_model

    trained = Pipeline.load(config)
    model = restore_model(pathlib.Path(config.workdir) / "checkpoints")
    blank = LoadedModel(Decoder(model.config, rngs=nnx.Rngs(config.seed)), model.config, model.vocabulary, 0)
    untrained = Pipeline.build(blank, trained.tokenizers, Settings.from_config(config.generate))
    registry.register(config)
    use_judge(lambda: fit_music_judge(trained.tokenizers["music"]))
    return Evaluation(config, trained, untrained)


def fit_music_judge(tokenizer):
    """The judge of music, fitted on original clips of the training split; a quarter of a minute."""
    import itertools

    from anygpt_jax.evaluation.examples import read_split
    from anygpt_jax.tasks.metrics.music import MusicJudge

    clips = list(itertools.islice(read_split("music_to_text", "train"), JUDGE_CLIPS))
    return MusicJudge.fit([tokenizer.load(e.source[1]) for e in clips], [e.attributes for e in clips])


def write_metrics(workdir: pathlib.Path, measured: dict[str, Any], copy: str | None = None) -> dict[str, Any]:
    """Writes report/metrics.json whole; the timings of the stages are those known so far."""
    metrics = {
        "quickstart": measured,
        "shipped": {"matrix": {}},
        "timings": read_timings(workdir),
        "versions": versions(),
    }
    data = json.dumps(metrics, indent=1).encode()
    write_atomically(workdir / "report" / "metrics.json", data)
    if copy:
        write_atomically(pathlib.Path(copy), data)
    return metrics


def read_timings(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """[{"stage", "seconds"}], which the launch script keeps."""
    path = workdir / "timings.json"
    return json.loads(path.read_text()) if path.is_file() else []


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def table(matrix: dict[str, dict[str, Any]]) -> str:
    """The matrix as lines of text."""
    lines = [f"{'pair':<18}{'metric':<12}{'score':>8}{'chance':>8}{'ceiling':>8}{'via text':>9}{'n':>5}  "]
    for source, row in matrix.items():
        for target, e in row.items():
            via = f"{e['via_text']:.2f}" if "via_text" in e else ""
            ceiling = "–" if e["ceiling"] is None else f"{e['ceiling']:.2f}"
            lines.append(
                f"{source + ' to ' + target:<18}{e['metric']:<12}{e['score']:>8.2f}{e['chance']:>8.2f}"
                f"{ceiling:>8}{via:>9}{e['n']:>5}  {'trained' if e['trained'] else 'never trained'}"
            )
    return "\n".join(lines)
