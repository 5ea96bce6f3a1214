"""A `gcloud` for queued resources with a cloud behind it that goes wrong: as a program on PATH, or called as a function.

The cloud is a JSON file (GCLOUD_STAND_IN). Every call is a moment in it: resources come and go through their states, a
job on all its workers takes a step, a mishap may happen, and the answer itself may be lost or garbage; a start may reach a
worker many calls later. What happens is a function of the seed and the number of the call. What must never happen is noted
in `violations`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import random
import re
import sys
import time
from typing import Any

# Of `gcloud compute tpus queued-resources VERB --help`, SDK 528; those that take no value are in SWITCHES.
FLAGS = {
    "create": {
        "--zone", "--project", "--accelerator-type", "--runtime-version", "--node-id", "--node-count", "--node-prefix",
        "--service-account", "--network", "--subnetwork", "--labels", "--metadata", "--spot", "--reserved",
        "--internal-ips", "--async", "--quiet",
    },
    "describe": {"--zone", "--project", "--format", "--quiet"},
    "delete": {"--zone", "--project", "--force", "--async", "--quiet"},
    "ssh": {
        "--zone", "--project", "--node", "--worker", "--command", "--batch-size", "--tunnel-through-iap",
        "--internal-ip", "--quiet",
    },
}  # fmt: skip
SWITCHES = {"--spot", "--reserved", "--internal-ips", "--async", "--quiet", "--force", "--tunnel-through-iap"}

HTML = "<!DOCTYPE html>\n<html><title>Error 502 (Server Error)!!1</title></html>\n"
QUOTA = "Quota 'TPUV5PPerProjectPerZoneForTPUAPI' exhausted. Limit 64 in zone z"
CAPACITY = 'There is no more capacity in the zone "z"; you can try in another zone'


@dataclasses.dataclass
class Cloud:
    """One project's, with room for one job."""

    seed: int = 0
    slices: int = 1
    workers: int = 2  # of a slice
    steps: int = 6  # that the job has still to do; kept in its bucket
    faults: float = 0.0  # share of calls whose answer is lost, late or garbage
    mishaps: int = 0  # that may still happen: a preemption, a lost worker, a process that dies
    often: float = 0.15  # the chance of one, where one may happen
    config_error: bool = False  # the job ends with 2
    quota: str = ""  # "create" or "later": when it turns out that there is none
    slow: float = 0.0  # seconds that the program takes to answer
    calls: int = 0
    resource: dict[str, Any] | None = None
    generation: int = 0
    starts: list[list[int]] = dataclasses.field(default_factory=list)  # [generation, run], once each
    deletes: list[int] = dataclasses.field(default_factory=list)  # generations
    happened: list[str] = dataclasses.field(default_factory=list)
    violations: list[str] = dataclasses.field(default_factory=list)
    late: list[tuple[int, int, str, str]] = dataclasses.field(default_factory=list)  # call, generation, host, script

    def answer(self, argv: list[str]) -> tuple[int, str, str]:
        """Exit code, output, error."""
        self.calls += 1
        rng = random.Random(f"{self.seed} {self.calls}")
        self._time_passes(rng)
        verb, flags = argv[4], dict(flag.partition("=")[::2] for flag in argv[6:])
        if argv[:4] != ["gcloud", "compute", "tpus", "queued-resources"] or set(flags) - FLAGS[verb]:
            self.violations.append(f"gcloud does not know {argv[:5]} {set(flags) - FLAGS[verb]}")
        if any(bool(value) == (flag in SWITCHES) for flag, value in flags.items()):
            self.violations.append(f"a flag without its value, or with one: {flags}")
        fault = rng.choice(("lost", "late", "cut", "html", "empty", "429", "503")) if rng.random() < self.faults else ""
        where = f"(gcloud.compute.tpus.queued-resources.{verb})"
        if fault == "lost":
            return 124, "", "no answer within 1 s"
        if fault == "429":
            return 1, "", f"ERROR: {where} RESOURCE_EXHAUSTED: Quota exceeded for 'Requests' per minute of 'tpu'.\n"
        if fault == "503":
            return 1, "", f"ERROR: {where} UNAVAILABLE: The service is currently unavailable.\n"
        if fault == "late" and "docker run" in argv[-1] and self.resource:  # an ssh that hangs
            hosts = sorted(self.resource["hosts"])
            self.late += [(self.calls + rng.randint(1, 40), self.generation, host, argv[-1]) for host in hosts]
            return 124, "", "no answer within 1 s"
        code, output, error = getattr(self, f"_{verb}")(argv[5], flags, rng)
        if error:
            error = f"ERROR: {where} {error}\n"
        if fault == "late":  # it was done all the same, or will be
            return 124, "", "no answer within 1 s"
        if fault == "cut":
            return code, output[: len(output) // 2], error
        if fault:
            return 0, HTML if fault == "html" else "", ""
        return code, output, error

    def _create(self, name: str, flags: dict[str, str], rng: random.Random) -> tuple[int, str, str]:
        if self.resource:
            self.violations.append("a second one was asked for")
            return 1, "", f"ALREADY_EXISTS: Resource 'projects/p/locations/z/queuedResources/{name}' already exists"
        if self.quota == "create":
            return 1, "", f"RESOURCE_EXHAUSTED: {QUOTA}"
        count = int(flags.get("--node-count", "1"))
        if count != self.slices or ("--node-id" in flags) == (count > 1):
            self.violations.append(f"{count} slices were asked for")
        self.generation += 1
        hosts = {f"t1v-{self.generation}-{s}-w-{w}": {} for s in range(count) for w in range(self.workers)}
        self.resource = {
            "name": name, "state": "CREATING", "hosts": hosts, "type": flags["--accelerator-type"],
            "spot": "--spot" in flags, "user_error": False, "message": "",
        }  # fmt: skip
        return 0, "", ""

    def _describe(self, name: str, flags: dict[str, str], rng: random.Random) -> tuple[int, str, str]:
        found = self.resource
        if not found:
            return 1, "", f"NOT_FOUND: Resource 'projects/p/locations/z/queuedResources/{name}' was not found."
        node: dict[str, Any] = {"node": {"acceleratorType": found["type"]}, "nodeId": name}
        if self.slices > 1:
            node = {"node": node["node"], "multisliceParams": {"nodeCount": self.slices, "nodeIdPrefix": name}}
        state = {"state": found["state"]}
        if found["state"] == "FAILED":
            state["failedData"] = {"error": {"code": 8, "message": found["message"]}}
        return 0, json.dumps({"name": name, "state": state, "tpu": {"nodeSpec": [node]}}), ""

    def _delete(self, name: str, flags: dict[str, str], rng: random.Random) -> tuple[int, str, str]:
        if not self.resource:
            return 1, "", f"NOT_FOUND: Resource 'projects/p/locations/z/queuedResources/{name}' was not found."
        if "--force" not in flags:
            return 1, "", "FAILED_PRECONDITION: it has nodes"
        if self.resource["state"] != "DELETING":
            self.deletes.append(self.generation)
        self.resource["state"] = "DELETING"
        return 0, "", ""

    def _ssh(self, name: str, flags: dict[str, str], rng: random.Random) -> tuple[int, str, str]:
        if not self.resource or self.resource["state"] != "ACTIVE":
            return 1, "", "the nodes are in an unusable state"
        script = flags["--command"]
        hosts = self.resource["hosts"]
        everywhere = flags["--node"] == flags["--worker"] == "all"
        if "docker logs" in script:
            return 0, f"{self.calls:09d}Z step, {self.steps} to go\n", ""
        if not everywhere:
            self.violations.append(f"not on all workers: {script}")
        deaf = {host for host, it in hosts.items() if it.get("status") == "lost"}
        if rng.random() < self.faults:
            deaf |= set(rng.sample(sorted(hosts), rng.randint(1, len(hosts))))
        output = "".join(self._on_host(host, script) for host in hosts if host not in deaf)
        return (255 if deaf else 0), output, ""

    def _on_host(self, host: str, script: str, came_late: bool = False) -> str:
        assert self.resource
        hosts = self.resource["hosts"]
        it = hosts[host]
        if "docker run" in script:
            found = re.search(r"--label=anygpt-run=(\d+) --label=anygpt-digest=(\w+)", script)
            assert found
            run = int(found[1])
            if late := re.search(r'if \[ "\$number" -ge (\d+) \]; then exit 0', script):
                if it and it["run"] >= int(late[1]):
                    return ""
            elif it and it["run"] >= run:
                self.violations.append(f"start {run} after {it['run']} on {host}")
            if self.resource["user_error"]:
                self.violations.append("started after a user error")
            if it.get("status") == "running" and "docker kill" not in script:
                self.violations.append(f"start {run} beside an older one on {host}")
            older = [o for o in hosts.values() if o and o is not it and o["status"] == "running" and o["run"] < run]
            if any(not o["late"] for o in older):  # a launcher cannot know of those that came late; their turn comes
                self.violations.append(f"start {run} beside an older one")
            if [self.generation, run] not in self.starts:
                self.starts.append([self.generation, run])
            digest = found[2]
            hosts[host] = {"run": run, "status": "running", "code": 0, "digest": digest, "ended": 0, "late": came_late}
        elif "docker kill" in script:
            if it.get("status") == "running":
                self._end(it, 137)
        elif "anygpt-host" in script:
            if not it:
                return f"anygpt-host {host} absent\n"
            ended = (
                f"2026-01-01T{it['ended'] // 60:02d}:{it['ended'] % 60:02d}:00.5Z"
                if it["ended"]
                else "0001-01-01T00:00:00Z"
            )
            return f"anygpt-host {host} {it['run']} {it['status']} {it['code']} {ended} {it['digest']}\n"
        else:
            self.violations.append(f"an unknown script: {script}")
        return ""

    def _end(self, it: dict[str, Any], code: int) -> None:
        it |= {"status": "exited", "code": code, "ended": self.calls % 1440}

    def _time_passes(self, rng: random.Random) -> None:
        due = [start for start in self.late if start[0] <= self.calls]
        self.late = [start for start in self.late if start[0] > self.calls]
        for _, generation, host, script in due:
            there = self.resource and generation == self.generation and self.resource["state"] == "ACTIVE"
            if self.resource and there and self.resource["hosts"][host].get("status") != "lost":
                self._on_host(host, script, came_late=True)
        found = self.resource
        if not found or rng.random() < 0.3:
            return
        state = found["state"]
        if state == "DELETING":
            self.resource = None
        elif state == "SUSPENDING":
            found["state"] = "SUSPENDED"
        elif state == "CREATING":
            found["state"] = rng.choice(("ACCEPTED", "WAITING_FOR_RESOURCES"))
        elif state in ("ACCEPTED", "WAITING_FOR_RESOURCES"):
            found["state"] = "PROVISIONING"
        elif state == "PROVISIONING":
            if self.quota == "later":
                found |= {"state": "FAILED", "message": QUOTA}
            elif self._mishap(rng, "no capacity"):
                found |= {"state": "FAILED", "message": CAPACITY}
            else:
                found["state"] = "ACTIVE"
        elif state == "ACTIVE":
            self._work(found, rng)

    def _work(self, found: dict[str, Any], rng: random.Random) -> None:
        hosts = list(found["hosts"].values())
        running = [it for it in hosts if it.get("status") == "running"]
        if self._mishap(rng, "preempted"):
            found["state"] = "SUSPENDING"
        elif self._mishap(rng, "a worker lost"):
            it = found["hosts"][rng.choice(sorted(found["hosts"]))]
            it["status"] = "lost"
            it.setdefault("run", -1)
        elif running and self._mishap(rng, "a process died"):
            self._end(rng.choice(running), rng.choice((1, 134, 137, 143)))
        elif len(running) == len(hosts) and len({it["run"] for it in hosts}) == 1:
            if self.config_error:
                found["user_error"] = True
                for it in hosts:
                    self._end(it, 2)
                return
            self.steps = max(self.steps - 1, 0)
            if self.steps == 0:
                for it in hosts:
                    self._end(it, 0)
        elif any(it.get("status") == "exited" and it["code"] for it in hosts) and running and rng.random() < 0.5:
            self._end(rng.choice(running), 134)  # it misses its peer's heartbeat

    def _mishap(self, rng: random.Random, what: str) -> bool:
        if self.mishaps and rng.random() < self.often:
            self.mishaps -= 1
            self.happened.append(what)
            return True
        return False


def main() -> int:
    path = pathlib.Path(os.environ["GCLOUD_STAND_IN"])
    cloud = Cloud(**json.loads(path.read_text()))
    code, output, error = cloud.answer(["gcloud", *sys.argv[1:]])
    new = path.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps(dataclasses.asdict(cloud)))
    new.replace(path)
    time.sleep(cloud.slow)
    sys.stdout.write(output)
    sys.stderr.write(error)
    return code


if __name__ == "__main__":
    sys.exit(main())
