"""When a run is asked to stop: it saves and leaves between two steps, all its processes after the same one."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Remembers SIGTERM (preemption) or SIGINT, so that the loop can save and leave.

    In a job of several processes jax's own service hears SIGTERM, in whichever process it arrives, and names the step
    after which all of them leave; SIGINT is passed on to it.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.since: float | None = None  # time.monotonic() of the request, as far as this process knows it

    def _remember(self, number: int, frame: Any) -> None:
        self.since = self.since or time.monotonic()
        if jax.distributed.is_initialized():
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.signal = number

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within, the signals do not end the process."""
        ours = (signal.SIGINT,) if jax.distributed.is_initialized() else (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self._remember) for number in ours}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def after(self, step: int) -> bool:
        """Whether to leave after this step. Must be asked after every step, by all processes."""
        if jax.distributed.is_initialized() and multihost_utils.reached_preemption_sync_point(step):
            self.signal, self.since = signal.SIGTERM, self.since or time.monotonic()
        return self.signal is not None
