"""A small world for the server: tokenizers that cost nothing, a service whose pace a test sets, and a server on a port."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http.client
import io
import json
import threading
import types
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from anygpt_jax.errors import UserError
from anygpt_jax.generation.answer import Answer, Segment
from anygpt_jax.generation.automaton import ANY
from anygpt_jax.generation.request import Request, Settings
from anygpt_jax.generation.service import Busy, Codes, Done, Failed, Load, Text
from anygpt_jax.modalities import audio, pictures
from anygpt_jax.modalities.base import Audio, Grammar
from anygpt_jax.modalities.text import TextTokenizer
from anygpt_jax.serving.api import Api
from anygpt_jax.serving.app import create_app
from anygpt_jax.serving.conversation import Reader
from anygpt_jax.serving.decoding import MediaDecoder
from anygpt_jax.serving.guard import LOOPBACK, Trust
from anygpt_jax.serving.limits import Limits
from anygpt_jax.serving.server import create
from anygpt_jax.templates import Formatter
from anygpt_jax.vocabulary import BlockSpec, Vocabulary

FRAME = 640  # samples a code: 25 a second


class Pictures:
    """Four codes: the mean brightness of each quarter, in 16 steps."""

    name, symbol, codebook_size, rate, fingerprint = "image", "i", 16, 4.0, "11" * 32
    grammar = Grammar(((0, 16),), 4, 4)

    def load(self, data: bytes) -> np.ndarray:
        return pictures.load_picture(data)

    def save(self, media: np.ndarray) -> bytes:
        return pictures.save_png(media)

    def encode(self, media: Sequence[np.ndarray]) -> list[np.ndarray]:
        small = [np.asarray(Image.fromarray(m).convert("L").resize((2, 2), Image.Resampling.BOX)) for m in media]
        return [(s.reshape(-1) // 16).astype(np.int32) for s in small]

    def decode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        grey = [np.kron(np.asarray(c).reshape(2, 2) * 16 + 8, np.ones((8, 8))) for c in codes]
        return [np.repeat(g[..., None], 3, 2).astype(np.uint8) for g in grey]


class Sounds:
    """A code is the height of 40 ms; the voice of a prompt makes all of it louder. At most 6 s."""

    symbol, codebook_size, rate = "s", 32, 25.0
    grammar = Grammar(((0, 32),), 1, 150)

    def __init__(self, name: str):
        self.name, self.fingerprint = name, ("22" if name == "speech" else "33") * 32
        self.batches: list[int] = []  # how many were decoded together

    def load(self, data: bytes) -> Audio:
        return audio.load_audio(data, longest=6.0)

    def save(self, media: Audio) -> bytes:
        return audio.save_wav(media)

    def encode(self, media: Sequence[Audio]) -> list[np.ndarray]:
        found = []
        for m in media:
            if m.seconds < 0.1:
                raise UserError(f"This {self.name} is {m.seconds:.3f} s long; give at least 0.10 s of sound.")
            heights = [np.abs(m.samples[i : i + FRAME]).max() for i in range(0, len(m.samples), FRAME)]
            found.append(np.clip(np.array(heights) * 32, 0, 31).astype(np.int32))
        return found

    def decode(self, codes: Sequence[np.ndarray], prompt: Audio | None = None) -> list[Audio]:
        self.batches.append(len(codes))
        loud = 1.0 if prompt is None else 1.5
        return [Audio(np.repeat(np.asarray(c) / 64 * loud, FRAME).astype(np.float32), 16_000) for c in codes]


@dataclasses.dataclass
class Service:
    """Answers every request by its plan: text says what came in, a medium is `codes` long. `pace`: s an event."""

    queue: int = 64
    slots: int = 4
    pace: float = 0.0
    codes: int = 60
    fails: str | None = None
    written: str = "café <b>naïve</b> & done"
    held: list[Ticket] = dataclasses.field(default_factory=list)
    seen: list[Request] = dataclasses.field(default_factory=list)
    closed: bool = False

    def submit(self, request: Request, deadline: float | None = None) -> Ticket:
        if request.max_new_tokens is not None and request.max_new_tokens < 2:
            raise UserError("An answer needs at least 2 tokens.")
        if self.load.waiting >= self.queue:
            raise Busy(3.0)
        self.seen.append(request)
        ticket = Ticket(self, request, deadline)
        self.held.append(ticket)
        return ticket

    @property
    def load(self) -> Load:
        running = min(len(self.held), self.slots)
        return Load(running=running, waiting=len(self.held) - running, slots=self.slots, generated=0)

    def close(self, drain: float = 30.0) -> None:
        self.closed = True
        for ticket in list(self.held):
            ticket.cancel()


class Ticket:
    def __init__(self, service: Service, request: Request, deadline: float | None):
        self.service, self.request, self.deadline = service, request, deadline

    def cancel(self) -> None:
        if self in self.service.held:
            self.service.held.remove(self)

    async def __aiter__(self):
        try:
            async with asyncio.timeout(self.deadline):
                async for event in self._events():
                    yield event
        except TimeoutError:
            self.cancel()
            yield Failed("deadline")

    async def _events(self):
        service = self.service
        while self in service.held and service.held.index(self) >= service.slots:
            await asyncio.sleep(0.005)
        plan = ("text", "image") if self.request.plan == ANY else tuple(self.request.plan)
        segments, ids = [], 0
        for modality in plan:
            for event in self._part(modality, segments):
                await asyncio.sleep(service.pace)
                if self not in service.held:
                    yield Failed("cancelled")
                    return
                ids += 1
                yield event
        if service.fails:
            yield Failed(service.fails)
        else:
            answer = Answer(tuple(segments), np.zeros(ids, np.int32), self.request.seed)
            yield Done(answer, "length" if self.request.max_new_tokens == 7 else "stop")
        self.cancel()

    def _part(self, modality: str, segments: list[Segment]) -> Iterator[Any]:
        rng = np.random.default_rng(self.request.seed)
        if modality == "text":
            text = self.service.written
            segments.append(Segment("text", text))
            yield from (Text(text[i : i + 4]) for i in range(0, len(text), 4))
            return
        count = 4 if modality == "image" else self.service.codes
        codes = rng.integers(0, 16, count).astype(np.int32)
        segments.append(Segment(modality, codes))
        step = 5
        for i in range(0, count, step):
            yield Codes(modality, codes[i : i + step], i + step >= count)


def pipeline() -> Any:
    """What the server needs of a `Pipeline`, with the text tokenizer of the package."""
    tokenizers = {"image": Pictures(), "speech": Sounds("speech"), "music": Sounds("music")}
    text = TextTokenizer.load()
    blocks = [BlockSpec(name, t.codebook_size) for name, t in tokenizers.items()]
    vocab = Vocabulary.build(text_size=text.size, text_fingerprint=text.fingerprint, blocks=blocks)
    formatter = Formatter(vocab, text)
    engine = types.SimpleNamespace(settings=Settings(), vocabulary=vocab)
    return types.SimpleNamespace(
        tokenizers=tokenizers,
        formatter=formatter,
        prompt=lambda segments, plan=ANY: formatter.prompt(segments),
        engine=engine,
    )


@dataclasses.dataclass
class World:
    """A running server."""

    api: Api
    service: Service
    host: str
    port: int

    def connect(self, timeout: float = 20.0) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout)

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        """One request on a connection of its own."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        given = {"Content-Type": "application/json"} if data is not None else {}
        connection = self.connect()
        try:
            connection.request(method, path, data, given | (headers or {}))
            response = connection.getresponse()
            return Reply(response.status, response.read(), dict(response.getheaders()))
        finally:
            connection.close()

    def chat(self, content: Any, headers: dict[str, str] | None = None, **fields: Any) -> Reply:
        messages = content if isinstance(content, list) and content and "role" in content[0] else None
        messages = messages or [{"role": "user", "content": content}]
        return self.ask("POST", "/v1/chat/completions", {"messages": messages, **fields}, headers)

    def metric(self, name: str) -> float:
        """The value at /metrics of what begins so; 0 where there is none yet."""
        lines = self.ask("GET", "/metrics").body.decode().splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), 0.0)

    def idle(self, seconds: float = 5.0) -> bool:
        """Whether every slot becomes free within so many seconds."""
        for _ in range(int(seconds / 0.02)):
            if not self.service.held and not self.api.occupied:
                return True
            threading.Event().wait(0.02)
        return False


