"""What the OpenAI client sends through: every attempt waits its turn, is paid for, and is bounded in bytes and seconds.

The client itself repeats what failed by chance (429, 5xx, timeouts, broken connections) and waits as Retry-After says
or longer each time. It sees an answer that is no JSON as a broken connection, so that this is repeated too.
"""

from __future__ import annotations

import json
import time
from typing import Any

import httpx2
from pyrate_limiter import Duration, Limiter, Rate

from anygpt_jax.synthesis.backends.spending import Prices, Spending, Use

CHAT, IMAGES, SPEECH, MUSIC = "/chat/completions", "/images/generations", "/audio/speech", "/audio/generate"
TASK = ""  # a task for music has an address of its own; the end of every address, so it comes last
LARGEST = {CHAT: 1 << 22, IMAGES: 1 << 26, SPEECH: 1 << 26, MUSIC: 1 << 28, TASK: 1 << 28}  # bytes of an answer
LARGEST_ERROR = 1 << 16
# What the client reads. The rest is left out: a charset, say, may name a codec that fails, or unpacks.
RETRYING = ("retry-after", "retry-after-ms", "x-should-retry")
MOST_TOKENS = 10_000_000  # of one answer; a server that counts more has miscounted


class Oversized(Exception):
    """An answer has more bytes than any that was meant; it is not asked for again."""


class MeteredClient(httpx2.Client):
    """`send` is called for every attempt, the OpenAI client's own repetitions among them."""

    def __init__(
        self, spending: Spending, prices: Prices, timeout: float, connections: int, per_minute: int, tokens: int
    ):
        """`timeout` in s, of a whole attempt; at most `per_minute` attempts and `tokens` tokens a minute (0: any)."""
        super().__init__(timeout=timeout, limits=httpx2.Limits(max_connections=connections))
        self._spending, self._prices, self._seconds = spending, prices, timeout
        self._attempts, self._tokens = _limiter(per_minute), _limiter(tokens)
        self._most_tokens = tokens

    def send(self, request: httpx2.Request, **_: Any) -> httpx2.Response:
        """An answer that has been read. UserError at the ceiling; httpx2's errors are for the client to repeat."""
        worst = most(request)
        if self._attempts is not None:
            self._attempts.try_acquire()
        if self._tokens is not None:
            # A token of a prompt is about four bytes, as services estimate it too.
            estimate = worst.input_tokens // 4 + worst.output_tokens
            self._tokens.try_acquire(weight=max(1, min(estimate, self._most_tokens)))
        ticket = self._spending.reserve(self._prices.of(worst))
        used = worst  # whatever goes wrong on the way back: it may have been charged
        try:
            response = self._answer(request)
            used = _used(response, worst)
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            used = Use()
            raise
        finally:
            self._spending.settle(ticket, self._prices.of(used), used)
        return response

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        deadline = time.monotonic() + self._seconds
        response = super().send(request, stream=True, follow_redirects=False)
        try:
            largest = LARGEST[_endpoint(request)] if response.is_success else LARGEST_ERROR
            if response.headers.get("content-encoding", "identity") != "identity":  # few bytes may become many
                raise Oversized("the answer is compressed, which was not asked for")
            body = bytearray()
            for piece in response.iter_raw():
                body += piece
                if len(body) > largest and response.is_success:
                    raise Oversized(f"the answer has more than {largest:,} bytes")
                if len(body) > largest:  # of an error the start is enough
                    break
                if time.monotonic() > deadline:
                    raise httpx2.ReadTimeout(f"the answer was not whole after {self._seconds:g} s", request=request)
        finally:
            response.close()
        kept = {name: response.headers[name] for name in RETRYING if name in response.headers}
        return httpx2.Response(response.status_code, headers=kept, content=bytes(body), request=request)


def most(request: httpx2.Request) -> Use:
    """The most that a request may take; no token is shorter than a byte."""
    body, endpoint = json.loads(request.content), _endpoint(request)
    if endpoint == IMAGES:
        return Use(images=1)
    if endpoint == SPEECH:
        return Use(characters=len(body["input"]))
    if endpoint in (MUSIC, TASK):
        return Use(music=1)
    return Use(len(request.content), body["max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"])


def _endpoint(request: httpx2.Request) -> str:
    return next(endpoint for endpoint in LARGEST if request.url.path.endswith(endpoint))


def _used(response: httpx2.Response, worst: Use) -> Use:
    """What an answer was charged for. An error is not; a chat says it, and if it does not, the worst is assumed.

    RemoteProtocolError for an answer that should be a JSON object and is not.
    """
    if not response.is_success:
        return Use()
    if _endpoint(response.request) in (SPEECH, MUSIC, TASK):
        return worst
    try:
        said = json.loads(response.content)
    except (ValueError, RecursionError) as e:
        raise httpx2.RemoteProtocolError("the answer is cut short or no JSON", request=response.request) from e
    if not isinstance(said, dict):
        raise httpx2.RemoteProtocolError("the answer is no JSON object", request=response.request)
    match said.get("usage"):
        case {"prompt_tokens": int(read), "completion_tokens": int(written)} if worst.tokens:
            if 0 <= read <= MOST_TOKENS and 0 <= written <= MOST_TOKENS:
                return Use(read, written)
    return worst


def _limiter(per_minute: int) -> Limiter | None:
    return Limiter(Rate(per_minute, Duration.MINUTE)) if per_minute else None
