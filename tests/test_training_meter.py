"""What a log line says: closed-form rates, the split of a step's time, memory, the end in sight; and when it warns."""

import datetime
import logging
import math
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic

from anygpt_jax.model.config import ModelConfig
from anygpt_jax.training.device_watch import DeviceWatch
from anygpt_jax.training.flops import batch_flops, matrix_parameters, peak_flops
from anygpt_jax.training.goodput import MEASURED, Clock
from anygpt_jax.training.loss import LossSums
from anygpt_jax.training.meter import Meter, eta, memory_gib, readable
from anygpt_jax.training.metrics import MetricsWriter
from anygpt_jax.training.starvation import StarvationWarning
from anygpt_jax.training.step import Metrics

MODEL = ModelConfig.from_config(synthetic.config("unused").model, synthetic.vocabulary())
MODALITIES = ("text", "image", "speech")


class Told(Clock):
    """A clock that is set by hand."""

    def __init__(self):
        super().__init__()
        self.at = dict.fromkeys(MEASURED, 0.0)

    def spent(self):
        return dict(self.at)


def metrics(nll, norm=1.0, ok=True):
    sums = LossSums(*(np.asarray(x, np.float32) for x in (nll, [2.0, 3.0, 0.0], [0.0, 0.0, 0.0])))
    as_int = np.int32(0)
    return Metrics(
        sums=sums, loss=np.float32(sum(nll) / 5), grad_norm=np.float32(norm), ok=np.bool_(ok), skipped=as_int, in_a_row=as_int
    )  # fmt: skip


def batch(rows=2, length=8, real=6):
    segments = np.zeros((rows, length), np.int32)
    segments[:, :real] = 1
    return {"segment_ids": segments, "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1))}


class Hands:
    """The time, moved by hand."""

    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds

    def items(self, n, seconds):
        """Items that take so long each."""
        for i in range(n):
            self.seconds += seconds
            yield i


def test_every_moment_belongs_to_one_part():
    now = Hands()
    clock = Clock(elapsed=2.0, now=now)
    now.seconds += 3
    with clock.within("restore"):
        now.seconds += 5
    clock.steps_begin()
    now.seconds += 7
    for _ in clock.waiting(now.items(2, 11)):
        with pytest.raises(ValueError), clock.within("evaluation"):  # noqa: PT011, PT012
            now.seconds += 13
            with clock.within("checkpoint"):
                now.seconds += 17
            now.seconds += 19
            raise ValueError
    spent = clock.spent()
    assert spent == {"startup": 5, "restore": 5, "step": 7, "data": 22, "evaluation": 64, "checkpoint": 34}
    assert sum(spent.values()) == 2 + now.seconds - 100


def test_waiting_is_lost_only_when_the_devices_have_nothing_to_do():
    """Batches take 6 s; the devices are at work for 0, 4 or more than 6 s of them."""
    for work, lost in ((0.0, 6.0), (4.0, 2.0), (10.0, 0.0)):
        now = Hands()
        clock = Clock(now=now)
        clock.steps_begin()
        done = [now()]

        def idle_since(done=done, now=now):
            return done[0] if done[0] <= now() else None

        for _ in clock.waiting(now.items(4, 6.0), idle_since):
            done[0] = now() + work
        spent = clock.spent()
        # The first batch is waited for with idle devices.
        assert spent["data"] == pytest.approx(6.0 + 3 * lost)
        assert spent["data"] + spent["step"] == pytest.approx(24.0)


def test_waiting_before_the_first_step_is_startup():
    now = Hands()
    clock = Clock(now=now)
    assert list(clock.waiting(now.items(2, 3))) == [0, 1]
    assert clock.spent()["startup"] == 6
    assert clock.spent()["data"] == 0


def test_the_watch_knows_when_the_devices_are_done():
    watch = DeviceWatch()
    assert watch.idle_since() <= time.perf_counter()
    square = jax.jit(lambda x: jax.lax.fori_loop(0, 60, lambda _, y: jnp.tanh(y @ y), x))
    x = jnp.full((400, 400), 1e-3)
    square(x).block_until_ready()
    began = time.perf_counter()
    watch.given(square(x))
    square(x).block_until_ready()
    until = time.monotonic() + 10
    while watch.idle_since() is None and time.monotonic() < until:
        time.sleep(0.001)
    assert began < watch.idle_since() < time.perf_counter()
    watch.close()
    assert not watch._thread.is_alive()


def test_rates_and_the_split_of_a_steps_time_in_closed_form():
    clock = Told()
    meter = Meter(MODEL, devices=4, clock=clock, share=0.5)
    meter.add(metrics([2.0, 6.0, 0.0], norm=1.0), batch())
    meter.add(metrics([4.0, 9.0, 0.0], norm=3.0), batch())
    clock.at |= {"step": 1.5, "data": 0.3, "checkpoint": 0.2, "evaluation": 2.0, "startup": 9.0, "restore": 5.0}
    values = meter.report(MODALITIES, steps_left=10)
    assert values["loss"] == pytest.approx(21 / 10)
    assert values["loss_by_modality"] == pytest.approx({"text": 1.5, "image": 2.5})
    assert values["grad_norm"] == pytest.approx(2.0)
    # 2 steps of 12 tokens here, twice as many in all, in 2 s; and a quarter of it a chip.
    assert values["tokens_per_second"] == pytest.approx(24.0)
    assert values["tokens_per_second_per_chip"] == pytest.approx(6.0)
    assert values["mfu"] == pytest.approx(2 * 2 * batch_flops(MODEL, batch()) / 2.0 / peak_flops(4)[0])
    times = [values[name] for name in ("step_ms", "compute_ms", "data_ms", "checkpoint_ms")]
    assert times == pytest.approx([1000, 750, 150, 100])
    assert values["data_wait"] == pytest.approx(0.15)
    assert values["eta_seconds"] == pytest.approx(10 * 4.0 / 2)  # evaluation is waited for, too
    assert values["skipped"] == 0
    meter.reset()
    meter.add(metrics([2.0, 6.0, 0.0]), batch())
    clock.at |= {"step": 2.5}
    values = meter.report(MODALITIES, steps_left=8)
    assert values["step_ms"] == pytest.approx(1000)
    assert values["data_wait"] == 0
    assert values["eta_seconds"] == pytest.approx(8 * (0.8 * 4.0 + 1.0) / (0.8 * 2 + 1))


def test_a_skipped_step_is_counted_and_poisons_nothing():
    clock = Told()
    meter = Meter(MODEL, 1, clock)
    meter.add(metrics([math.nan, 1.0, 0.0], norm=math.inf, ok=False), batch())
    clock.at["step"] = 1.0
    values = meter.report(MODALITIES)
    assert values["skipped"] == 1
    assert "loss" not in values
    assert "loss" not in readable(1, 9, values)
    assert "SKIPPED 1 steps" in readable(1, 9, values)
    meter.add(metrics([2.0, 6.0, 0.0], norm=4.0), batch())
    values = meter.report(MODALITIES)
    assert (values["skipped"], values["grad_norm"]) == (1, 4.0)
    assert values["loss"] == pytest.approx(8 / 5)
    assert values["tokens_per_second"] == pytest.approx(24.0)


def test_memory_is_the_processs_where_devices_do_not_tell():
    found = memory_gib()
    assert set(found) == {"rss"}
    status = pathlib.Path("/proc/self/status").read_text()
    kib = int(status.partition("VmRSS:")[2].split()[0])
    assert found["rss"] == pytest.approx(kib / 2**20, rel=0.05)


def line_values(**more):
    return {
        "loss": 2.123456, "loss_by_modality": {"text": 2.1, "image": 5.123, "speech": 4.1234, "music": 4.9}, "lr": 5.83e-5,
        "grad_norm": 0.8211, "tokens_per_second": 1e6, "tokens_per_second_per_chip": 9120.4, "mfu": 0.5521, "step_ms": 2612.0,
        "compute_ms": 2580.0, "data_ms": 8.04, "checkpoint_ms": 24.2, "data_wait": 0.003, "skipped": 0,
        "memory_gib": {"device": 9.0, "device_peak": 12.12, "device_limit": 15.7}, "eta_seconds": 90_000.0,
    } | more  # fmt: skip


def test_the_line_of_a_large_run_fits_a_terminal():
    now = datetime.datetime(2026, 11, 24, 3, 12)  # a Tuesday
    line = readable(12_350, 81_000, line_values(skipped=2), now)
    assert line == (
        "step 12350/81000  loss 2.1235 (text 2.10 image 5.12 speech 4.12 music 4.90)  lr 5.8e-05  |g| 0.82  "
        "SKIPPED 2 steps  9,120 tok/s/chip  MFU 55.2 %  2,612 ms = 2,580 compute + 8.0 data + 24 save  "
        "HBM 12.1 of 15.7 GiB  ETA 1 d 1 h (Wed 04:12)"
    )
    assert len(line) < 250
    short = readable(
        50, 3500, line_values(memory_gib={"rss": 0.84}, eta_seconds=65.0, step_ms=160.0, compute_ms=150.0), now
    )
    assert len(short) < 200
    assert short.endswith("RSS 0.8 GiB  ETA 1 min (03:13)")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "ETA 0 s (23:30)"), (59, "ETA 59 s (23:30)"), (1500, "ETA 25 min (23:55)"), (7200, "ETA 2 h 0 min (Wed 01:30)"),
        (10 * 86400 + 3600, "ETA 10 d 1 h (05 Dec 00:30)"),
    ],
)  # fmt: skip
def test_the_end_is_named_by_the_clock_on_the_wall(seconds, said):
    assert eta(seconds, datetime.datetime(2026, 11, 24, 23, 30)) == said


