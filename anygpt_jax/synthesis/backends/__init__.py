"""Who writes, draws, speaks and plays: one interface, whatever is behind it.

A backend gets requests and gives bytes: UTF-8 text, or a medium in a file's form (PNG, FLAC, …). The same request to the
same backend may be answered from the response cache, so a request holds all that decides its answer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from anygpt_jax.templates import TEXT

Message = tuple[str, str]  # role ("system", "user", "assistant") and content


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of a backend.

    `messages` are for a language model; a medium's description, or the words to be spoken, are the last message's content.
    `about` says what the messages were made of, by name: a generator that is no language model works from it.
    """

    modality: str  # "text", "image", "speech" or "music"
    purpose: str  # the stage that asks
    messages: tuple[Message, ...]
    about: Mapping[str, Any]  # as JSON has it
    seed: int
    voice: str = ""  # of speech, one of the backend's

    @property
    def content(self) -> str:
        """Of the last message: a medium's description, or the words to be spoken."""
        return self.messages[-1][1]

    def digest(self, backend: str) -> str:
        """SHA-256 of the request and of the backend's name, which says model and settings."""
        whole = json.dumps([backend, dataclasses.asdict(self)], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(whole.encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Failure:
    """What came instead of an answer, in a sentence; it costs the dialogue that it was for and no other."""

    reason: str


class Backend(Protocol):
    """`name` is kind, model and settings, in every trace: another name is another answer."""

    @property
    def name(self) -> str:
        """It goes into the digest of every request, and so decides what the response cache knows."""
        ...

    def make(self, requests: Sequence[Request]) -> list[bytes | Failure]:
        """One answer a request, in their order. UserError where no request can be answered (no key, ceiling reached)."""
        ...


def text_request(purpose: str, messages: Sequence[Message], about: Mapping[str, Any], seed: int) -> Request:
    """For UTF-8 text. `purpose` is the stage that asks, or "spoken" for words of an instruction set said again."""
    return Request(TEXT, purpose, tuple(messages), about, seed)


def medium_request(modality: str, description: str, about: Mapping[str, Any], seed: int, voice: str = "") -> Request:
    """For a medium in a file's form: the description, or the words to be spoken, are the only message."""
    return Request(modality, "media", (("user", description),), about, seed, voice)
