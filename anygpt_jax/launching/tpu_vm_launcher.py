"""Keeps a job at work on Cloud TPU queued resources until it is done: one loop looks, and does the next thing.

What has been reached is in the cloud alone: a launcher that is killed is started again, finds the queued resource and
the containers on its hosts, and goes on.

    there is none → create;                  SUSPENDED, FAILED, a worker lost → delete, create again;
    ACTIVE, not started everywhere → start;  a process lost → stop all, start all again on the same machines;
    all ended with 0 → delete.
"""

from __future__ import annotations

import collections
import logging
import time
from collections.abc import Sequence
from datetime import datetime

from anygpt_jax.errors import UserError
from anygpt_jax.launching import tpu_vm_hosts
from anygpt_jax.launching.policy import USER_ERROR, Verdict, judge
from anygpt_jax.launching.queued_resources import (
    ABSENT,
    LONG,
    OVER,
    SHORT,
    TRIES,
    QueuedResource,
    State,
    answer,
    pause,
    quota,
    refuse_hopeless,
    summary,
)
from anygpt_jax.launching.shell import Outcome, call
from anygpt_jax.launching.tpu_vm_hosts import Host

log = logging.getLogger(__name__)

PATIENCE = 5  # times in a row that some workers may not answer, not start, or not stop
TOGETHER = 10.0  # seconds: of processes that end within so many, each may have been the first


