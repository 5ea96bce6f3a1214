"""The engine in a thread of its own: requests from any thread or event loop, answers as events while they grow."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator

import numpy as np

from anygpt_jax.generation.engine import Engine, Job, Written
from anygpt_jax.generation.events import Codes, Done, Event, Failed, Text, Unfolding
from anygpt_jax.generation.request import Request
from anygpt_jax.templates import TEXT

__all__ = ["Busy", "Codes", "Done", "Event", "Failed", "Load", "Service", "Text", "Ticket"]

_log = logging.getLogger(__name__)


class Busy(Exception):
    """As many requests are waiting as may, or the service is closing."""

    def __init__(self, retry_after: float):
        super().__init__(f"Too many requests are waiting; try again in {retry_after:.0f} s.")
        self.retry_after = retry_after  # seconds


@dataclasses.dataclass(frozen=True)
class Load:
    """How much the service has to do at one moment."""

    running: int  # requests
    waiting: int
    slots: int
    generated: int  # tokens since the start


class Ticket:
    """One request's events, for one listener: `for` in a thread, `async for` in an event loop."""

    def __init__(self, job: Job, unfolding: Unfolding, deadline: float | None, cancel: Callable[[Ticket], None]):
        self.job = job
        self.unfolding = unfolding
        self.deadline = deadline  # of time.monotonic
        self._cancel = cancel
        self._lock = threading.Lock()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._tell: Callable[[Event], None] = self._events.put

    def put(self, event: Event) -> None:
        """The service's side, in its thread. What comes before anyone listens is kept."""
        with self._lock:
            self._tell(event)

    def cancel(self) -> None:
        """Ends it with Failed("cancelled"), unless it has ended; may be called again."""
        self._cancel(self)

    def __iter__(self) -> Iterator[Event]:
        while True:
            event = self._events.get()
            yield event
            if isinstance(event, Done | Failed):
                return

    async def __aiter__(self) -> AsyncIterator[Event]:
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def tell(event: Event) -> None:
            try:
                loop.call_soon_threadsafe(events.put_nowait, event)
            except RuntimeError:  # the listener's loop is closed
                self.cancel()

        with self._lock:
            while not self._events.empty():
                events.put_nowait(self._events.get())
            self._tell = tell
        while True:
            event = await events.get()
            yield event
            if isinstance(event, Done | Failed):
                return


class Service:
    """Nobody else may use the engine meanwhile. `queue` is how many requests may wait for a slot."""

    def __init__(self, engine: Engine, queue: int = 64):
        self.engine = engine
        self.queue = queue
        self._prepare = threading.Lock()
        self._changed = threading.Condition()
        # Guarded by `_changed`:
        self._arrived: collections.deque[Ticket] = collections.deque()
        self._leaving: collections.deque[Ticket] = collections.deque()
        self._closing: float | None = None  # when what runs is cancelled, of time.monotonic
        self._generated = 0
        # The thread's own:
        self._tickets: dict[int, Ticket] = {}
        self._pace = 1.0  # seconds between two answers that end, about
        self._ended = time.monotonic()  # when the last one did
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, deadline: float | None = None) -> Ticket:
        """Takes a request; `deadline` is in seconds from now. UserError for an impossible one, Busy when too many wait."""
        with self._prepare:
            job = self.engine.prepare(request)
        unfolding = Unfolding(self.engine.vocabulary, self.engine.text, job.machine.opening, self.engine.marks.closers)
        until = None if deadline is None else time.monotonic() + deadline
        ticket = Ticket(job, unfolding, until, self._take_back)
        with self._changed:
            if self._closing is not None or len(self._arrived) + self.engine.waiting >= self.queue:
                raise Busy(max(1.0, self._pace * self.queue / 2))  # when half of those that wait are through
            self._arrived.append(ticket)
            self._changed.notify()
        return ticket

    @property
    def load(self) -> Load:
        """As of now, from any thread; `waiting` counts those too that the engine has not seen yet."""
        with self._changed:
            return Load(
                self.engine.running,
                self.engine.waiting + len(self._arrived),
                self.engine.settings.batch_size,
                self._generated,
            )

    def warm(self) -> None:
        """Compiles what requests will need, so that the first one does not wait for it."""
        settings = self.engine.settings
        self.engine.reserve(settings.batch_size, settings.context or 1)
        for length in self.engine.attended_lengths():
            prompt = np.full(max(1, length - 2 * settings.stride), self.engine.vocabulary.bos, np.int32)
            for _ in self.submit(Request(prompt, (TEXT,), 0, max_new_tokens=2)):
                pass

    def close(self, drain: float = 30.0) -> None:
        """Takes nothing more, finishes what is there for at most so many seconds, then cancels the rest."""
        with self._changed:
            self._closing = time.monotonic() + drain
            self._changed.notify()
        self._thread.join()

    def _take_back(self, ticket: Ticket) -> None:
        with self._changed:
            self._leaving.append(ticket)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._arrived or self._leaving or self._tickets or self._closing is not None):
                    self._changed.wait()
                arrived, leaving, closing = list(self._arrived), list(self._leaving), self._closing
                for ticket in arrived:
                    self._tickets[self.engine.enqueue(ticket.job)] = ticket
                self._arrived.clear()
                self._leaving.clear()
            now = time.monotonic()
            for ticket in leaving:
                self._fail(ticket, "cancelled")
            for ticket in list(self._tickets.values()):
                if closing is not None and now >= closing:
                    self._fail(ticket, "cancelled")
                elif ticket.deadline is not None and now >= ticket.deadline:
                    self._fail(ticket, "deadline")
            if not self._tickets and closing is not None:
                return
            try:
                for written in self.engine.step():
                    self._tell(written)
            except Exception as e:  # it costs those whose answers were being written, and nobody after them
                _log.exception("the engine failed; %d requests with it", len(self._tickets))
                self.engine.reset()
                for ticket in list(self._tickets.values()):
                    self._fail(ticket, f"error: {e}")

    def _tell(self, written: Written) -> None:
        ticket = self._tickets[written.job]
        self._generated += len(written.ids)
        for event in ticket.unfolding.add(written.ids):
            ticket.put(event)
        if written.answer is not None:
            del self._tickets[written.job]
            now = time.monotonic()
            self._pace, self._ended = 0.9 * self._pace + 0.1 * (now - self._ended), now
            cut = ticket.job.budget < ticket.job.machine.longest and len(ticket.job.written) >= ticket.job.budget
            ticket.put(Done(written.answer, "length" if cut else "stop"))

    def _fail(self, ticket: Ticket, reason: str) -> None:
        if self._tickets.pop(ticket.job.number, None) is not None:
            self.engine.cancel(ticket.job.number)
            ticket.put(Failed(reason))
