"""`anygpt serve`: an HTTP API and a page to talk with the model."""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import logging
import os
import pathlib
import time
from typing import Any

import ml_collections
import numpy as np

from anygpt_jax.errors import UserError
from anygpt_jax.generation.pipeline import Pipeline
from anygpt_jax.generation.request import Request, Settings
from anygpt_jax.generation.service import Done, Service
from anygpt_jax.serving import limits as limits_module
from anygpt_jax.serving import voices
from anygpt_jax.serving.api import Api
from anygpt_jax.serving.app import create_app
from anygpt_jax.serving.conversation import Reader
from anygpt_jax.serving.decoding import MediaDecoder
from anygpt_jax.serving.guard import LOOPBACK, Trust
from anygpt_jax.serving.limits import Limits
from anygpt_jax.serving.server import create
from anygpt_jax.templates import TEXT, Segment

_STRIDE = 4  # tokens between two looks at the answers: text should flow
SHORTEST_TOKEN = 16
log = logging.getLogger("anygpt.serve")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """With a flag for every one of the `Limits`."""
    where = parser.add_argument_group("where it listens, and to whom")
    where.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: this machine alone)")
    where.add_argument("--port", type=int, default=8000, help="0 takes a free one (default 8000)")
    where.add_argument("--token-file", metavar="FILE", help="clients must give what is in it; or set ANYGPT_TOKEN")
    where.add_argument("--insecure", action="store_true", help="listen to the network without a token")
    where.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="answer to this Host too, as behind a proxy"
    )
    what = parser.add_argument_group("what it serves")
    what.add_argument("--name", metavar="NAME", help="of the model (default: anygpt- and the run's folder)")
    what.add_argument("--voices", metavar="DIR", help="recordings in whose voices the model may speak")
    limits_module.add_arguments(parser)


def trust_of(args: argparse.Namespace) -> Trust:
    """UserError for an open door."""
    token = _token(args.token_file)
    alone = _is_loopback(args.host)
    if not alone and token is None and not args.insecure:
        raise UserError(
            f"--host {args.host} lets the network in; name a --token-file that clients must know, or say --insecure."
        )
    if alone:
        return Trust(LOOPBACK | {name.lower() for name in args.allow_host}, token)
    return Trust(frozenset(name.lower() for name in args.allow_host) or None, token)


def _token(path: str | None) -> str | None:
    if path is None:
        token = os.environ.get("ANYGPT_TOKEN")
        source = "ANYGPT_TOKEN"
    else:
        source = f"--token-file {path}"
        try:
            token = pathlib.Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"{source} cannot be read ({getattr(e, 'strerror', e)}); write a token into it.") from e
    if token is None:
        return None
    token = token.strip()
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"The token of {source} must be {SHORTEST_TOKEN} or more ASCII characters without spaces; "
            "make one with: openssl rand -hex 24"
        )
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def warm_up(pipeline: Pipeline, service: Service) -> None:
    """Compiles what answers need, so that no client waits for it."""
    prompt = pipeline.prompt([Segment(TEXT, "hello", "human")])
    service.warm()
    for modality, tokenizer in pipeline.tokenizers.items():
        last = list(service.submit(Request(prompt, (modality,), 0)))[-1]
        if not isinstance(last, Done):
            raise UserError(f"The model writes no {modality} ({last}); see the log above.")
        codes = np.asarray(last.answer.first(modality))
        while len(codes) < tokenizer.grammar.max_length // 2 and tokenizer.grammar.may_end(2 * len(codes)):
            tokenizer.encode(tokenizer.decode([codes]))  # a program a range of lengths
            codes = np.tile(codes, 2)
        tokenizer.encode(tokenizer.decode([codes]))


def run(config: ml_collections.ConfigDict, args: argparse.Namespace) -> None:
    """Loads and warms up the model, then serves until a signal ends it.

    UserError for flags that cannot be, before the model is loaded, and for a port that cannot be listened on.
    """
    limits = Limits.from_args(args)
    trust = trust_of(args)
    if not 0 <= args.port < 1 << 16:
        raise UserError(f"--port must lie in 0..65535, not {args.port}.")
    recordings = voices.load(pathlib.Path(args.voices) if args.voices else None)
    longest = int(config.train.seq_len)
    settings = dataclasses.replace(Settings.from_config(config.generate), context=2 * longest, stride=_STRIDE)
    started = time.perf_counter()
    pipeline = Pipeline.load(config, settings)
    service = Service(pipeline.engine, limits.queue)
    decoder = MediaDecoder(pipeline.tokenizers)
    api = Api(Reader(pipeline, limits, recordings, longest), service, decoder, args.name or _name(config))
    try:
        warm_up(pipeline, service)
        seconds = time.perf_counter() - started

        def ready(addresses: list[Any]) -> None:
            host, port = addresses[0][:2]
            host = f"[{host}]" if ":" in host else host
            log.info("%s is ready after %.0f s: http://%s:%d/", api.model, seconds, host, port)

        server = create(create_app(api, trust), api, args.host, args.port, ready)
        try:
            server.run()
        except SystemExit as e:  # uvicorn could not listen, and has logged why
            raise UserError(f"Port {args.port} of {args.host} cannot be listened on; choose another --port.") from e
    finally:
        api.close()


def _name(config: ml_collections.ConfigDict) -> str:
    return f"anygpt-{pathlib.Path(config.workdir).name}"