class Launcher:
    """Takes one job's slices from whatever state they are in to the end, with a look every `poll` seconds."""

    def __init__(self, slices: QueuedResource, poll: float):
        self.slices, self.job, self.poll = slices, slices.job, poll
        self.restarts = 0  # by this launcher
        self.left = True  # as far as is known, there is a queued resource
        self._state = ""
        self._seen = self._ours = False  # it was there; this launcher asked for it
        self._known = self._reached = False  # it was there, a worker has answered, ever
        self._tries: collections.Counter[str] = collections.Counter()  # in a row, of what did not work
        self._run = 0  # the start that these machines shall run; those before are counted as restarts
        self._said_until = ""  # of the first worker's log

    def go(self) -> None:
        """Until the job is done. UserError if it cannot be; `left` tells whether machines were left."""
        while self._step():
            time.sleep(self.poll)
        log.info("Done, after %d restarts.", self.restarts)

    def _step(self) -> bool:
        """False when the job is done."""
        state = self._look()
        if state.name != self._state:
            log.info("%s is %s. %s", self.job.name, state.name, state.message)
        self._state, self.left = state.name, state.name != ABSENT
        if state.name == ABSENT:
            self._create()
            return True
        self._known = True
        self._seen |= state.name != "DELETING"  # that may be the work of a launcher before this one
        self._require_same(state)
        if state.name in OVER:
            if quota(state.message):
                self._end(f"There is no quota for this: {state.message}")
            self._recreate(f"it is {state.name}")
        return state.name != "ACTIVE" or self._active()

    def _look(self) -> State:
        return answer(self.slices.describe(), self.slices.state_in, self.poll, patient=self._known)

    def _create(self) -> None:
        if self._seen:
            raise UserError(f"Somebody else has deleted '{self.job.name}'; the same command starts it again.")
        self.left = self._ours = True
        outcome = call(self.slices.create(), SHORT)
        if outcome.code and "ALREADY_EXISTS" not in outcome.error:
            if not self._known:  # what was granted once may be again
                self.left = False
                refuse_hopeless(outcome)
                self.left = True  # it may have been made all the same
            self._pause("create")
            if self._tries["create"] >= TRIES:
                raise UserError(f"It cannot be created: {summary(outcome)}")

    def _require_same(self, state: State) -> None:
        wanted = self.slices.accelerator
        if state.accelerator and (state.accelerator, state.slices) != (wanted.tpu_vm_type, wanted.slices):
            raise UserError(
                f"'{self.job.name}' exists as {state.slices} × {state.accelerator}, not as {wanted.slices} × "
                f"{wanted.tpu_vm_type}. End it first: two jobs must not write one workdir."
            )

    def _active(self) -> bool:
        """False when the job is done."""
        outcome = call(self.slices.ssh(tpu_vm_hosts.look(self.job)), SHORT)
        if not self._reached:
            refuse_hopeless(outcome)
        hosts = tpu_vm_hosts.hosts(outcome.output)
        self._reached |= bool(hosts)
        if len(hosts) < self.slices.hosts:
            self._silent(outcome, len(hosts))
            return True
        self._tries["look"] = 0
        if {host.digest for host in hosts if host.run >= 0} - {self.slices.digest}:
            raise UserError(
                f"'{self.job.name}' runs another config or image. End it first: two jobs must not write one workdir."
            )
        newest = max(host.run for host in hosts)
        self._run = max(self._run, newest)
        current = [host for host in hosts if host.run == newest >= 0]
        self._follow(newest)
        if any(host.ended and host.code for host in current):
            self._lost(hosts, newest)
        elif len(current) < len(hosts):
            self._start(hosts)
        elif all(host.ended for host in current):
            self._delete()
            return False
        else:
            self._tries.clear()
        return True

    def _silent(self, outcome: Outcome, some: int) -> None:
        """Some workers answer and others do not: those are lost. If none answers, it may be this machine's fault."""
        why = f"{some} of {self.slices.hosts} workers answer: {summary(outcome)}"
        log.warning("%s", why)
        self._pause("look")
        if self._tries["look"] < (PATIENCE if some else TRIES):
            return
        if not some:
            refuse_hopeless(outcome)  # other machines would be out of reach too
        if self._reached:
            self._recreate(why)
        elif self._ours:
            self._end(f"No worker has ever answered; look at the firewall and gcloud's ssh: {why}")
        else:
            raise UserError(f"No worker answers, and the job may run; look at the firewall and gcloud's ssh: {why}")

    def _start(self, hosts: Sequence[Host]) -> None:
        """On all workers; does nothing where this start was made. Not all may be reached, then it comes again."""
        if self._tries["start"] >= PATIENCE:
            if all(host.run < 0 for host in hosts):
                self._end("No worker could start it; what they said is above.")
            self._recreate(f"start {self._run} did not reach all workers")
            return
        if self._tries["start"]:
            self._pause("start")
        else:
            self._tries["start"] = 1
        log.info("Start %d on %d workers.", self._run, self.slices.hosts)
        outcome = call(self.slices.start(self._run), LONG)
        if outcome.code:
            log.warning("Start %d: %s", self._run, summary(outcome))

    def _lost(self, hosts: Sequence[Host], run: int) -> None:
        """A process ended. The others, in a job whose processes talk, will end too or wait for ever."""
        failed = sorted((h for h in hosts if h.run == run and h.ended and h.code), key=lambda h: seconds(h.ended_at))
        until = seconds(failed[0].ended_at) + TOGETHER
        ended = [host for host in hosts if host.run == run and host.ended and seconds(host.ended_at) <= until]
        codes = [host.code if host in ended else None for host in hosts]
        verdict = judge(codes, self.restarts, self.job.max_restarts)
        if verdict is Verdict.USER_ERROR:
            cause = next(host for host in failed if host.code == USER_ERROR)
            self._last_words(run, cause)
            self._end(f"{cause.name} ended with 2, a user error that would come again; what it said is above.")
        if any(host.runs for host in hosts):
            if self._tries["stop"] >= PATIENCE:
                self._recreate("the other processes do not end")
                return
            call(self.slices.ssh(tpu_vm_hosts.stop(self.job)), SHORT)
            self._pause("stop")
            return
        if self._run == run:
            why = f"{failed[0].name} ended with {failed[0].code}"
            self._last_words(run, failed[0])
            if verdict is Verdict.GIVEN_UP:
                self._end(f"Given up after {self.restarts} restarts: {why}; what it said is above.")
            self._count(f"on the same machines: {why}")
            self._run += 1
            self._tries.clear()
            time.sleep(pause(self.restarts, self.poll))
        self._start(hosts)

    def _recreate(self, why: str) -> None:
        """Other machines."""
        if self.restarts >= self.job.max_restarts:
            self._end(f"Given up after {self.restarts} restarts: {why}.")
        self._count(f"on other machines: {why}")
        self._delete()
        time.sleep(pause(self.restarts, self.poll))

    def _count(self, why: str) -> None:
        self.restarts += 1
        log.warning("Restart %d of at most %d %s.", self.restarts, self.job.max_restarts, why)

    def _delete(self) -> None:
        """Until there is none: a start must not meet processes of the one before."""
        failures = 0
        while (state := self._look()).name != ABSENT:
            if state.name != "DELETING":
                outcome = call(self.slices.delete(), SHORT)
                failures += outcome.code != 0
                if failures >= TRIES:
                    raise UserError(f"It cannot be deleted: {summary(outcome)}")
            time.sleep(pause(failures, self.poll))
        self._seen = self.left = self._ours = False
        self._state, self._run, self._said_until = ABSENT, 0, ""
        self._tries.clear()

    def _end(self, why: str) -> None:
        """Raises UserError, with nothing left behind."""
        self._delete()
        raise UserError(why)

    def _pause(self, what: str) -> None:
        self._tries[what] += 1
        time.sleep(pause(self._tries[what], self.poll))

    def _follow(self, run: int) -> None:
        """Prints what the first worker has said since the last time; the log is not worth a failure."""
        if run < 0:
            return
        outcome = call(self.slices.ssh(tpu_vm_hosts.log(self.job, run, self._said_until), first_only=True), SHORT)
        if outcome.code:
            return
        for line in outcome.output.splitlines():
            at, _, text = line.partition(" ")
            if at.endswith("Z") and at > self._said_until:
                self._said_until = at
                print(text, flush=True)

    def _last_words(self, run: int, host: Host) -> None:
        words = call(self.slices.ssh(tpu_vm_hosts.last_words(self.job, run, host.name)), SHORT)
        print(f"--- the last that {host.name} said\n{words.output.rstrip()}\n---", flush=True)


def seconds(text: str) -> float:
    """Of an RFC 3339 time in UTC, with any number of decimals."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{fraction or 0}")
