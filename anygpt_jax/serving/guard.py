"""Who may ask: hosts, origins and the token are checked before a request's body is read."""

from __future__ import annotations

import dataclasses
import hmac
import logging
import re
import uuid
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from anygpt_jax.serving.refusal import Refusal

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
OPEN = ("/healthz", "/", "/favicon.ico")  # without a token: they tell nothing; and what lies under PAGE
PAGE = "/web/"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    ("content-security-policy", CSP),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "microphone=(self), camera=(), geolocation=()"),
    ("cache-control", "no-store"),
)


@dataclasses.dataclass(frozen=True)
class Trust:
    """`hosts` are the names that a request may give as Host, without ports; None for any. `token`: None for none."""

    hosts: frozenset[str] | None
    token: str | None

    def check(self, path: str, headers: Mapping[str, str]) -> None:
        """Refusal for a request that is not to be answered.

        A page elsewhere can make a browser send here: by a name of its own that it lets point to this machine (DNS
        rebinding), which Host shows, or across sites, which Origin and Sec-Fetch-Site show.
        """
        host = headers.get("host", "")
        if self.hosts is not None and _name(host) not in self.hosts:
            raise Refusal(403, "This server does not answer to that Host; ask it by its own name.", None, "bad_host")
        origin = headers.get("origin")
        if origin is not None and _netloc(origin) != host.lower():
            raise Refusal(403, "This server does not answer pages of other origins.", None, "bad_origin")
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and path != "/":
            raise Refusal(403, "This server does not answer pages of other origins.", None, "bad_origin")
        if self.token is None or path in OPEN or path.startswith(PAGE):
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.token.encode()):
            raise Refusal(401, "Give the server's token: Authorization: Bearer TOKEN.", None, "invalid_api_key")


def _name(host: str) -> str:
    """A Host header without its port, in lower case."""
    found = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:\[\]]*)(:\d{1,5})?", host.strip().lower())
    return found.group(1).rstrip(".") if found else ""


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


class Guard:
    """ASGI middleware: trust, the headers that every response has, and an answer for what nothing else caught."""

    def __init__(self, app: ASGIApp, trust: Trust):
        self.app = app
        self.trust = trust

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A Refusal is its response; what else fails is a 500, and in the log with the response's x-request-id.

        If the response has begun already, it is raised on. All but HTTP goes through unchecked.
        """
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False
        number = uuid.uuid4().hex

        async def dressed(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                present = {name for name, _ in message["headers"]}
                extra = [(n.encode(), v.encode()) for n, v in (*HEADERS, ("x-request-id", number))]
                message["headers"] = [*message["headers"], *(h for h in extra if h[0] not in present)]
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self.trust.check(scope["path"], headers)
            await self.app(scope, receive, dressed)
        except Refusal as refusal:
            await refusal.response()(scope, receive, dressed)
        except Exception:
            logging.getLogger(__name__).exception("request %s failed", number)
            if begun:
                raise
            await Refusal(500, "The server failed; its log says why.").response()(scope, receive, dressed)
