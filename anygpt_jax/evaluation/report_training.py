"""What the page says of a run's training: its curves, where its time went, what ran, and what was skipped."""

from __future__ import annotations

import contextlib
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from anygpt_jax.evaluation import report_charts
from anygpt_jax.evaluation.report_charts import Line, Point
from anygpt_jax.training import goodput

SMALL = {"width": 440, "height": 210, "right": 76}
Row = Mapping[str, Any]


def values(workdir: pathlib.Path) -> dict[str, Any]:
    """All that report_training.html.j2 shows; "rows" is empty if nothing was trained here."""
    rows = report_charts.read_log(workdir / "logs" / "metrics.jsonl")
    events = goodput.read_events(workdir / "logs" / "goodput.jsonl")
    account = goodput.account(events) if events else None
    marks = [float(run.resumed_at) for run in account.runs[1:] if run.resumed_at] if account else []
    marks += [float(to) for _, to in account.rollbacks] if account else []
    curves = report_charts.loss_curves(rows)
    started = [_read_folder(folder) for folder in sorted((workdir / "logs" / "runs").glob("*")) if folder.is_dir()]
    return {
        "rows": rows,
        "curves_svg": _markup(report_charts.loss_svg(curves, marks)),
        "curve_splits": list(curves),
        "has_sound": any(modality in by for by in curves.values() for modality in ("speech", "music")),
        "marks": marks,
        "charts": charts(rows, marks),
        "account": account,
        "parts": parts(account) if account else [],
        "bar": _markup(report_charts.bar_svg(account.seconds, "where the time went")) if account else "",
        "starts": starts(account, started),
        "newest": started[-1] if started else {},
        "skipped": len(skipped_batches(workdir / "logs" / "skipped.jsonl")),
    }


def skipped_batches(path: pathlib.Path) -> set[int]:
    """The numbers of the batches that were not trained on; a restart may have told one twice."""
    found = set()
    for line in path.read_text().splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError, KeyError):  # cut off by a kill
            found.add(int(json.loads(line)["batch"]))
    return found


def charts(rows: Sequence[Row], marks: Sequence[float]) -> list[dict[str, Any]]:
    """[{"title", "unit", "svg"}] of what the log holds."""
    train = [row for row in rows if row.get("split", "train") == "train"]
    validation = [row for row in rows if row.get("split") == "validation"]
    rate = "tokens_per_second_per_chip" if any("tokens_per_second_per_chip" in row for row in train) else ""
    tasks = sorted({task for row in validation for task in row.get("loss_by_task", {})})
    memory = sorted({name for row in train for name in row.get("memory_gib", {})})
    made = [
        ("Loss", "nats a trained token", [
            Line(series(train, "loss"), "one-a", "train"), Line(series(validation, "loss"), "one-b", "validation"),
        ], False),
        ("Validation loss by task", "nats a trained token", [
            Line(series(validation, "loss_by_task", task, "loss"), f"many-{i % 8}", task.replace("_", " "))
            for i, task in enumerate(tasks)
        ], False),
        ("Learning rate", "", [Line(series(train, "lr"), "one-a")], False),
        ("Gradient norm", "before clipping", [Line(series(train, "grad_norm"), "one-a")], True),
        ("Throughput", "tokens a second and chip, padding not counted" if rate else "tokens a second", [
            Line(series(train, rate or "tokens_per_second"), "one-a")], False),
        ("Model FLOPs utilization", "%", [Line(series(train, "mfu", scale=100), "one-a")], False),
        ("Step time", "ms", [
            Line(series(train, f"{part}_ms"), f"many-{i}", name)
            for i, (part, name) in enumerate((("compute", "compute"), ("data", "data"), ("checkpoint", "save")))
        ], False),
        ("Waiting for data", "% of the step's time", [Line(series(train, "data_wait", scale=100), "one-a")], False),
        ("Memory", "GiB", [
            Line(series(train, "memory_gib", name), f"many-{i}", name.replace("_", " ")) for i, name in enumerate(memory)
        ], False),
        ("Skipped steps", "a log interval", [
            Line(series(train, "skipped"), "one-b")] if any(row.get("skipped") for row in train) else [], False),
    ]  # fmt: skip
    found = []
    for title, unit, lines, log in made:
        svg = report_charts.lines_svg(lines, title, marks, may_be_log=log, **SMALL)
        if svg:
            found.append({"title": title, "unit": unit, "svg": _markup(svg)})
    return found


def series(rows: Sequence[Row], *names: str, scale: float = 1.0) -> list[Point]:
    """(step, value) of the rows that have it; a name after a name is within it."""
    found = []
    for row in rows:
        value: Any = row
        for name in names:
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None:
            found.append((float(row["step"]), scale * value))
    return found


def parts(account: goodput.Account) -> list[dict[str, Any]]:
    """Rows of the table of where the time went."""
    total = account.total or 1.0
    return [
        {
            "name": part,
            "meaning": goodput.MEANING[part],
            "seconds": account.seconds[part],
            "time": duration(account.seconds[part]),
            "share": account.seconds[part] / total,
        }
        for part in goodput.PARTS
    ]


def starts(account: goodput.Account | None, folders: Sequence[Row]) -> list[dict[str, Any]]:
    """One row a start of the program: by the account, with what the run's folder of that name says."""
    of = {folder["name"]: folder for folder in folders}
    rows = []
    for run in account.runs if account else ():
        folder = of.get(run.run, {})
        devices = folder.get("environment", {}).get("devices", {})
        rows.append(
            {
                "began": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(run.began)),
                "lasted": duration(run.last_sign - run.began),
                "resumed_at": run.resumed_at,
                "reached": run.reached,
                "end": run.end,
                "commit": commit(folder.get("git", {})),
                "devices": f"{devices['count']} × {devices['kind']}" if devices else "",
            }
        )
    return rows


def commit(git: Row) -> str:
    """Ten digits of the commit in a run's git.json, and whether the tree differed from it; "" where there is none."""
    return git["commit"][:10] + (", changed" if git["dirty"] else "") if git else ""


def duration(seconds: float) -> str:
    """3 d 4 h, 2 h 13 min, 4 min 5 s, 12.3 s."""
    whole = round(seconds)
    if whole >= 86400:
        return f"{whole // 86400} d {whole // 3600 % 24} h"
    if whole >= 3600:
        return f"{whole // 3600} h {whole // 60 % 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{seconds:.1f} s"


def _read_folder(folder: pathlib.Path) -> dict[str, Any]:
    """{"name", and of config, environment and git what is there}."""
    found: dict[str, Any] = {"name": folder.name}
    for name in ("config", "environment", "git"):
        path = folder / f"{name}.json"
        if path.is_file():
            found[name] = json.loads(path.read_text())
            found[f"{name}_text"] = json.dumps(found[name], indent=1)
    return found


def _markup(svg: str) -> Any:
    return jinja2.filters.Markup(svg)
