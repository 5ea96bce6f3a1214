"""The routes: chat completions, models, health, metrics and the page."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from anygpt_jax.serving import schema
from anygpt_jax.serving.api import Api, refusal_of
from anygpt_jax.serving.guard import Guard, Trust
from anygpt_jax.serving.metrics import CONTENT_TYPE
from anygpt_jax.serving.refusal import Refusal
from anygpt_jax.serving.voices import DEFAULT

_KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


def described(api: Api) -> dict[str, Any]:
    """The model as `/v1/models` lists it, with what a client needs to know to use it."""
    limits, tokenizers = api.limits, api.reader.pipeline.tokenizers
    sounds = {name: t for name, t in tokenizers.items() if name in ("speech", "music")}
    return {
        "id": api.model,
        "object": "model",
        "created": 0,
        "owned_by": "anygpt-jax",
        "modalities": ["text", *tokenizers],
        "seconds": {name: round(t.grammar.max_length / t.rate, 3) for name, t in sounds.items()},  # at most
        "voices": [DEFAULT, *api.reader.voices],
        "formats": list(schema.FORMATS),
        "limits": {"body_bytes": limits.body_bytes, "media": limits.media, "n": limits.choices},
    }


def _page_files() -> dict[str, tuple[bytes, str]]:
    """The page's files by name; nothing else of the disk can be asked for."""
    folder = importlib.resources.files("anygpt_jax.serving") / "web"
    found = {}
    for entry in folder.iterdir():
        kind = _KINDS.get("." + entry.name.rpartition(".")[2])
        if kind:
            found[entry.name] = (entry.read_bytes(), kind)
    return found


def create_app(api: Api, trust: Trust) -> Callable:
    """The ASGI application."""
    files = _page_files()

    async def page(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in files:
            raise HTTPException(404)
        content, kind = files[name]
        return Response(content, media_type=kind)

    async def models(_request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [described(api)]})

    async def model(request: Request) -> Response:
        api.check_model(request.path_params["name"])
        return JSONResponse(described(api))

    async def health(_request: Request) -> Response:
        load = api.service.load
        status = "draining" if api.draining else "ok"
        content = {"status": status, "running": load.running, "waiting": load.waiting, "slots": load.slots}
        return JSONResponse(content, 503 if api.draining else 200)

    async def metrics(_request: Request) -> Response:
        return Response(api.metrics.text(), media_type=CONTENT_TYPE)

    async def refuse(_request: Request, error: Exception) -> Response:
        refusal = refusal_of(error)
        api.metrics.responses.labels(str(refusal.status)).inc()
        return refusal.response()

    async def http_error(request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 400)
        sentences = {
            404: f"There is nothing at {request.url.path[:80]}.",
            405: f"{request.method[:16]} is not for this path.",
        }
        refusal = Refusal(status, sentences.get(status, "The request could not be read."))
        response = refusal.response()
        response.headers.update(getattr(error, "headers", None) or {})
        return response

    async def complete(request: Request) -> Response:
        response = await api.complete(request)
        api.metrics.responses.labels(str(response.status_code)).inc()
        return response

    handlers: dict[Any, Any] = {Refusal: refuse, ExceptionGroup: refuse, HTTPException: http_error}
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", complete, methods=["POST"]),
            Route("/v1/models", models, methods=["GET"]),
            Route("/v1/models/{name}", model, methods=["GET"]),
            Route("/healthz", health, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
            Route("/web/{name}", page, methods=["GET"]),
            Route("/", page, methods=["GET"]),
        ],
        exception_handlers=handlers,
    )
    return Guard(app, trust)
