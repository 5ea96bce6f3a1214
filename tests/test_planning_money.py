"""Money, interruptions, data and checkpoints of a plan, against closed forms, brute force and a checkpoint on disk."""

import argparse
import itertools
import math
import pathlib

import numpy as np
import pytest
import synthetic

from anygpt_jax.cache import load_vocabulary
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.sharding import MESH_AXES, make_mesh
from anygpt_jax.planning import feed, interruptions, preflight, prices, storage
from anygpt_jax.planning.accelerators import FAMILIES, Accelerator
from anygpt_jax.planning.chips import CHIPS, Topology
from anygpt_jax.planning.compile import bytes_of
from anygpt_jax.planning.estimate import Estimate, MemoryUse, Speed
from anygpt_jax.training import main as training
from anygpt_jax.training import step as train_step
from anygpt_jax.vocabulary import Vocabulary

V5P = Accelerator.parse("v5p-128")


def estimated(accelerator=V5P, step_seconds=4.0, batch=512, steps=90_000, state=96 * 10**9):
    """An estimate of round numbers: 100 hours for 90,000 steps of 4 s."""
    tokens, chips = batch * 1000, accelerator.topology.chips
    speed = Speed(
        step_seconds, 3.0, 2.5, 0.5, 0.3, 0.2, 0.4, 3.5, 1e15, 1.2e15, 0.5, 0.55, tokens / step_seconds / chips,
        tokens * steps, steps * step_seconds / 86_400, steps * step_seconds / 3600 * chips,
    )  # fmt: skip
    return Estimate(
        accelerator.topology.name, accelerator.slices, chips, {"fsdp": chips}, 8 * 10**9, batch, 1000, "full",
        MemoryUse(1, 2, 3, 4, 5, 6, 100), speed, {}, 0.0, (), "0" * 64, 1.0, False, "1.2", "", state_bytes=state,
    )  # fmt: skip


def test_a_bill_by_hand():
    """100 hours of 64 chips at 2 dollars, 96 GB of state on 16 hosts, a save every 900 steps (1 hour)."""
    assumed = preflight.Assumptions(price=2.0, preempted_every=20.0, restart_minutes=12.0, storage_rate=1e9)
    (paid,) = preflight.bills(estimated(), V5P, 900, assumed)
    assert paid.kind == "given"
    assert paid.undisturbed == pytest.approx(100 * 64 * 2)
    # 6 GB a host: 0.375 s to the host, 6 s to or from storage; each interruption costs 30 + 12 minutes and 6 s.
    stalls = 100 * 0.375
    lost = 30 * 60 + 12 * 60 + 6
    seconds = (100 * 3600 + stalls) / (1 - lost / (20 * 3600))
    assert paid.days == pytest.approx(seconds / 86_400)
    assert paid.expected == pytest.approx(seconds / 3600 * 64 * 2)
    assert paid.lost == pytest.approx(paid.expected - 12_800)
    assert paid.interruptions.count == pytest.approx(seconds / 3600 / 20)
    assert paid.interruptions.lost_share == pytest.approx(1 - 360_000 / seconds)
    assert paid.interruptions.best_interval == pytest.approx(math.sqrt(2 * 0.375 * 72_000) / 3600)
    assert paid.tokens_per_dollar == pytest.approx(512_000 * 90_000 / 12_800)


def test_list_prices_give_a_bill_each_and_an_unknown_price_none():
    on_demand, spot = preflight.bills(estimated(), V5P, 900, preflight.Assumptions())
    assert (on_demand.kind, spot.kind) == ("on demand", "spot")
    assert on_demand.undisturbed == pytest.approx(6400 * prices.PRICES["v5p"].on_demand)
    assert spot.undisturbed == pytest.approx(6400 * prices.PRICES["v5p"].spot)
    assert on_demand.interruptions.every == pytest.approx(54 * 24 * 16384 / 419 / 64)
    assert spot.interruptions.every == 24
    ironwood = Accelerator.parse("tpu7x-128")
    assert preflight.bills(estimated(ironwood), ironwood, 900, preflight.Assumptions()) == ()
    assert prices.PRICES.keys() == CHIPS.keys()


