"""What one client may cost, and what all of them together may."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from anygpt_jax.errors import UserError


def _limit(default: float, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class Limits:
    """Each is a flag of its name: `--body-bytes`. All must be positive."""

    body_bytes: int = _limit(16 << 20, "bytes of a request's body")
    bodies_bytes: int = _limit(256 << 20, "bytes of all bodies that are held at once")
    body_seconds: float = _limit(30.0, "time for a request's body to arrive")
    header_seconds: float = _limit(10.0, "time for a request's headers to arrive")
    connections: int = _limit(512, "connections that are open at once")
    preparing: int = _limit(32, "requests that are read and checked at once")
    queue: int = _limit(64, "answers that wait for their turn")
    answer_seconds: float = _limit(120.0, "time for an answer, its waiting included")
    drain_seconds: float = _limit(30.0, "time for running answers to end after SIGTERM")
    messages: int = _limit(256, "messages of a request")
    text_chars: int = _limit(50_000, "characters of all texts of a request")
    media: int = _limit(16, "media of a request")
    pixels: int = _limit(16_000_000, "pixels of a picture")
    media_seconds: float = _limit(60.0, "length of a sound; the model's tokenizers may take less")
    new_tokens: int = _limit(2048, "tokens of an answer")
    choices: int = _limit(4, "answers to one request (`n`)")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0 < value < float("inf"):
                raise UserError(f"{_flag(field.name)} must be more than 0, not {value}.")

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Limits:
        """Of what `add_arguments` parsed. UserError names the flag of a limit that is not positive, or infinite."""
        return cls(**{field.name: getattr(args, field.name) for field in dataclasses.fields(cls)})


def _flag(name: str) -> str:
    """`body_bytes` is `--body-bytes`."""
    return f"--{name.replace('_', '-')}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One flag a field of `Limits`, of the type of its default."""
    group = parser.add_argument_group("limits")
    for field in dataclasses.fields(Limits):
        group.add_argument(
            _flag(field.name),
            type=type(field.default),
            default=field.default,
            metavar="N",
            help=f"{field.metadata['help']}, at most (default {field.default:,})",
        )
