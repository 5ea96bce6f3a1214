"""Cloud TPU queued resources through `gcloud`: its commands, and what its answers mean.

The flags are those of `gcloud compute tpus queued-resources` (Google Cloud SDK 528); states and fields those of the API
tpu/v2. A queued resource has the job's name: asked for twice, it is made once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from anygpt_jax.errors import UserError
from anygpt_jax.launching import tpu_vm_hosts
from anygpt_jax.launching.job import Job
from anygpt_jax.launching.shell import Command, Outcome, call
from anygpt_jax.planning.accelerators import Accelerator

T = TypeVar("T")

GCLOUD = ("gcloud", "compute", "tpus", "queued-resources")
ABSENT = "ABSENT"  # there is none
WAITING = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "SUSPENDING", "DELETING")
OVER = ("SUSPENDED", "FAILED")
TRIES = 20  # of a command whose answers make no sense; the pauses grow to ten polls

SHORT, LONG = 300.0, 1800.0  # seconds a command may take; LONG for a start, which pulls the image

_ERROR = re.compile(r"^ERROR: \(gcloud\.[^)]*\) ?(.*)", re.MULTILINE | re.DOTALL)
_QUOTA = re.compile(r"quota.*(exhausted|exceeded)", re.IGNORECASE | re.DOTALL)
_RATE = re.compile(r"per (minute|second)", re.IGNORECASE)  # a quota of requests, there again soon
_HOPELESS = re.compile(
    "PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ARGUMENT|NOT_FOUND|active account|unrecognized arguments|Invalid choice"
)


@dataclasses.dataclass(frozen=True)
class State:
    """A queued resource's state, and what it says of a failure."""

    name: str  # ACTIVE, ABSENT, one of WAITING or OVER
    message: str = ""
    accelerator: str = ""  # as it was asked for, if it says so
    slices: int = 1


@dataclasses.dataclass(frozen=True)
class QueuedResource:
    """One job's slices."""

    job: Job
    zone: str
    image: str
    bucket: str
    project: str = ""
    service_account: str = ""
    capacity: str = ""  # "", "spot" or "reserved"
    internal_ips: bool = False
    create_flags: tuple[str, ...] = ()

    @property
    def accelerator(self) -> Accelerator:
        """The job's, which is never None on this target."""
        assert self.job.accelerator is not None  # tpu_vm.resource sees to it
        return self.job.accelerator

    @property
    def hosts(self) -> int:
        """Of all slices."""
        return self.accelerator.hosts * self.accelerator.slices

    @property
    def digest(self) -> str:
        """Of what is run: a job of the same name that runs something else is another job."""
        what = [self.image, self.bucket, self.job.command(tpu_vm_hosts.CONFIG), self.job.config_file()]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]

    def create(self) -> Command:
        """Asks for all slices together. --async: it does not wait until they are there."""
        slices = self.accelerator.slices
        nodes = (f"--node-count={slices}", f"--node-prefix={self.job.name}")
        flags = [
            f"--accelerator-type={self.accelerator.tpu_vm_type}",
            f"--runtime-version={self.accelerator.family.runtime}",
            *(nodes if slices > 1 else (f"--node-id={self.job.name}",)),
            *([f"--{self.capacity}"] if self.capacity else []),
            *([f"--service-account={self.service_account}"] if self.service_account else []),
            *(["--internal-ips"] if self.internal_ips else []),
            *self.create_flags,
            "--async",
        ]
        return self._gcloud("create", *flags)

    def describe(self) -> Command:
        """Prints the resource as JSON, for `state_in`."""
        return self._gcloud("describe", "--format=json")

    def delete(self) -> Command:
        """--force: with its nodes, which it otherwise refuses to leave."""
        return self._gcloud("delete", "--force", "--async")

    def ssh(self, script: str, first_only: bool = False) -> Command:
        """Runs lines of shell on all workers of all slices, or on the first worker of the first slice."""
        which = "0" if first_only else "all"
        tunnel = ["--tunnel-through-iap"] if self.internal_ips else []
        return self._gcloud("ssh", f"--node={which}", f"--worker={which}", *tunnel, f"--command={script}")

    def start(self, run: int) -> Command:
        """Makes start number `run` on all workers; asked for twice, it is made once."""
        return self.ssh(tpu_vm_hosts.start(self.job, run, self.image, self.bucket, self.digest))

    def _gcloud(self, verb: str, *flags: str) -> Command:
        where = [f"--zone={self.zone}", *([f"--project={self.project}"] if self.project else [])]
        return Command((*GCLOUD, verb, self.job.name, *where, "--quiet", *flags))

    def state_in(self, outcome: Outcome) -> State | None:
        """What `describe` said; None if it is no answer."""
        if self.is_absent(outcome):
            return State(ABSENT)
        if outcome.code != 0:
            return None
        try:
            said: Any = json.loads(outcome.output)
            name = said["state"]["state"]
            spec = said.get("tpu", {}).get("nodeSpec", [{}])
            error = said["state"].get("failedData", {}).get("error", {})
            found = State(
                name,
                str(error.get("message", "")),
                str(spec[0].get("node", {}).get("acceleratorType", "")),
                max(len(spec), int(spec[0].get("multisliceParams", {}).get("nodeCount", 1))),
            )
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            return None
        return found if name in ("ACTIVE", *WAITING, *OVER) else None

    def is_absent(self, outcome: Outcome) -> bool:
        """A project or zone that is not there says NOT_FOUND too."""
        return (
            outcome.code != 0 and "NOT_FOUND" in outcome.error and f"queuedResources/{self.job.name}'" in outcome.error
        )


def refuse_hopeless(outcome: Outcome) -> None:
    """UserError for an answer that would come again."""
    said = _ERROR.search(outcome.error) if outcome.code else None
    if not said:
        return
    text = " ".join(said[1].split())
    if quota(text):
        raise UserError(f"There is no quota for this: {text} Ask for more, or take another zone or --accelerator.")
    if _HOPELESS.search(text):
        raise UserError(f"gcloud refuses: {text}")


def quota(text: str) -> bool:
    """Whether a message says that the project may not have so many chips."""
    return bool(_QUOTA.search(text)) and not _RATE.search(text)


def answer(
    command: Command, read: Callable[[Outcome], T | None], poll: float, seconds: float = SHORT, patient: bool = False
) -> T:
    """What `read` makes of a command's outcome, asked again while that is None. UserError after TRIES, or if hopeless.

    `patient`: it has been answered before; what looks hopeless may pass (a token or a permission that is being renewed).
    """
    outcome = Outcome(0, "", "")
    for attempt in range(TRIES):
        outcome = call(command, seconds)
        if (value := read(outcome)) is not None:
            return value
        if not patient:
            refuse_hopeless(outcome)
        time.sleep(pause(attempt, poll))
    raise UserError(f"`{' '.join(command.argv[:6])}` gave no answer {TRIES} times; the last was: {summary(outcome)}")


def pause(attempt: int, poll: float) -> float:
    """Seconds, growing to ten polls, between half and all of it by chance: many launchers must not ask in step."""
    return min(2.0 ** min(attempt, 4), 10.0) * poll * random.uniform(0.5, 1)


def summary(outcome: Outcome) -> str:
    """The end of what a command said."""
    text = " ".join((outcome.error.strip() or outcome.output.strip() or "nothing").split())
    return text[-300:]
