"""What is counted for Prometheus."""

from __future__ import annotations

import functools

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from anygpt_jax.generation.service import Service

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)


class Metrics:
    """A registry of its own: two servers in one process do not meet."""

    def __init__(self, service: Service):
        self.registry = registry = CollectorRegistry()
        self.responses = Counter("anygpt_responses", "Responses of the API by status.", ["status"], registry=registry)
        self.media_in = Counter("anygpt_media_in", "Media read from requests.", ["modality"], registry=registry)
        self.media_out = Counter("anygpt_media_out", "Media made, or pieces of them.", ["modality"], registry=registry)
        self.tokens_in = Counter("anygpt_prompt_tokens", "Tokens of prompts.", registry=registry)
        self.tokens_out = Counter("anygpt_answer_tokens", "Tokens of finished answers.", registry=registry)
        self.left = Counter("anygpt_disconnects", "Clients that left before their answer ended.", registry=registry)
        self.first = Histogram(
            "anygpt_first_token_seconds",
            "From a request's arrival to its first token.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.whole = Histogram(
            "anygpt_answer_seconds",
            "From a request's arrival to its answer's end.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.bodies = Gauge("anygpt_body_bytes", "Bytes of bodies that are held now.", registry=registry)
        for name, what in (("running", "are written"), ("waiting", "wait for a slot")):
            gauge = Gauge(f"anygpt_answers_{name}", f"Answers that {what}.", registry=registry)
            gauge.set_function(functools.partial(_load, service, name))
        slots = Gauge("anygpt_slots", "Answers that can be written at once.", registry=registry)
        slots.set_function(lambda: service.load.slots)

    def text(self) -> bytes:
        """What /metrics answers, of the type CONTENT_TYPE."""
        return generate_latest(self.registry)


def _load(service: Service, name: str) -> float:
    return getattr(service.load, name)
