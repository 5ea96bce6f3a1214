"""One page of plain text, and a table of candidates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from anygpt_jax.planning import sweep
from anygpt_jax.planning.chips import GIB
from anygpt_jax.planning.estimate import (
    ASSUMPTIONS,
    CONVENTION,
    MAXTEXT_7B_BY_THIS_METHOD,
    OMITTED,
    PUBLISHED,
    Estimate,
    MemoryUse,
    Speed,
)


def axes_text(mesh: dict[str, int]) -> str:
    """As "fsdp=16 × tensor=4", without axes of size 1; "one device" if there are no others."""
    return " × ".join(f"{axis}={n}" for axis, n in mesh.items() if n > 1) or "one device"


def _size(number: int) -> str:
    return f"{number / GIB:9.2f} GiB" if number >= GIB / 100 else f"{number / 2**20:9.2f} MiB"


def _memory_lines(memory: MemoryUse) -> list[str]:
    kinds = ("parameters", "optimizer", "batch", "activations", "temporaries", "program")
    lines = [f"  {kind:<14}{_size(getattr(memory, kind))}" for kind in kinds]
    lines.append(f"  {'total':<14}{_size(memory.total)} of {memory.limit / GIB:.2f} GiB")
    if memory.peak:
        lines.append(f"  {'peak in use':<14}{_size(memory.peak)}")
    if memory.host:
        lines.append(f"  {'on the host':<14}{_size(memory.host)}")
    return lines


def _speed_lines(speed: Speed) -> list[str]:
    parts = [
        ("matrix products", speed.matmul_seconds), ("attention", speed.attention_seconds),
        ("elementwise", speed.elementwise_seconds), ("exposed collectives", speed.exposed_seconds),
    ]  # fmt: skip
    lines = [f"  {name:<20}{1e3 * s:10.2f} ms {100 * s / speed.step_seconds:5.1f} %" for name, s in parts]
    lines[0] += f", at {speed.matmul_roofline_seconds / speed.matmul_seconds:.0%} of their roofline"
    return [
        *lines,
        f"  {'step':<20}{1e3 * speed.step_seconds:10.2f} ms, at best {1e3 * speed.roofline_seconds:.2f} (roofline)",
        f"  all collectives, hidden or not: {1e3 * speed.collective_seconds:.2f} ms",
    ]


def _parts(e: Estimate) -> str:
    parts = f" in {e.microbatches} microbatches" if e.microbatches > 1 else ""
    return parts + (f", products in {e.quantization}" if e.quantization != "none" else "")


def page(e: Estimate, name: str = "", below: Sequence[str] = ()) -> str:
    """What a person reads. `name` is what clouds call the slice; `below` are lines to follow those of the step."""
    lines = [
        f"{name + ', ' if name else ''}{e.topology} × {e.slices} ({e.chips} chips), mesh {axes_text(e.mesh)}",
        f"{e.parameters:,} parameters, batch {e.batch_size} × {e.seq_len} tokens{_parts(e)}, remat {e.remat}",
        "",
        "FITS" if e.fits else f"DOES NOT FIT: {e.refused or 'more than the chip has'}",
        "HBM of one device:",
        *_memory_lines(e.memory),
    ]
    if e.speed:
        s = e.speed
        lines += [
            "",
            "Estimated step:",
            *_speed_lines(s),
            "",
            f"MFU {100 * s.mfu:.1f} % of the bfloat16 peak ({100 * s.mfu_full_attention:.1f} % with attention counted in full)",
            f"{s.tokens_per_second_per_chip:,.0f} tokens/s/chip",
            f"{s.tokens:,} tokens: {s.days:.2f} days, {s.chip_hours:,.0f} chip-hours",
            f"FLOPs a step: model {s.model_flops:.4g}, program {s.hardware_flops:.4g}",
            f"  model FLOPs: {CONVENTION}",
            "",
            "Collectives: " + "; ".join(f"{place}: {_counts(kinds)}" for place, kinds in e.collectives.items()),
        ]
    lines += [f"Note: {warning}" for warning in e.warnings]
    lines += below
    chip = e.topology.partition(":")[0]
    nearest = [f"{run.name} {run.mfu:.0f} % ({run.source})" for run in PUBLISHED if run.chip == chip]
    if chip in MAXTEXT_7B_BY_THIS_METHOD:
        nearest.append(f"MaxText llama2-7b {MAXTEXT_7B_BY_THIS_METHOD[chip]} % by this same method")
    lines += [
        "",
        "An estimate from the compiled program, not a measurement; take the MFU as ± 10 points.",
        "Assumed: " + "; ".join(ASSUMPTIONS) + ".",
        "Not in the step and its days: " + "; ".join(OMITTED) + ".",
        f"To compare on {chip}: " + ("; ".join(nearest) or "nothing is published") + ".",
        f"Program {e.program[:16]}, libtpu {e.libtpu}, "
        + ("from the cache" if e.from_cache else f"compiled in {e.compile_seconds:.0f} s"),
    ]
    return "\n".join(lines)


def _counts(kinds: dict[str, int]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in kinds.items()) or "none"


def refusal_line(slice_name: str, candidate: sweep.Candidate, why: str) -> str:
    """Of a sweep's candidate that no run takes, in the place of a row of the table."""
    settings = f"{axes_text(dict(candidate.mesh))}, remat {candidate.remat}, batch {candidate.batch_size}"
    return f"not taken: {slice_name}, {settings}: {why}"


def table(estimates: Iterable[Estimate], paid: float | None = None) -> str:
    """Candidates of a sweep, the best first. `paid` is USD per chip-hour, if not the lists' prices."""
    rows = [
        f"{'M tokens/USD':>13} {'tokens/s/chip':>13} {'MFU %':>6} {'HBM GiB':>8} {'step ms':>9} {'exposed %':>9}  settings"
    ]
    for e in estimates:
        where = f"{e.slices} × {e.topology}" if e.slices > 1 else e.topology
        settings = f"{where}, {axes_text(e.mesh)}, remat {e.remat}, batch {e.batch_size}"
        used = f"{e.memory.total / GIB:8.1f}"
        if e.speed and e.fits:
            s, worth = e.speed, sweep.worth(e, paid)
            share = 100 * s.exposed_seconds / s.step_seconds
            rows.append(
                f"{f'{worth / 1e6:.2f}' if worth else '-':>13} {s.tokens_per_second_per_chip:13,.0f} {100 * s.mfu:6.1f} {used} "
                f"{1e3 * s.step_seconds:9.1f} {share:9.1f}  {settings}"
            )
        else:
            rows.append(f"{'does not fit':>13} {'':>13} {'':>6} {used} {'':>9} {'':>9}  {settings}")
    return "\n".join(rows)
