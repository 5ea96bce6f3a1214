"""What a run would cost on a slice beside its step: money, data, checkpoints, interruptions. Closed forms on an estimate."""

from __future__ import annotations

import dataclasses

from anygpt_jax.planning import interruptions, prices, storage
from anygpt_jax.planning.accelerators import Accelerator
from anygpt_jax.planning.estimate import Estimate
from anygpt_jax.planning.feed import Feed, feed
from anygpt_jax.planning.interruptions import Interruptions
from anygpt_jax.planning.storage import Saving, saving


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What no compiler tells; the command line can say otherwise."""

    price: float | None = None  # USD per chip-hour; None: the lists'
    preempted_every: float | None = None  # hours, of one slice; None: of a spot slice, PREEMPTED_EVERY
    restart_minutes: float = interruptions.RESTART_MINUTES
    storage_rate: float = storage.STORAGE  # bytes/s of a host


@dataclasses.dataclass(frozen=True)
class Bill:
    """The run at one kind of price."""

    kind: str  # on demand, spot or given
    rate: float  # USD per chip-hour
    undisturbed: float  # USD, of the steps alone
    expected: float  # USD, with saving and interruptions, the chips paid for throughout
    days: float  # with them
    tokens_per_dollar: float  # of the steps alone
    interruptions: Interruptions

    @property
    def lost(self) -> float:
        """USD."""
        return self.expected - self.undisturbed


@dataclasses.dataclass(frozen=True)
class Preflight:
    """Of an estimate that fits."""

    accelerator: str
    hosts: int  # of all slices
    save_every: int  # steps
    saving: Saving
    feed: Feed
    bills: tuple[Bill, ...]  # empty where no price is known
    assumptions: Assumptions


def interrupted_every(kind: str, accelerator: Accelerator, assumed: Assumptions) -> float:
    """Hours between interruptions of the whole job, which any of its slices brings about."""
    if fails_only(kind, assumed):
        return interruptions.CHIP_HOURS_A_FAILURE / accelerator.topology.chips
    return (assumed.preempted_every or interruptions.PREEMPTED_EVERY) / accelerator.slices


def fails_only(kind: str, assumed: Assumptions) -> bool:
    """A price of one's own is of chips that nobody takes away, unless it is said how often they are."""
    return kind == "on demand" or (kind == "given" and assumed.preempted_every is None)


def bill(kind: str, rate: float, e: Estimate, accelerator: Accelerator, save_every: int, assumed: Assumptions) -> Bill:
    """Of an estimate that fits."""
    assert e.speed is not None
    save = _saving(e, accelerator, assumed)
    disturbed = interruptions.expected(
        24 * e.speed.days,
        save_every * e.speed.step_seconds / 3600,
        save.stall / 3600,
        save.write / 3600,
        assumed.restart_minutes / 60 + save.read / 3600,
        interrupted_every(kind, accelerator, assumed),
    )
    return Bill(
        kind=kind,
        rate=rate,
        undisturbed=e.speed.chip_hours * rate,
        expected=disturbed.hours * e.chips * rate,
        days=disturbed.hours / 24,
        tokens_per_dollar=prices.tokens_per_dollar(e.speed.tokens_per_second_per_chip, rate),
        interruptions=disturbed,
    )


def bills(e: Estimate, accelerator: Accelerator, save_every: int, assumed: Assumptions) -> tuple[Bill, ...]:
    """By every kind of price that is known."""
    rates = prices.rates(accelerator.family.chip, assumed.price)
    return tuple(
        bill(kind, rate, e, accelerator, save_every, assumed) for kind, rate in rates.items() if rate is not None
    )


def preflight(
    e: Estimate, accelerator: Accelerator, save_every: int, assumed: Assumptions, bytes_a_token: float,
    reader: tuple[float, str],
) -> Preflight | None:  # fmt: skip
    """None if the step does not fit: then there is no time to count with."""
    if not (e.fits and e.speed):
        return None
    hosts = accelerator.hosts * accelerator.slices
    return Preflight(
        accelerator=accelerator.name,
        hosts=hosts,
        save_every=save_every,
        saving=_saving(e, accelerator, assumed),
        feed=feed(e.batch_size, e.seq_len, e.speed.step_seconds, e.mesh, hosts, bytes_a_token, reader),
        bills=bills(e, accelerator, save_every, assumed),
        assumptions=assumed,
    )


def _saving(e: Estimate, accelerator: Accelerator, assumed: Assumptions) -> Saving:
    return saving(e.state_bytes, accelerator.hosts * accelerator.slices, accelerator.slices, assumed.storage_rate)
