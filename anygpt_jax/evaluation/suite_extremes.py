"""The best and the worst examples of a protocol, as its page shows them."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation.examples import Example
from anygpt_jax.evaluation.measures import Measure, ratio
from anygpt_jax.evaluation.protocols import Protocol
from anygpt_jax.templates import TEXT

SHOWN = 4  # of the best, and of the worst


@dataclasses.dataclass(frozen=True)
class Shown:
    """An example on the page. A content is a modality and its bytes (UTF-8 text or a media file)."""

    key: str
    source: tuple[str, bytes]
    question: str | None
    reference: tuple[tuple[tuple[str, bytes], int], ...]  # each with how often it was given
    prediction: tuple[str, bytes] | None
    error: str | None  # why there is no prediction
    score: str


@dataclasses.dataclass(frozen=True)
class Extremes:
    """The best examples of a measure, the best first, and the worst, the worst first; none is in both."""

    measure: str
    best: tuple[Shown, ...]
    worst: tuple[Shown, ...]
    unanswered: int  # of all examples


def extremes(
    protocol: Protocol,
    examples: Sequence[Example],
    lines: Mapping[str, Mapping[str, Any]],
    rows: Mapping[str, tuple[Measure, np.ndarray]],
    folder: pathlib.Path,
) -> Extremes | None:
    """By the first measure that has a score of one example; None if there is no such (a Fréchet distance has none).

    `lines` are the predictions by key (`scoring.read_lines`), their media in `folder`; `rows` are of the examples in
    their keys' order, by measure.
    """
    by_key = sorted(examples, key=lambda e: e.key)
    for measure, of_all in rows.values():
        try:
            alone = [measure.score(of_all[i : i + 1]) for i in range(len(by_key))]
        except UserError:
            continue
        order = sorted(range(len(by_key)), key=lambda i: -alone[i] if measure.higher_is_better else alone[i])
        best = order[: min(SHOWN, (len(order) + 1) // 2)]
        worst = order[len(best) :][::-1][:SHOWN]

        def shown(i: int, m: Measure = measure, r: np.ndarray = of_all) -> Shown:
            return _shown(protocol, by_key[i], lines[by_key[i].key], folder, _said(m, r[i : i + 1]))

        unanswered = sum("error" in lines[e.key] for e in by_key)
        return Extremes(measure.name, tuple(map(shown, best)), tuple(map(shown, worst)), unanswered)
    return None


def _said(measure: Measure, row: np.ndarray) -> str:
    """The score of one example; of a rate both its numbers, as few words make a rate that says little."""
    if measure.score is ratio:
        return f"{row[0, 0]:g} error{'' if row[0, 0] == 1 else 's'} in {row[0, 1]:g}"
    return f"{measure.score(row):.3f}"


def _shown(protocol: Protocol, example: Example, line: Mapping[str, Any], folder: pathlib.Path, score: str) -> Shown:
    prediction = None
    if "text" in line:
        prediction = (TEXT, line["text"].encode())
    elif "file" in line:
        prediction = (protocol.target, (folder / line["file"]).read_bytes())
    return Shown(
        key=example.key,
        source=example.source,
        question=protocol.question(example.attributes) if protocol.question else None,
        reference=tuple(_reference(protocol, example)),
        prediction=prediction,
        error=line.get("error"),
        score=score,
    )


def _reference(protocol: Protocol, example: Example) -> list[tuple[tuple[str, bytes], int]]:
    """The original medium; or the texts that are compared with, each once and with how often it was given."""
    if protocol.target == TEXT:
        told = protocol.reference(example.attributes)
        several = [told] if isinstance(told, str) else told
        if isinstance(several, Sequence) and all(isinstance(text, str) for text in several):
            return [((TEXT, text.encode()), times) for text, times in collections.Counter(several).items()]
    return [(example.target, 1)] if example.target else []
