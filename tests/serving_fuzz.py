"""Requests that nobody means: by a seed, the same every time. For the tests, and for a server of the real model."""

from __future__ import annotations

import base64
import contextlib
import copy
import json
import random
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 2**31, 2**63, -(2**64), 10**400, 1e308, float("nan"), float("inf"), "", " ", "\0", "x" * 5000,
    "\ud800", "\u202e", "💥" * 300, "<script>", "'; DROP TABLE", "../../etc/passwd", "any", "text", [], {}, [[]], [{}], {"type": "text"},
    {"a": {"b": {"c": []}}}, ["text"] * 50, [None], list(range(1000)), "data:image/png;base64,", "http://127.0.0.1:1/", "file:///etc/passwd",
    "speech-AAAA", "image-" + "A" * 400, "%s%n", "${jndi:ldap://x}", "NaN", "1e999", "0x10", "١٢",
)  # fmt: skip
RAW = (
    b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\r\n\r\n\r\n", b"GET\r\n\r\n", b"\0" * 64,
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n", b"GET /healthz HTTP/1.1\r\n\r\n",
    b"GET /%00 HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /web/..%2f..%2fapp.py HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /web/%2e%2e/main.py HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET //evil/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET http://evil/ HTTP/1.1\r\nHost: localhost\r\n\r\n", b"CONNECT evil:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", b"TRACE / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer \xff\xfe\r\nOrigin: \xff\r\n\r\n",
)  # fmt: skip
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BODIES = (
    b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", b"Content-Length: -1\r\n\r\n", b"Content-Length: 1e3\r\n\r\n",
    b"Content-Length: 99999999999999999999\r\n\r\n", b"Content-Length: 10\r\n\r\n{}", b"Content-Length: 2\r\n\r\n{}GET / HTTP/1.1",
    b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel", b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
    b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", b"\r\n", b"Content-Length: \xb2\r\n\r\n",
)  # fmt: skip


def valid(media: dict[str, bytes]) -> dict[str, Any]:
    """A request with something of everything."""
    data = {name: base64.b64encode(content).decode() for name, content in media.items()}
    return {
        "model": None,
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": [{"type": "text", "text": "hello"}], "audio": None},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "what is this"},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data['image']}"}},
                    {"type": "input_audio", "input_audio": {"data": data["sound"], "format": "wav"}, "modality": "speech"},
                ],
            },
        ],
        "modalities": ["text"], "audio": {"voice": "default", "format": "wav"}, "stream": False, "n": 1, "seed": 1,
        "max_tokens": 20, "temperature": 1.0, "top_p": 0.9, "top_k": 5, "stream_options": {"include_usage": True},
    }  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in a tree."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [pair for key in keys for pair in [(value, key), *places(value[key])]]


def spoiled(rng: random.Random, request: dict[str, Any]) -> Any:
    """A tree with one to three changes."""
    tree = copy.deepcopy(request)
    for _ in range(rng.randint(1, 3)):
        container, key = rng.choice(places(tree))
        what = rng.randrange(4)
        if what == 0:
            del container[key]
        elif what == 1 and isinstance(container, dict):
            container[str(rng.choice(ODD))] = copy.deepcopy(rng.choice(ODD))
        elif what == 2:
            container[key] = [container[key]] * rng.choice((1, 2, 40))
        else:
            container[key] = copy.deepcopy(rng.choice(ODD))
        if not places(tree):
            break
    return tree


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Bytes with some flipped, cut, doubled or put in."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 20))):
        if not found:
            break
        at = rng.randrange(len(found))
        what = rng.randrange(4)
        if what == 0:
            found[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            del found[at : at + rng.choice((1, 4, 1000))]
        elif what == 2:
            found[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
        else:
            found[at : at + 4] = rng.choice((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"))
    return bytes(found)


class Sent(NamedTuple):
    """What goes over the wire of one connection. A `whole` request has an answer; another one may wait for its rest."""

    data: bytes
    whole: bool


def requests(count: int, seed: int, media: dict[str, bytes]) -> Iterator[Sent]:
    """So many requests, the same for a seed."""
    rng = random.Random(seed)
    base = valid(media)
    for _ in range(count):
        kind = rng.randrange(10)
        if kind == 0:
            yield Sent(rng.choice(RAW) if rng.random() < 0.5 else damaged(rng, rng.choice(RAW)), False)
            continue
        if kind == 1:
            yield Sent(POST + rng.choice(BODIES), False)
            continue
        if kind <= 3:
            body = damaged(rng, json.dumps(base).encode())
        elif kind <= 6:
            body = json.dumps(valid({name: damaged(rng, data) for name, data in media.items()})).encode()
        else:
            body = json.dumps(spoiled(rng, base)).encode()
        head = POST if kind != 9 or rng.random() < 0.7 else damaged(rng, POST)
        data = head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        yield Sent(data, head == POST)


def status(host: str, port: int, request: Sent, timeout: float = 30.0) -> int:
    """The status of the answer; 0 if the connection was closed without one."""
    answer = b""
    with socket.create_connection((host, port), timeout) as s:
        try:
            s.sendall(request.data)
            if not request.whole:  # a moment for a refusal, then nothing more will come from us
                s.settimeout(0.2)
                with contextlib.suppress(TimeoutError):
                    answer = s.recv(4096)
                s.settimeout(timeout)
                s.shutdown(socket.SHUT_WR)
            while piece := s.recv(65536):
                answer += piece
        except OSError as e:  # it was closed before we were done
            if isinstance(e, TimeoutError):
                raise
    return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0
