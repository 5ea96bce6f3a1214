"""What a pair that was never trained could reach through text: the product of its two trained legs' scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anygpt_jax.templates import TEXT

Matrix = Mapping[str, Mapping[str, dict[str, Any]]]


def share_right(metric: str, score: float) -> float:
    """A score as a share: of a word error rate what it leaves, not below 0."""
    return max(0.0, 1.0 - score) if metric == "wer" else score


def add_legs(matrix: Matrix) -> None:
    """Adds "legs" and "share_of_legs" {"direct", "via_text"} to the pairs that were never trained and whose legs are.

    A share above 1 is possible: the legs' metrics ask for more than the pair's does. It is None where a leg is at 0.
    """
    for source, row in matrix.items():
        for target, entry in row.items():
            first, second = matrix.get(source, {}).get(TEXT), matrix.get(TEXT, {}).get(target)
            if entry["trained"] or first is None or second is None or not (first["trained"] and second["trained"]):
                continue
            legs = share_right(first["metric"], first["score"]) * share_right(second["metric"], second["score"])
            ways = {"direct": entry["score"]} | ({"via_text": entry["via_text"]} if "via_text" in entry else {})
            entry["legs"] = legs
            entry["share_of_legs"] = {
                way: share_right(entry["metric"], score) / legs if legs > 0 else None for way, score in ways.items()
            }
