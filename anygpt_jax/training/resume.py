"""From which checkpoint a run goes on, whether that checkpoint is its own, and what the run remembers."""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import Any

import ml_collections

from anygpt_jax.data.history import Stage, extended, recorded, to_json
from anygpt_jax.data.packing import PLAN_VERSION
from anygpt_jax.errors import UserError
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.training.checkpoints import Checkpoints, Description
from anygpt_jax.vocabulary import Vocabulary

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a run remembers besides its arrays. Step s trains on batch s + `batch_offset`."""

    batch_offset: int = 0
    base: int = 0  # what a rollback goes back to: the last ordinary save, or where the run began
    rollbacks: tuple[tuple[int, int], ...] = ()  # (step that was reached, step that was gone back to)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Progress:
        """Of `to_json`."""
        rollbacks = tuple((int(a), int(b)) for a, b in fields["rollbacks"])
        return cls(int(fields["batch_offset"]), int(fields["base"]), rollbacks)

    def to_json(self) -> dict[str, Any]:
        """As a checkpoint's item `progress` has it."""
        return dataclasses.asdict(self)

    def saved(self, step: int) -> Progress:
        """With an ordinary save of this step."""
        return dataclasses.replace(self, base=step)

    def rolled_back(self, reached: int) -> Progress:
        """After going back from `reached` to the base, which then trains on the batches after those of `reached`."""
        offset = self.batch_offset + reached - self.base
        return Progress(offset, self.base, (*self.rollbacks, (reached, self.base)))


@dataclasses.dataclass(frozen=True)
class Resumed:
    """Where a run begins, or goes on."""

    step: int
    progress: Progress
    history: tuple[Stage, ...]  # its mixtures, by the number of the batch each begins at
    config: ml_collections.ConfigDict  # as checkpoints keep it: with the mixtures and the plan's version inside


def checkpoint_problems(
    checkpoints: Checkpoints, config: ml_collections.ConfigDict, vocabulary: Vocabulary
) -> list[str]:
    """What the newest checkpoint says of itself that does not go with this run; its arrays are not read."""
    try:
        step = checkpoints.latest()
        if step is None:
            begin(config)
        else:
            _resumed(checkpoints, step, config, vocabulary)
    except UserError as e:
        return [str(e)]
    except Exception:  # it is damaged: `resume_point` finds out, and goes on from another one
        return []
    return []


def resume_point(checkpoints: Checkpoints, config: ml_collections.ConfigDict, vocabulary: Vocabulary) -> Resumed | None:
    """Of the newest whole checkpoint; None if there is none. UserError if it belongs to another model or cache."""
    step = checkpoints.newest_whole()
    if step is None:
        return None
    then = checkpoints.description(step)
    if checkpoints.has_optimizer(step):
        if then.config.get("plan_version", 1) != PLAN_VERSION:
            log.warning("Batches are packed by another plan than the checkpoint's: the run goes on, on other batches.")
        for part in ("train", "seed"):
            if then.config.get(part) != json.loads(config.to_json_best_effort())[part]:
                log.warning(
                    "config.%s is not what the checkpoint was made with: the run goes on, but not as it would have.",
                    part,
                )
    return _resumed(checkpoints, step, config, vocabulary)


def _resumed(checkpoints: Checkpoints, step: int, config: ml_collections.ConfigDict, vocabulary: Vocabulary) -> Resumed:
    then, converted = checkpoints.description(step), not checkpoints.has_optimizer(step)
    then.vocabulary.require_same(
        vocabulary, f"The checkpoint {checkpoints.directory}/{step}", f"the cache {config.workdir}/cache"
    )
    _require_same_model(checkpoints, then, config, converted)
    if converted:
        return dataclasses.replace(begin(config), step=step, progress=Progress(base=step))
    progress = Progress.from_json(then.progress) if then.progress else Progress(base=step)
    history = extended(recorded(then.config), config, step + progress.batch_offset)
    return Resumed(step, progress, history, _kept(config, history))


def begin(config: ml_collections.ConfigDict) -> Resumed:
    """A run from step 0. UserError if its mixture is none."""
    history = extended((), config, 0)
    return Resumed(0, Progress(), history, _kept(config, history))


def _kept(config: ml_collections.ConfigDict, history: tuple[Stage, ...]) -> ml_collections.ConfigDict:
    kept = ml_collections.ConfigDict(config.to_dict())
    kept.mixture_history, kept.plan_version = to_json(history), PLAN_VERSION
    return kept


def _require_same_model(
    checkpoints: Checkpoints, then: Description, config: ml_collections.ConfigDict, converted: bool
) -> None:
    now = json.loads(config.to_json_best_effort())
    how = {"remat", "unroll", "attention", "matmul_barriers"}  # they change no number
    if converted:  # its dtypes are the source's, and adapters are put beside it here
        how |= {"param_dtype", "compute_dtype", "lora_rank", "lora_alpha", "lora_targets"}
    defaults = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
    theirs, ours = defaults | then.config["model"], defaults | now["model"]
    changed = [name for name in sorted({*theirs, *ours} - how) if theirs.get(name) != ours.get(name)]
    trained = {"optimizer": "adamw", "trainable": [], "frozen": []}  # what the optimizer's state is of
    other = [
        name
        for name, usual in trained.items()
        if then.config.get("train", {}).get(name, usual) != now["train"].get(name, usual)
    ]
    if other and not converted:
        raise UserError(
            f"The checkpoints in {checkpoints.directory} have the optimizer's state of another "
            f"{', '.join(f'train.{name}' for name in other)}; start a new run from them by train.start_from."
        )
    if changed:
        raise UserError(
            f"The checkpoints in {checkpoints.directory} were made with another model ({', '.join(changed)} differ); "
            "use another workdir or the config they were made with."
        )
