"""The tables of the miniature study (docs/study.md), from the lines that launch/study.py writes.

python -m anygpt_jax.evaluation.study runs/study/results.jsonl
"""

from __future__ import annotations

import argparse
import json
import pathlib
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


def _dialogues(group: str) -> Value:
    """The share of exact last answers; `group` is "all", "several_turns" or "one_turn". None of an arm without them."""

    def exact(row: Row) -> float | None:
        entry = row["dialogues"]
        return None if entry is None else (entry if group == "all" else entry[group])["exact"]

    return exact


def _cell(of_seeds: Mapping[int, Row], value: Value) -> str:
    """Of one arm, for a table: the mean over its seeds with its interval, a dash where no seed has the value."""
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
        lines.append([task.replace("_to_", " → "), *(_cell(column, value) for column in columns), *gains])
    return _table(head, lines)


def never_trained(arms: Mapping[str, Mapping[int, Row]]) -> str:
    """Pairs that no arm was trained on, asked directly and by way of text, of the arms of FULL that are there."""
    full = {arm: arms[arm] for arm in FULL if arm in arms}
    first: Mapping[int, Row] = next(iter(full.values()), {})
    head = ["pair", "chance"]
    head += [f"{arm.replace('_', ' ')}, {way}" for arm in full for way in ("directly", "by text")]
    found = [
        f"{source}_to_{target}"
        for row in first.values()
        for source, targets in row["matrix"].items()
        for target in targets
        if "text" not in (source, target)
    ]
    lines = []
    for task in dict.fromkeys(found):
        values = [_cell(full[arm], score(task, way)) for arm in full for way in ("score", "via_text")]
        lines.append([task.replace("_to_", " → "), _cell(first, score(task, "chance")), *values])
    return _table(head, lines)


def _of_dialogues(arms: Mapping[str, Mapping[int, Row]]) -> str:
    """The arms of FULL that are there, on all dialogues and on those of several turns."""
    head = ("last answers of held-out dialogues with exactly the modalities asked for", "all", "several turns")
    return _table(
        head,
        [
            [arm.replace("_", " "), *(_cell(arms[arm], _dialogues(group)) for group in ("all", "several_turns"))]
            for arm in FULL
            if arm in arms
        ],
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Prints Markdown: the trained pairs' scores, the pairs never trained, the dialogues, the trained pairs' losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=pathlib.Path, metavar="RESULTS", help="the results.jsonl of launch/study.py")
    path = parser.parse_args(argv).path
    if not path.is_file():
        parser.error(f"there is no {path}; launch/study.py writes it")
    arms = read(path)
    print(trained(arms, score), never_trained(arms), _of_dialogues(arms), trained(arms, loss), sep="\n\n")


if __name__ == "__main__":
    main()
