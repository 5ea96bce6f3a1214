"""What a run's wall time was spent on, over all its restarts: logs/goodput.jsonl, and the account made from it.

One JSON line an event, appended by process 0: {"event", "time" (seconds since 1970), "run" (which start of the
program), "step", "spent": {part: seconds since the program started}, …}. Events:

    start      there is something to do; the program's own beginning is "time" minus all that is spent
    resume     training goes on from "step"; what an earlier run did past it is done again
    first_step the step is compiled and one is done
    log, save  "step" steps are done, or in a checkpoint
    rollback   from step "reached" back to "step", within one run
    end        "reason": finished, a signal, or an error's type, with its "error"; a run that was killed has no such line
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from anygpt_jax.errors import UserError

# What a process measures of itself, each moment in exactly one part; and what only an account of all runs can tell.
MEASURED = ("step", "startup", "restore", "data", "checkpoint", "evaluation")
PARTS = (*MEASURED, "repeated", "down")
MEANING = {
    "step": "productive: training steps that the run still has",
    "startup": "starting the program, planning batches, compiling, the first step",
    "restore": "reading checkpoints",
    "data": "waiting for batches",
    "checkpoint": "stalls of saving",
    "evaluation": "evaluation",
    "repeated": "steps done again after a restart or a rollback",
    "down": "between a run's last sign and the next start",
}

FRUITLESS = 5  # starts in a row that fail before their first step: the next would too
# Errors by which a process hears that another one of its job is gone, preempted say: not its own, whatever their type.
_OF_ANOTHER = re.compile(
    "UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|heartbeat|preempt|[Cc]oordination|[Gg]loo|[Cc]onnection|first process"
)

Item = TypeVar("Item")


def process_began() -> float:
    """Seconds since 1970 when this process was started, to a hundredth on Linux; elsewhere, now."""
    try:
        ticks = int(pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        up = float(pathlib.Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return time.time()
    return time.time() - max(up - ticks / os.sysconf("SC_CLK_TCK"), 0.0)


class Clock:
    """Wall time by part. Every moment belongs to the innermost `within`, or to start-up, or later to steps."""

    def __init__(self, elapsed: float = 0.0, now: Callable[[], float] = time.perf_counter):
        """`elapsed` seconds of start-up have passed already; `now` gives seconds since any moment."""
        self._now = now
        self._parts = ["startup"]
        self._spent = dict.fromkeys(MEASURED, 0.0) | {"startup": elapsed}
        self._since = now()

    def _settle(self) -> None:
        now = self._now()
        self._spent[self._parts[-1]] += now - self._since
        self._since = now

    def spent(self) -> dict[str, float]:
        """Seconds until now by each part of MEASURED; the caller may keep it."""
        self._settle()
        return dict(self._spent)

    @contextlib.contextmanager
    def within(self, part: str) -> Iterator[None]:
        """Within, time is spent on `part`, one of MEASURED, but for what a nested one takes."""
        self._settle()
        self._parts.append(part)
        try:
            yield
        finally:
            self._settle()
            self._parts.pop()

    def steps_begin(self) -> None:
        """The first step is compiled and done: from here, what is nothing else is training."""
        self._settle()
        self._parts[0] = "step"

    def waiting(self, items: Iterator[Item], idle_since: Callable[[], float | None] | None = None) -> Iterator[Item]:
        """The same items; the time until each arrives is spent on data, but before the first step on start-up.

        `idle_since` says since when the devices have had nothing to do (by the clock's `now`; None: they have). What
        passes while they still compute is lost to nothing: it belongs to steps.
        """
        while True:
            part = "data" if self._parts[0] == "step" else "startup"
            with self.within(part):
                began = self._since
                try:
                    item = next(items)
                except StopIteration:
                    return
            if idle_since is not None and part == "data":
                idle = idle_since()
                busy = self._since - began if idle is None else min(max(idle, began), self._since) - began
                self._spent["data"] -= busy
                self._spent["step"] += busy
            yield item


class Goodput:
    """Appends one run's events to `path`. Where `writes` is False (processes but the first) it does nothing."""

    def __init__(self, path: pathlib.Path, clock: Clock, run: str, writes: bool = True):
        self.path, self.clock, self.run, self._writes = path, clock, run, writes
        self._started = False

    def start(self, run: str | None = None) -> None:
        """The first event, written when there is something to do; `run` is the start's name if it has become another."""
        self.run, self._started = run or self.run, True
        if self._writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_file() and not self.path.read_bytes().endswith(b"\n"):  # a line that was cut off
                with self.path.open("a") as file:
                    file.write("\n")
        self.event("start")

    def event(self, event: str, step: int | None = None, **more: Any) -> None:
        """Appends a line with the time, and what is spent so far; `more` are the event's own fields."""
        if not self._writes:
            return
        spent = {part: round(seconds, 4) for part, seconds in self.clock.spent().items()}
        line = {"event": event, "time": round(time.time(), 4), "run": self.run, "step": step, "spent": spent, **more}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Within, an error is the run's end. A UserError before the start was made by nobody's running and is not told."""
        try:
            yield
        except Exception as e:
            if not self._started and isinstance(e, UserError):
                raise
            if not self._started:
                self.start()
            self.event("end", reason=type(e).__name__, error=str(e)[:500])
            raise

    def refuse_fruitless(self) -> None:
        """UserError if the last FRUITLESS starts, and none since the last step, failed by errors of their own.

        Not counted are starts that were killed, stopped by a signal, or lost a peer: a storm of preemptions ends by
        itself. A UserError ends the count, this one too: after one it was a user who started again.
        """
        errors: list[str] = []
        for of_run in reversed(_by_run(read_events(self.path))):
            last = of_run[-1]
            came_to_training = any(event["event"] == "first_step" for event in of_run)
            if came_to_training or last.get("reason") in ("UserError", "finished"):
                break
            if last["event"] == "end" and "error" in last and not _OF_ANOTHER.search(last["error"]):
                errors.append(f"{last['reason']}: {last['error']}")
        if len(errors) >= FRUITLESS:
            self.start()
            raise UserError(
                f"The last {len(errors)} starts ended with an error before their first step ({self.path}), the newest "
                f"with '{' '.join(errors[0].split())[:200]}'. Repair that, and run the same command again: it counts anew."
            )


def read_events(path: pathlib.Path) -> list[dict[str, Any]]:
    """Lines that were cut off by a kill are left out."""
    events = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            events.append(json.loads(line))
    return events


@dataclasses.dataclass(frozen=True)
class RunOfJob:
    """One start of the program."""

    run: str
    began: float  # seconds since 1970
    last_sign: float
    resumed_at: int | None  # None: it never came to training
    reached: int | None
    end: str  # "finished", "signal 15", …; "no end: killed or running"


@dataclasses.dataclass(frozen=True)
class Account:
    """Seconds by part; they add up to `total`, the wall time from the first start to the last sign of the last run.

    Left out is the time after a run that had finished, until one with more steps was started.
    """

    seconds: dict[str, float]
    total: float
    repeated_steps: int
    runs: tuple[RunOfJob, ...]
    rollbacks: tuple[tuple[int, int], ...]  # (from, to)

    @property
    def goodput(self) -> float:
        """The productive share of the total."""
        return self.seconds["step"] / self.total if self.total else 0.0


@dataclasses.dataclass
class _Stretch:
    """Training steps first … last and how long they took."""

    first: int
    last: int
    seconds: float

    def cut(self, step: int) -> tuple[float, int]:
        """Takes away what is past `step`: (seconds, steps)."""
        if self.last <= step:
            return 0.0, 0
        left = max(step, self.first)
        steps = self.last - left
        lost = self.seconds * (steps / (self.last - self.first) if steps else 1.0)
        self.last, self.seconds = left, self.seconds - lost
        return lost, steps


def account(events: Sequence[Mapping[str, Any]]) -> Account:
    """Of all the events of a run's folder, in the order they were written."""
    seconds = dict.fromkeys(PARTS, 0.0)
    stretches: list[_Stretch] = []
    runs: list[RunOfJob] = []
    rollbacks: list[tuple[int, int]] = []
    repeated_steps = 0

    def go_back(step: int) -> None:
        nonlocal repeated_steps
        for stretch in stretches:
            lost, steps = stretch.cut(step)
            seconds["repeated"] += lost
            repeated_steps += steps

    for of_run in _by_run(events):
        began = of_run[0]["time"] - sum(of_run[0]["spent"].values())
        if runs and runs[-1].end != "finished":
            seconds["down"] += max(began - runs[-1].last_sign, 0.0)
        at: int | None = None
        resumed_at, reached, end, trained = None, None, "no end: killed or running", 0.0
        for event in of_run:
            step, now = event.get("reached", event["step"]), event["spent"]["step"]
            if step is not None:
                if at is not None:
                    stretches.append(_Stretch(at, step, now - trained))
                    trained = now
                at, reached = step, step
            if event["event"] in ("resume", "rollback"):
                go_back(event["step"])
                at = reached = event["step"]
            if event["event"] == "resume":
                resumed_at = event["step"]
            elif event["event"] == "rollback":
                rollbacks.append((event["reached"], event["step"]))
            elif event["event"] == "end":
                end = event["reason"]
        last = of_run[-1]
        for part in MEASURED[1:]:
            seconds[part] += last["spent"][part]
        runs.append(RunOfJob(last["run"], began, last["time"], resumed_at, reached, end))
        if last["spent"]["step"] > trained and stretches:  # after the last step that was told
            stretches[-1].seconds += last["spent"]["step"] - trained
    seconds["step"] = sum(stretch.seconds for stretch in stretches)
    return Account(seconds, sum(seconds.values()), repeated_steps, tuple(runs), tuple(rollbacks))


def _by_run(events: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    runs: list[list[Mapping[str, Any]]] = []
    for event in events:
        if event["event"] == "start" or not runs:
            runs.append([])
        runs[-1].append(event)
    return runs
