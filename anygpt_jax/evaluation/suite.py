"""`anygpt evaluate --tasks=…`: published protocols on a checkpoint, from data to a line of the leaderboard.

WORKDIR/benchmarks/NAME has the predictions, and when all are there scores.json; WORKDIR/benchmarks/leaderboard.jsonl gets a
line whenever a protocol is scored. Of a job of several processes (`multihost.join`) each answers its part, and the first
scores when all have. With --share=I/N processes need not know of each other; whichever ends last scores.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from anygpt_jax import multihost
from anygpt_jax.cache import write_atomically
from anygpt_jax.errors import UserError
from anygpt_jax.evaluation import scoring
from anygpt_jax.evaluation.batch import Share, examples_of, model_of, predict
from anygpt_jax.evaluation.examples import Example, load_content
from anygpt_jax.evaluation.judges.chosen import Judges
from anygpt_jax.evaluation.measures import Measure
from anygpt_jax.evaluation.originals import Reconstructor, beginning
from anygpt_jax.evaluation.protocols import Protocol, by_name
from anygpt_jax.evaluation.suite_extremes import Extremes, extremes
from anygpt_jax.generation.pipeline import Pipeline
from anygpt_jax.templates import TEXT

LEADERBOARD = "leaderboard.jsonl"
SCORES = "scores.json"
BOUNDED = 256  # examples of which the originals are judged as well


def share_of(text: str) -> Share:
    """Of the text "I/N"; UserError unless I, counted from 0, is below N."""
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UserError(f"--share={text} is not I/N with I below N, such as 0/4.")
    return Share(int(index), int(count))


def run(config: ml_collections.ConfigDict, args: argparse.Namespace) -> None:
    """Answers and scores every task. UserError before any work if a name or a file is wrong."""
    try:
        _run(config, args)
    except ModuleNotFoundError as e:
        raise UserError(
            f"{e.name} is not installed: pip install 'anygpt-jax[benchmarks]', then run the same command again; what was "
            "answered is kept."
        ) from e


def _run(config: ml_collections.ConfigDict, args: argparse.Namespace) -> None:
    from anygpt_jax.evaluation import suite_report  # its Jinja is one of the things that `run` says are not installed

    if not args.data:
        raise UserError("--tasks needs --data=FOLDER with a folder for each task; docs/evaluation.md tells the files.")
    protocols = [by_name(name) for name in args.tasks.split(",") if name]
    multihost.join(config)
    share = share_of(args.share) if args.share else Share(jax.process_index(), jax.process_count())
    for protocol in protocols:
        protocol.register(pathlib.Path(args.data) / protocol.name)
    out = pathlib.Path(args.out or pathlib.Path(config.workdir) / "benchmarks")
    judges = {protocol.name: Judges(pathlib.Path(args.judges) if args.judges else None) for protocol in protocols}
    for protocol in protocols:
        protocol.all_measures(judges[protocol.name])  # what a judge lacks is said before any work
    pipeline = Pipeline.load(config)
    model = model_of(config, pipeline.step)
    results: list[tuple[dict[str, Any], Extremes | None]] = []
    for protocol in protocols:
        every = examples_of(protocol)
        predict(pipeline, protocol, every[: args.examples], out / protocol.name, share, int(config.seed), model)

        def work(protocol: Protocol = protocol, every: Sequence[Example] = every) -> None:
            if found := scored(protocol, every, out, pipeline, judges[protocol.name], args, model):
                results.append(found)

        if args.share:
            work()
        else:
            multihost_utils.sync_global_devices(f"answers of {protocol.name}, step {pipeline.step}")
            multihost.lead(work)
    if not results:
        return
    told = [result for result, _ in results]
    print(table(told))
    shown = {result["task"]: found for result, found in results}
    print(suite_report.write(out, told, shown, f"this model, step {pipeline.step:,}", BOUNDED))
    if args.json:
        write_atomically(pathlib.Path(args.json), to_json(told, indent=1).encode())


def scored(
    protocol: Protocol,
    every: Sequence[Example],
    out: pathlib.Path,
    pipeline: Pipeline,
    judges: Judges,
    args: argparse.Namespace,
    model: str,
) -> tuple[dict[str, Any], Extremes | None] | None:
    """What `score` has, on the leaderboard and compared, and examples of it; None while answers are not there."""
    folder, examples = out / protocol.name, every[: args.examples]
    done = scoring.read_lines(folder, [e.key for e in every])
    if left := {e.key for e in examples} - done.keys():
        print(f"{protocol.name}: {len(left)} of {len(examples)} are left to the other processes")
        return None
    rows = rows_of(protocol, examples, folder, pipeline, judges)
    result = score(protocol, examples, rows, folder, pipeline, judges)
    note(pathlib.Path(args.leaderboard or out / LEADERBOARD), result, pipeline.step, model)
    if args.compare:
        other = pathlib.Path(args.compare) / protocol.name
        result["compared"] = compare(rows, rows_of(protocol, examples, other, pipeline, judges))
    return result, extremes(protocol, examples, done, rows, folder)


def rows_of(
    protocol: Protocol, examples: Sequence[Example], folder: pathlib.Path, pipeline: Pipeline | None, judges: Judges
) -> dict[str, tuple[Measure, np.ndarray]]:
    """Of every measure, by its name. Text needs no pipeline: scores can be made again without the model."""
    by_key = sorted(examples, key=lambda e: e.key)

    def load(data: bytes, modality: str | None = protocol.target) -> Any:
        assert pipeline is not None and modality, "media are read by the tokenizer"
        try:
            return pipeline.tokenizers[modality].load(data)
        except UserError:
            if protocol.target:
                raise
            return None

    lines = scoring.read_lines(folder)
    keys = [e.key for e in by_key]
    lines = {key: line for key, line in lines.items() if key in set(keys)}
    predictions = scoring.predictions_of(lines, keys, folder, load)
    references = [protocol.reference(e.attributes) for e in by_key]
    return {m.name: (m, m.rows(references, predictions)) for m in protocol.all_measures(judges)}


def score(
    protocol: Protocol,
    examples: Sequence[Example],
    rows: Mapping[str, tuple[Measure, np.ndarray]],
    folder: pathlib.Path,
    pipeline: Pipeline | None,
    judges: Judges,
) -> dict[str, Any]:
    """FOLDER/scores.json: every measure with its interval, and the rows that others have published."""
    measured = {
        name: dataclasses.asdict(scoring.measured(m, of_all)) | {"higher_is_better": m.higher_is_better}
        for name, (m, of_all) in rows.items()
    }
    if pipeline is not None and (protocol.target != TEXT or protocol.judged):
        for bound, values in bounds(protocol, examples, pipeline, judges).items():
            for name, value in values.items():
                measured[name][bound] = value
    result = {
        "task": protocol.name,
        "title": protocol.title,
        "n": len(examples),
        "published_n": protocol.examples,
        "step": None if pipeline is None else pipeline.step,
        "scores": measured,
        "judges": judges.used(),
        "published": [dataclasses.asdict(row) for row in protocol.published],
        "citation": protocol.citation,
    }
    write_atomically(folder / SCORES, to_json(result, indent=1).encode())
    return result


def bounds(
    protocol: Protocol, examples: Sequence[Example], pipeline: Pipeline, judges: Judges
) -> dict[str, dict[str, float]]:
    """The measures of the originals themselves, and of what the tokenizer leaves of them: no model can be above that."""
    references: list[Any] = []
    originals: list[list[Any]] = []
    answers: list[list[tuple[str, bytes]]] = []
    for example in sorted(examples, key=lambda e: e.key):
        answer = example.answer if protocol.target is None else example.answer[-1:]
        if not answer or len(references) == BOUNDED or not {m for m, _ in answer} <= {TEXT, *pipeline.tokenizers}:
            continue
        try:
            whole = [(m, data if m == TEXT else beginning(pipeline.tokenizers[m], data)) for m, data in answer]
            originals.append([load_content(content, pipeline.tokenizers) for content in whole])
        except UserError:  # one that cannot be read bounds nothing
            continue
        answers.append(whole)
        references.append(protocol.reference(example.attributes))
    media = {"original": originals}
    if protocol.target != TEXT:
        rebuilt = iter(Reconstructor(pipeline.tokenizers)([c for whole in answers for c in whole if c[0] != TEXT]))
        media["tokenizer"] = [
            [text if m == TEXT else next(rebuilt) for (m, _), text in zip(whole, original, strict=True)]
            for whole, original in zip(answers, originals, strict=True)
        ]

    def predictions(found: Sequence[Sequence[Any]]) -> list[Any]:
        if protocol.target is not None:
            return [medium for (medium,) in found]
        named = zip(answers, found, strict=True)
        return [tuple((m, medium) for (m, _), medium in zip(whole, these, strict=True)) for whole, these in named]

    return {
        bound: {
            m.name: m.score(m.rows(references, predictions(these)))
            for m in protocol.all_measures(judges)
            if m.resampled  # a distance of so few originals is no bound of one of more pictures
        }
        for bound, these in media.items()
        if these
    }


def compare(
    ours: Mapping[str, tuple[Measure, np.ndarray]], theirs: Mapping[str, tuple[Measure, np.ndarray]]
) -> dict[str, dict[str, float]]:
    """Of every measure this model's value less the other's, with interval and p, on the same examples."""
    return {name: dataclasses.asdict(scoring.difference(m, theirs[name][1], rows)) for name, (m, rows) in ours.items()}


def note(path: pathlib.Path, result: dict[str, Any], step: int, model: str) -> None:
    """Appends one line to the leaderboard, unless its last one of this task and model says the same."""
    line = {"task": result["task"], "model": model, "step": step, "n": result["n"]}
    line |= {name: s["value"] for name, s in result["scores"].items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # processes that end together each add theirs
        file.seek(0)
        known = [json.loads(one) for one in file.read().splitlines()]
        same = [one for one in known if (one["task"], one.get("model")) == (line["task"], model)]
        if not same or to_json(same[-1]) != to_json(line):
            file.write(to_json(line) + "\n")


def to_json(value: Any, indent: int | None = None) -> str:
    """Without what JSON has no number for: NaN is null, an infinite value the text "Infinity"."""

    def plain(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {name: plain(of) for name, of in part.items()}
        if isinstance(part, list | tuple):
            return [plain(of) for of in part]
        if isinstance(part, float) and not math.isfinite(part):
            return None if math.isnan(part) else "Infinity" if part > 0 else "-Infinity"
        return part

    return json.dumps(plain(value), indent=indent, allow_nan=False)


def table(results: Sequence[dict[str, Any]]) -> str:
    """Each task's measures, and under them the published rows."""
    lines = []
    for result in results:
        lines.append(f"{result['title']} (n = {result['n']})")
        for name, s in result["scores"].items():
            better = "higher is better" if s["higher_is_better"] else "lower is better"
            told = "".join(f", of the {bound} {s[bound]:.3f}" for bound in ("tokenizer", "original") if bound in s)
            lines.append(f"  {name:<20}{s['value']:8.3f}  {_between(s)}{better}{told}")
            if "compared" in result:
                d = result["compared"][name]
                p = "" if math.isnan(d["p"]) else f"p {d['p']:.3f}"
                lines.append(f"  {'  less the other':<20}{d['value']:8.3f}  {_between(d)}{p}")
        for row in result["published"]:
            told = ", ".join(f"{name} {value:g}" for name, value in row["scores"].items())
            lines.append(f"  {row['system']:<20} {told}  ({row['where']})")
    return "\n".join(lines)


def _between(score: Mapping[str, float]) -> str:
    return "" if math.isnan(score["low"]) else f"{score['low']:.3f}–{score['high']:.3f}  "
