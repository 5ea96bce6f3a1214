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
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ml_collections

from anygpt_jax import shipped
from anygpt_jax.cache import Manifest, write_atomically
from anygpt_jax.embedded import settings
from anygpt_jax.errors import UserError
from anygpt_jax.evaluation.legs import add_legs
from anygpt_jax.templates import TEXT

if TYPE_CHECKING:  # it loads JAX and SeqIO, which `anygpt report` does without
    from anygpt_jax.evaluation.runner import Evaluation

HARD_SPLITS = (
    ("image", "text", "test_openmoji"),
    ("speech", "text", "test_voice"),
    ("speech", "text", "test_unspoken"),
    ("text", "speech", "test_unspoken"),
    ("speech", "text", "test_librivox"),
)
JUDGE_CLIPS = 600  # originals of the training split that the judge of music learns from
PACKAGES = (
    "anygpt-jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "seqio", "tensorflow-datasets", "apache-beam",
    "numpy", "pocketsphinx", "hibari-tts", "scikit-learn", "jiwer",
)  # fmt: skip
OF_TASKS = ("data", "examples", "share", "out", "leaderboard", "follow", "judges", "compare")  # flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Without --tasks only --json may be given, and of a tokenizer's config none."""
    parser.add_argument("--json", metavar="PATH", help="also write the metrics to this file")
    parser.add_argument(
        "--tasks",
        metavar="NAMES",
        help="published protocols instead, such as coco_caption,librispeech_clean (docs/evaluation.md); needs --data",
    )
    parser.add_argument(
        "--data", metavar="FOLDER", help="with a folder for each data set of --tasks, named as its task"
    )
    parser.add_argument("--examples", type=int, metavar="N", help="of --tasks, the first N in an order by their keys")
    parser.add_argument(
        "--share", metavar="I/N", help="answer the I-th of N parts of --tasks, from 0 (this process's of the job's)"
    )
    parser.add_argument("--out", metavar="FOLDER", help="where predictions of --tasks are kept (WORKDIR/benchmarks)")
    parser.add_argument("--leaderboard", metavar="PATH", help="where a line for each task goes (OUT/leaderboard.jsonl)")
    parser.add_argument(
        "--follow", action="store_true", help="--tasks on every new checkpoint of a run, until its last"
    )
    parser.add_argument("--judges", metavar="FOLDER", help="with weights of the networks that judge, such as clip/")
    parser.add_argument(
        "--compare", metavar="FOLDER", help="the --out of another model, with which --tasks are compared"
    )


def run(config: ml_collections.ConfigDict, args: argparse.Namespace) -> None:
    """Every directed pair, the hard splits, the tokenizers, the dialogues and the text, as far as the config has them.

    Finished pairs of an earlier run are kept. Of a tokenizer's config: its quality on held-out splits, into its card.
    UserError for flags that what is evaluated does not read.
    """
    _quieten()
    if getattr(args, "tasks", None):
        from anygpt_jax.evaluation import follow, suite

        return follow.run(config, args) if args.follow else suite.run(config, args)
    if given := _given(args, OF_TASKS):
        raise UserError(f"{given} is for published protocols; name them with --tasks, or drop {given}.")
    if config.kind == "tokenizer":
        if given := _given(args, ("json",)):
            raise UserError(f"{given} is not for a tokenizer, whose quality goes into its card; drop it.")
        from anygpt_jax.modalities.codecs import cards

        return cards.evaluate(config)
    from anygpt_jax.evaluation import perplexity

    workdir, tasks = pathlib.Path(config.workdir), tuple(config.tokenize.tasks)
    elsewhere = (*perplexity.TEXTS, "any_instruct")  # what they are measured on is not the embedded data set
    if any(task not in elsewhere for task in tasks) and not settings.data_dir(config).is_dir():
        raise UserError(f"No data set at {settings.data_dir(config)} for this config; run `anygpt build-data` first.")
    measured = measure(prepare(config), tasks)
    write_metrics(workdir, measured, getattr(args, "json", None), of_shipped=bool(config.get("checkpoints")))
    print(table(measured["matrix"]) + other_lines(measured))