@pytest.mark.parametrize(("preempted_every", "every"), [(None, 54 * 24 * 16384 / 419 / 64), (6.0, 6.0)])
def test_a_price_of_ones_own_is_of_chips_that_stay_unless_said_otherwise(preempted_every, every):
    """A reservation's or a contract's: it fails as chips on demand do."""
    (paid,) = preflight.bills(estimated(), V5P, 900, preflight.Assumptions(price=2.0, preempted_every=preempted_every))
    assert paid.kind == "given" and paid.interruptions.every == pytest.approx(every)


def test_any_slice_interrupts_the_whole_job():
    four = Accelerator.parse("v5p-128", 4)
    _, spot = preflight.bills(estimated(four), four, 900, preflight.Assumptions(preempted_every=20))
    assert spot.interruptions.every == 5


def simulated(hours, interval, stall, restart, every, rng):
    """A run that is interrupted at random, save by save."""
    clock, done, next_one = 0.0, 0.0, rng.exponential(every)
    while done < hours:
        piece = min(interval, hours - done)
        if clock + piece + stall <= next_one:
            clock, done = clock + piece + stall, done + piece
            continue
        clock = next_one + restart  # back to the last save
        next_one = clock + rng.exponential(every)
    return clock


@pytest.mark.parametrize(
    ("interval", "stall", "restart", "every"), [(1.0, 0.01, 0.2, 24.0), (0.25, 0.01, 0.5, 10.0), (2.0, 0.0, 0.1, 50.0)]
)
def test_expected_time_is_that_of_runs_interrupted_at_random(interval, stall, restart, every):
    rng = np.random.default_rng(0)
    mean = np.mean([simulated(500.0, interval, stall, restart, every, rng) for _ in range(300)])
    found = interruptions.expected(500.0, interval, stall, 0.0, restart, every)
    lost = found.hours - 500
    assert lost == pytest.approx(mean - 500, rel=0.08)
    assert found.lost_hours == pytest.approx(lost)


def test_the_best_interval_is_where_least_is_lost():
    stall, every = 0.004, 24.0
    grid = np.geomspace(0.01, 10, 4000)
    lost = [interruptions.expected(1000, x, stall, 0, 0.1, every).hours for x in grid]
    assert grid[int(np.argmin(lost))] == pytest.approx(interruptions.best_interval(stall, every), rel=0.03)
    assert interruptions.expected(1000, 1.0, stall, write=0.7, restart=0.1, every=every).best_interval == 0.7


def test_a_run_that_loses_all_it_does_never_ends():
    found = interruptions.expected(100, interval=4.0, stall=0.0, write=0.0, restart=1.0, every=3.0)
    assert found.hours == math.inf and found.lost_share == 1.0


