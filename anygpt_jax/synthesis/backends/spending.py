"""What generators cost, and the ceiling that no request may pass.

FOLDER/spending-….jsonl has two lines a request: its worst case before it is sent, and what it cost once that is known.
A request without a second line counts as its worst case: it is under way, or its process was killed. Before a request is
sent, the lines of other processes are read, under a lock, so that workers on one file system keep one ceiling together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import math
import pathlib
import threading
import time
import uuid
from collections.abc import Iterator, Mapping

from anygpt_jax.errors import UserError
from anygpt_jax.synthesis.backends.ledger import Ledger

MILLION = 1_000_000
PATIENCE = 60.0  # s that other processes' requests may take


@dataclasses.dataclass(frozen=True)
class Use:
    """What a request takes of a service, or may take at most."""

    input_tokens: int = 0
    output_tokens: int = 0
    images: int = 0
    characters: int = 0  # spoken
    music: int = 0  # pieces

    @property
    def tokens(self) -> int:
        """Of the prompt and of the answer."""
        return self.input_tokens + self.output_tokens


@dataclasses.dataclass(frozen=True)
class Prices:
    """In dollars; 0 is free."""

    input: float = 0.0  # a million tokens
    output: float = 0.0  # a million tokens
    image: float = 0.0  # one
    speech: float = 0.0  # a million characters
    music: float = 0.0  # a piece

    def __post_init__(self) -> None:
        for name, price in dataclasses.asdict(self).items():
            if not 0 <= price < math.inf:
                raise UserError(f"prices.{name} must be a number of dollars from 0 on, not {price}.")

    @classmethod
    def from_config(cls, prices: Mapping[str, float]) -> Prices:
        """By the fields' names; UserError for another name, or a price that is negative or infinite."""
        fields = [field.name for field in dataclasses.fields(cls)]
        if unknown := set(prices) - set(fields):
            raise UserError(f"prices has no {', '.join(sorted(unknown))}; it has: {', '.join(fields)}.")
        return cls(**{name: float(price) for name, price in prices.items()})

    def of(self, use: Use) -> float:
        """Dollars."""
        text = self.input * use.input_tokens + self.output * use.output_tokens
        return (text + self.speech * use.characters) / MILLION + self.image * use.images + self.music * use.music


@dataclasses.dataclass(frozen=True)
class Spent:
    """Sums over settled requests."""

    requests: int = 0
    tokens: int = 0
    dollars: float = 0.0


class Spending:
    """The ledger in `folder`, and its ceiling in dollars (None: none). Threads and backends may share one."""

    def __init__(self, folder: str | pathlib.Path, max_cost: float | None = None):
        if max_cost is not None and not 0 <= max_cost < math.inf:
            raise UserError(f"max_cost must be a number of dollars from 0 on, or None for no ceiling, not {max_cost}.")
        self.max_cost = max_cost
        self._folder = pathlib.Path(folder)
        self._ledger = Ledger(folder, "spending")
        self._settled = Spent()
        self._reserved: dict[str, float] = {}  # of requests that are not settled, of all processes, by ticket
        self._own: set[str] = set()  # of those, this process's
        self._changed = threading.Condition()

    def spent(self) -> Spent:
        """By all processes so far."""
        with self._changed:
            self._read()
            return self._settled

    def reserve(self, dollars: float) -> str:
        """A ticket for a request that costs so much at most; it must be settled.

        While what is under way might use up what is left, this waits for it: for other processes' requests as long as
        any of them comes to an end within PATIENCE. UserError once what is spent leaves too little.
        """
        with self._changed:
            open_until, under_way = 0.0, frozenset[str]()
            while not (ticket := self._try(dollars)):
                if self._own:
                    self._changed.wait()
                    continue
                if frozenset(self._reserved) != under_way:
                    under_way, open_until = frozenset(self._reserved), time.monotonic() + PATIENCE
                # A process that was killed never settles; what it had reserved stays counted.
                if self._settled.dollars + dollars > (self.max_cost or 0) or time.monotonic() > open_until:
                    raise UserError(self._too_much(dollars))
                self._changed.wait(0.2)
            return ticket

    def settle(self, ticket: str, dollars: float, use: Use) -> None:
        """What the request did cost."""
        with self._changed:
            self._ledger.add(ticket=ticket, dollars=dollars, tokens=use.tokens, **dataclasses.asdict(use))
            self._own.remove(ticket)
            self._changed.notify_all()

    def _try(self, dollars: float) -> str:
        """A ticket, or "" if there might be too little left."""
        with self._alone():
            self._read()
            if self.max_cost is not None and self._most + dollars > self.max_cost:
                return ""
            ticket = uuid.uuid4().hex
            self._ledger.add(ticket=ticket, reserved=dollars)
        self._own.add(ticket)
        return ticket

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process reserves at the same time."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._folder / "lock", "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed
            yield

    def _read(self) -> None:
        for row in self._ledger.rows("ticket"):
            if "reserved" in row:
                self._reserved[row["ticket"]] = float(row["reserved"])
            elif self._reserved.pop(row["ticket"], None) is not None:
                sums = self._settled
                self._settled = Spent(sums.requests + 1, sums.tokens + row["tokens"], sums.dollars + row["dollars"])

    @property
    def _most(self) -> float:
        """Dollars that are spent if everything under way costs its worst case."""
        return self._settled.dollars + math.fsum(self._reserved.values())

    def _too_much(self, dollars: float) -> str:
        sums = self._settled
        unsettled = f", ${math.fsum(self._reserved.values()):.4f} more may be" if self._reserved else ""
        return (
            f"${sums.dollars:.4f} are spent ({sums.requests:,} requests, {sums.tokens:,} tokens){unsettled}, and the next "
            f"request may cost ${dollars:.4f}, which would pass max_cost = ${self.max_cost:g}; raise max_cost and run "
            "again: what came is kept."
        )
