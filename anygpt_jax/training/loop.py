"""The training loop: batches in, checkpoints and measurements out; interrupted anywhere, it resumes exactly."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import pathlib
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import ml_collections
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from anygpt_jax.cache import Manifest, load_vocabulary, write_atomically
from anygpt_jax.data.history import Stage, describe, extended, recorded, to_json
from anygpt_jax.data.loader import Batch, BatchSource, iterate, packers, with_split
from anygpt_jax.data.packing import PLAN_VERSION
from anygpt_jax.data.store import Store
from anygpt_jax.errors import UserError
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.sharding import make_mesh
from anygpt_jax.training import step as train_step
from anygpt_jax.training.checkpoints import Checkpoints
from anygpt_jax.training.checks import config_problems, refuse
from anygpt_jax.training.flops import batch_flops, peak_flops
from anygpt_jax.training.loss import LossSums
from anygpt_jax.training.metrics import MetricsWriter, mean_losses
from anygpt_jax.training.optimizer import make_schedule
from anygpt_jax.training.step import Metrics, Program
from anygpt_jax.vocabulary import Vocabulary

log = logging.getLogger(__name__)


class Meter:
    """Sums over the steps since the last report. Evaluation and saving stop its clock."""

    def __init__(self, model: ModelConfig, devices: int):
        self._model, self._devices = model, devices
        self.reset()

    def reset(self) -> None:
        self._sums: list[LossSums] = []
        self._grad_norms: list[float] = []
        self._tokens, self._flops, self._seconds, self._waited, self._timed_steps = 0, 0.0, 0.0, 0.0, 0
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self._seconds += time.perf_counter() - self._since
        yield
        self._since = time.perf_counter()

    def restart_clock(self) -> None:
        self._since = time.perf_counter()

    def add_losses(self, metrics: Metrics) -> None:
        """Reads the metrics, which waits for the step."""
        loss = float(metrics.loss)
        if not math.isfinite(loss):
            raise UserError("The loss is not finite; resume from the last checkpoint with a lower train.learning_rate.")
        self._sums.append(jax.device_get(metrics.sums))
        self._grad_norms.append(float(metrics.grad_norm))

    def add(self, metrics: Metrics, batch: Batch, waited: float) -> None:
        """A whole step: losses, and the throughput of `batch`, this process's rows."""
        self.add_losses(metrics)
        self._timed_steps += 1
        self._tokens += int((batch["segment_ids"] > 0).sum()) * jax.process_count()
        self._flops += batch_flops(self._model, batch) * jax.process_count()
        self._waited += waited

    def report(self, modalities: tuple[str, ...]) -> dict[str, Any]:
        """The measurements of a log line; tokens are those that are not padding."""
        seconds = self._seconds + time.perf_counter() - self._since
        return mean_losses(self._sums, modalities) | {
            "grad_norm": sum(self._grad_norms) / len(self._grad_norms),
            "tokens_per_second": self._tokens / seconds,
            "mfu": self._flops / seconds / peak_flops(self._devices)[0],
            "step_ms": 1e3 * seconds / max(self._timed_steps, 1),
            "data_wait": self._waited / seconds,
        }


