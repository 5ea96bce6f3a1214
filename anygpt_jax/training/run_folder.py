"""What ran: logs/runs/START_TIME/ holds the config, the environment and the state of the code of each start.

config.json, environment.json, and git.json where the package is a git checkout. No secrets: of the environment only
the variables named here, the host's name as a hash, and settings that look like a password masked.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections

from anygpt_jax.cache import write_atomically
from anygpt_jax.multihost import leads

VARIABLES = re.compile(r"(JAX_|XLA_)\w+|LIBTPU_INIT_ARGS|OMP_NUM_THREADS|CUDA_VISIBLE_DEVICES|TF_CPP_MIN_LOG_LEVEL")
HOSTS = re.compile(r"JAX_\w*(ADDRESS|HOST|IP)\w*")  # they name machines
SECRET = re.compile(r"secret|password|passwd|credential|api_?key|private_?key|(access|auth|hf)_?token", re.IGNORECASE)
MASK = "(not written)"


def run_name(began: float) -> str:
    """A start's name by its time (seconds since 1970), UTC: 20261125T102035Z."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(began))


def write_run_folder(logs: pathlib.Path, name: str, config: ml_collections.ConfigDict) -> pathlib.Path:
    """The folder of this start, written by process 0 alone. A second start within a second gets a name of its own."""
    parent, folder, n = logs / "runs", logs / "runs" / name, 1
    if not leads():
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            folder.mkdir()
            break
        except FileExistsError:
            folder, n = parent / f"{name}-{n}", n + 1
    found = {
        "config": masked(json.loads(config.to_json_best_effort())),
        "environment": environment(sys.argv, os.environ),
        "git": git_state(pathlib.Path(__file__).parents[1]),
    }
    for what, values in found.items():
        if values is not None:
            write_atomically(folder / f"{what}.json", json.dumps(values, indent=1).encode())
    return folder


def environment(arguments: Sequence[str], variables: Mapping[str, str]) -> dict[str, Any]:
    """What environment.json holds; of `variables` only those that VARIABLES names, without hosts and secrets."""
    devices = jax.devices()
    return {
        "command": masked_arguments(arguments),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": hashlib.sha256(socket.gethostname().encode()).hexdigest()[:12],
        "cpus": os.cpu_count(),
        "processes": jax.process_count(),
        "devices": {"kind": devices[0].device_kind, "platform": devices[0].platform, "count": len(devices)},
        "variables": {
            name: value
            for name, value in sorted(variables.items())
            if VARIABLES.fullmatch(name) and not HOSTS.fullmatch(name) and not SECRET.search(name)
        },
        "packages": packages(),
    }


def packages() -> dict[str, str]:
    """Every installed distribution and its version."""
    found = {(d.metadata["Name"] or "").lower(): d.version for d in importlib.metadata.distributions()}
    return {name: found[name] for name in sorted(found) if name}


def masked(values: Any, name: str = "") -> Any:
    """A config without the values, lists and whole mappings of names that look like a password."""
    if SECRET.search(name) and values not in (None, "", [], {}):
        return MASK
    if isinstance(values, Mapping):
        return {key: masked(value, str(key)) for key, value in values.items()}
    return [masked(value) for value in values] if isinstance(values, list | tuple) else values


def masked_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line without what follows a name that looks like a password, as NAME=VALUE or in the next word."""
    found: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        before = found[-1] if found else ""
        if before.startswith("-") and "=" not in before and SECRET.search(before) and not argument.startswith("-"):
            found.append(MASK)
        else:
            found.append(f"{name}={MASK}" if equals and value and SECRET.search(name) else argument)
    return found


def git_state(package: pathlib.Path) -> dict[str, Any] | None:
    """The commit that `package` is a checkout of, and how far it is changed; None if git does not track it."""

    def git(*command: str) -> str:
        return subprocess.run(
            ["git", "-C", str(package), *command], capture_output=True, text=True, timeout=20, check=True
        ).stdout

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        changed = [line for line in git("status", "--porcelain").splitlines() if line]
        return {
            "commit": git("rev-parse", "HEAD").strip(),
            "dirty": bool(changed),
            "changed_files": len(changed),
            "diff_bytes": len(git("diff", "HEAD").encode()),  # of tracked files
        }
    except (OSError, subprocess.SubprocessError):
        return None
