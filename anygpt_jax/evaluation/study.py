"""The tables of the miniature study (docs/study.md), from the lines that launch/study.py writes.

python -m anygpt_jax.evaluation.study runs/study/results.jsonl
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from anygpt_jax.errors import UserError

LEVEL = 0.95
Row = Mapping[str, Any]  # of one arm and seed
Value = Callable[[Row], float | None]
FULL = ("any_to_any", "pairs_alone", "interleaved_alone")


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high): Student's interval of the mean of one value a seed; without bounds of a single one."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half


def read(path: pathlib.Path) -> dict[str, dict[int, Row]]:
    """arm → seed → line. UserError for a line that is there twice."""
    found: dict[str, dict[int, Row]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["seed"] in found.setdefault(row["arm"], {}):
            raise UserError(f"{path} has two lines of {row['arm']}, seed {row['seed']}; remove one.")
        found[row["arm"]][row["seed"]] = row
    return found


def score(task: str, way: str = "score") -> Value:
    """Of a pair in the matrix: "score" is the direct way, "via_text" the other."""
    source, _, target = task.partition("_to_")
    return lambda row: row["matrix"].get(source, {}).get(target, {}).get(way)


def loss(task: str) -> Value:
    """Validation loss of the pair in nats a token of what answers."""
    return lambda row: row["validation"].get(task)


def dialogues(group: str) -> Value:
    def exact(row: Row) -> float | None:
        entry = row["dialogues"]
        return None if entry is None else (entry if group == "all" else entry[group])["exact"]

    return exact


def cell(of_seeds: Mapping[int, Row], value: Value) -> str:
    values = [v for v in map(value, of_seeds.values()) if v is not None]
    return _told(values) if values else "–"


def differences(first: Mapping[int, Row], second: Mapping[int, Row], value: Value) -> list[float]:
    """second − first, seed by seed."""
    pairs = [(value(first[seed]), value(second[seed])) for seed in sorted(set(first) & set(second))]
    return [b - a for a, b in pairs if a is not None and b is not None]


def _told(values: Sequence[float], sign: str = "") -> str:
    mean, low, high = interval(values)
    bounds = "" if np.isnan(low) else f" ({low:{sign}.3f} to {high:{sign}.3f})"
    return f"{mean:{sign}.3f}{bounds}"


def difference(first: Mapping[int, Row], second: Mapping[int, Row], value: Value) -> str:
    """In bold where the interval leaves out 0."""
    values = differences(first, second, value)
    if not values:
        return "–"
    _, low, high = interval(values)
    return f"**{_told(values, '+')}**" if low > 0 or high < 0 else _told(values, "+")


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def trained(arms: Mapping[str, Mapping[int, Row]], value_of: Callable[[str], Value]) -> str:
    """The six pairs: the specialist, the two directions together, all pairs, and all with the dialogues."""
    tasks = [arm for arm in arms if "_to_" in arm and arm not in FULL]
    names = ("specialist", "with its way back", "all pairs", "any-to-any")
    head = ("pair", *names, f"{names[2]} − {names[0]}", f"{names[3]} − {names[0]}")
    lines = []
    for task in tasks:
        medium = next(m for m in task.split("_to_") if m != "text")
        value = value_of(task)
        columns = [arms.get(arm, {}) for arm in (task, f"{medium}_pair", "pairs_alone", "any_to_any")]
        gains = (difference(columns[0], column, value) for column in columns[2:])
        lines.append([task.replace("_to_", " → "), *(cell(column, value) for column in columns), *gains])
    return _table(head, lines)


def never_trained(arms: Mapping[str, Mapping[int, Row]]) -> str:
    """Pairs that no arm was trained on, asked directly and by way of text."""
    full = {arm: arms[arm] for arm in FULL if arm in arms}
    head = ["pair", "chance"]
    head += [f"{arm.replace('_', ' ')}, {way}" for arm in full for way in ("directly", "by text")]
    found = [
        f"{source}_to_{target}"
        for row in next(iter(full.values())).values()
        for source, targets in row["matrix"].items()
        for target in targets
        if "text" not in (source, target)
    ]
    lines = []
    for task in dict.fromkeys(found):
        values = [cell(full[arm], score(task, way)) for arm in full for way in ("score", "via_text")]
        lines.append([task.replace("_to_", " → "), cell(next(iter(full.values())), score(task, "chance")), *values])
    return _table(head, lines)


def of_dialogues(arms: Mapping[str, Mapping[int, Row]]) -> str:
    head = ("last answers of held-out dialogues with exactly the modalities asked for", "all", "several turns")
    return _table(
        head,
        [
            [arm.replace("_", " "), *(cell(arms[arm], dialogues(group)) for group in ("all", "several_turns"))]
            for arm in FULL
            if arm in arms
        ],
    )


def main(path: str) -> None:
    arms = read(pathlib.Path(path))
    print(trained(arms, score), never_trained(arms), of_dialogues(arms), trained(arms, loss), sep="\n\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
