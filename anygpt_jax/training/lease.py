"""One job at a time trains in a workdir, also where no file lock reaches: a bucket that two clusters have mounted.

The first process of a job holds WORKDIR/.lock, as far as the file system has locks, and writes WORKDIR/lease.json anew
every BEAT seconds. A start that finds the lease of another machine waits until it is given back or has not changed for
SILENT seconds, and gives up after PATIENCE. On the same machine the lock decides at once, so that a job that was killed is
started again without waiting.
"""

from __future__ import annotations

import contextlib
import json
import logging
import pathlib
import socket
import threading
import time
import uuid
from typing import Any

from anygpt_jax.cache import write_atomically
from anygpt_jax.errors import UserError
from anygpt_jax.locks import alone
from anygpt_jax.multihost import CLOCKS_APART

log = logging.getLogger(__name__)

BEAT = 15.0  # seconds
SILENT = 4 * BEAT  # after which a lease is a dead job's
PATIENCE = 300.0  # that a start waits for another job: its hosts may be saving still
POLL = 1.0


class Lease:
    """Taken by a job's first process alone; in the others, who share its fate, nothing happens."""

    def __init__(self, workdir: pathlib.Path):
        self.path = workdir / "lease.json"
        self.mine = {"job": uuid.uuid4().hex[:12], "machine": socket.gethostname()}
        self._taken_by: dict[str, Any] | None = None  # who has taken it since
        self._ended = threading.Event()
        self._at_the_end = contextlib.ExitStack()

    def take(self) -> None:
        """UserError if another job holds it and does not end."""
        self._at_the_end.enter_context(alone(self.path.parent / ".lock", self._refusal("here")))
        self._wait_for_another()
        self._write()
        beating = threading.Thread(target=self._beat, name="lease", daemon=True)
        beating.start()
        self._at_the_end.callback(self._give_back, beating)

    def require(self) -> None:
        """UserError if another job has taken it: what this one would write from now on is in the other's way."""
        if self._taken_by is not None:
            raise UserError(self._refusal(self._taken_by["machine"]) + " Nothing more of this one is written.")

    def close(self) -> None:
        """Gives it back."""
        self._at_the_end.close()

    def _refusal(self, where: str) -> str:
        return f"Another job trains in {self.path.parent} ({where}); stop it first, or take another --workdir."

    def _wait_for_another(self) -> None:
        began = changed = time.monotonic()
        seen = found = self._read()
        while found and found["machine"] != self.mine["machine"]:
            if found["time"] + SILENT + CLOCKS_APART < time.time() or time.monotonic() - changed > SILENT:
                return
            if time.monotonic() - began > PATIENCE:
                raise UserError(self._refusal(found["machine"]))
            if found is seen:
                log.info("A job on %s trained here just now; waiting until it is gone.", found["machine"])
            time.sleep(POLL)
            now = self._read()
            if now != found:
                found, changed = now, time.monotonic()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError):  # a bucket that does not answer will do so at the next beat
                found = self._read()
                if found and found["job"] != self.mine["job"]:
                    self._taken_by = found
                    return
                self._write()

    def _give_back(self, beating: threading.Thread) -> None:
        self._ended.set()
        beating.join()
        if self._taken_by is None:
            self.path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any] | None:
        try:
            return json.loads(self.path.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def _write(self) -> None:
        write_atomically(self.path, json.dumps({**self.mine, "time": round(time.time(), 3)}).encode())
