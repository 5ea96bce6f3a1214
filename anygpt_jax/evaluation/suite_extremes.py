"""The best and the worst examples of a protocol, as its page shows them."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation.examples import Content, Example
from anygpt_jax.evaluation.measures import Measure, ratio
from anygpt_jax.evaluation.protocols import Protocol
from anygpt_jax.templates import TEXT

SHOWN = 4  # of the best, and of the worst


@dataclasses.dataclass(frozen=True)
class Shown:
    """An example on the page. A content is a modality and its bytes (UTF-8 text or a media file)."""

    key: str
    source: tuple[Content, ...]  # the media of the last turn, or its text
    question: str | None
    reference: tuple[tuple[Content, int], ...]  # each with how often it was given
    prediction: tuple[Content, ...] | None
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
    if "segments" in line:
        prediction = tuple(_segment(s, folder) for s in line["segments"])
    elif "text" in line:
        prediction = ((TEXT, line["text"].encode()),)
    elif "file" in line and protocol.target:
        prediction = ((protocol.target, (folder / line["file"]).read_bytes()),)
    source, question = _asked(protocol, example)
    return Shown(
        key=example.key,
        source=source,
        question=question,
        reference=tuple(_reference(protocol, example)),
        prediction=prediction,
        error=line.get("error"),
        score=score,
    )


def _segment(segment: Mapping[str, Any], folder: pathlib.Path) -> Content:
    said = segment["text"].encode() if "text" in segment else (folder / segment["file"]).read_bytes()
    return segment["modality"], said


def _asked(protocol: Protocol, example: Example) -> tuple[tuple[Content, ...], str | None]:
    """The source and the question; of whole turns the last one's media, and all of it as `_told`."""
    if protocol.source is not None:
        return (example.source,), protocol.question(example.attributes) if protocol.question else None
    turn = list(itertools.takewhile(lambda part: part.role == "human", reversed(example.history)))[::-1]
    told = _told([part[1:] for part in turn])
    media = tuple((part.modality, part.data) for part in turn if part.modality != TEXT)
    return (media, told[1].decode("utf-8")) if media else ((told,), None)


def _told(segments: Sequence[Content]) -> Content:
    """Segments as one text, with the names of the modalities in the place of media."""
    return TEXT, " ".join(data.decode("utf-8") if m == TEXT else f"[{m}]" for m, data in segments).encode()


def _reference(protocol: Protocol, example: Example) -> list[tuple[Content, int]]:
    """The original medium; or the texts that are compared with, each once and with how often it was given."""
    if protocol.target == TEXT:
        told = protocol.reference(example.attributes)
        several = [told] if isinstance(told, str) else told
        if isinstance(several, Sequence) and all(isinstance(text, str) for text in several):
            return [((TEXT, text.encode()), times) for text, times in collections.Counter(several).items()]
    if protocol.target is None:
        return [(content, 1) for content in example.answer]
    return [(example.target, 1)] if example.target else []