class StopRequest:
    """Remembers SIGTERM (preemption) or SIGINT, so that the loop can save and leave between two steps."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def _remember(self, number: int, frame: Any) -> None:
        self.signal = number

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._remember) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def batches(
    config: ml_collections.ConfigDict,
    program: Program,
    vocabulary: Vocabulary,
    split: str,
    history: Sequence[Stage],
    steps: int,
) -> BatchSource:
    """The batches of a split. How many records are too long for a row, and which, is in logs/."""
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
        write_atomically(listed, "".join(json.dumps(line) + "\n" for line in lines).encode())
        many = "%d records are longer than train.seq_len=%d (train.long_records=%s): see %s"
        log.warning(many, sum(scan.too_long for scan in too_long.values()), train.seq_len, rule, listed)
    for stage, (_, packer) in zip(history, stages, strict=True):
        planned = "%s: mixture %s; %d draws fill %d rows, the first %d of them to %.1f %%"
        filled = 100 * packer.fill(0)
        log.info(planned, split, describe(stage), packer.draws, packer.group_rows, packer.rows, filled)
    return BatchSource(stages, vocabulary, train.batch_size, steps, program.process_rows(train.batch_size))


def resume_point(checkpoints: Checkpoints, config: ml_collections.ConfigDict, vocabulary: Vocabulary) -> int | None:
    """The newest checkpoint's step, after checking that it belongs to this config and cache."""
    step = checkpoints.latest()
    if step is None:
        return None
    then, theirs = checkpoints.description(step)
    theirs.require_same(
        vocabulary, f"The checkpoint {checkpoints.directory}/{step}", f"the cache {config.workdir}/cache"
    )
    now = json.loads(config.to_json_best_effort())
    how = {"remat", "unroll", "attention", "matmul_barriers"}  # they change no number
    converted = not checkpoints.has_optimizer(step)
    if converted:  # its dtypes are the source's
        how |= {"param_dtype", "compute_dtype"}
    defaults = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
    theirs_model, ours_model = defaults | then["model"], defaults | now["model"]
    shape = sorted({*theirs_model, *ours_model} - how)
    changed = [name for name in shape if theirs_model.get(name) != ours_model.get(name)]
    if changed:
        raise UserError(
            f"The checkpoints in {checkpoints.directory} were made with another model ({', '.join(changed)} differ); "
            "use another workdir or the config they were made with."
        )
    if not converted and then.get("plan_version", 1) != PLAN_VERSION:
        log.warning("Batches are packed by another plan than the checkpoint's: the run goes on, but on other batches.")
    for part in () if converted else ("train", "seed"):
        if then.get(part) != now[part]:
            log.warning(
                "config.%s is not what the checkpoint was made with: the run goes on, but not as it would have.", part
            )
    return step


def run_history(
    checkpoints: Checkpoints, config: ml_collections.ConfigDict, start: int | None
) -> tuple[ml_collections.ConfigDict, tuple[Stage, ...]]:
    """The mixtures from step 0 on, and the config as checkpoints keep it: with them and the plan's version inside."""
    known: tuple[Stage, ...] = ()
    if start is not None and checkpoints.has_optimizer(start):
        known = recorded(checkpoints.description(start)[0])
    history = extended(known, config, start or 0)
    kept = ml_collections.ConfigDict(config.to_dict())
    kept.mixture_history, kept.plan_version = to_json(history), PLAN_VERSION
    return kept, history


def evaluate(program: Program, params: Any, source: BatchSource, modalities: tuple[str, ...]) -> dict[str, Any]:
    """Losses over the first batches of a split: the same ones every time."""
    sums = [
        jax.device_get(program.evaluate(params, program.place(batch, source.rows, source.batch_size)))
        for _, batch in iterate(source, 0)
    ]
    return mean_losses(sums, modalities)


def readable(step: int, steps: int, values: dict[str, Any]) -> str:
    """One line that says how a run is doing."""
    parts = ", ".join(f"{name} {loss:.3f}" for name, loss in values["loss_by_modality"].items())
    return "  ".join(
        (
            f"step {step}/{steps}",
            f"loss {values['loss']:.4f} ({parts})",
            f"lr {values['lr']:.2e}",
            f"|g| {values['grad_norm']:.2f}",
            f"{values['tokens_per_second']:,.0f} tok/s",
            f"MFU {100 * values['mfu']:.1f} %",
            f"waits for data {100 * values['data_wait']:.1f} %",
        )
    )


