"""A warning while the device waits for data, said as often as it is news."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)

WORSE = 1.5  # times the share last warned of, that is said again


class StarvationWarning:
    """Warns when more than `largest` of the steps' time is waiting for batches (`train.data_wait_warning`; 0: never).

    Once; again if it gets `WORSE` times as much, or if it is back after an interval at less than half of `largest`.
    """

    def __init__(self, largest: float = 0.1):
        self._largest = largest
        self._said: float | None = None

    def see(self, data_wait: float, step: int) -> bool:
        """Of a log interval that ends after `step`; True if it warned."""
        if not self._largest or data_wait < self._largest / 2:
            self._said = None
        if not self._largest or data_wait <= self._largest:
            return False
        if self._said is not None and data_wait < WORSE * self._said:
            return False
        self._said = data_wait
        log.warning(
            "Training waits for data: %.0f %% of the time of the last steps up to %d. This host reads more slowly than "
            "the devices compute: put the cache on a local disk and leave the host a free core; "
            "tests/benchmarks/reader.py measures reading alone.",
            100 * data_wait,
            step,
        )
        return True