@pytest.mark.parametrize(
    ("sizes", "hosts"),
    [
        ((1, 1, 64, 1, 1), 16),
        ((1, 16, 16, 1, 1), 64),
        ((1, 1, 4, 1, 8), 8),
        ((1, 2, 4, 8, 1), 16),
        ((4, 2, 2, 1, 2), 8),
    ],
)
def test_rows_of_a_host_by_looking_at_every_device(sizes, hosts):
    """Devices by MESH_AXES, hosts of so many neighbours each, rows cut over slice, data and fsdp."""
    mesh = dict(zip(MESH_AXES, sizes, strict=True))
    parts = math.prod(sizes[:3])
    row_of = {n: n // math.prod(sizes[3:]) for n in range(math.prod(sizes))}
    each = math.prod(sizes) // hosts
    read = [len({row_of[n] for n in range(h * each, (h + 1) * each)}) for h in range(hosts)]
    assert len(set(read)) == 1
    assert feed.rows_a_host(6 * parts, mesh, hosts) == 6 * read[0]


def test_the_data_rate_by_hand():
    found = feed.feed(512, 4096, 2.0, {"fsdp": 64}, 16, 2.0, (4.096e7, "somewhere"))
    assert found.rows == 16 and found.tokens == 16 * 4096 and found.bytes == 16 * 8192
    assert found.reader_rows == pytest.approx(10_000) and found.cores == pytest.approx(0.0016)


def test_without_a_cache_the_benchmarks_figure_is_named(tmp_path):
    config = synthetic.config(tmp_path)
    assert feed.token_bytes(config, Vocabulary(65_536, "", 0, 1, 2, (), ())) == 2
    assert feed.token_bytes(config, Vocabulary(65_537, "", 0, 1, 2, (), ())) == 4
    rate, source = feed.reader_tokens(config, synthetic.vocabulary())
    assert rate == 28.7e6 and "reader.py" in source
    assert "28.7" in pathlib.Path("docs/data.md").read_text()


def test_the_cache_itself_is_read_and_weighed(tmp_path, monkeypatch):
    vocabulary = synthetic.write_cache(tmp_path / "cache")
    config = synthetic.config(tmp_path)
    assert load_vocabulary(tmp_path / "cache").fingerprint == vocabulary.fingerprint
    files = [p for task in synthetic.TASKS for p in (tmp_path / "cache" / task / "train").glob("*.array_record")]
    lengths = [np.load(p) for task in synthetic.TASKS for p in (tmp_path / "cache" / task / "train").glob("*.npy")]
    held = sum(map(np.sum, lengths))
    assert feed.token_bytes(config, vocabulary) == pytest.approx(sum(p.stat().st_size for p in files) / held)

    class Clock:
        """A second passes at every look at the wall clock, half a second at every look at the CPU's."""

        wall, cpu = itertools.count(0.0, 1.0), itertools.count(0.0, 0.5)
        perf_counter = staticmethod(lambda: next(Clock.wall))
        process_time = staticmethod(lambda: next(Clock.cpu))

    monkeypatch.setattr(feed, "time", Clock)
    rate, source = feed.reader_tokens(config, vocabulary, seconds=3)
    assert "measured" in source
    # Looks at 1 and 2 seconds go on, that at 3 ends: two batches of 8 rows of 64, nearly full, in half a CPU-second.
    assert 0.7 * 2 * 8 * 64 / 0.5 <= rate <= 2 * 8 * 64 / 0.5


def test_how_long_a_checkpoint_takes():
    found = storage.saving(96 * 10**9, hosts=16, slices=1, storage=2e9)
    assert (found.bytes_a_host, found.stall, found.write, found.read) == (6e9, 0.375, 3.0, 3.0)
    # Every slice has the whole state: four slices are no faster than one.
    assert storage.saving(96 * 10**9, hosts=64, slices=4, storage=2e9) == found


def test_bytes_of_a_checkpoint_are_those_on_disk(tmp_path):
    """The trainer's own, after six steps. OCDBT compresses (zstd) and adds indices: from 0.75 of the shapes' bytes to 1.02."""
    synthetic.write_cache(tmp_path / "cache")
    config = synthetic.config(tmp_path, steps=6, save_every=6)
    config.model.update(d_model=128, d_ff=256)
    training.run(config, argparse.Namespace())
    folder = tmp_path / "checkpoints" / "6"
    written = sum(
        p.stat().st_size for item in ("params", "optimizer") for p in (folder / item).rglob("*") if p.is_file()
    )
    program = train_step.build(
        ModelConfig.from_config(config.model, synthetic.vocabulary()), config.train, make_mesh({}), 3
    )
    said = sum(bytes_of(program.abstract_state[item]) for item in ("params", "optimizer"))
    assert said == pytest.approx(3 * 4 * program.parameters, rel=1e-4)
    assert 0.75 * said <= written <= 1.02 * said
    assert sum(map(bytes_of, program.abstract_state.values())) == pytest.approx(said, rel=1e-4)


@pytest.mark.parametrize("name", ["v5p-128", "v5e-256", "v6e-8", "v4-8"])
def test_neighbours_are_the_next_sizes_and_the_nearest_of_other_kinds(name):
    here = Accelerator.parse(name)
    found = here.neighbours()
    same = [a.slice_chips for a in found if a.family is here.family]
    sizes = [a.slice_chips for a in here.sizes()]
    assert same == [n for n in sizes if n < here.slice_chips][-1:] + [n for n in sizes if n > here.slice_chips][:1]
    others = [a for a in found if a.family is not here.family]
    assert {a.family.chip for a in others} == FAMILIES.keys() - {here.family.chip}

    def far(a):
        return abs(
            math.log(a.topology.devices * a.topology.chip.bf16 / here.topology.devices / here.topology.chip.bf16)
        )

    for other in others:
        assert far(other) == min(map(far, other.sizes()))


def test_a_shape_without_a_name_has_neighbours_too():
    odd = Accelerator.of(Topology.parse("v5p:4x4x12"))
    assert odd.hosts == 48
    assert [a.name for a in odd.neighbours() if a.family.chip == "v5p"] == ["v5p-256", "v5p-512"]
