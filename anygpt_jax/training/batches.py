"""What a run trains on and is evaluated on: batches of the cache's splits, and losses over the held-out ones."""

from __future__ import annotations

import json
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections

from anygpt_jax.cache import Manifest, write_atomically
from anygpt_jax.data.history import Stage, describe
from anygpt_jax.data.loader import BatchSource, iterate, packers, with_split
from anygpt_jax.data.mixture import MixtureSettings
from anygpt_jax.data.store import Store
from anygpt_jax.multihost import leads
from anygpt_jax.training.loss import LossSums
from anygpt_jax.training.metrics import mean_losses
from anygpt_jax.training.step import Program
from anygpt_jax.vocabulary import Vocabulary

log = logging.getLogger(__name__)


def batches(
    config: ml_collections.ConfigDict,
    program: Program,
    vocabulary: Vocabulary,
    split: str,
    history: Sequence[Stage],
    steps: int,
    level: int = logging.INFO,
) -> BatchSource:
    """The batches of a split. How many records are too long for a row, and which, is in logs/.

    What the plan is like is logged at `level`.
    """
    train = config.train
    rule = train.get("long_records") or "drop"
    store = Store(pathlib.Path(config.workdir) / "cache", split)
    stages = packers(
        store,
        history,
        batch_size=train.batch_size,
        pack_rows=train.pack_rows,
        seq_len=train.seq_len,
        seed=config.seed,
        long_records=rule,
    )
    too_long = {task: scan for _, packer in stages for task, scan in packer.mixture.too_long.items()}
    if too_long:
        listed = pathlib.Path(config.workdir) / "logs" / f"too_long.{split}.jsonl"
        lines = (
            {"task": task, "rule": rule, "records": scan.too_long, "of": scan.records, "tokens": scan.too_long_tokens,
             "longest": scan.longest, "first": scan.first_too_long}
            for task, scan in sorted(too_long.items())
        )  # fmt: skip
        if leads():
            write_atomically(listed, "".join(json.dumps(line) + "\n" for line in lines).encode())
        many = "%d records are longer than train.seq_len=%d (train.long_records=%s): see %s"
        log.warning(many, sum(scan.too_long for scan in too_long.values()), train.seq_len, rule, listed)
    for stage, (_, packer) in zip(history, stages, strict=True):
        planned = "%s: mixture %s; %d draws fill %d rows, the first %d of them to %.1f %%"
        filled = 100 * packer.fill(0)
        log.log(level, planned, split, describe(stage), packer.draws, packer.group_rows, packer.rows, filled)
    return BatchSource(stages, vocabulary, train.batch_size, steps, program.process_rows(train.batch_size))


class HeldOut:
    """The validation split: the run's mixture as a whole, and each of its tasks by itself."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        program: Program,
        vocabulary: Vocabulary,
        mixture: MixtureSettings,
    ):
        """`train.eval_batches` of the mixture, `train.eval_task_batches` (0: none) of every task."""
        self._program, self._modalities = program, ("text", *vocabulary.modalities)
        held = Manifest.load(pathlib.Path(config.workdir) / "cache").tasks
        weights = with_split(held, mixture.weights, "validation")

        def source(weights: dict[str, float], count: int, level: int = logging.INFO) -> BatchSource:
            stage = Stage(0, MixtureSettings(weights, mixture.by, mixture.temperature))
            return batches(config, program, vocabulary, "validation", (stage,), count, level)

        self._whole = source(weights, config.train.eval_batches) if weights else None
        count = config.train.get("eval_task_batches") or 0
        self._by_task = {task: source({task: 1.0}, count, logging.DEBUG) for task in (weights if count else ())}

    def evaluate(self, params: Any) -> dict[str, Any] | None:
        """{"loss", "loss_by_modality", "loss_by_task": {task: {"loss", modality: loss, …}}}; None without the split.

        The same batches every time. `params` are the state's.
        """
        if self._whole is None:
            return None
        values = self._losses(params, self._whole)
        by_task = {task: self._losses(params, source) for task, source in self._by_task.items()}
        if by_task:
            values["loss_by_task"] = {t: {"loss": v["loss"], **v["loss_by_modality"]} for t, v in by_task.items()}
        return values

    def _losses(self, params: Any, source: BatchSource) -> dict[str, Any]:
        program = self._program
        sums: list[LossSums] = [
            jax.device_get(program.evaluate(params, program.place(batch, source.rows, source.batch_size)))
            for _, batch in iterate(source, 0)
        ]
        return mean_losses(sums, self._modalities)
