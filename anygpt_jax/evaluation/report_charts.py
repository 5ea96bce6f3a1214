"""Loss curves as inline SVG that takes its colours from the page."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 760, 300, 44, 30, 12, 84
Point = tuple[float, float]


def read_log(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of logs/metrics.jsonl; a line that was cut off ends the file."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def loss_curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[Point]]]:
    """split -> modality -> (step, nats a token)."""
    curves: dict[str, dict[str, list[Point]]] = {}
    for row in rows:
        for modality, loss in row.get("loss_by_modality", {}).items():
            curves.setdefault(row.get("split", "train"), {}).setdefault(modality, []).append((row["step"], loss))
    return curves


def loss_svg(curves: Mapping[str, Mapping[str, Sequence[Point]]]) -> str:
    """Training as thin lines, validation as thick ones, a colour a modality; "" if there is nothing to draw."""
    points = [p for by_modality in curves.values() for line in by_modality.values() for p in line]
    if not points:
        return ""
    last = max(step for step, _ in points) or 1
    highest = max(loss for _, loss in points)
    tick = _nice(highest / 4)
    top = tick * math.ceil(highest / tick)

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last

    def y(loss: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - loss / top)

    parts = []
    for i in range(round(top / tick) + 1):
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(i * tick):.1f}" y2="{y(i * tick):.1f}"/>'
        )
        parts.append(
            f'<text class="tick" x="{LEFT - 8}" y="{y(i * tick) + 4:.1f}" text-anchor="end">{i * tick:g}</text>'
        )
    step_tick = _nice(last / 5)
    for i in range(int(last // step_tick) + 1):
        where = x(i * step_tick)
        parts.append(
            f'<text class="tick" x="{where:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{i * step_tick:,.0f}</text>'
        )
    ends: list[tuple[float, str]] = []
    for split, by_modality in curves.items():
        for modality, line in by_modality.items():
            path = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in line)
            parts.append(f'<polyline class="curve {split} {modality}" points="{path}"/>')
            if split == ("validation" if "validation" in curves else "train"):
                ends.append((y(line[-1][1]), modality))
    below = -math.inf
    for height, modality in sorted(ends):  # labels keep their distance
        below = max(height + 4, below + 14)
        parts.append(f'<text class="label {modality}" x="{WIDTH - RIGHT + 8}" y="{below:.1f}">{modality}</text>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="loss by modality">{"".join(parts)}</svg>'


def _nice(value: float) -> float:
    """The nearest 1, 2 or 5 times a power of ten from above."""
    power = 10 ** math.floor(math.log10(max(value, 1e-9)))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= value)