@dataclasses.dataclass(frozen=True)
class Reply:
    status: int
    body: bytes
    headers: dict[str, str]

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return self.json()["error"]["message"]

    def events(self) -> list[Any]:
        """The data of server-sent events, the closing [DONE] as a string."""
        lines = [line[6:] for line in self.body.decode().split("\n\n") if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]


@contextlib.contextmanager
def serving(
    service: Service | None = None, limits: Limits | None = None, token: str | None = None, longest: int = 512
) -> Iterator[World]:
    """A server in a thread, on a free port of this machine."""
    service = service or Service()
    pipe = pipeline()
    voices = {"ada": Audio(np.full(16_000, 0.3, np.float32), 16_000)}
    reader = Reader(pipe, limits or Limits(), voices, longest)
    api = Api(reader, service, MediaDecoder(pipe.tokenizers), "anygpt-test")
    listening, addresses = threading.Event(), []

    def ready(found: list[Any]) -> None:
        addresses.extend(found)
        listening.set()

    server = create(create_app(api, Trust(LOOPBACK, token)), api, "127.0.0.1", 0, ready)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert listening.wait(20)
    try:
        yield World(api, service, *addresses[0][:2])
    finally:
        server.should_exit = True
        thread.join(20)
        api.close()


def png(width: int = 8, height: int = 8, value: int = 90) -> bytes:
    return pictures.save_png(np.full((height, width, 3), value, np.uint8))


def wav(seconds: float = 1.0, value: float = 0.25, rate: int = 16_000, subtype: str = "PCM_16") -> bytes:
    out = io.BytesIO()
    soundfile.write(out, np.full(int(seconds * rate), value, np.float32), rate, format="WAV", subtype=subtype)
    return out.getvalue()
