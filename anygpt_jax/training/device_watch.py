"""When the devices finished what they were given last: only from then on is waiting for a batch time lost."""

from __future__ import annotations

import contextlib
import queue
import threading
import time

import jax


class DeviceWatch:
    """A thread that waits for every step's result. The loop itself runs a step ahead of the devices."""

    def __init__(self) -> None:
        self._results: queue.SimpleQueue[jax.Array | None] = queue.SimpleQueue()
        self._given, self._finished, self._idle_since = 0, 0, time.perf_counter()
        self._thread = threading.Thread(target=self._watch, name="device watch", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while (result := self._results.get()) is not None:
            with contextlib.suppress(Exception):  # the loop meets a step's error where it reads it
                result.block_until_ready()
            self._idle_since = time.perf_counter()
            self._finished += 1  # last, so that what is read as finished has its time

    def given(self, result: jax.Array) -> None:
        """Something that a step computes was asked for."""
        self._given += 1
        self._results.put(result)

    def idle_since(self) -> float | None:
        """time.perf_counter() when all was done; None while the devices are at work."""
        return self._idle_since if self._finished == self._given else None

    def close(self) -> None:
        """Ends the thread after what it was given; waits for that 10 seconds at most."""
        self._results.put(None)
        self._thread.join(timeout=10.0)