def _given(args: argparse.Namespace, names: Sequence[str]) -> str | None:
    """The first of these flags that the command line has."""
    values = {name: getattr(args, name, None) for name in names}
    return next((f"--{name}" for name, value in values.items() if value is not None and value is not False), None)


def measure(evaluation: Evaluation, tasks: Sequence[str]) -> dict[str, Any]:
    """Everything that these tasks allow: with text alone, how well text is predicted."""
    from tqdm import tqdm

    from anygpt_jax.evaluation import dialogues, pairs, perplexity

    began, config = time.monotonic(), evaluation.config
    modalities, held = (TEXT, *config.modalities), Manifest.load(evaluation.workdir / "cache").tasks
    jobs: list[tuple[str, str, str | None]] = [(s, t, None) for s, t in pairs.directed_pairs(modalities, tasks)]
    splits = HARD_SPLITS if config.evaluate.get("hard_splits", True) else ()
    hard = [job for job in splits if pairs.task_name(job[0], job[1]) in tasks]
    jobs += [(s, t, split) for s, t, split in hard if split in held.get(pairs.task_name(s, t), {})]
    texts = [task for task in perplexity.TASKS if config.evaluate.split in held.get(task, {}) and task in tasks]
    talks = [
        task for task in ("dialogues", "any_instruct") if config.evaluate.split in held.get(task, {}) and task in tasks
    ]
    talks = talks if config.evaluate.get("dialogues") != 0 else []
    matrix: dict[str, dict[str, Any]] = {m: {} for m in modalities} if jobs else {}
    measured: dict[str, Any] = {"matrix": matrix, "hard": {}, "tokenizers": {}}
    with tqdm(total=len(jobs) + len(texts) + bool(jobs) + len(talks), desc="evaluate", unit="part") as bar:

        def part(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
            bar.set_postfix_str(name)
            result = function(*arguments)
            bar.update()
            return result

        for source, target, split in jobs:
            name = f"{source} to {target}" + (f", {split}" if split else "")
            entry = part(name, evaluation.run_pair, source, target, split)
            if split is None:
                matrix[source][target] = entry
            else:
                measured["hard"].setdefault(pairs.task_name(source, target), {})[split] = entry
        add_legs(matrix)
        for task in talks:
            if entry := part(task, dialogues.run, evaluation, task):
                measured[task] = entry
        if texts:
            measured["text"] = {task: part(task, evaluation.run_text, task) for task in texts}
        if jobs:
            measured["tokenizers"] = part("tokenizers", evaluation.run_tokenizers)
    return {**measured, "step": evaluation.trained.step, "seconds": round(time.monotonic() - began, 1)}


def _quieten() -> None:
    """Lets absl, TensorFlow and Orbax warn and no more. Before TensorFlow is imported, which reads its variable then."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for name in ("absl", "tensorflow", "orbax"):
        logging.getLogger(name).setLevel(logging.WARNING)


def prepare(config: ml_collections.ConfigDict) -> Evaluation:
    """The newest checkpoint and a randomly initialised twin, the registered tasks, and the judge of music."""
    from flax import nnx

    from anygpt_jax.evaluation.runner import Evaluation
    from anygpt_jax.generation.pipeline import Pipeline
    from anygpt_jax.generation.request import Settings
    from anygpt_jax.model.decoder import Decoder
    from anygpt_jax.tasks import registry
    from anygpt_jax.tasks.metrics.music import use_judge
    from anygpt_jax.training.checkpoints import LoadedModel

    trained = Pipeline.load(config)
    shape = trained.decoder.config
    blank = LoadedModel(Decoder(shape, rngs=nnx.Rngs(config.seed)), shape, trained.engine.vocabulary, 0)
    untrained = Pipeline.build(blank, trained.tokenizers, Settings.from_config(config.generate))
    registry.register(config)
    if settings.data_dir(config).is_dir():
        use_judge(lambda: fit_music_judge(trained.tokenizers["music"]))
    else:
        from anygpt_jax.synthesis.filters.worlds import music_judge

        use_judge(music_judge)
    return Evaluation(config, trained, untrained)


def fit_music_judge(tokenizer):
    """The judge of music, fitted on original clips of the training split; a quarter of a minute."""
    import itertools

    from anygpt_jax.evaluation.examples import read_split
    from anygpt_jax.tasks.metrics.music import MusicJudge

    clips = list(itertools.islice(read_split("music_to_text", "train"), JUDGE_CLIPS))
    return MusicJudge.fit([tokenizer.load(e.source[1]) for e in clips], [e.attributes for e in clips])


def write_metrics(
    workdir: pathlib.Path, measured: dict[str, Any], copy: str | None = None, *, of_shipped: bool = False
) -> dict[str, Any]:
    """Writes report/metrics.json whole; the timings of the stages are those known so far.

    "shipped" is what is measured of the shipped model; beside another one's scores it is what its card says.
    """
    nothing: dict[str, Any] = {"matrix": {}}
    told = json.loads(shipped.METRICS.read_text(encoding="utf-8"))["shipped"] if shipped.METRICS.is_file() else nothing
    metrics = {
        "quickstart": nothing if of_shipped else measured,
        "shipped": measured if of_shipped else told,
        "timings": read_timings(workdir),
        "versions": _versions(),
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


def _versions() -> dict[str, str]:
    """Of the PACKAGES that are installed, by name; "python" and "machine" (processor, number of cores) come first."""
    found = {"python": platform.python_version(), "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def table(matrix: dict[str, dict[str, Any]]) -> str:
    """The matrix as lines of text; "legs" are those of `legs.add_legs`, with the share that each way reaches."""
    if not any(matrix.values()):
        return ""
    lines = [
        f"{'pair':<18}{'metric':<12}{'score':>6}{'interval':>14}{'chance':>8}{'ceiling':>8}{'via text':>9}{'interval':>14}"
        f"{'legs':>6}{'direct':>8}{'via':>6}{'n':>5}  "
    ]
    for source, row in matrix.items():
        for target, e in row.items():
            shares = e.get("share_of_legs", {})
            lines.append(
                f"{source + ' to ' + target:<18}{e['metric']:<12}{_short(e['score']):>6}{_range(e.get('interval')):>14}"
                f"{_short(e['chance']):>8}{_short(e['ceiling'], '–'):>8}{_short(e.get('via_text')):>9}"
                f"{_range(e.get('via_text_interval')):>14}{_short(e.get('legs')):>6}{_short(shares.get('direct')):>8}"
                f"{_short(shares.get('via_text')):>6}{e['n']:>5}  {'trained' if e['trained'] else 'never trained'}"
            )
    return "\n".join(lines)


def other_lines(measured: dict[str, Any]) -> str:
    """The dialogues and the text as lines of text."""
    lines = [""]
    for task in ("dialogues", "any_instruct"):
        if not (talk := measured.get(task)):
            continue
        groups = {task: talk, "several turns": talk["several_turns"], "one turn": talk["one_turn"]}
        for name, e in (*groups.items(), *talk["by_form"].items()):
            lines.append(
                f"{name:<18}{'modalities':<12}{_short(e['exact'], '–'):>6}{_range(e['interval']):>14}{e['n']:>5}"
            )
    for task, e in measured.get("text", {}).items():
        lines.append(
            f"{task:<18}perplexity {e['perplexity_per_word']:.2f} a word, {e['perplexity_per_token']:.2f} a token, "
            f"{e['tokens']:,} tokens of {e['n']}"
        )
    return "\n".join(lines)


def _short(value: float | None, absent: str = "") -> str:
    return absent if value is None else f"{value:.2f}"


def _range(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.2f}–{interval[1]:.2f}"
