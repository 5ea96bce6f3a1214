"""What a run does with its checkpoints: which stay, by Orbax's own policies, and where copies go."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from orbax.checkpoint import checkpoint_managers as ocm

from anygpt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Retention:
    """What any of the rules keeps stays."""

    last: int | None = None  # so many of the newest; None: all
    every: int = 0  # those whose step is a multiple of it; 0: none for that reason
    best: int = 0  # so many with the smallest metric; one without a metric is never among them
    metric: str = "loss"
    ordinary: int = 0  # the newest whose step is a multiple of it, besides: what a rollback goes back to

    def problems(self, where: str = "train.keep") -> list[str]:
        """`where` begins the settings' names."""
        found = []
        if self.last is not None and self.last < 1:
            found.append(f"{where}_checkpoints={self.last} must be at least 1, or None to keep all.")
        for name in ("every", "best"):
            if getattr(self, name) < 0:
                found.append(f"{where}_{name}={getattr(self, name)} must not be negative.")
        return found

    def policy(self) -> ocm.PreservationPolicy:
        """For Orbax's checkpoint manager, and for the mirror, which asks it itself (`mirror.retire`)."""
        rules: list[ocm.PreservationPolicy] = [ocm.LatestN(n=self.last)]
        if self.every:
            rules.append(ocm.EveryNSteps(interval_steps=self.every))
        if self.best:
            rules.append(_Best(self.metric, self.best))
        if self.ordinary:
            rules.append(_Ordinary(self.ordinary))
        return ocm.AnyPreservationPolicy(rules)

    def metrics(self, given: Mapping[str, float] | None) -> dict[str, float]:
        """What a checkpoint keeps of its metrics: those that are numbers."""
        return {name: float(value) for name, value in (given or {}).items() if math.isfinite(value)}


@dataclasses.dataclass(frozen=True)
class _Best:
    """Orbax's BestN over those that have the metric; alone it keeps whatever there is while there are at most n."""

    metric: str
    n: int

    def should_preserve(self, checkpoints: Sequence[ocm.PolicyCheckpointInfo], *, context: Any) -> Sequence[bool]:
        measured = [c for c in checkpoints if self.metric in (c.metrics or {})]
        best = ocm.BestN(get_metric_fn=lambda metrics: metrics[self.metric], reverse=True, n=self.n)
        kept = best.should_preserve(measured, context=context)
        steps = {c.step for c, stays in zip(measured, kept, strict=True) if stays}
        return [c.step in steps for c in checkpoints]


@dataclasses.dataclass(frozen=True)
class _Ordinary:
    """The newest checkpoint of the ordinary interval: preemptions leave others, which must not drive it out."""

    interval: int

    def should_preserve(self, checkpoints: Sequence[ocm.PolicyCheckpointInfo], *, context: Any) -> Sequence[bool]:
        newest = max((c.step for c in checkpoints if c.step % self.interval == 0), default=None)
        return [c.step == newest for c in checkpoints]


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """What a run does with its checkpoints."""

    keep: Retention = dataclasses.field(default_factory=Retention)
    mirror: str | None = None  # a second directory
    mirror_keep: Retention = dataclasses.field(default_factory=Retention)
    verify: bool = True  # read every byte of a checkpoint before going on from it

    @classmethod
    def from_config(cls, train: ml_collections.ConfigDict) -> CheckpointSettings:
        """`train.keep_*`, `train.checkpoint_mirror`, `train.mirror_keep_*`. UserError if one makes no sense."""

        def retention(prefix: str) -> Retention:
            return Retention(
                train.get(f"{prefix}_checkpoints"),
                train.get(f"{prefix}_every") or 0,
                train.get(f"{prefix}_best") or 0,
                train.get("keep_metric") or "loss",
                train.save_every,
            )

        found = cls(
            retention("keep"),
            train.get("checkpoint_mirror") or None,
            retention("mirror_keep"),
            train.get("verify_checkpoints", True),
        )
        problems = found.keep.problems() + found.mirror_keep.problems("train.mirror_keep")
        if problems:
            raise UserError("\n".join(problems))
        return found
