"""Several processes as one job: joining it, and what all of them must agree on."""

from __future__ import annotations

import concurrent.futures
import hashlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from anygpt_jax.errors import UserError

log = logging.getLogger(__name__)
T = TypeVar("T")

DONE, USERS, BROKEN = 1, 2, 3  # how the first process's work ended: well, by a UserError, by another
CLOCKS_APART = 5.0  # seconds between hosts' clocks that are worth a warning: logs then tell another order than was


def join(config: ml_collections.ConfigDict) -> None:
    """Makes this process one of its job's, before jax looks for devices.

    A job's processes are told of each other by `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, or,
    with `config.multihost`, by what jax finds out itself (TPU VMs, GKE, Slurm, MPI). One process alone needs neither.
    When a process dies, the others leave too, after `config.heartbeat_seconds` at the latest: the job starts again.
    """
    told = "JAX_COORDINATOR_ADDRESS" in os.environ
    if jax.distributed.is_initialized() or not (told or config.get("multihost")):
        return
    # A process that leaves with an error waits at the exit for the others, which may be waiting for it.
    seconds = int(config.get("heartbeat_seconds") or 100)
    how: dict[str, Any] = {"heartbeat_timeout_seconds": seconds, "shutdown_timeout_seconds": seconds}
    if told:
        try:
            count, index = int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
        except (KeyError, ValueError) as e:
            raise UserError(
                "With JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID must be set to numbers."
            ) from e
        how |= {"num_processes": count, "process_id": index}
    try:
        jax.distributed.initialize(**how)
    except ValueError as e:  # RuntimeError: another one was lost, or late, which a restart of the job repairs
        raise UserError(f"This process could not join the job's others: {str(e).splitlines()[0]}") from e


def leads() -> bool:
    """True in the one process that writes what is written once."""
    return jax.process_index() == 0


def lead(work: Callable[[], T], seconds: float = 2.0) -> T | None:
    """`work()` of the first process, however long it takes, while the others wait; None in the others.

    All must call this. Its error is raised in the first process, and in the others a UserError if it is one: such a job
    is not started again, any other is.
    """
    if jax.process_count() == 1:
        return work()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        going = pool.submit(work) if leads() else None
        while True:  # a barrier alone would be given up after a time
            state = 0 if going is None or not going.done() else _how_it_ended(going)
            state = int(np.asarray(multihost_utils.process_allgather(np.int32(state))).reshape(-1)[0])
            if state:
                break
            time.sleep(seconds)
        if going is not None:
            return going.result()
    if state == DONE:
        return None
    raise (UserError if state == USERS else RuntimeError)("The first process could not go on; its own output says why.")


def _how_it_ended(going: concurrent.futures.Future) -> int:
    error = going.exception()
    return DONE if error is None else USERS if isinstance(error, UserError) else BROKEN


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of named arrays, their dtypes and shapes."""
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype} {array.shape};".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def gathered(text: str, size: int = 64) -> list[str]:
    """Every process's `text` of at most `size` bytes, in the processes' order. All must call this."""
    raw = text.encode()
    assert len(raw) <= size, text
    padded = np.frombuffer(raw.ljust(size, b"\0"), np.uint8)
    everyone = np.asarray(multihost_utils.process_allgather(padded)).reshape(-1, size)
    return [bytes(row).rstrip(b"\0").decode() for row in everyone]


def differing(texts: Sequence[str]) -> list[int]:
    """The processes that do not say what most say."""
    usual = max(sorted(set(texts)), key=list(texts).count)
    return [i for i, text in enumerate(texts) if text != usual]


def require_same(what: str, text: str, remedy: str) -> None:
    """UserError in every process if they do not all say the same SHA-256 of `what`."""
    if jax.process_count() == 1:
        return
    others = differing(gathered(text))
    if others:
        raise UserError(
            f"{what} is not the same on all {jax.process_count()} processes: {', '.join(map(str, others))} "
            f"{'differs' if len(others) == 1 else 'differ'} from the others. {remedy}"
        )


def compare_clocks() -> None:
    """A warning if the hosts' clocks are far apart. All must call this."""
    if jax.process_count() == 1:
        return
    now = [float(text) for text in gathered(f"{time.time():.3f}")]
    middle = sorted(now)[len(now) // 2]
    late = {i: round(t - middle, 1) for i, t in enumerate(now) if abs(t - middle) > CLOCKS_APART}
    if late:
        log.warning("The clocks of processes %s are off by so many seconds; their logs tell another order.", late)
