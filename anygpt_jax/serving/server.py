"""uvicorn with what it lacks: slow headers are cut off, connections are counted, and SIGTERM drains before it stops."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from anygpt_jax.serving.api import Api
from anygpt_jax.serving.limits import Limits
from anygpt_jax.serving.refusal import busy


def protocol(limits: Limits) -> type[H11Protocol]:
    """An HTTP/1.1 connection that must say what it wants in time."""

    class Bounded(H11Protocol):
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.write(_refused())
                transport.close()
                return
            self._wait_for_headers()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_waiting()
            elif self._late is None and not self.transport.is_closing():
                self._wait_for_headers()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            # A part of the next request may be here already, which ends the time that uvicorn gives to idle ones.
            if self.cycle is not None and self.cycle.response_complete and not self.transport.is_closing():
                self._stop_waiting()
                self._wait_for_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _wait_for_headers(self) -> None:
            self._late = self.loop.call_later(limits.header_seconds, self.transport.close)

        def _stop_waiting(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

    return Bounded


def _refused() -> bytes:
    """The answer to one connection too many."""
    body = json.dumps(busy().body()).encode()
    head = f"HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Retry-After: 1\r\nConnection: close\r\n\r\n".encode() + body


class Server(uvicorn.Server):
    """After the first SIGTERM or SIGINT new requests get 503, running answers end or run out of time, and the server
    stops; a second one stops it at once."""

    def __init__(self, config: uvicorn.Config, api: Api, ready: Callable[[list[Any]], None]):
        super().__init__(config)
        self._api = api
        self._ready = ready
        self._stop_at: float | None = None

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Calls `ready` with the addresses (socket.getsockname) as soon as they are listened on."""
        await super().startup(sockets)
        self._ready([s.getsockname() for server in self.servers for s in server.sockets])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The signals' handler: begins to drain, and at the second call gives up what runs."""
        if self._api.draining:
            self.should_exit = self.force_exit = True
        self._api.draining = True
        self._stop_at = time.monotonic() + self._api.limits.drain_seconds

    async def on_tick(self, counter: int) -> bool:
        """uvicorn's, ten times a second: ends a drain when nobody waits for an answer any more, or its time is up."""
        if self._stop_at is not None:
            if not self._api.occupied:
                self.should_exit = True
            elif time.monotonic() > self._stop_at:
                await asyncio.to_thread(self._api.service.close, 0.0)  # tells those that still wait
                self.should_exit = True
        return await super().on_tick(counter)


def create(app: Callable, api: Api, host: str, port: int, ready: Callable[[list[Any]], None]) -> Server:
    """A server over HTTP/1.1 alone, with uvicorn's own logs silenced; `ready` is as of `Server.startup`."""
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # what strangers send would fill the log
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=protocol(api.limits),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=2,  # what is to be waited for has been waited for
    )
    return Server(config, api, ready)
