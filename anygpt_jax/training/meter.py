"""What is measured between two log lines, and the line a person reads."""

from __future__ import annotations

import datetime
import pathlib
import resource
import sys
from typing import Any

import jax

from anygpt_jax.data.loader import Batch
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.training.flops import batch_flops, peak_flops
from anygpt_jax.training.goodput import Clock
from anygpt_jax.training.loss import LossSums
from anygpt_jax.training.metrics import mean_losses
from anygpt_jax.training.step import Metrics

STEP_PARTS = ("step", "data", "checkpoint")  # of the clock; what a step's time is made of
OF_THE_RUN = (*STEP_PARTS, "evaluation")  # what passes until the run is done
FORGETTING = 0.8  # an older log interval's weight in the rate that the ETA is made of, for each newer one


class Meter:
    """Sums over the steps since the last report. Evaluation and restoring are no part of a step's time; saving is."""

    def __init__(
        self, model: ModelConfig, devices: int, clock: Clock | None = None, share: float = 1.0, frozen: int = 0
    ):
        """`share` is the part of every global batch's rows that this process reads, `frozen` counts parameters."""
        self._frozen = frozen
        self._model, self._devices, self._clock, self._share = model, devices, clock or Clock(), share
        self._weighted_seconds, self._weighted_steps = 0.0, 0.0
        self.reset()

    def reset(self) -> None:
        """Begins a new interval; what the ETA's rate remembers of older ones stays."""
        self._sums: list[LossSums] = []
        self._grad_norms: list[float] = []
        self._skipped, self._steps, self._tokens, self._flops = 0, 0, 0, 0.0
        self._at_reset = self._clock.spent()

    def add_losses(self, metrics: Metrics) -> None:
        """Reads the metrics, which waits for the step. A step that the guard skipped is counted and has no loss."""
        if not bool(metrics.ok):
            self._skipped += 1
            return
        self._sums.append(jax.device_get(metrics.sums))
        self._grad_norms.append(float(metrics.grad_norm))

    def add(self, metrics: Metrics, batch: Batch) -> None:
        """A whole step: losses, and the throughput of `batch`, this process's rows."""
        self.add_losses(metrics)
        self._steps += 1
        self._tokens += int((batch["segment_ids"] > 0).sum())
        self._flops += batch_flops(self._model, batch, self._frozen)

    def restart_clock(self) -> None:
        """The first step, which compiles, is done: its loss counts, its time does not."""
        self._clock.steps_begin()
        self._at_reset = self._clock.spent()

    def report(self, modalities: tuple[str, ...], steps_left: int = 0) -> dict[str, Any]:
        """The measurements of a log line; tokens are those that are not padding, times are means over the steps.

        loss, grad_norm: of the steps that were not skipped; left out if all were. step_ms = compute_ms + data_ms +
        checkpoint_ms; compute is whatever is neither waiting for data nor stalled by a save. data_wait: share of the
        step's time. eta_seconds: evaluation and saving included, at a rate that forgets old intervals.
        """
        now = self._clock.spent()
        spent = {part: now[part] - self._at_reset[part] for part in OF_THE_RUN}
        seconds, steps = sum(spent[part] for part in STEP_PARTS), max(self._steps, 1)
        self._weighted_seconds = FORGETTING * self._weighted_seconds + sum(spent.values())
        self._weighted_steps = FORGETTING * self._weighted_steps + self._steps
        values: dict[str, Any] = {}
        if self._sums:
            values = mean_losses(self._sums, modalities)
            values["grad_norm"] = sum(self._grad_norms) / len(self._grad_norms)
        tokens_per_second = self._tokens / self._share / seconds
        values |= {
            "tokens_per_second": tokens_per_second,
            "tokens_per_second_per_chip": tokens_per_second / self._devices,
            "mfu": self._flops / self._share / seconds / peak_flops(self._devices)[0],
            "step_ms": 1e3 * seconds / steps,
            "compute_ms": 1e3 * spent["step"] / steps,
            "data_ms": 1e3 * spent["data"] / steps,
            "checkpoint_ms": 1e3 * spent["checkpoint"] / steps,
            "data_wait": spent["data"] / seconds,
            "memory_gib": memory_gib(),
            "skipped": self._skipped,
        }
        if self._weighted_steps:
            values["eta_seconds"] = steps_left * self._weighted_seconds / self._weighted_steps
        return values


def memory_gib() -> dict[str, float]:
    """Of this process's fullest device {"device", "device_peak", "device_limit"}; where devices do not tell {"rss"}."""
    told = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    if told:
        fullest = max(told, key=lambda stats: stats.get("peak_bytes_in_use", 0))
        names = {"device": "bytes_in_use", "device_peak": "peak_bytes_in_use", "device_limit": "bytes_limit"}
        return {name: fullest[field] / 2**30 for name, field in names.items() if field in fullest}
    return {"rss": _resident_bytes() / 2**30}


def _resident_bytes() -> int:
    try:
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:  # the peak, where the present size is not to be had
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def readable(step: int, steps: int, values: dict[str, Any], now: datetime.datetime | None = None) -> str:
    """One line that says how a run is doing. `now` is the local time."""
    parts = " ".join(f"{name} {loss:.2f}" for name, loss in values.get("loss_by_modality", {}).items())
    line = [f"step {step}/{steps}"]
    if "loss" in values:
        line += [f"loss {values['loss']:.4f} ({parts})", f"lr {values['lr']:.1e}", f"|g| {values['grad_norm']:.2f}"]
    if values["skipped"]:
        line.append(f"SKIPPED {values['skipped']} steps")
    line += [
        f"{values['tokens_per_second_per_chip']:,.0f} tok/s/chip",
        f"MFU {100 * values['mfu']:.1f} %",
        f"{_ms(values['step_ms'])} ms = {_ms(values['compute_ms'])} compute + {_ms(values['data_ms'])} data "
        f"+ {_ms(values['checkpoint_ms'])} save",
        _memory(values["memory_gib"]),
    ]
    if "eta_seconds" in values:
        line.append(eta(values["eta_seconds"], now or datetime.datetime.now()))
    return "  ".join(line)


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value < 0.05 else f"{value:.1f}"


def _memory(gib: dict[str, float]) -> str:
    if "rss" in gib:
        return f"RSS {gib['rss']:.1f} GiB"
    peak, limit = gib.get("device_peak", gib.get("device", 0.0)), gib.get("device_limit")
    return f"HBM {peak:.1f}" + (f" of {limit:.1f} GiB" if limit else " GiB")


def eta(seconds: float, now: datetime.datetime) -> str:
    """ "ETA 2 h 13 min (Tue 04:12)"; the day only if it is another than `now`'s."""
    end = now + datetime.timedelta(seconds=seconds)
    minutes = round(seconds / 60)
    days, hours = minutes // 1440, minutes // 60 % 24
    if days:
        left = f"{days} d {hours} h"
    elif hours:
        left = f"{hours} h {minutes % 60} min"
    else:
        left = f"{minutes} min" if seconds >= 60 else f"{seconds:.0f} s"
    # Beyond a week the weekday would be that of another week.
    day = "" if end.date() == now.date() else "%a " if days < 6 else "%d %b "
    return f"ETA {left} ({end.strftime(day + '%H:%M')})"
