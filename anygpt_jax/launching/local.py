"""`--target=local`: the job as a pod runs it, on this machine: several processes, one coordinator, one restart policy.

WORKDIR/logs/launch has process_I.txt (all that process I said, in all starts), config.py (what they run), restarts.jsonl
(a line whenever the job lost a process) and processes.json (their numbers, for who wants to kill one). A process that
hangs is none of this module's business: its peers' heartbeat ends it, or they it, and then it is lost.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator

from anygpt_jax.errors import UserError
from anygpt_jax.launching.job import Job
from anygpt_jax.launching.local_processes import LocalPod, Processes
from anygpt_jax.launching.main import for_devices, require_processes
from anygpt_jax.launching.policy import USER_ERROR, Verdict, judge, saved
from anygpt_jax.launching.shell import Command
from anygpt_jax.locks import alone

log = logging.getLogger(__name__)

STACKS_SECONDS = 2.0  # that processes have to tell their stacks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the pod's size, and --stacks, which starts nothing."""
    group = parser.add_argument_group("local", "a pod on this machine: CPU devices, gloo between the processes")
    group.add_argument("--processes", type=int, default=2, metavar="N", help="as a pod has hosts (2)")
    group.add_argument("--devices-per-process", type=int, default=1, metavar="N", help="as a host has chips (1)")
    group.add_argument("--stacks", action="store_true", help="what every process of the job that runs is doing now")


def run(job: Job, args: argparse.Namespace) -> None:
    """Until the job is done. UserError if it cannot be, SystemExit 128 + signal if it was told to stop."""
    pod = LocalPod(job, args.processes, args.devices_per_process)
    if args.stacks:
        print(stacks(pod.folder))
        return
    refuse(pod)
    config = for_devices(job.config, job.verb, pod.processes * pod.devices, args.vocab_size)
    pod = dataclasses.replace(pod, job=dataclasses.replace(job, config=config))
    if args.dry_run:
        print(script(pod))
        return
    pod.folder.mkdir(parents=True, exist_ok=True)
    with _alone(pod.folder):
        pod.config.write_text(pod.job.config_file(), encoding="utf-8")
        with Launcher(pod).listening() as launcher:
            launcher.go()


def refuse(pod: LocalPod) -> None:
    """UserError for what cannot run as several processes."""
    if pod.processes < 1 or pod.devices < 1:
        raise UserError("--processes and --devices-per-process must be at least 1.")
    if pod.job.verb == "tokenize":
        raise UserError("--job=tokenize has workers of its own (Beam); run `anygpt tokenize` instead of a local pod.")
    require_processes(pod.job.config, pod.job.verb, pod.job.arguments, pod.processes)


def script(pod: LocalPod) -> str:
    """What would be executed, as bash takes it; without the restarts, which it tells of."""
    put = Command(("cp", "/dev/stdin", str(pod.config)), pod.job.config_file(), "the config, as it is now")
    port = free_port()
    lines = [f"mkdir -p {shlex.quote(str(pod.folder))}", put.shown()]
    lines.append(f"# {pod.processes} processes; the port is a free one, at each start another")
    for i in range(pod.processes):
        lines.append(f"{pod.command(i, port).shown()} >> {shlex.quote(str(pod.output(i)))} 2>&1 &")
    lines += [
        "wait",
        "# Exit codes: 0 done, 2 an error that would come again, 143 saved after SIGTERM. When a process is lost",
        f"# otherwise, the rest are ended and all start again, at most {pod.job.max_restarts} times.",
    ]
    return "\n".join(lines)


