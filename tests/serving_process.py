"""`anygpt serve` as a process of its own, with the shipped model."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from compiling import QUICK


@contextlib.contextmanager
def process(folder: pathlib.Path, *arguments: str) -> Iterator[tuple[subprocess.Popen, int]]:
    """(process, port); it gets SIGTERM in the end. Compiled programs are kept in `folder`, where it runs."""
    log = folder / "serve.log"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK}
    with log.open("wb") as out:
        command = [sys.executable, "-m", "anygpt_jax.cli", "serve", "--port", "0", *arguments]
        running = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out, env=environment)
    try:
        for _ in range(6000):
            if found := re.search(r"is ready after .*http://127\.0\.0\.1:(\d+)/", log.read_text()):
                break
            if running.poll() is not None:
                raise AssertionError(log.read_text())
            time.sleep(0.1)
        yield running, int(found.group(1))
    finally:
        if running.poll() is None:
            running.send_signal(signal.SIGTERM)
            running.wait(60)