def run(config: ml_collections.ConfigDict) -> None:
    """Trains until `train.steps`, from the newest checkpoint if there is one. A finished run returns at once."""
    workdir, train = pathlib.Path(config.workdir), config.train
    vocabulary = load_vocabulary(workdir / "cache")
    modalities = ("text", *vocabulary.modalities)
    checkpoints = Checkpoints(workdir / "checkpoints", train.keep_checkpoints)
    start, of_checkpoint = None, []
    history: tuple[Stage, ...] = ()
    try:
        start = resume_point(checkpoints, config, vocabulary)
        kept_config, history = run_history(checkpoints, config, start)
    except UserError as e:
        of_checkpoint.append(str(e))
    refuse(config_problems(config, vocabulary, jax.device_count()) + of_checkpoint)
    model = ModelConfig.from_config(config.model, vocabulary)
    if start is not None and start >= train.steps:
        log.info("Training is done: step %d of %d is in %s.", start, train.steps, checkpoints.directory)
        return checkpoints.close()
    program = train_step.build(model, train, make_mesh(config.mesh), len(modalities))
    source = batches(config, program, vocabulary, "train", history, train.steps)
    mixture = history[-1].mixture
    weights = with_split(Manifest.load(workdir / "cache").tasks, mixture.weights, "validation")
    held_out = None
    if train.eval_every and weights:
        last_mixture = (Stage(0, dataclasses.replace(mixture, weights=weights)),)
        held_out = batches(config, program, vocabulary, "validation", last_mixture, train.eval_batches)
    log.info("%s parameters on mesh %s", f"{program.parameters:,}", dict(program.mesh.shape))
    log.info(
        "MFU counts 6N + attention over non-padding tokens, against %.3g FLOP/s (%s)", *peak_flops(program.mesh.size)
    )
    if start is None:
        start, state = 0, program.init(config.seed)
    elif not checkpoints.has_optimizer(start):
        state = program.init(config.seed)
        del state["params"]  # before the others come: they are not held twice
        state |= checkpoints.restore(start, {"params": program.abstract_state["params"]})
        log.info("Starting from the converted weights in %s/%d, with a fresh optimizer.", checkpoints.directory, start)
    else:
        state = checkpoints.restore(start, program.abstract_state)
        log.info("Resuming at step %d of %d.", start, train.steps)
    writer = MetricsWriter(workdir / "logs", start)
    meter, schedule, stop = Meter(model, program.mesh.size), make_schedule(train), StopRequest()
    bar = tqdm(total=train.steps, initial=start, unit="step", desc="train", smoothing=0.05, mininterval=1.0)
    pending: tuple[Metrics, Batch, float] | None = None
    before = time.perf_counter()
    with stop.listening(), logging_redirect_tqdm(), contextlib.closing(writer), contextlib.closing(checkpoints), bar:
        for step, batch in iterate(source, start):
            waited = time.perf_counter() - before
            state, metrics = program.step(state, program.place(batch, source.rows, source.batch_size))
            # Metrics are read one step late: the device already has the next step to do.
            if pending:
                meter.add(*pending)
            pending = (metrics, batch, waited)
            if step == start:  # it compiles: its loss counts, its time does not
                meter.add_losses(metrics)
                meter.restart_clock()
                log.info("Compiled in %.1f s.", time.perf_counter() - before - waited)
                pending = None
            bar.update()
            done = step + 1
            last = done == train.steps or stop.signal is not None
            if last or done % train.log_every == 0:
                if pending:
                    meter.add(*pending)
                pending = None
                values = meter.report(modalities) | {"lr": float(schedule(step))}
                writer.write(done, "train", values)
                log.info(readable(done, train.steps, values))
                meter.reset()
            with meter.paused():
                if held_out and not stop.signal and (done % train.eval_every == 0 or last):
                    values = evaluate(program, state["params"], held_out, modalities)
                    writer.write(done, "validation", values)
                    parts = {name: round(loss, 3) for name, loss in values["loss_by_modality"].items()}
                    log.info("validation  loss %.4f %s", values["loss"], parts)
                if last or done % train.save_every == 0:
                    checkpoints.save(done, state, kept_config, vocabulary)
            if last:
                break
            before = time.perf_counter()
    if stop.signal is not None and done < train.steps:
        log.info("Stopped by signal %d; step %d is saved. Run the same command to go on.", stop.signal, done)
        sys.exit(128 + stop.signal)
    left_out = sum(sum(packer.left_out.values()) for _, packer in source.stages)
    if left_out:
        log.warning("%d draws found no room in their group and were left out (they come again next epoch).", left_out)
