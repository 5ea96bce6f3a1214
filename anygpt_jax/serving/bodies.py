"""Bodies of requests: read as they come, bounded in size, in time, and all together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect, Request

from anygpt_jax.serving.limits import Limits
from anygpt_jax.serving.refusal import Refusal, busy


class Bodies:
    """Counts the bytes that are held. Not thread-safe: for one event loop."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self.held = 0

    @contextlib.asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The body, which counts as held until the block ends. Refusal: too large, too slow, no JSON, or all are full."""
        try:
            promised = self._promised(request)
            # Room for all of it is taken beforehand: bodies that grow together cannot outgrow the limit together.
            if self.held + promised > self._limits.bodies_bytes:
                raise busy()
        except Refusal:
            await self.discard(request)
            raise
        self.held += promised
        try:
            yield await self._all(request, promised)
        finally:
            self.held -= promised

    async def discard(self, request: Request) -> None:
        """Lets the body of a refused request pass by, within reason: a client that is still sending sees no answer."""
        length = request.headers.get("content-length", "")
        if not (length.isascii() and length.isdigit()) or int(length[:18]) > 4 * self._limits.body_bytes:
            return
        with contextlib.suppress(TimeoutError, ClientDisconnect):
            async with asyncio.timeout(self._limits.body_seconds):
                async for _ in request.stream():
                    pass

    def _promised(self, request: Request) -> int:
        """Bytes at most, by the headers."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refusal(415, "The body must be JSON; say so: Content-Type: application/json.")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refusal(415, "Compressed bodies are not read; send the JSON as it is.")
        length = request.headers.get("content-length")
        if length is None:
            return self._limits.body_bytes
        if not (length.isascii() and length.isdigit()):
            raise Refusal(400, "Content-Length must be a number.")
        if int(length[:18]) > self._limits.body_bytes:
            raise self._too_large()
        return int(length)

    async def _all(self, request: Request, promised: int) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                async for piece in request.stream():
                    body += piece
                    if len(body) > promised:
                        raise self._too_large()
        except TimeoutError:
            seconds = f"{self._limits.body_seconds:g}"
            raise Refusal(408, f"The body did not arrive within {seconds} s; send it faster, or less.") from None
        except ClientDisconnect:
            raise Refusal(400, "The body was cut off.") from None
        return bytes(body)

    def _too_large(self) -> Refusal:
        return Refusal(413, f"The body may have {self._limits.body_bytes:,} bytes; send smaller media, or fewer.")
