"""The training loop: batches in, checkpoints and measurements out; interrupted anywhere, it resumes exactly."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import ml_collections
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from anygpt_jax import multihost
from anygpt_jax.cache import load_vocabulary
from anygpt_jax.data.loader import Batch, iterate
from anygpt_jax.errors import UserError
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.sharding import make_mesh
from anygpt_jax.training import checks
from anygpt_jax.training import step as train_step
from anygpt_jax.training.batches import HeldOut, batches
from anygpt_jax.training.checkpoints import Checkpoints, CheckpointSettings
from anygpt_jax.training.compiler import keep_compiled
from anygpt_jax.training.device_watch import DeviceWatch
from anygpt_jax.training.flops import peak_flops
from anygpt_jax.training.goodput import Clock, Goodput, process_began
from anygpt_jax.training.guard import guard_settings
from anygpt_jax.training.lease import Lease
from anygpt_jax.training.meter import Meter, readable
from anygpt_jax.training.metrics import MetricsWriter
from anygpt_jax.training.optimizer import make_schedule
from anygpt_jax.training.profiler import Profiler
from anygpt_jax.training.resume import Resumed, begin, checkpoint_problems, resume_point
from anygpt_jax.training.run_folder import run_name, write_run_folder
from anygpt_jax.training.start import require_start, start_params
from anygpt_jax.training.starvation import StarvationWarning
from anygpt_jax.training.step import Metrics, Program, State
from anygpt_jax.training.stop import StopRequest
from anygpt_jax.vocabulary import Vocabulary

log = logging.getLogger(__name__)

ROLLBACKS = 3  # to one and the same checkpoint, before a run gives up


def run(config: ml_collections.ConfigDict) -> None:
    """Trains until `train.steps`, from the newest whole checkpoint if there is one. A finished run returns at once.

    UserError, before anything is compiled, of all that does not fit together.
    """
    began = process_began()
    clock = Clock(time.time() - began)
    multihost.join(config)
    workdir = pathlib.Path(config.workdir)
    goodput = Goodput(workdir / "logs" / "goodput.jsonl", clock, run_name(began), multihost.leads())
    with goodput.told():
        multihost.lead(goodput.refuse_fruitless, 0.1)
        _run(config, workdir, clock, goodput)


def _run(config: ml_collections.ConfigDict, workdir: pathlib.Path, clock: Clock, goodput: Goodput) -> None:
    train, vocabulary = config.train, load_vocabulary(workdir / "cache")
    checks.require_same_everywhere(config, workdir / "cache")
    with contextlib.ExitStack() as at_the_end:
        lease = at_the_end.enter_context(contextlib.closing(Lease(workdir)))
        multihost.lead(lease.take)  # first: who opens the checkpoints clears away what seems to be half written
        settings = CheckpointSettings.from_config(train)
        checkpoints = at_the_end.enter_context(contextlib.closing(Checkpoints(workdir / "checkpoints", settings)))
        problems = checks.config_problems(config, vocabulary, jax.device_count()) + checks.cache_problems(config)
        problems += checkpoint_problems(checkpoints, config, vocabulary)
        fresh = checkpoints.latest() is None
        if fresh and train.get("start_from"):
            problems += checks.problem_of(require_start, train.start_from, config, vocabulary)
        checks.refuse(problems)
        with clock.within("restore"):
            point = resume_point(checkpoints, config, vocabulary) or begin(config)
        if point.step >= train.steps:
            log.info("Training is done: step %d of %d is in %s.", point.step, train.steps, checkpoints.directory)
            return
        keep_compiled(workdir / "compiled", train)
        mesh = make_mesh(config.mesh)
        model = ModelConfig.from_config(config.model, vocabulary)
        program = train_step.build(model, train, mesh, 1 + len(vocabulary.modalities), vocabulary)
        checks.refuse(checks.memory_problems(program))
        goodput.start(write_run_folder(workdir / "logs", goodput.run, config).name)
        writer = at_the_end.enter_context(contextlib.closing(MetricsWriter(workdir / "logs", point.step)))
        Training(config, vocabulary, model, program, checkpoints, point, clock, goodput, writer, lease).go()


@dataclasses.dataclass
class Pending:
    """A step whose metrics are still on the device."""

    step: int  # steps done with it
    metrics: Metrics
    batch: Batch | None  # None for the first step, which compiles: its loss counts, its time does not


class Bad(NamedTuple):
    """How many bad steps in a row there have been up to a step."""

    step: int
    in_a_row: int


class Training:
    """One start of a run, from a step on."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        vocabulary: Vocabulary,
        model: ModelConfig,
        program: Program,
        checkpoints: Checkpoints,
        point: Resumed,
        clock: Clock,
        goodput: Goodput,
        writer: MetricsWriter,
        lease: Lease,
    ):
        self.config, self.train, self.vocabulary, self.model = config, config.train, vocabulary, model
        self.program, self.checkpoints, self.point = program, checkpoints, point
        self.clock, self.goodput, self.writer, self.lease = clock, goodput, writer, lease
        self.modalities = ("text", *vocabulary.modalities)
        self.logs = pathlib.Path(config.workdir) / "logs"
        self.patience = guard_settings(self.train).patience
        self.schedule, self.stop = make_schedule(self.train), StopRequest()
        self.profiler = Profiler(
            self.logs / "profile", self.train.get("profile_steps") or 5, self.train.get("profile_at") or None
        )
        self.starvation = StarvationWarning(self.train.get("data_wait_warning", 0.1))
        self.progress = point.progress
        self.source = batches(config, program, vocabulary, "train", point.history, self.train.steps)
        share = len(self.source.rows) / self.train.batch_size
        self.meter, self.watch = Meter(model, program.mesh.size, clock, share, program.frozen_matrices), DeviceWatch()
        self.held_out = (
            HeldOut(config, program, vocabulary, point.history[-1].mixture) if self.train.eval_every else None
        )

    def go(self) -> None:
        """Trains to the end, or until the run is asked to stop."""
        train, program = self.train, self.program
        log.info("%s parameters on mesh %s", f"{program.parameters:,}", dict(program.mesh.shape))
        if program.trained_parameters < program.parameters:
            log.info("%s of them are trained.", f"{program.trained_parameters:,}")
        peak = "MFU counts 6N + attention over non-padding tokens, against %.3g FLOP/s (%s)"
        log.info(peak, *peak_flops(program.mesh.size))
        fresh = not self.checkpoints.holds(self.point.step)
        if not fresh:
            log.info("Resuming at step %d of %d.", self.point.step, train.steps)
        with self.clock.within("startup" if fresh else "restore"):
            state = self._state_at(self.point.step)
        if fresh and train.get("start_from"):  # a run that begins is its own, whatever becomes of the other
            self._save(0, state, None)
        self.goodput.event("resume", self.point.step)
        bar = tqdm(
            total=train.steps, initial=self.point.step, unit="step", desc="train", smoothing=0.05, mininterval=1.0,
            disable=None if multihost.leads() else True,
        )  # fmt: skip
        with (
            self.stop.listening(), self.profiler.listening(), contextlib.closing(self.watch),
            logging_redirect_tqdm(), bar,
        ):  # fmt: skip
            done, ended = self._steps(state, bar)
            with self.clock.within("checkpoint"):
                self.checkpoints.wait()
        self.goodput.event("end", done, reason="finished" if ended else f"signal {self.stop.signal}")
        if not ended:
            took = f", {time.monotonic() - self.stop.since:.1f} s after it came," if self.stop.since else ""
            log.info("Stopped by signal %d%s after step %d; step %d is saved. Run the same command to go on.",
                     self.stop.signal, took, done, self.checkpoints.latest() or 0)  # fmt: skip
            sys.exit(128 + (self.stop.signal or 0))
        left_out = sum(sum(packer.left_out.values()) for _, packer in self.source.stages)
        if left_out:
            log.warning("%d draws found no room in their group and were left out (they come next epoch).", left_out)

    def _state_at(self, step: int) -> State:
        """What a checkpoint holds; before the first one, what the run begins with. UserError if it is gone."""
        program, seed, where = self.program, self.config.seed, self.checkpoints.directory
        if self.checkpoints.holds(step):
            if self.checkpoints.has_optimizer(step):
                return self._restored(step)
            log.info("Starting from the converted weights in %s/%d, with a fresh optimizer.", where, step)
            return program.begin(start_params(where, self.model, self.vocabulary, program, seed, step))
        if step:
            raise UserError(f"The run must go back to step {step}, whose checkpoint is not in {where} any more.")
        if other := self.train.get("start_from"):
            return program.begin(start_params(other, self.model, self.vocabulary, program, seed))
        return program.init(seed)

    def _restored(self, step: int) -> State:
        """A checkpoint's state; one from before there was a guard, or an average, begins those anew."""
        program, there = self.program, self.checkpoints.items(step)
        wanted = {name: part for name, part in program.abstract_state.items() if name in there}
        state = self.checkpoints.restore(step, wanted)
        if missing := program.abstract_state.keys() - state.keys():
            log.warning("Checkpoint %d has no %s: begun anew.", step, ", ".join(sorted(missing)))
            state |= program.anew(state["params"], missing)
        return state

    def _iterate(self, step: int) -> Iterator[tuple[int, Batch]]:
        """(steps done before it, batch), from a step on."""
        offset = self.progress.batch_offset
        self.source.steps = self.train.steps + offset
        found = ((number - offset, batch) for number, batch in iterate(self.source, step + offset))
        return self.clock.waiting(found, self.watch.idle_since)

    def _steps(self, state: State, bar: tqdm) -> tuple[int, bool]:
        """Returns the number of steps done, and whether that is all."""
        train, program, start = self.train, self.program, self.point.step
        pending: Pending | None = None
        ahead, compiled = self._iterate(start), False
        done, bad = start, Bad(start, 0)
        while True:
            step, batch = next(ahead)
            before = time.perf_counter()
            state, metrics = program.step(state, program.place(batch, self.source.rows, train.batch_size))
            self.watch.given(metrics.loss)
            done = step + 1
            bad = self._read(pending)  # one step late: the device already has the next one to do
            pending = Pending(done, metrics, batch)
            if not compiled:
                pending.batch, compiled = None, True
                bad, pending = self._read(pending), None
                self.meter.restart_clock()
                self.goodput.event("first_step", done)
                log.info("Compiled and the first step done in %.1f s.", time.perf_counter() - before)
            bar.update(done - bar.n)
            every = train.get("check_hosts_every", 1000)
            if jax.process_count() > 1 and every and done % every == 0:
                self._compare_hosts(step)
            self.profiler.after(done, metrics.loss)
            asked = self.stop.after(done)
            last = asked or done == train.steps
            logs, evaluates = last or done % train.log_every == 0, not asked and self._evaluates(done, last)
            saves = last or done % train.save_every == 0
            if logs or evaluates or saves:
                self.lease.require()
                # The step that the patience ends with is the same whether this one was read or not.
                if pending and not self._hopeless(bad):
                    bad = self._read(pending)
                pending = None
            if self._hopeless(bad) and not asked:
                state, ahead, done = self._roll_back(state, bad.step)
                pending = None
                bar.reset(train.steps)
                bar.update(done)
                continue
            if logs:
                self._log(done, step)
            metric = self._evaluate(state, done) if evaluates else None
            # While steps are bad nothing is saved: what is gone back to, and when, is the same however a run is stopped.
            ends = done == train.steps and not self._hopeless(bad)
            if saves and (not bad.in_a_row or ends):
                if done % train.save_every == 0 and not bad.in_a_row:
                    self.progress = self.progress.saved(done)
                with self.clock.within("checkpoint"):
                    self._save(done, state, metric)
            if last:
                return done, ends

    def _evaluates(self, done: int, last: bool) -> bool:
        if self.held_out is None:
            return False
        return last or done % self.train.eval_every == 0

    def _hopeless(self, bad: Bad) -> bool:
        return 0 < self.patience <= bad.in_a_row

    def _read(self, pending: Pending | None) -> Bad:
        """Counts a step's metrics, which waits for it; how many bad steps in a row there have been with it."""
        if pending is None:
            return Bad(0, 0)
        metrics = pending.metrics
        if pending.batch is None:
            self.meter.add_losses(metrics)
        else:
            self.meter.add(metrics, pending.batch)
        if not bool(metrics.ok):
            self._note_skipped(pending)
        return Bad(pending.step, int(metrics.in_a_row))

    def _note_skipped(self, pending: Pending) -> None:
        """What was in a batch that was not trained on: logs/skipped.jsonl."""
        metrics, number = pending.metrics, pending.step - 1 + self.progress.batch_offset
        norm, loss = float(metrics.grad_norm), float(metrics.loss)
        log.warning("Step %d is skipped: loss %.4g, gradient norm %.4g (%d in a row, %d in all).",
                    pending.step, loss, norm, int(metrics.in_a_row), int(metrics.skipped))  # fmt: skip
        if not multihost.leads():
            return
        line = {"step": pending.step, "batch": number, "loss": str(loss), "grad_norm": str(norm)}
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / "skipped.jsonl").open("a") as file:
            file.write(json.dumps(line | {"records": self.source.records(number)}) + "\n")

    def _roll_back(self, state: State, reached: int) -> tuple[State, Iterator[tuple[int, Batch]], int]:
        """The last ordinary save, and the batches after those that were bad. UserError if that has not helped."""
        to = self.progress.base
        again = sum(1 for _, earlier in self.progress.rollbacks if earlier == to)
        if again >= ROLLBACKS:
            raise UserError(
                f"Training does not get past step {to}: after {again} returns to it {self.patience} steps in a row are "
                f"bad again ({self.logs}/skipped.jsonl). Lower train.learning_rate, or go on from an older checkpoint."
            )
        log.warning("%d bad steps in a row: back from step %d to %d, and on with the batches after them.",
                    self.patience, reached, to)  # fmt: skip
        jax.tree.map(lambda x: x.delete(), state)  # before the other comes: they are not held twice
        with self.clock.within("restore"):
            self.checkpoints.leave(to)  # a preemption's: a restart would go on from there, and in another way
            state = self._state_at(to)
        self.progress = self.progress.rolled_back(reached)
        state["guard"] = {**state["guard"], "in_a_row": state["guard"]["in_a_row"] * 0}
        self.writer.rewind(to)
        self.meter.reset()
        self.goodput.event("rollback", to, reached=reached)
        return state, self._iterate(to), to

    def _compare_hosts(self, step: int) -> None:
        """That every host would read the same global batch. UserError in all of them if not."""
        number = step + self.progress.batch_offset
        whole = self.source.global_rows(number, range(self.train.batch_size))
        multihost.require_same(
            f"Batch {number}", multihost.digest(whole),
            "Compare their token caches by `anygpt inspect --verify`; nothing of this batch is saved.",
        )  # fmt: skip
        multihost.compare_clocks()

    def _log(self, done: int, step: int) -> None:
        values = self.meter.report(self.modalities, self.train.steps - done) | {"lr": float(self.schedule(step))}
        self.writer.write(done, "train", values)
        log.info(readable(done, self.train.steps, values))
        self.starvation.see(values["data_wait"], done)
        self.goodput.event("log", done)
        self.meter.reset()

    def _evaluate(self, state: State, done: int) -> dict[str, float] | None:
        assert self.held_out is not None
        with self.clock.within("evaluation"):
            values = self.held_out.evaluate(state["params"])
        if values is None:
            return None
        self.writer.write(done, "validation", values)
        parts = {name: round(loss, 3) for name, loss in values["loss_by_modality"].items()}
        tasks = {name: round(losses["loss"], 3) for name, losses in values.get("loss_by_task", {}).items()}
        log.info("validation  loss %.4f %s %s", values["loss"], parts, tasks or "")
        return {"loss": values["loss"]}

    def _save(self, done: int, state: State, metric: dict[str, float] | None) -> None:
        self.checkpoints.save(done, state, self.point.config, self.vocabulary, self.progress.to_json(), metric)
        self.goodput.event("save", done)
