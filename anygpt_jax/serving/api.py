"""Chat completions: a request is read, checked and submitted, and its answer is sent whole or as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from anygpt_jax.errors import UserError
from anygpt_jax.generation.service import Busy, Service, Ticket
from anygpt_jax.serving import completion, schema
from anygpt_jax.serving.answering import Answering, Finished, Made, Said
from anygpt_jax.serving.bodies import Bodies
from anygpt_jax.serving.completion import Completion
from anygpt_jax.serving.conversation import Prepared, Reader
from anygpt_jax.serving.decoding import MediaDecoder
from anygpt_jax.serving.metrics import Metrics
from anygpt_jax.serving.refusal import Refusal, busy
from anygpt_jax.serving.schema import ChatRequest

QUIET = 15.0  # s without an event after which a stream says that it still lives


class Api:
    """The endpoints, and what they share."""

    def __init__(self, reader: Reader, service: Service, decoder: MediaDecoder, model: str):
        self.reader = reader
        self.service = service
        self.decoder = decoder
        self.model = model
        self.limits = reader.limits
        self.metrics = Metrics(service)
        self.bodies = Bodies(self.limits)
        self.metrics.bodies.set_function(lambda: self.bodies.held)
        self.draining = False
        self._preparing = 0  # requests
        self._answered = 0  # requests that are being answered
        self._pool = ThreadPoolExecutor(2, "prepare")

    @property
    def occupied(self) -> bool:
        """Whether anyone waits for an answer."""
        return bool(self._preparing or self._answered)

    async def complete(self, request: Request) -> Response:
        """POST /v1/chat/completions. Refusal for what is not answered; in a stream that has begun it is an event."""
        arrived = time.monotonic()
        chat, prepared = await self._prepare(request)
        tickets = self._submit(prepared)
        answers = [Answering(t, self.decoder, prepared.voice, prepared.format, chat.stream) for t in tickets]
        whole = Completion(self.model, prepared.prompt_tokens)
        self.metrics.tokens_in.inc(prepared.prompt_tokens)
        if chat.stream:
            usage = bool(chat.stream_options and chat.stream_options.include_usage)
            stream = self._stream(answers, whole, usage, arrived)
            return _EventStream(stream, self._answering(tickets), 2 * self.limits.answer_seconds)
        with self._answering(tickets):
            return await self._while_connected(request, self._whole(answers, whole, arrived))

    async def _prepare(self, request: Request) -> tuple[ChatRequest, Prepared]:
        """The request, read and checked; everything slow is done in threads."""
        if (refusal := self._unwilling()) is not None:
            await self.bodies.discard(request)
            raise refusal
        self._preparing += 1
        try:
            async with self.bodies.read(request) as body:
                return await asyncio.get_running_loop().run_in_executor(self._pool, self._read, body)
        finally:
            self._preparing -= 1

    def _unwilling(self) -> Refusal | None:
        """Why nothing is taken on now, whatever it is."""
        if self.draining:
            return Refusal(503, "The server is shutting down; ask again elsewhere or later.", None, "shutting_down", 5)
        if self._preparing >= self.limits.preparing or self.service.load.waiting >= self.limits.queue:
            return busy()
        return None

    def _read(self, body: bytes) -> tuple[ChatRequest, Prepared]:
        chat = schema.parse(body)
        if chat.model is not None:
            self.check_model(chat.model)
        return chat, self.reader.prepare(chat)

    def check_model(self, name: str) -> None:
        """Refusal for any name but the served model's."""
        if name != self.model:
            message = f"There is no model '{name[:80]}' here, only '{self.model}'."
            raise Refusal(404, message, "model", "model_not_found")

    def _submit(self, prepared: Prepared) -> list[Ticket]:
        """A ticket an answer, all of them or none."""
        tickets: list[Ticket] = []
        try:
            for request in prepared.requests:
                tickets.append(self.service.submit(request, deadline=self.limits.answer_seconds))
        except (Busy, UserError) as e:
            for ticket in tickets:
                ticket.cancel()
            if isinstance(e, Busy):
                raise busy(e.retry_after) from None
            raise Refusal(400, str(e)) from None
        return tickets

    async def _while_connected(self, request: Request, work: Coroutine[Any, Any, Response]) -> Response:
        """The result of some work, which is given up when the client leaves."""
        answer = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                self.metrics.left.inc()
                return Response(status_code=499)  # nobody reads it
            return answer.result()
        finally:
            for task in (answer, gone):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await answer

    async def _whole(self, answers: list[Answering], whole: Completion, arrived: float) -> Response:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._choice(i, a, whole, arrived)) for i, a in enumerate(answers)]
        return JSONResponse(whole.whole([task.result() for task in tasks]))

    async def _choice(self, index: int, answer: Answering, whole: Completion, arrived: float) -> dict[str, Any]:
        said: dict[int, str] = {}
        made: dict[int, Made] = {}
        reason = "stop"
        async with contextlib.aclosing(aiter(answer)) as events:
            async for event in events:
                if isinstance(event, Said):
                    said[event.part] = said.get(event.part, "") + event.text
                elif isinstance(event, Made):
                    made[event.part] = event
                else:
                    reason = event.reason
                self._observe(answer, event, whole, arrived)
        return completion.choice(index, said, made, reason)

    async def _stream(
        self, answers: list[Answering], whole: Completion, usage: bool, arrived: float
    ) -> AsyncIterator[bytes]:
        """Server-sent events of all choices as they come, then [DONE]. What fails is said in an event."""
        out: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()

        async def follow(index: int, answer: Answering) -> None:
            texts: dict[int, str] = {}
            out.put_nowait(whole.chunk(index, {"role": "assistant", "content": ""}))
            try:
                async with contextlib.aclosing(aiter(answer)) as events:
                    async for event in events:
                        self._observe(answer, event, whole, arrived)
                        if isinstance(event, Finished):
                            out.put_nowait(whole.chunk(index, {}, event.reason))
                            continue
                        if isinstance(event, Said):
                            texts[event.part] = texts.get(event.part, "") + event.text
                        out.put_nowait(whole.chunk(index, completion.delta(event, texts.get(event.part - 1, ""))))
                out.put_nowait(None)
            except Exception as e:
                out.put_nowait(e)

        tasks = [asyncio.create_task(follow(i, answer)) for i, answer in enumerate(answers)]
        open_choices, ended = len(tasks), False
        try:
            while open_choices:
                try:
                    item = await asyncio.wait_for(out.get(), QUIET)
                except TimeoutError:
                    yield b": still here\n\n"
                    continue
                if isinstance(item, Exception):
                    yield completion.event(refusal_of(item).body())
                    break
                if item is None:
                    open_choices -= 1
                else:
                    yield item
            else:
                if usage:
                    yield whole.usage_chunk()
            yield b"data: [DONE]\n\n"
            ended = True
        finally:
            if not ended:
                self.metrics.left.inc()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _observe(self, answer: Answering, event: Said | Made | Finished, whole: Completion, arrived: float) -> None:
        if isinstance(event, Made):
            self.metrics.media_out.labels(event.modality).inc()
        elif isinstance(event, Finished):
            whole.count(event)
            self.metrics.tokens_out.inc(len(event.answer.ids))
            self.metrics.whole.observe(time.monotonic() - arrived)
            if answer.first_event is not None:
                self.metrics.first.observe(answer.first_event - arrived)

    @contextlib.contextmanager
    def _answering(self, tickets: list[Ticket]) -> Iterator[None]:
        """While it lasts the server does not stop; whatever ends it, no slot stays taken."""
        self._answered += 1
        try:
            yield
        finally:
            self._answered -= 1
            for ticket in tickets:
                ticket.cancel()

    def close(self) -> None:
        """Cancels what is still being answered and ends the threads of engine, decoders and preparation."""
        self.service.close(drain=0.0)
        self.decoder.close()
        self._pool.shutdown(cancel_futures=True)


class _EventStream(StreamingResponse):
    """Server-sent events. `around` is left however it ends, begun or not; a client that does not read is left too."""

    def __init__(self, events: AsyncIterator[bytes], around: contextlib.AbstractContextManager[None], seconds: float):
        super().__init__(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._around = around
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._around, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._seconds):
                await super().__call__(scope, receive, send)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def refusal_of(error: BaseException) -> Refusal:
    """Of a group its first error's. What is no Refusal is logged and becomes a 500 that does not tell it."""
    if isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, Refusal):
        return error
    logging.getLogger(__name__).error("an answer failed", exc_info=error)
    return Refusal(500, "The server failed; its log says why.", None, "server_failed")
