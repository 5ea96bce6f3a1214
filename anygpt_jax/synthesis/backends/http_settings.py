"""What an HTTP backend is told: which model where, how it is asked, how fast, and for how much."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import urllib.parse
from collections.abc import Mapping
from typing import Any

import ml_collections

from anygpt_jax.errors import UserError
from anygpt_jax.synthesis.backends.spending import Prices, Use

# And what is paid for.
MAKES = {"text": Use(1, 1), "image": Use(images=1), "speech": Use(characters=1), "music": Use(music=1)}
# Not for `extra` to set.
OURS = ("model", "messages", "prompt", "input", "inputs", "parameters", "voice", "seed", "n", "stream")
OPENAI, TASK = "openai", "task"


@dataclasses.dataclass(frozen=True)
class HttpSettings:
    """One model that makes one kind of medium.

    `extra` is added to what is sent, as the service names it (`size`, `quality`, `response_format`, `top_p`,
    `max_completion_tokens`, …); None takes out what this program would send, where a model refuses it.

    `form` is how music is asked for. "openai": POST BASE_URL/audio/generate, which vLLM-Omni has beside OpenAI's own
    endpoints. "task": POST BASE_URL itself, as Hugging Face's text-to-audio task; `extra` goes into its parameters.
    """

    modality: str  # one of MAKES
    base_url: str  # with the version: https://api.openai.com/v1; of a task the model's whole address
    model: str
    key_variable: str = ""  # the environment variable with the key; "" where none is needed
    temperature: float = 1.0
    max_tokens: int = 2048  # of a text
    voice: str = ""  # of speech for which the request names none
    form: str = OPENAI
    seed_field: str = ""  # what the server calls a seed of a picture, speech or music ("seed"); "": it takes none
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    timeout: float = 120.0  # s, of one attempt
    retries: int = 5
    concurrency: int = 8  # requests at the same time; of one process, as are the next two
    requests_per_minute: int = 0  # 0: as many as there are
    tokens_per_minute: int = 0
    prices: Prices = dataclasses.field(default_factory=Prices)
    max_cost: float | None = None  # dollars, of this run and those before it together

    def __post_init__(self) -> None:
        if self.modality not in MAKES:
            raise UserError(f"An HTTP backend makes {', '.join(MAKES)}, no {self.modality}; choose another for it.")
        if self.form not in (OPENAI, TASK) or (self.form == TASK and self.modality != "music"):
            raise UserError(f"form is {self.form!r}; it is 'openai', or for music 'task'.")
        if self.seed_field and self.modality == "text":
            raise UserError("seed_field is of pictures, speech and music; a text's seed is always sent, as `seed`.")
        url = urllib.parse.urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise UserError("base_url must be the http or https address of an OpenAI-compatible API, up to its /v1.")
        if url.username or url.password or url.query or url.fragment:
            raise UserError("base_url must hold no name, password, query or fragment; put the key into key_variable.")
        if not self.model:
            raise UserError(f"model must be the name of a model that {url.hostname} serves.")
        for name, least in {"max_tokens": 1, "retries": 0, "concurrency": 1}.items():
            if getattr(self, name) < least:
                raise UserError(f"{name} must be {least} or more, not {getattr(self, name)}.")
        if not 0 < self.timeout < math.inf or self.requests_per_minute < 0 or self.tokens_per_minute < 0:
            raise UserError("timeout must be more than 0 s, requests_per_minute and tokens_per_minute 0 (any) or more.")
        if taken := [name for name in (*OURS, self.seed_field) if name in self.extra]:
            raise UserError(f"extra cannot set {', '.join(taken)}; the program does.")
        if type(self.limit) is not int or self.limit < 1:
            raise UserError("extra must leave max_tokens or max_completion_tokens, a number of tokens from 1 on.")
        if self.max_cost is not None and not self.prices.of(MAKES[self.modality]):
            raise UserError(f"max_cost needs the prices of {self.modality}: set them (in dollars), or max_cost = None.")

    @classmethod
    def from_config(cls, section: ml_collections.ConfigDict, modality: str) -> HttpSettings:
        """`section` has the fields by name, without the modality; its `backend` is for whoever chose this one."""
        given = {name: value for name, value in section.to_dict().items() if name != "backend"}
        fields = [field.name for field in dataclasses.fields(cls) if field.name != "modality"]
        if unknown := set(given) - set(fields):
            raise UserError(f"An HTTP backend has no {', '.join(sorted(unknown))}; it has: {', '.join(fields)}.")
        if missing := [name for name in ("base_url", "model") if name not in given]:
            raise UserError(f"An HTTP backend needs {' and '.join(missing)}.")
        return cls(modality, **{**given, "prices": Prices.from_config(given.get("prices") or {})})

    @property
    def limit(self) -> int:
        """Tokens of a text, by the name that the model takes it under."""
        return self.extra.get("max_completion_tokens") or self.extra.get("max_tokens", self.max_tokens)

    @property
    def name(self) -> str:
        """Without the address, which may be private: a model that moves to another server is the same."""
        deciding = {"text": ("temperature", "max_tokens"), "speech": ("voice",)}.get(self.modality, ())
        settings = {name: getattr(self, name) for name in deciding} | {"extra": dict(self.extra)}
        # The defaults are left out: answers from before there were these settings keep their names.
        if self.seed_field:
            settings["seed_field"] = self.seed_field
        if self.form != OPENAI:
            settings["form"] = self.form
        return f"http {self.modality} {self.model} {json.dumps(settings, sort_keys=True)}"

    def key(self) -> str:
        """Read at the time it is needed."""
        if not self.key_variable:
            return "none"
        key = os.environ.get(self.key_variable, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            raise UserError(f"{self.key_variable} in the environment must be the key for {self.model}; export it.")
        return key
