"""Scores of kept predictions: no model is needed, so that they can be measured again and compared.

FOLDER/predictions-*.jsonl has a line an example: {"key", "seed", "text"} or {"key", "seed", "file"}; {"key", "seed",
"segments": [{"modality", "text"} or {"modality", "file"}, …]} where the model chose what to answer with; or {"key", "error"}
where an example could not be asked; that one counts as answered wrongly.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation.measures import Measure
from anygpt_jax.evaluation.statistics import middle, resamples

FILES = "predictions-*.jsonl"


def read_lines(folder: pathlib.Path, known: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Every whole line by its key, of all files. UserError names a key that is there twice, and a line that is no line.

    Where the keys that the data have are `known`, it names a key that is none of them.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob(FILES)):
        data = path.read_bytes()
        for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
            try:
                row = json.loads(line)
                key = row["key"]
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{path}:{number} is no prediction; remove the line, and it is made again.") from None
            if key in found:
                raise UserError(f"{folder} has two predictions of {key}; remove one, or the folder.")
            found[key] = row
    if known is not None:
        _check_foreign(list(found), known, folder)
    return found


def _check_foreign(predicted: Sequence[str], known: Sequence[str], folder: pathlib.Path) -> None:
    """UserError names keys of predictions that the data do not have."""
    if foreign := sorted(set(predicted) - set(known)):
        raise UserError(
            f"{folder} has predictions of {_few(foreign)}, which the data do not have; mend the one or the other."
        )


def check_keys(predicted: Sequence[str], asked: Sequence[str], folder: pathlib.Path) -> None:
    """UserError unless both are the same keys."""
    _check_foreign(predicted, asked, folder)
    if missing := sorted(set(asked) - set(predicted)):
        raise UserError(f"{folder} lacks predictions of {_few(missing)}; run the same command again to make them.")


def _few(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


@dataclasses.dataclass(frozen=True)
class Score:
    """A measure's value over all examples, with its interval of 95 % by resampling them; NaN where it has none."""

    value: float
    low: float
    high: float


def measured(measure: Measure, rows: Float[np.ndarray, "N D"], seed: int = 0) -> Score:
    """`rows` are the measure's own of all examples; `seed` is of the resampling, where the measure allows one."""
    if not measure.resampled:
        return Score(measure.score(rows), math.nan, math.nan)
    values = np.array([measure.score(rows[draw]) for draw in resamples(len(rows), seed)])
    low, high = middle(values)
    return Score(measure.score(rows), low, high)


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of a second set of predictions to a first, on the same examples: positive is a higher value, better or not.

    Without resampling there is the value alone, and the others are NaN.
    """

    value: float
    low: float
    high: float
    p: float  # two-sided: how often a difference of 0 or of the other sign comes of resampling, twice, at most 1


def difference(
    measure: Measure, first: Float[np.ndarray, "N D"], second: Float[np.ndarray, "N D"], seed: int = 0
) -> Difference:
    """Paired bootstrap (Koehn 2004): both are scored on the same samples of examples."""
    if len(first) != len(second):  # a row of many embeddings may be wider than the other's
        raise ValueError(f"rows of shape {first.shape} and {second.shape} are not of the same examples")
    if not measure.resampled:
        return Difference(measure.score(second) - measure.score(first), math.nan, math.nan, math.nan)
    draws = resamples(len(first), seed)
    values = np.array([np.subtract(measure.score(second[d]), measure.score(first[d])) for d in draws])
    low, high = middle(values)
    known = values[np.isfinite(values)]
    p = math.nan if math.isnan(low) else min(1.0, 2 * min(float((known <= 0).mean()), float((known >= 0).mean())))
    return Difference(float(np.subtract(measure.score(second), measure.score(first))), low, high, p)


def predictions_of(
    lines: Mapping[str, Mapping[str, Any]], keys: Sequence[str], folder: pathlib.Path, load: Callable[..., Any]
) -> list[Any]:
    """The predicted text or medium of every key in their order; None where there is an error in its place.

    Of several segments a tuple of (modality, text or medium). `load` is called with the bytes of a file, and of one
    among several segments with its modality too.
    """
    check_keys(list(lines), keys, folder)

    def one(line: Mapping[str, Any], *modality: str) -> Any:
        if "error" in line:
            return None
        if "segments" in line:
            return tuple((s["modality"], one(s, s["modality"])) for s in line["segments"])
        return line["text"] if "text" in line else load((folder / line["file"]).read_bytes(), *modality)

    return [one(lines[key]) for key in keys]
