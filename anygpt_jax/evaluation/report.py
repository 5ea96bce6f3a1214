"""`anygpt report`: report/index.html, one self-contained page of everything that was measured of a run."""

from __future__ import annotations

import argparse
import html
import importlib.resources
import json
import logging
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jinja2
import ml_collections

from anygpt_jax.cache import write_atomically
from anygpt_jax.cli import load_config
from anygpt_jax.errors import UserError
from anygpt_jax.evaluation import pages, report_media, report_training
from anygpt_jax.evaluation.main import read_timings

log = logging.getLogger(__name__)

MODALITIES = ("text", "image", "speech", "music")  # those of other packages follow
SAMPLES = 4  # of a pair
SAID = ("object", "colour", "size", "place", "instrument", "tempo", "dance", "key")
WAYS = ("direct", "via_text", "chance", "ceiling", "untrained")
METRIC_NAMES = {"attributes": "attributes right", "wer": "word error rate", "instrument": "right instrument"}
# The marks that the trained pairs and the tokenizers are held against.
THRESHOLDS = {
    "image_to_text": 0.85, "text_to_image": 0.75, "speech_to_text": 0.50, "text_to_speech": 0.50,
    "music_to_text": 0.70, "text_to_music": 0.60,
}  # fmt: skip
TOKENIZER_THRESHOLDS = (
    ("image", "attributes", 0.95, True), ("speech", "wer", 0.12, False), ("music", "instrument", 0.95, True),
    ("music", "pitch", 0.88, True),
)  # fmt: skip


NEEDS_CONFIG = False  # a run's folder is enough


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """With --config and --workdir, which other verbs get from the command itself: this one needs no config."""
    parser.add_argument("place", nargs="?", metavar="RUN", help="a run's folder, or a config that names it")
    parser.add_argument("--config", metavar="FILE", help="a Python file with get_config(); its workdir is the run's")
    parser.add_argument("--workdir", metavar="DIR", help="the run's folder; default: the config's workdir")


def run(config: ml_collections.ConfigDict | None, args: argparse.Namespace) -> None:
    """Reads what `anygpt train` and `anygpt evaluate` left and writes the page; metrics.json gets the newest timings."""
    workdir = folder(config, args)
    path, log_path = workdir / "report" / "metrics.json", workdir / "logs" / "metrics.jsonl"
    if not path.is_file() and not log_path.is_file():
        raise UserError(f"No measurements at {path} or {log_path}; run `anygpt train` or `anygpt evaluate` first.")
    metrics = json.loads(path.read_text()) if path.is_file() else {}
    timings = read_timings(workdir)
    if timings and metrics:
        metrics["timings"] = timings
        write_atomically(path, json.dumps(metrics, indent=1).encode())
    page = render(metrics, workdir)
    write_atomically(workdir / "report" / "index.html", page.encode())
    log.info("report: %s (%.1f MB)", (workdir / "report" / "index.html").resolve(), len(page) / 1e6)


def folder(config: ml_collections.ConfigDict | None, args: argparse.Namespace) -> pathlib.Path:
    """Of the run that is meant."""
    if config is not None:
        return pathlib.Path(config.workdir)
    place = args.place or args.workdir
    if place is None:
        raise UserError("Name a run's folder, or a config with --config=FILE.")
    if place.partition(":")[0].endswith(".py"):
        return pathlib.Path(load_config(place).workdir)
    if not pathlib.Path(place).is_dir():
        raise UserError(f"No folder at {place}.")
    return pathlib.Path(place)


def render(metrics: Mapping[str, Any], workdir: pathlib.Path) -> str:
    """The page as HTML. Without metrics of an evaluation it is of the training alone."""
    measured: Mapping[str, Any] = metrics.get("quickstart", {"matrix": {}})
    if not any(measured.values()):  # the shipped model was evaluated
        measured = metrics.get("shipped", measured)
    matrix = measured["matrix"]
    training = report_training.values(workdir)
    return (
        pages.environment(number=_number)
        .get_template("report.html.j2")
        .render(
            name=workdir.resolve().name,
            modalities=sorted(matrix, key=lambda m: MODALITIES.index(m) if m in MODALITIES else len(MODALITIES)),
            cells={s: {t: cell(s, t, e) for t, e in row.items()} for s, row in matrix.items()},
            verdicts=verdicts(measured),
            metric_names=METRIC_NAMES,
            marks=len(THRESHOLDS),
            training=training,
            facts=training_facts(training["rows"], training["newest"].get("config", {})),
            duration=report_training.duration,
            commit=report_training.commit,
            samples=[s for s in (sample_set(workdir, *pair) for pair in shown_pairs(measured)) if s["rows"]],
            ways=WAYS,
            hard=measured.get("hard", {}),
            dialogues=dialogue_rows(measured.get("dialogues", {})),
            text=measured.get("text", {}),
            tokenizers=measured.get("tokenizers", {}),
            met=_met,
            tokenizer_marks={(m, name): (mark, higher) for m, name, mark, higher in TOKENIZER_THRESHOLDS},
            timings=metrics.get("timings", []),
            versions=metrics.get("versions", {}),
            step=measured.get("step"),
            sources=source_rows(),
        )
    )


