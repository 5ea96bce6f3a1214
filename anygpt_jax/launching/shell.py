"""Commands of other programs (gcloud, kubectl, sbatch): shown as bash would take them, or run."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import signal
import subprocess

from anygpt_jax.errors import UserError

END = "END_OF_INPUT"


@dataclasses.dataclass(frozen=True)
class Command:
    """A program with its arguments; `stdin` is what it reads, `why` a line for who reads the dry run."""

    argv: tuple[str, ...]
    stdin: str = ""
    why: str = ""

    def shown(self) -> str:
        """As a script has it."""
        comment = f"# {self.why}\n" if self.why else ""
        line = shlex.join(self.argv)
        if not self.stdin:
            return f"{comment}{line}"
        return f"{comment}{line} <<'{END}'\n{self.stdin.rstrip()}\n{END}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended; 124 after a timeout, as coreutils' timeout has it."""

    code: int
    output: str
    error: str


def call(command: Command, seconds: float) -> Outcome:
    """Runs a command to its end, its output kept. UserError if there is no such program.

    What it started (ssh, of gcloud) ends with it: nothing of a command that was given up may act later.
    """
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            command.argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True, errors="replace", start_new_session=True
        )
    except FileNotFoundError as e:
        raise UserError(f"There is no program '{command.argv[0]}'; install it, or look with --dry-run only.") from e
    with process:
        try:
            output, error = process.communicate(command.stdin, timeout=seconds)
        except BaseException as e:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(e, subprocess.TimeoutExpired):
                raise
            return Outcome(124, "", f"no answer within {seconds:g} s")
    return Outcome(process.returncode, output, error)
