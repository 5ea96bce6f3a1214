"""What is launched: one command on every host, its config frozen as it was when it was submitted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import re
import shlex
from typing import Any

import ml_collections

from anygpt_jax.errors import UserError
from anygpt_jax.planning.accelerators import Accelerator

VERBS = ("train", "evaluate", "tokenize")
NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")  # a DNS label, with room for what targets append

_CONFIG = '''"""The config of the job {name}, as it was submitted."""

import json

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(json.loads({text!r}))
'''


@dataclasses.dataclass(frozen=True)
class Job:
    """`anygpt VERB --config=CONFIG_PATH ARGUMENTS` on every host of every slice."""

    name: str
    verb: str  # one of VERBS
    config: ml_collections.ConfigDict
    arguments: tuple[str, ...] = ()  # of the verb, after its --config
    accelerator: Accelerator | None = None  # None: this machine, or workers without accelerators
    max_restarts: int = 100  # of the whole job, when a process, host or slice is lost

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UserError(f"--name '{self.name}' must be lower-case letters, digits and '-', at most 40 of them.")
        if self.verb not in VERBS:
            raise UserError(f"--job {self.verb} must be one of {', '.join(VERBS)}.")

    def config_file(self) -> str:
        """A Python file with get_config(): what the hosts run does not change when the submitter's files do."""
        return _CONFIG.format(name=self.name, text=json.dumps(plain(self.config), sort_keys=True))

    def digest(self) -> str:
        """Of the config's file: another one is another file's, and never takes its place."""
        return hashlib.sha256(self.config_file().encode()).hexdigest()[:8]

    def config_path(self) -> pathlib.Path:
        """Where jobs that read it from the workdir have it: what is submitted later changes nothing for them."""
        return pathlib.Path(self.config.workdir) / "logs" / "launch" / self.name / f"config-{self.digest()}.py"

    def argv(self, config_path: str) -> list[str]:
        """The command's words; `config_path` is where the host has the config."""
        return ["anygpt", self.verb, f"--config={config_path}", *self.arguments]

    def command(self, config_path: str) -> str:
        """The same as one line, quoted for a shell."""
        return shlex.join(self.argv(config_path))


def plain(config: ml_collections.ConfigDict) -> Any:
    """As JSON has it. UserError for values that JSON has not."""
    try:
        return json.loads(config.to_json())
    except TypeError as e:
        kind = str(e).partition(". ")[0]
        raise UserError(
            f"The config cannot be written into a file: {kind}; a config has numbers, texts, lists and dictionaries."
        ) from e