def dialogue_rows(entry: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(name, share) of all dialogues, by their turns and by their form; nothing if they were not evaluated."""
    if not entry:
        return []
    turns = [("of several turns", entry["several_turns"]), ("of one turn", entry["one_turn"])]
    return [("all", entry), *turns, *entry["by_form"].items()]


def _number(value: Any, digits: int = 2) -> str:
    """The templates' filter: `digits` after the point of a float, commas between thousands, a dash for None."""
    return "–" if value is None else f"{value:,.{digits}f}" if isinstance(value, float) else f"{value:,}"


def cell(source: str, target: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of the matrix with what the page needs: how far the score is from chance to ceiling, and its mark."""
    span = (entry["ceiling"] or 0.0) - entry["chance"]
    known = entry["ceiling"] is not None and abs(span) > 1e-6
    reached = (entry["score"] - entry["chance"]) / span if known else 0.0
    mark = THRESHOLDS.get(f"{source}_to_{target}")
    met = None if mark is None else _met(entry["score"], mark, entry["higher_is_better"])
    return {**entry, "reached": min(max(reached, 0.0), 1.0), "mark": mark, "met": met}


def _met(score: float, mark: float, higher_is_better: bool) -> bool:
    return score >= mark if higher_is_better else score <= mark


def verdicts(measured: Mapping[str, Any]) -> dict[str, list[str]]:
    """{"met": [sentences], "short": [sentences]} over the marks of pairs and tokenizers."""
    found: dict[str, list[str]] = {"met": [], "short": []}
    for name, mark in THRESHOLDS.items():
        source, target = name.split("_to_")
        entry = measured["matrix"].get(source, {}).get(target)
        if entry:
            _judge(found, f"{source} to {target}", entry["metric"], entry["score"], mark, entry["higher_is_better"])
    for modality, metric, mark, higher in TOKENIZER_THRESHOLDS:
        row = measured.get("tokenizers", {}).get(modality, {})
        if metric in row:
            _judge(found, f"{modality} tokenizer", metric, row[metric], mark, higher)
    return found


def _judge(found: dict[str, list[str]], what: str, metric: str, score: float, mark: float, higher: bool) -> None:
    name = METRIC_NAMES.get(metric, metric)
    aim = "at least" if higher else "at most"
    found["met" if _met(score, mark, higher) else "short"].append(f"{what}: {name} {score:.2f}, mark {aim} {mark:.2f}")


def training_facts(rows: list[dict[str, Any]], config: Mapping[str, Any]) -> dict[str, Any]:
    """The last step and losses, and the median of what each log line of training measured."""
    train = [row for row in rows if row.get("split", "train") == "train"]
    validation = [row["loss"] for row in rows if row.get("split") == "validation"]
    if not train:
        return {}

    def median(name: str) -> float | None:
        values = sorted(row[name] for row in train if name in row)
        return float(values[len(values) // 2]) if values else None

    return {
        "step": train[-1]["step"],
        "steps": config.get("train", {}).get("steps"),
        "loss": train[-1].get("loss"),
        "validation": validation[-1] if validation else None,
        "tokens_per_second": median("tokens_per_second"),
        "mfu": median("mfu"),
    }


def shown_pairs(measured: Mapping[str, Any]) -> list[tuple[str, str, str | None, dict[str, Any]]]:
    """(source, target, hard split or None, entry), the trained pairs first."""
    pairs: list[tuple[str, str, str | None, dict[str, Any]]]
    pairs = [(s, t, None, e) for s, row in measured["matrix"].items() for t, e in row.items()]
    pairs.sort(key=lambda pair: not pair[3]["trained"])
    for name, splits in measured.get("hard", {}).items():
        source, target = name.split("_to_")
        pairs += [(source, target, split, entry) for split, entry in splits.items()]
    return pairs


def sample_set(
    workdir: pathlib.Path, source: str, target: str, split: str | None, entry: Mapping[str, Any]
) -> dict[str, Any]:
    """The first predictions of a pair, with what was asked and what is true."""
    folder = workdir / "predictions" / (f"{source}_to_{target}" + (f"@{split}" if split else ""))
    path = folder / "predictions.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    rows = []
    for line in list(filter(None, lines))[:SAMPLES]:
        row = json.loads(line)
        shown = {role: media_tag(folder, row.get(role)) for role in ("source", "direct", "via_text", "truth")}
        rows.append({**row, **shown, "attributes": said(row["attributes"])})
    return {"source": source, "target": target, "split": split, "entry": entry, "rows": rows}


def said(attributes: Mapping[str, Any]) -> str:
    """The attributes that are scored, in words: of the embedded world those that it names, of other data all."""
    names = [name for name in SAID if name in attributes] or [k for k, v in attributes.items() if isinstance(v, str)]
    return ", ".join(str(attributes[name]) for name in names)


def media_tag(folder: pathlib.Path, named: Mapping[str, str] | None) -> Any:
    """HTML of one medium, everything inside the page; None if there is none."""
    if not named or not (folder / named["file"]).is_file():
        return None
    path = folder / named["file"]
    if "html" in named:  # what the tokenizer of a modality of another package made of it
        tag = named["html"]
    elif named["modality"] == "text":
        tag = f"<q>{html.escape(named['text'])}</q>"
    elif path.suffix == ".png":
        tag = f'<img class="scene" alt="" src="{report_media.image_uri(path)}">'
    elif path.suffix != ".wav":
        tag = f"<code>{html.escape(path.name)}</code>"
    else:
        tag = (
            f'<img class="spectrogram" alt="spectrogram" src="{report_media.spectrogram_uri(path)}">'
            f'<audio controls preload="none" src="{report_media.audio_uri(path)}"></audio>'
        )
    return jinja2.filters.Markup(tag)


def source_rows() -> list[list[str]]:
    """The table of sources in the data set's card: material, package, licence, changes; without links."""
    card = importlib.resources.files("anygpt_jax.embedded").joinpath("CARD.md").read_text("utf-8")
    lines = card.partition("## Sources")[2].partition("\n## ")[0].splitlines()
    rows = [[c.strip() for c in line.strip().strip("|").split("|")] for line in lines if line.startswith("|")]
    plain = [[re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", c).replace("`", "").replace("*", "") for c in row] for row in rows]
    return [row for row in plain if not set("".join(row)) <= set("-: ")]
