"""The part of the page that tells of money, data, checkpoints and interruptions, and the table of neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence

from anygpt_jax.planning import interruptions, prices, storage
from anygpt_jax.planning.accelerators import Accelerator
from anygpt_jax.planning.chips import GIB
from anygpt_jax.planning.estimate import Estimate
from anygpt_jax.planning.preflight import Bill, Preflight, fails_only
from anygpt_jax.planning.variants import Change


def _usd(amount: float) -> str:
    return f"{amount:,.0f} USD" if amount >= 100 else f"{amount:.2f} USD"


def _size(number: float) -> str:
    return f"{number / GIB:.2f} GiB" if number >= GIB / 10 else f"{number / 2**20:.2f} MiB"


def _duration(seconds: float) -> str:
    """With the unit that suits it."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _bill_lines(bill: Bill) -> list[str]:
    x = bill.interruptions
    source = "--price" if bill.kind == "given" else prices.SOURCE
    lines = [
        f"  {bill.kind}, {bill.rate:.2f} USD/chip-hour ({source}): {_usd(bill.undisturbed)}, "
        f"{bill.tokens_per_dollar / 1e6:.2f} M tokens/USD"
    ]
    if not math.isfinite(x.hours):
        return [*lines, f"    interrupted every {x.every:.1f} h, losing {x.lost_each:.1f} h each time: it never ends"]
    return [
        *lines,
        f"    interrupted every {x.every:.1f} h, {x.count:.1f} times, losing {60 * x.lost_each:.0f} min each: "
        f"{bill.days:.2f} days, {_usd(bill.expected)}",
        f"    lost to saving and interruptions: {x.lost_hours / 24:.2f} days, {_usd(bill.lost)} ({x.lost_share:.1%})",
        f"    saving every {_duration(3600 * x.interval)}; least is lost at {_duration(3600 * x.best_interval)}",
    ]


def preflight_lines(p: Preflight) -> list[str]:
    """For `below` of `page.page`: money, data and checkpoints, an empty line before each."""
    assumed, save, feed = p.assumptions, p.saving, p.feed
    lines = ["", "Money, for the run's tokens:"]
    lines += [line for bill in p.bills for line in _bill_lines(bill)]
    if not p.bills:
        lines.append("  no public price of this chip; say one with --price")
    for kind in (bill.kind for bill in p.bills):
        if fails_only(kind, assumed):
            lines.append(
                f"  {kind}: a failure every {interruptions.CHIP_HOURS_A_FAILURE:,.0f} chip-hours, as of Llama 3's H100s "
                "(arXiv 2407.21783)"
            )
        else:
            hours = assumed.preempted_every or interruptions.PREEMPTED_EVERY
            lines.append(f"  {kind}: a slice is lost every {hours:g} h (assumed; --preempted-every)")
    return [
        *lines,
        f"  back after {assumed.restart_minutes:g} min (assumed; --restart-minutes) and the restore; all time is paid",
        "",
        f"Data, of each of {p.hosts} hosts:",
        f"  needed {feed.rows:.2f} rows/s: {feed.tokens:,.0f} tokens/s, {feed.bytes / 1e6:.3f} MB/s of token records "
        f"({feed.bytes_a_token:.2f} bytes/token)",
        f"  read {feed.reader_rows:,.0f} rows/s a core ({feed.source}): {feed.cores:.2%} of a core"
        + (", MORE THAN ONE THREAD GIVES: training will wait for data" if feed.cores > 1 else ""),
        "",
        f"Checkpoint, every {p.save_every} steps:",
        f"  {_size(save.bytes)} before compression (shapes of the state), {_size(save.bytes_a_host)} a host",
        f"  stall {_duration(save.stall)} at {storage.TO_HOST / 1e9:g} GB/s from the chips to their host (assumed)",
        f"  write {_duration(save.write)} in the background, read {_duration(save.read)}, at "
        f"{assumed.storage_rate / 1e9:g} GB/s a host (assumed; --storage-gbps)",
    ]  # fmt: skip


def change_lines(change: Change | None, tried: Sequence[str], slice_that_fits: Accelerator | None) -> list[str]:
    """What would make it fit: compiled, not guessed."""
    lines = ["", "What would make it fit, by compiling:"]
    lines += [f"  not  {settings}" for settings in tried]
    if change is not None:
        found, speed = change.estimate, change.estimate.speed
        used = f"{found.memory.total / GIB:.2f} of {found.memory.limit / GIB:.2f} GiB"
        step = f", step {1e3 * speed.step_seconds:,.0f} ms, MFU {100 * speed.mfu:.1f} %" if speed else ""
        return [*lines, f"  fits {change.settings}: {used}{step}"]
    if slice_that_fits is not None:
        return [*lines, f"  fits --accelerator={slice_that_fits.name}, with mesh and microbatches for it"]
    return [*lines, "  nothing that was tried; take a larger slice, shorter rows, or tensor parallelism"]


def neighbours_table(rows: Sequence[tuple[Accelerator, Estimate | str, Sequence[Bill]]]) -> str:
    """The run elsewhere, a line each; an Estimate may be the reason why there is none."""
    lines = [
        f"{'slice':<16} {'chips':>5} {'HBM GiB':>15} {'step ms':>9} {'MFU %':>6} {'days':>7} {'kUSD on demand':>15} "
        f"{'kUSD spot':>10} {'M tokens/USD':>13}  settings"
    ]
    for accelerator, e, bills in rows:
        name = f"{accelerator.slices} × {accelerator.name}" if accelerator.slices > 1 else accelerator.name
        start = f"{name:<16} {accelerator.topology.chips:>5}"
        if isinstance(e, str):
            lines.append(f"{start}  {e}")
            continue
        used = f"{e.memory.total / GIB:.1f} of {e.memory.limit / GIB:.1f}"
        mesh = ", ".join(f"{axis}={n}" for axis, n in e.mesh.items() if n > 1)
        settings = f"{mesh}, microbatches {e.microbatches}, remat {e.remat}"
        if not (e.fits and e.speed):
            lines.append(f"{start} {used:>15} {'does not fit':>16}  {settings}")
            continue
        money = {bill.kind: f"{bill.expected / 1e3:,.1f}" for bill in bills}
        first = money.get("on demand", money.get("given", "-"))
        best = f"{bills[0].tokens_per_dollar / 1e6:.2f}" if bills else "-"
        lines.append(
            f"{start} {used:>15} {1e3 * e.speed.step_seconds:9.0f} {100 * e.speed.mfu:6.1f} {e.speed.days:7.2f} "
            f"{first:>15} {money.get('spot', '-'):>10} {best:>13}  {settings}"
        )
    lines.append("Money is with saving and interruptions; tokens/USD at the first price, of the steps alone.")
    return "\n".join(lines)
