"""What a run writes down: TensorBoard events and logs/metrics.jsonl, one line a measurement."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from anygpt_jax.cache import write_atomically
from anygpt_jax.multihost import leads
from anygpt_jax.training.loss import LossSums


def mean_losses(sums: Iterable[LossSums], modalities: tuple[str, ...]) -> dict[str, Any]:
    """{"loss": nats a trained token, "loss_by_modality": the same of each modality that had any}."""
    total = [np.sum([np.asarray(part, np.float64) for part in parts], axis=0) for parts in zip(*sums, strict=True)]
    nll, weight = total[0], total[1]
    by_modality = {name: float(n / w) for name, n, w in zip(modalities, nll, weight, strict=True) if w}
    return {"loss": float(nll.sum() / max(weight.sum(), 1.0)), "loss_by_modality": by_modality}


def scalars(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """("train/loss_by_modality/text", 2.1), … of what is nested."""
    if not isinstance(value, Mapping):
        yield name, value
        return
    for key, inner in value.items():
        yield from scalars(f"{name}/{key}", inner)


class MetricsWriter:
    """Appends to a run's logs. Lines past `start`, left by a run that died after its last checkpoint, go first.

    A line is {"step", "split": "train" | "validation", "loss", "loss_by_modality": {…}, …}; see `Meter.report`.
    Of several processes only the first writes.
    """

    def __init__(self, directory: pathlib.Path, start: int):
        self.path = directory / "metrics.jsonl"
        self._events: Any = None
        self.rewind(start)

    def rewind(self, step: int) -> None:
        """Forgets what is past `step`: it will be measured again."""
        if not leads():
            return
        from tensorboardX import SummaryWriter  # imports PyTorch where that is installed: only when it writes

        self.close()
        kept = [line for line in self._lines() if json.loads(line)["step"] <= step]
        write_atomically(self.path, "".join(line + "\n" for line in kept).encode())
        self._events = SummaryWriter(str(self.path.parent), purge_step=step + 1)

    def _lines(self) -> list[str]:
        if not self.path.is_file():
            return []
        whole = self.path.read_text().split("\n")[:-1]  # a line without its newline was cut off
        return [line for line in whole if line]

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """One line, and one TensorBoard scalar for every number in it, tagged as `scalars` has it."""
        if self._events is None:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        for tag, number in scalars(split, values):
            self._events.add_scalar(tag, number, step)

    def close(self) -> None:
        """Closes TensorBoard's file; metrics.jsonl is open only while a line is written."""
        if self._events is not None:
            self._events.close()
