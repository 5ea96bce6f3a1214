"""A backend whose answers are kept: a request that was answered once is not asked again, by this run or another.

FOLDER/ab/abcdef….EXT        an answer, by its request's digest; written as it arrives
FOLDER/answers-….jsonl       digest, file, SHA-256 and request of each answer: what is not in it, or is not what it says, is asked again
FOLDER/failures-….jsonl      digest and reason of each request that came to nothing
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from anygpt_jax.cache import write_atomically
from anygpt_jax.synthesis.backends import Backend, Failure, Request
from anygpt_jax.synthesis.backends.ledger import Ledger
from anygpt_jax.templates import TEXT

BATCH = 32  # requests whose answers a backend gives together, if it cannot give them as they arrive
_STARTS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"RIFF": "wav", b"fLaC": "flac"}


@runtime_checkable
class Arriving(Protocol):
    """A backend that gives each answer when it is there, with the index of its request."""

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, bytes | Failure]]:
        """One answer a request, in any order; UserError as of `Backend.make`, after what has arrived."""
        ...


class Cached:
    """A Backend of the same name. Several processes may share a folder.

    `retry_failures` asks again what came to nothing in earlier runs.
    """

    def __init__(self, backend: Backend, folder: str | pathlib.Path, retry_failures: bool = False):
        self._backend, self._folder = backend, pathlib.Path(folder)
        self.name = backend.name
        self._answers, self._failures = Ledger(folder, "answers"), Ledger(folder, "failures")
        self._files: dict[str, tuple[str, str]] = {}
        self._see()
        failed = () if retry_failures else self._failures.rows("digest", "reason")
        self._reasons = {row["digest"]: row["reason"] for row in failed}

    def make(self, requests: Sequence[Request]) -> list[bytes | Failure]:
        """As the backend does; its UserError comes after the answers before it are kept."""
        digests = [request.digest(self.name) for request in requests]
        by_digest = dict(zip(digests, requests, strict=True))
        found = {digest: kept for digest in by_digest if (kept := self._kept(digest)) is not None}
        asked = [digest for digest in by_digest if digest not in found]
        for i, answer in _arriving(self._backend, [by_digest[digest] for digest in asked]):
            found[asked[i]] = self._keep(asked[i], by_digest[asked[i]], answer)
        return [found[digest] for digest in digests]

    def file(self, request: Request) -> pathlib.Path:
        """Where the answer to a request lies that was answered; KeyError for another."""
        digest = request.digest(self.name)
        return self._folder / digest[:2] / self._files[digest][0]

    def _kept(self, digest: str) -> bytes | Failure | None:
        if digest in self._files:
            file, sha256 = self._files[digest]
            path = self._folder / digest[:2] / file
            data = path.read_bytes() if path.is_file() else b""
            if hashlib.sha256(data).hexdigest() == sha256:
                return data
        reason = self._reasons.get(digest)
        return None if reason is None else Failure(reason)

    def _keep(self, digest: str, request: Request, answer: bytes | Failure) -> bytes | Failure:
        """The answer; another process's, if that has kept one since: a backend need not say the same twice."""
        if isinstance(answer, Failure):
            self._failures.add(digest=digest, reason=answer.reason)
            self._reasons[digest] = answer.reason
            return answer
        self._see()
        if isinstance(kept := self._kept(digest), bytes):
            return kept
        file = f"{digest}.{_extension(request, answer)}"
        write_atomically(self._folder / digest[:2] / file, answer)
        sha256 = hashlib.sha256(answer).hexdigest()
        # The request too, so that an answer can be traced to all that was asked.
        self._answers.add(digest=digest, file=file, sha256=sha256, request=dataclasses.asdict(request))
        self._files[digest] = file, sha256
        return answer

    def _see(self) -> None:
        """What other processes have kept since."""
        for row in self._answers.rows("digest", "file", "sha256"):
            self._files.setdefault(row["digest"], (row["file"], row["sha256"]))


def _arriving(backend: Backend, requests: Sequence[Request]) -> Iterator[tuple[int, bytes | Failure]]:
    if isinstance(backend, Arriving):
        yield from backend.answers(requests)
        return
    for start in range(0, len(requests), BATCH):
        yield from enumerate(backend.make(requests[start : start + BATCH]), start)


def _extension(request: Request, answer: bytes) -> str:
    if request.modality == TEXT:
        return "txt"
    return next((extension for start, extension in _STARTS.items() if answer.startswith(start)), "bin")
