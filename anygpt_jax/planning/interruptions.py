"""What preemptions and failures cost a run, and how often to save (Young, CACM 17(9), 1974; Daly, FGCS 22(3), 2006).

An interruption loses half a save interval on average, and the time until training goes on. Slices are lost one by one,
and every one of them stops the job. A save stalls the step while the state is copied to the host; it is written in the
background, so that no interval is shorter than a write. A preemption with notice, in which the run still saves, loses
no steps (docs/resuming.md): what is said here is then too much.
"""

from __future__ import annotations

import dataclasses
import math

# Hours between two preemptions of one spot slice. Nobody publishes a rate. A preemptible TPU was stopped after 24 hours at
# the latest (docs.cloud.google.com/tpu/docs/preemptible); spot ones have no such limit, and no promise either.
PREEMPTED_EVERY = 24.0
# Chip-hours between two failures of reserved hardware: 419 unexpected interruptions of 16,384 H100s in 54 days
# (Llama 3, arXiv 2407.21783, section 3.3.4). Nothing of the kind is published of TPUs.
CHIP_HOURS_A_FAILURE = 54 * 24 * 16_384 / 419
RESTART_MINUTES = 10.0  # an assumption: a slice again, containers, the compiled program from the cache


@dataclasses.dataclass(frozen=True)
class Interruptions:
    """Hours; shares of the whole run's time."""

    every: float  # hours between two, of the whole job
    count: float  # expected in the run
    lost_each: float  # half an interval, restart, restore
    hours: float  # of the run with everything
    lost_hours: float  # of those: stalls of saving, steps done again, restarts
    interval: float  # between saves
    best_interval: float

    @property
    def lost_share(self) -> float:
        """Of the whole time, 0 to 1; 1 for a run that never ends."""
        return self.lost_hours / self.hours if math.isfinite(self.hours) else 1.0


def best_interval(save: float, every: float) -> float:
    """Young's: the interval that loses least, of saves that stall so long and interruptions so often. One unit for all."""
    return math.sqrt(2 * save * every)


def expected(hours: float, interval: float, stall: float, write: float, restart: float, every: float) -> Interruptions:
    """Of a run that would take `hours` undisturbed. All in hours; `restart` includes restoring.

    With n = H / every over the whole time H: H = hours · (1 + stall / interval) + n · (interval / 2 + restart). What
    loses more than there is between two interruptions never ends: infinite hours.
    """
    lost = interval / 2 + restart
    working = hours * (1 + stall / interval)
    whole = working / (1 - lost / every) if lost < every else math.inf
    best = max(best_interval(stall, every), write)
    return Interruptions(every, whole / every, lost, whole, whole - hours, interval, best)
