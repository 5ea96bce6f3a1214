"""An answer as it comes: text at once, media when their decoder has them, speech in pieces from its first second."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator

import numpy as np

from anygpt_jax.generation.answer import Answer
from anygpt_jax.generation.media import extension
from anygpt_jax.generation.service import Codes, Done, Failed, Text, Ticket
from anygpt_jax.modalities.base import Audio
from anygpt_jax.serving import handles, sound
from anygpt_jax.serving.decoding import MediaDecoder
from anygpt_jax.serving.refusal import Refusal


@dataclasses.dataclass(frozen=True)
class Said:
    """More text of the answer's part number `part`."""

    part: int
    text: str


@dataclasses.dataclass(frozen=True)
class Made:
    """A medium, or a piece of one: `first` with the first, `id` with the last one."""

    part: int
    modality: str
    data: bytes
    format: str
    sample_rate: int | None = None
    id: str | None = None
    first: bool = True


@dataclasses.dataclass(frozen=True)
class Finished:
    """The last event; `reason` is "stop", or "length" if the answer had to end."""

    answer: Answer
    reason: str


class Answering:
    """Follows one ticket. Iterate once; leaving the iteration cancels the ticket and what is being decoded."""

    def __init__(self, ticket: Ticket, decoder: MediaDecoder, voice: Audio | None, format: str, pieces: bool):
        self._ticket = ticket
        self._decoder = decoder
        self._voice = voice
        self._format = format
        self._pieces = pieces and format == "pcm16"
        self._out: asyncio.Queue[Said | Made | Finished | Exception] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self.first_event: float | None = None  # time.monotonic()

    async def __aiter__(self) -> AsyncGenerator[Said | Made | Finished, None]:
        """Ends with `Finished`. Refusal if there is no answer in the end."""
        self._start(self._follow())
        try:
            while True:
                event = await self._out.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            self._ticket.cancel()
            for task in self._tasks:
                task.cancel()

    def _start(self, work) -> asyncio.Task[None]:
        async def guarded() -> None:
            try:
                await work
            except asyncio.CancelledError:
                raise
            except Exception as e:
                self._out.put_nowait(e)

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _follow(self) -> None:
        part, medium = -1, None
        media: list[asyncio.Task[None]] = []
        in_text = False
        async for event in self._ticket:
            if self.first_event is None:
                self.first_event = time.monotonic()
            if isinstance(event, Text):
                part, in_text = (part if in_text else part + 1), True
                self._out.put_nowait(Said(part, event.piece))
            elif isinstance(event, Codes):
                if medium is None:
                    part, in_text = part + 1, False
                    medium = _Growing(part, event.modality)
                    media.append(self._start(self._make(medium)))
                medium.add(event.codes, event.last)
                medium = None if event.last else medium
            elif isinstance(event, Failed):
                raise _refusal_of_failed(event)
            elif isinstance(event, Done):
                await asyncio.gather(*media)
                self._out.put_nowait(Finished(event.answer, event.reason))
                return

    async def _make(self, medium: _Growing) -> None:
        tokenizer = self._decoder.tokenizers[medium.modality]
        pieces = sound.Pieces(tokenizer) if self._pieces and medium.modality == "speech" else None
        first = True
        while True:
            await medium.changed()
            codes, last = medium.codes, medium.last
            count = len(codes) if last else pieces.due(len(codes)) if pieces else 0
            if not (count or last):
                continue
            future = self._decoder.submit(medium.modality, codes[:count], self._voice)
            decoded = await asyncio.wrap_future(future)
            name = handles.name(medium.modality, codes, tokenizer) if last else None
            if not isinstance(decoded, Audio):
                data = await asyncio.to_thread(tokenizer.save, decoded)
                kind = extension(medium.modality, tokenizer).lstrip(".")
                self._out.put_nowait(Made(medium.part, medium.modality, data, kind, None, name))
                return
            if pieces:
                data = sound.pcm16(pieces.new(decoded, count, last))
            else:
                data = await asyncio.to_thread(sound.encode, decoded, self._format)
            made = Made(medium.part, medium.modality, data, self._format, decoded.sample_rate, name, first)
            self._out.put_nowait(made)
            first = False
            if last:
                return


class _Growing:
    """Codes of a medium that is being written."""

    def __init__(self, part: int, modality: str):
        self.part = part
        self.modality = modality
        self.last = False
        self._codes: list[np.ndarray] = []
        self._event = asyncio.Event()

    @property
    def codes(self) -> np.ndarray:
        return np.concatenate(self._codes).astype(np.int32)

    def add(self, codes: np.ndarray, last: bool) -> None:
        self._codes.append(np.asarray(codes))
        self.last = last
        self._event.set()

    async def changed(self) -> None:
        """Waits for codes that were not there at the last call."""
        await self._event.wait()
        self._event.clear()


def _refusal_of_failed(failed: Failed) -> Refusal:
    """503 if it was cancelled, 504 at its deadline, else 500, of which the client is not told the reason."""
    if failed.reason == "cancelled":
        return Refusal(503, "The server is shutting down; ask again elsewhere or later.", None, "shutting_down", 5.0)
    if failed.reason == "deadline":
        return Refusal(504, "The answer took longer than this server allows; ask for less.", None, "deadline")
    return Refusal(500, "The model failed to answer; the server's log says why.", None, "model_failed")