def free_port() -> int:
    """A TCP port of localhost that nothing uses at the moment; it is not held."""
    with contextlib.closing(socket.socket()) as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def _alone(folder: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    return alone(folder / "lock", f"This job runs already ({folder}/processes.json); stop that one first.")


def stacks(folder: pathlib.Path, seconds: float = STACKS_SECONDS) -> str:
    """What the processes of the job that runs in this folder say when asked what they are doing."""
    running = False
    if (folder / "processes.json").is_file():
        try:
            with _alone(folder):
                pass
        except UserError:
            running = True
    if not running:
        raise UserError(f"No job of --target=local runs in {folder.parent.parent}; see --workdir.")
    outputs = sorted(folder.glob("process_*.txt"))
    before = {path: path.stat().st_size for path in outputs}
    os.kill(json.loads((folder / "processes.json").read_text())["launcher"], signal.SIGUSR2)
    time.sleep(seconds)
    return "\n".join(f"--- {path}\n{path.read_bytes()[before[path] :].decode(errors='replace')}" for path in outputs)


class Launcher:
    """Starts a pod's processes until one rule says that the job has ended."""

    def __init__(self, pod: LocalPod):
        self.pod, self.restarts = pod, 0
        self.stop: int | None = None  # the first SIGTERM or SIGINT
        self.kill = self.tell = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[Launcher]:
        """Within, SIGTERM, SIGINT and SIGUSR2 are for the processes."""
        ours = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
        before = {number: signal.signal(number, self._remember) for number in ours}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _remember(self, number: int, frame: object) -> None:
        if number == signal.SIGUSR2:
            self.tell = True
        elif self.stop is None:
            self.stop = number
        elif number == signal.SIGINT:  # `timeout` and others send SIGTERM twice
            self.kill = True

    def go(self) -> None:
        """Until the job is done. UserError if it cannot be, or was restarted as often as it may be.

        SystemExit 128 + signal if it was told to stop, also when not all had saved by then.
        """
        pod, verdict = self.pod, Verdict.RESTART
        while verdict is Verdict.RESTART:
            codes = self._once()
            verdict = judge(codes, self.restarts, pod.job.max_restarts, asked=self.stop is not None)
            if verdict is Verdict.DONE:
                log.info("Done, after %d restarts.", self.restarts)
                return
            ended = {str(i): _cause(code) for i, code in enumerate(codes) if code is not None}
            steps = pod.steps() if pod.job.verb == "train" else {}
            self._note(verdict, ended, steps)
            what = ", ".join(f"process {i} ({cause})" for i, cause in ended.items())
            where = "Step {reached_step} was reached, {saved_step} is saved.".format(**steps) if steps else ""
            log.warning("Ended: %s. %s", what or "all processes, by SIGKILL", where)
            if verdict is Verdict.RESTART:
                self.restarts += 1
                log.warning("Restart %d of at most %d.", self.restarts, pod.job.max_restarts)
        if verdict is Verdict.STOPPED:
            log.info("Stopped%s. Run the same command to go on.", "" if saved(codes) else " before all had saved")
            sys.exit(128 + (self.stop or signal.SIGTERM))
        first = codes.index(USER_ERROR) if USER_ERROR in codes else next(iter(ended))
        told = f"see {pod.output(int(first))}"
        if verdict is Verdict.USER_ERROR:
            raise UserError(f"The job cannot go on, and starting it again would not help; {told}.")
        raise UserError(f"The job was lost again after {self.restarts} restarts; {told}, then run the same command.")

    def _once(self) -> list[int | None]:
        """One start, to its end; exit codes of the processes that ended by themselves, None of those ended here."""
        handed_on = False
        with Processes(self.pod, free_port(), self.restarts) as processes:
            while True:
                codes = processes.codes()
                processes.follow()
                lost = [i for i, code in enumerate(codes) if code is not None and not saved([code])]
                if lost or self.kill or None not in codes:
                    processes.end()
                    for i in lost:
                        if i and codes[i] != -signal.SIGKILL:
                            print(f"--- the last that process {i} said\n{processes.last_lines(i)}", flush=True)
                    return codes
                if self.stop and not handed_on:
                    log.info("Stopping: waiting for the save; Ctrl-C again to end at once.")
                    # jax takes SIGTERM for itself: evaluation, which has nothing to save, hears SIGINT alone.
                    processes.send(signal.SIGTERM if self.pod.job.verb == "train" else signal.SIGINT)
                    handed_on = True
                if self.tell:
                    self.tell = False
                    if deaf := processes.send_to_listeners(signal.SIGUSR2):
                        log.warning("Processes %s do not tell their stacks: they are not that far yet.", deaf)
                time.sleep(0.05)

    def _note(self, verdict: Verdict, ended: dict[str, int | str], steps: dict[str, int | None]) -> None:
        line = {"time": round(time.time(), 3), "start": self.restarts, "ended": ended, **steps}
        with (self.pod.folder / "restarts.jsonl").open("a") as file:
            file.write(json.dumps({**line, "verdict": verdict.value}) + "\n")


def _cause(code: int) -> int | str:
    """An exit code, or a signal's name."""
    return code if code >= 0 else signal.Signals(-code).name
