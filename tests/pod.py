"""A job of several real processes on this machine, to be killed: gloo between them, several CPU devices each."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import pathlib
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator

import ml_collections
from compiling import QUICK

# Children are forked from a process that has imported everything and started nothing: seconds less a start.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["anygpt_jax.training.loop", "tensorboardX"])
SECONDS = 120  # that anything may take


def free_port() -> int:
    with contextlib.closing(socket.socket()) as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def _process(config: str, index: int, count: int, devices: int, port: int, output: str, clock: float) -> None:
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ["XLA_FLAGS"] = f"{QUICK} --xla_force_host_platform_device_count={devices}"
    if count > 1:
        os.environ.update(
            JAX_COORDINATOR_ADDRESS=f"localhost:{port}", JAX_NUM_PROCESSES=str(count), JAX_PROCESS_ID=str(index)
        )
    if clock:
        real = time.time
        time.time = lambda: real() + clock

    import logging

    from anygpt_jax.errors import UserError
    from anygpt_jax.training import loop

    logging.basicConfig(level=logging.INFO, force=True)
    try:
        loop.run(ml_collections.ConfigDict(json.loads(config)))
    except UserError as e:
        print(f"anygpt: {e}", file=sys.stderr, flush=True)
        os._exit(2)  # the others may be waiting for this one: as when a process dies
    except Exception as e:
        print(f"{type(e).__name__}: {e}", file=sys.stderr, flush=True)
        os._exit(1)


@dataclasses.dataclass
class Pod:
    """A job that runs."""

    processes: list
    outputs: list[pathlib.Path]

    def said(self) -> str:
        return "\n".join(f"--- {p.name}\n{p.read_text()[-6000:]}" for p in self.outputs if p.is_file())

    def wait(self, seconds: float = SECONDS) -> list[int]:
        """Exit codes of all processes."""
        until = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(until - time.monotonic(), 0.1))
            assert process.exitcode is not None, self.said()
        return [process.exitcode for process in self.processes]

    def wait_for(self, condition: Callable[[], bool], seconds: float = SECONDS) -> bool:
        """Until the condition holds or the job is over; whether it held."""
        until = time.monotonic() + seconds
        while not condition():
            if all(not process.is_alive() for process in self.processes):
                return condition()
            assert time.monotonic() < until, self.said()
            time.sleep(0.005)
        return True

    def send(self, number: int, *which: int) -> None:
        for index in which or range(len(self.processes)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.processes[index].pid, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        for process in self.processes:
            process.join()


def start(
    config: ml_collections.ConfigDict,
    logs: pathlib.Path,
    *,
    processes: int = 2,
    devices: int = 2,
    configs=None,
    clocks=(),
) -> Pod:
    """`processes` × `devices`; `configs` are the processes' own where they differ, `clocks` how far theirs are off."""
    logs.mkdir(parents=True, exist_ok=True)
    port, made = free_port(), []
    outputs = [logs / f"process_{i}.txt" for i in range(processes)]
    for i in range(processes):
        text = (configs[i] if configs else config).to_json()
        arguments = (text, i, processes, devices, port, str(outputs[i]), clocks[i] if clocks else 0.0)
        made.append(CONTEXT.Process(target=_process, args=arguments, daemon=True))
        made[-1].start()
    return Pod(made, outputs)


@contextlib.contextmanager
def running(*arguments, **more) -> Iterator[Pod]:
    pod = start(*arguments, **more)
    try:
        yield pod
    finally:
        pod.kill()


def whole_run(config: ml_collections.ConfigDict, logs: pathlib.Path, **more) -> None:
    """To the end, and successfully."""
    with running(config, logs, **more) as pod:
        assert set(pod.wait(10 * SECONDS)) == {0}, pod.said()
