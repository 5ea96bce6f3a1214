"""The processes of a pod on this machine: what each is started with, and how they end together."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from typing import IO

from anygpt_jax.launching.job import Job
from anygpt_jax.launching.shell import Command
from anygpt_jax.training.goodput import read_events

PROGRAM = (sys.executable, "-m", "anygpt_jax.cli")  # the `anygpt` of this environment, whatever PATH has
PR_SET_PDEATHSIG = 1  # linux/prctl.h

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclasses.dataclass(frozen=True)
class LocalPod:
    """A job as so many processes with so many CPU devices each."""

    job: Job
    processes: int
    devices: int

    @property
    def folder(self) -> pathlib.Path:
        """WORKDIR/logs/launch: all that the launcher writes."""
        return pathlib.Path(self.job.config.workdir) / "logs" / "launch"

    @property
    def config(self) -> pathlib.Path:
        """The frozen config, which every process reads."""
        return self.folder / "config.py"

    def output(self, index: int) -> pathlib.Path:
        """What one process says on either stream, each start's after the last."""
        return self.folder / f"process_{index}.txt"

    def command(self, index: int, port: int) -> Command:
        """Of one process; `port` is the coordinator's."""
        others = re.sub(r"--xla_force_host_platform_device_count=\S*", "", os.environ.get("XLA_FLAGS", "")).split()
        flags = " ".join([*others, f"--xla_force_host_platform_device_count={self.devices}"])
        environment = {
            "JAX_PLATFORMS": "cpu",
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": self.processes,
            "JAX_PROCESS_ID": index,
            "XLA_FLAGS": flags,
            "PYTHONUNBUFFERED": 1,
        }
        given = [f"{name}={value}" for name, value in environment.items()]
        return Command(("env", *given, *PROGRAM, *self.job.argv(str(self.config))[1:]))

    def steps(self) -> dict[str, int | None]:
        """What is saved, by the checkpoints' names, and how far the run had said that it was."""
        workdir = pathlib.Path(self.job.config.workdir)
        saved = (int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit())
        said = (event["step"] for event in reversed(read_events(workdir / "logs" / "goodput.jsonl")))
        return {
            "saved_step": max(saved, default=None),
            "reached_step": next((step for step in said if step is not None), None),
        }


class Processes:
    """One start of a pod. When the launcher dies, however it does, they die too (Linux)."""

    def __init__(self, pod: LocalPod, port: int, restarts: int):
        self._outputs = [pod.output(i) for i in range(pod.processes)]
        for path in self._outputs:
            with path.open("a") as file:
                file.write(f"--- start {restarts}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        self._begins = [path.stat().st_size for path in self._outputs]
        self._first: IO[bytes] = self._outputs[0].open("rb")
        self._first.seek(self._begins[0])
        self._running: list[subprocess.Popen] = []
        try:
            for i in range(pod.processes):
                self._running.append(_start(pod.command(i, port), self._outputs[i]))
            whose = {"launcher": os.getpid(), "processes": [p.pid for p in self._running], "restarts": restarts}
            path = pod.folder / "processes.json"
            path.with_suffix(".new").write_text(json.dumps(whose) + "\n")
            path.with_suffix(".new").replace(path)
        except BaseException:
            self.end()
            raise

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()
        self.follow(all_of_it=True)
        self._first.close()

    def codes(self) -> list[int | None]:
        """Exit codes, negative for a signal; None: it runs."""
        return [process.poll() for process in self._running]

    def send(self, number: int) -> None:
        """A signal to all processes; none to one that has ended."""
        for process in self._running:
            process.send_signal(number)

    def send_to_listeners(self, number: int) -> list[int]:
        """To processes that have a handler for it, others would die of it; returns those others that run."""
        deaf = []
        for i, process in enumerate(self._running):
            if process.poll() is not None:
                continue
            if _handles(process.pid, number):
                process.send_signal(number)
            else:
                deaf.append(i)
        return deaf

    def end(self) -> None:
        """At once, and whatever they have started."""
        for process in self._running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        for process in self._running:
            process.wait()

    def follow(self, all_of_it: bool = False) -> None:
        """Prints the lines that process 0 has written since the last time, and at the end a line that is none."""
        at, data = self._first.tell(), self._first.read()
        whole = data if all_of_it else data[: data.rfind(b"\n") + 1]
        self._first.seek(at + len(whole))
        if whole:
            print(whole.decode(errors="replace"), end="", flush=True)

    def last_lines(self, index: int, count: int = 12) -> str:
        """Of what a process said in this start."""
        text = self._outputs[index].read_bytes()[self._begins[index] :].decode(errors="replace")
        return "\n".join(text.splitlines()[-count:])


def _start(command: Command, output: pathlib.Path) -> subprocess.Popen:
    """In a process group of its own: Ctrl-C in the terminal is the launcher's, and nothing asks at the keyboard."""
    launcher = os.getpid()

    def die_with_it() -> None:
        if _LIBC is not None:
            _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != launcher:  # it died before
                os._exit(1)

    with output.open("ab") as file:
        return subprocess.Popen(
            command.argv,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            process_group=0,
            preexec_fn=die_with_it,
        )


def _handles(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal; True where that cannot be found out."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    found = re.search(r"^SigCgt:\s*([0-9a-f]+)", status, re.MULTILINE)
    return found is None or bool(int(found[1], 16) >> (number - 1) & 1)
