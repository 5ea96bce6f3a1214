"""Traces by jax.profiler while a run goes on, by step or by signal; and the stacks of a run that hangs.

    kill -USR1 PID    the next `train.profile_steps` steps are traced into logs/profile/STEP
    kill -USR2 PID    what every thread is doing, on the standard error, even while the program hangs in a call

Of several processes each traces for itself (into STEP/process_INDEX): a signal concerns the process that it was sent
to, `train.profile_at` all of them. A profiler that fails costs a warning and no step.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import pathlib
import signal
import sys
from collections.abc import Iterator
from typing import Any

import jax

log = logging.getLogger(__name__)


class Profiler:
    """Traces `steps` steps at a time into `directory`/STEP, those after step `at` or after a SIGUSR1."""

    def __init__(self, directory: pathlib.Path, steps: int = 5, at: int | None = None):
        self._directory, self._steps, self._at = directory, max(int(steps), 1), at
        self._asked = False
        self._into: pathlib.Path | None = None  # of the trace that is running
        self._until = 0

    def _remember(self, number: int, frame: Any) -> None:
        self._asked = True

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within, SIGUSR1 asks for a trace and SIGUSR2 for the stacks; a trace that is still running ends with it."""
        before = signal.signal(signal.SIGUSR1, self._remember)
        with contextlib.suppress(ValueError, OSError):  # a standard error that is no file
            faulthandler.register(signal.SIGUSR2, file=sys.stderr, all_threads=True)
        try:
            yield
        finally:
            self._stop()
            signal.signal(signal.SIGUSR1, before)

    def after(self, done: int, result: Any) -> None:
        """Between two steps: `done` steps are done, `result` is something that the last one computes."""
        if self._into and done >= self._until:
            with contextlib.suppress(Exception):  # the loop meets the step's own errors where it reads it
                jax.block_until_ready(result)
            self._stop()
        if self._into is None and (self._asked or done == self._at):
            self._asked = False
            self._start(done)

    def _start(self, done: int) -> None:
        into = self._directory / str(done)
        if jax.process_count() > 1:
            into /= f"process_{jax.process_index()}"
        try:
            into.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(into))
        except Exception as e:
            log.warning("No trace: jax.profiler said %s", e)
            return
        self._into, self._until = into, done + self._steps
        log.info("Tracing steps %d to %d.", done + 1, self._until)

    def _stop(self) -> None:
        if self._into is None:
            return
        into, self._into = self._into, None
        try:
            jax.profiler.stop_trace()
        except Exception as e:
            log.warning("The trace in %s is not whole: jax.profiler said %s", into, e)
            return
        log.info("Traced into %s; `tensorboard --logdir=%s` or https://ui.perfetto.dev show it.", into, into)
