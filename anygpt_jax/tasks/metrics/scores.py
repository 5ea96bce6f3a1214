"""Shares of attributes right: what every judge of this package ends in.

A metric function has SeqIO's signature `fn(targets, predictions) -> dict[str, float]`. Its result holds
exactly one of the keys of `MAIN_SCORES`; that one is the pair's score, the others are details.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Attributes = Mapping[str, object]

# Of a scene with one object ("size", "place") and of one with two ("second", "relation").
IMAGE_ATTRIBUTES = ("object", "colour", "size", "place", "second", "relation")
MUSIC_ATTRIBUTES = ("instrument", "tempo", "dance", "key")

# The score of a pair, and whether more of it is better.
MAIN_SCORES = {"attributes": True, "wer": False, "instrument": True}


def main_score(result: Mapping[str, float]) -> tuple[str, float, bool]:
    """(name, value, higher is better) of the one main score in a metric function's result."""
    names = [name for name in MAIN_SCORES if name in result]
    if len(names) != 1:
        raise ValueError(f"a metric's result must hold exactly one of {list(MAIN_SCORES)}, got {list(result)}")
    return names[0], float(result[names[0]]), MAIN_SCORES[names[0]]


def right(target: Attributes, reading: Attributes | None, names: Sequence[str]) -> dict[str, bool]:
    """For every attribute that the target has: whether the reading says the same."""
    reading = reading or {}
    return {name: reading.get(name) == target[name] for name in names if target.get(name) is not None}


def attribute_scores(
    targets: Sequence[Attributes], readings: Sequence[Attributes | None], names: Sequence[str]
) -> dict[str, float]:
    """Share of examples with each attribute right, over the examples whose target has that attribute.

    "attributes" is the mean over examples of the share of that example's attributes that are right;
    "all" the share of examples without a fault. A target without any of `names` is not counted.
    """
    if len(targets) != len(readings):
        raise ValueError(f"{len(targets)} targets but {len(readings)} predictions")
    verdicts = [v for v in (right(t, r, names) for t, r in zip(targets, readings, strict=True)) if v]
    scores = {
        "attributes": _mean([sum(v.values()) / len(v) for v in verdicts]),
        "all": _mean([float(all(v.values())) for v in verdicts]),
    }
    for name in names:
        judged = [float(v[name]) for v in verdicts if name in v]
        if judged:
            scores[name] = _mean(judged)
    return scores


def instrument_scores(
    targets: Sequence[Attributes], readings: Sequence[Attributes | None], names: Sequence[str] = MUSIC_ATTRIBUTES
) -> dict[str, float]:
    """As `attribute_scores`, for music: the main score is the share with the right instrument."""
    scores = attribute_scores(targets, readings, names)
    return {name: scores[name] for name in names if name in scores}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
