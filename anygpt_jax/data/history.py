"""The mixtures of a run by the step each begins at: a change is stated in the config and written into checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from anygpt_jax.data.mixture import MixtureSettings
from anygpt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Stage:
    """A mixture and the step whose batch is its first."""

    step: int
    mixture: MixtureSettings


def settings_of(config: ml_collections.ConfigDict) -> MixtureSettings:
    """config.mixture (task -> weight), with `mixture_by` and `mixture_temperature` if they are there and not None."""
    by, temperature = config.get("mixture_by"), config.get("mixture_temperature")
    return MixtureSettings(
        {task: float(weight) for task, weight in dict(config.mixture).items()},
        "weights" if by is None else by,
        1.0 if temperature is None else float(temperature),
    )


def to_json(history: Sequence[Stage]) -> list[dict[str, Any]]:
    """As a checkpoint's config keeps it under `mixture_history`: step, weights, by and temperature of each stage."""
    return [{"step": stage.step, **dataclasses.asdict(stage.mixture)} for stage in history]


def from_json(stages: Sequence[Mapping[str, Any]]) -> tuple[Stage, ...]:
    """The inverse of `to_json`; KeyError for a stage that lacks a field."""
    return tuple(
        Stage(int(s["step"]), MixtureSettings(dict(s["weights"]), s["by"], float(s["temperature"]))) for s in stages
    )


def describe(stage: Stage) -> str:
    """ "from step 0: a 1, b 2", for logs and errors; `by` and temperature are told where they are not the defaults."""
    mixture = stage.mixture
    weights = ", ".join(f"{task} {weight:g}" for task, weight in sorted(mixture.weights.items()))
    more = f" by {mixture.by} at temperature {mixture.temperature:g}"
    return f"from step {stage.step}: {weights}" + (more if (mixture.by, mixture.temperature) != ("weights", 1) else "")


def recorded(description: Mapping[str, Any]) -> tuple[Stage, ...]:
    """The history in a checkpoint's config; one from before it was kept has its mixture from step 0."""
    if "mixture_history" in description:
        return from_json(description["mixture_history"])
    return (Stage(0, settings_of(ml_collections.ConfigDict(dict(description)))),)


def extended(history: Sequence[Stage], config: ml_collections.ConfigDict, reached: int) -> tuple[Stage, ...]:
    """A run's history when it goes on from step `reached` with this config (a new run: (), 0).

    UserError if the mixture is another and `mixture_from_step` does not say from when, or says a step whose batch
    has been trained on.
    """
    now, start = settings_of(config), config.get("mixture_from_step")
    if problems := now.problems():
        raise UserError("\n".join(problems))
    if not history:
        if start:
            raise UserError(f"config.mixture_from_step={start}, but there is no checkpoint to go on from.")
        return (Stage(0, now),)
    if history[-1].mixture == now and start in (None, history[-1].step):
        return tuple(history)
    if start is None:
        raise UserError(
            f"config.mixture is not what the checkpoint of step {reached} was made with "
            f"({'; '.join(map(describe, history))}). "
            f"Set config.mixture_from_step={reached} (or later) to change it from there, or use that mixture."
        )
    if start < reached:
        raise UserError(
            f"config.mixture_from_step={start}, but the checkpoint has trained to step {reached} with "
            f"{'; '.join(map(describe, history))}; name a step from {reached} on."
        )
    kept = tuple(stage for stage in history if stage.step < start)
    return kept if kept and kept[-1].mixture == now else (*kept, Stage(start, now))
