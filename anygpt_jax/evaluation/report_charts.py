"""Charts as inline SVG that takes its colours from the page."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

LEFT, BOTTOM, TOP = 44, 30, 12
MOST_POINTS = 600  # of a line
LOG_FROM = 20.0  # times its middle that a line must reach before the scale is logarithmic, where that is allowed
Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Line:
    """`classes` are CSS classes of the page; `name`, if there is one, is written at the line's end."""

    points: Sequence[Point]
    classes: str
    name: str = ""


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


def loss_svg(curves: Mapping[str, Mapping[str, Sequence[Point]]], marks: Sequence[float] = ()) -> str:
    """Training as thin lines, validation as thick ones, a colour a modality; "" if there is nothing to draw."""
    named = "validation" if "validation" in curves else "train"
    lines = [
        Line(points, f"{split} {modality}", modality if split == named else "")
        for split, by_modality in curves.items()
        for modality, points in by_modality.items()
    ]
    return lines_svg(lines, "loss by modality", marks)


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most so many: of each stretch its lowest and its highest point, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(2 * len(points) / most)
    kept = []
    for i in range(0, len(points), size):
        part = points[i : i + size]
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return kept


def lines_svg(
    lines: Sequence[Line],
    label: str,
    marks: Sequence[float] = (),
    width: int = 760,
    height: int = 300,
    right: int = 84,
    may_be_log: bool = False,
) -> str:
    """Lines over steps, from zero or on a logarithmic scale, with `marks` as upright lines; "" without any point.

    What is not finite is not drawn.
    """
    drawn = [dataclasses.replace(line, points=thinned([p for p in line.points if _finite(p)])) for line in lines]
    drawn = [line for line in drawn if line.points]
    if not drawn:
        return ""
    values = [value for line in drawn for _, value in line.points]
    last = max(step for line in drawn for step, _ in line.points) or 1
    middle = sorted(values)[len(values) // 2]
    if may_be_log and min(values) > 0 and max(values) > LOG_FROM * middle:
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        ticks = [10.0**i for i in range(low, high + 1, max(1, (high - low) // 4))]

        def share(value: float) -> float:
            return (math.log10(value) - low) / (high - low)
    else:
        tick = _nice(max(*values, 1e-9) / 4)
        top = tick * math.ceil(max(*values, 1e-9) / tick - 1e-9)
        ticks = [i * tick for i in range(round(top / tick) + 1)]

        def share(value: float) -> float:
            return value / top

    def x(step: float) -> float:
        return LEFT + (width - LEFT - right) * step / last

    def y(value: float) -> float:
        return TOP + (height - TOP - BOTTOM) * (1 - share(value))

    parts = []
    for value in ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - right}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{_short(value)}</text>'
        )
    step_tick = max(_nice(last / 5), 1)
    for i in range(int(last // step_tick) + 1):
        parts.append(
            f'<text class="tick" x="{x(i * step_tick):.1f}" y="{height - 10}" text-anchor="middle">'
            f"{_short(i * step_tick)}</text>"
        )
    for step in marks:
        if 0 <= step <= last:
            parts.append(
                f'<line class="mark" x1="{x(step):.1f}" x2="{x(step):.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>'
            )
    ends: list[tuple[float, str, str]] = []
    for line in drawn:
        path = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in line.points)
        if len(line.points) == 1:  # a line of one point would not be seen
            (s, v), classes = line.points[0], html.escape(line.classes)
            parts.append(f'<circle class="dot {classes}" cx="{x(s):.1f}" cy="{y(v):.1f}" r="2.5"/>')
        else:
            parts.append(f'<polyline class="curve {html.escape(line.classes)}" points="{path}"/>')
        if line.name:
            ends.append((y(line.points[-1][1]), line.name, line.classes))
    below = -math.inf
    for at, name, classes in sorted(ends):  # labels keep their distance
        below = max(at + 4, below + 14)
        parts.append(
            f'<text class="label {html.escape(classes)}" x="{width - right + 8}" y="{below:.1f}">{html.escape(name)}</text>'
        )
    aria = html.escape(label, quote=True)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{aria}">{"".join(parts)}</svg>'


def bar_svg(shares: Mapping[str, float], label: str, width: int = 760, height: int = 44) -> str:
    """One bar cut into parts (CSS class `part-NAME`), each as wide as its share of the sum."""
    total = sum(shares.values())
    if not total:
        return ""
    parts, left = [], 0.0
    for name, value in shares.items():
        wide = width * value / total
        percent = f"{100 * value / total:.1f} %"
        parts.append(
            f'<rect class="part part-{html.escape(name)}" x="{left:.2f}" y="0" width="{wide:.2f}" height="{height}">'
            f"<title>{html.escape(name)}: {percent}</title></rect>"
        )
        if wide > 60:
            parts.append(f'<text class="inside" x="{left + 10:.1f}" y="{height / 2 + 5:.1f}">{percent}</text>')
        left += wide
    aria = html.escape(label, quote=True)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{aria}">{"".join(parts)}</svg>'


def _finite(point: Point) -> bool:
    return point[1] is not None and math.isfinite(point[1])


def _nice(value: float) -> float:
    """The nearest 1, 2 or 5 times a power of ten from above."""
    power = 10 ** math.floor(math.log10(max(value, 1e-12)))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= value * (1 - 1e-9))


def _short(value: float) -> str:
    """12k, 3.5M, 0.25, 6e-05."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