def test_starvation_is_warned_of_once_then_when_it_is_worse_or_back(caplog):
    warning = StarvationWarning(0.1)
    with caplog.at_level(logging.WARNING):
        said = [
            warning.see(share, 50 * i)
            for i, share in enumerate([0.02, 0.1, 0.2, 0.25, 0.19, 0.31, 0.4, 0.08, 0.3, 0.04, 0.2])
        ]
    assert said == [False, False, True, False, False, True, False, False, False, False, True]
    assert len(caplog.records) == 3
    assert "20 % of the time" in caplog.records[0].getMessage()
    assert "put the cache on a local disk" in caplog.records[0].getMessage()
    never = StarvationWarning(0.0)
    assert not never.see(0.9, 1)


def test_the_log_can_be_taken_back_for_a_rollback(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    for step in (4, 8, 12):
        writer.write(step, "train", {"loss": 1.0, "loss_by_task": {"a": {"loss": 1.0, "text": 2.0}}})
    writer.rewind(4)
    writer.write(8, "train", {"loss": 2.0})
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2
    assert '"step": 8, "split": "train", "loss": 2.0' in (tmp_path / "metrics.jsonl").read_text()


def test_a_frozen_parameter_has_no_gradient_to_compute():
    one, tokens = batch(), float((batch()["segment_ids"] > 0).sum())
    assert batch_flops(MODEL, one) - batch_flops(MODEL, one, frozen=100) == pytest.approx(2 * 100 * tokens)
    assert batch_flops(MODEL, one, frozen=10**9) == batch_flops(MODEL, one, frozen=matrix_parameters(MODEL))
