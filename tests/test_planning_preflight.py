"""The preflight page and its flags, on estimates that nothing was compiled for."""

import argparse
import dataclasses
import json
import math

import pytest
import synthetic

from anygpt_jax import cli
from anygpt_jax.errors import UserError
from anygpt_jax.model.remat import POLICIES
from anygpt_jax.model.sharding import BATCH_AXES
from anygpt_jax.planning import estimate, main, page, sweep, variants
from anygpt_jax.planning.accelerators import Accelerator
from anygpt_jax.planning.chips import Topology
from anygpt_jax.training.checks import config_problems


def made(topology, config, fits=True, tokens=8000.0):
    """What `plan` would return, without compiling: 4 s a step."""
    axes = main.mesh_axes(config.mesh, topology)
    chip, train = topology.chip, config.train
    speed = estimate.Speed(
        4.0, 3.0, 2.5, 0.5, 0.3, 0.2, 0.4, 3.5, 1e15, 1.2e15, 0.5, 0.55, tokens, train.batch_size * train.seq_len * train.steps,
        train.steps * 4 / 86_400, train.steps * 4 / 3600 * topology.chips,
    )  # fmt: skip
    used = chip.hbm // 2 if fits else 2 * chip.hbm
    return estimate.Estimate(
        topology.name, topology.slices, topology.chips, axes, 7 * 10**9, train.batch_size, train.seq_len, config.model.remat,
        estimate.MemoryUse(used, 0, 0, 0, 0, 0, chip.hbm), speed if fits else None, {"entry": {}}, 0.0, (), "f" * 64, 1.0,
        True, "1.2", "" if fits else "too much", train.microbatches, "none", 84 * 10**9,
    )  # fmt: skip


def settings(tmp_path, **train):
    config = synthetic.config(
        tmp_path, **{"batch_size": 512, "seq_len": 256, "steps": 90_000, "save_every": 900} | train
    )
    config.mesh = {"fsdp": 64}
    config.model.remat = "minimal"
    return config


def run(config, monkeypatch, *flags, plan=None):
    """`anygpt plan` with these flags; returns what was planned."""
    seen = []

    def planned(config, vocabulary, topology, cache):
        seen.append((topology, config))
        return (plan or made)(topology, config)

    monkeypatch.setattr(main, "compiler_version", lambda: "1.2")
    monkeypatch.setattr(main, "plan", planned)
    parser = argparse.ArgumentParser()
    main.add_arguments(parser)
    main.run(config, parser.parse_args(["--vocab-size=64", *flags]))
    return seen


def test_the_page_has_every_part_with_its_unit_and_source(tmp_path, monkeypatch, capsys):
    run(settings(tmp_path), monkeypatch, "--accelerator=v5p-128", f"--json={tmp_path / 'plan.json'}")
    text = capsys.readouterr().out
    for words in (
        "v5p-128, v5p:4x4x4 × 1 (64 chips)", "FITS", "GiB", "MFU", "days", "chip-hours",
        "on demand, 4.20 USD/chip-hour (list price read 2026-11-30", "26,880 USD",  # 100 h × 64 × 4.20
        "spot, 0.84 USD/chip-hour", "M tokens/USD", "lost to saving and interruptions", "saving every 60 min",
        "a failure every 50,677 chip-hours", "arXiv 2407.21783", "every 24 h (assumed; --preempted-every)",
        "back after 10 min (assumed; --restart-minutes)",
        "each of 16 hosts", "8.00 rows/s", "2,048 tokens/s", "MB/s of token records", "reader.py", "of a core",
        "every 900 steps", "78.23 GiB before compression", "at 16 GB/s from the chips", "at 1 GB/s a host (assumed; --storage-gbps)",
        "± 10 points",
    ):  # fmt: skip
        assert words in text, words
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["accelerator"] == "v5p-128"
    assert written["preflight"]["bills"][0]["undisturbed"] == pytest.approx(100 * 64 * 4.2)
    assert written["preflight"]["saving"]["bytes"] == 84 * 10**9


def test_assumptions_are_settable(tmp_path, monkeypatch, capsys):
    flags = ("--price=1.5", "--preempted-every=6", "--restart-minutes=30", "--storage-gbps=0.25")
    run(settings(tmp_path), monkeypatch, "--topology=v5p:4x4x4", *flags)
    text = capsys.readouterr().out
    for words in (
        "given, 1.50 USD/chip-hour (--price): 9,600 USD",
        "every 6 h",
        "back after 30 min",
        "0.25 GB/s a host",
    ):
        assert words in text, words
    assert "on demand" not in text and "spot" not in text
    run(settings(tmp_path), monkeypatch, "--topology=v5p:4x4x4", "--price=1.5")
    assert "given: a failure every 50,677 chip-hours" in capsys.readouterr().out
    run(
        settings(tmp_path),
        monkeypatch,
        "--topology=v5p:4x4x4",
        "--price=1",
        "--preempted-every=0.5",
        f"--json={tmp_path / 'j'}",
    )
    assert "it never ends" in capsys.readouterr().out
    assert json.loads((tmp_path / "j").read_text())["preflight"]["bills"][0]["expected"] is None


def test_a_step_that_takes_more_than_a_thread_reads_is_said_to_wait(tmp_path, monkeypatch, capsys):
    for step_seconds, waits in ((4.0, False), (1e-4, True)):

        def plan(topology, config, seconds=step_seconds):
            e = made(topology, config)
            return dataclasses.replace(e, speed=dataclasses.replace(e.speed, step_seconds=seconds))

        run(settings(tmp_path), monkeypatch, "--accelerator=v5p-128", plan=plan)
        assert ("training will wait for data" in capsys.readouterr().out) == waits


def test_a_chip_without_a_price_says_so(tmp_path, monkeypatch, capsys):
    config = settings(tmp_path)
    config.mesh = {"fsdp": 128}
    run(config, monkeypatch, "--accelerator=tpu7x-128")
    assert "no public price of this chip; say one with --price" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--accelerator=v5p-100"], "no v5p-100"),
        (["--accelerator=h100-8"], "Unknown accelerator"),
        (["--accelerator=v5p-128", "--accelerator=v5e-256"], "Several --accelerator are for --sweep"),
        (["--accelerator=v5p-128", "--sweep", "--neighbours"], "--neighbours is of one config"),
        (["--accelerator=v5p-128", "--slices=0"], "--slices 0"),
        (["--accelerator=v5p-128", "--price=0"], "--price 0 must be above 0"),
        (["--accelerator=v5p-128", "--price=nan"], "--price nan"),
        (["--accelerator=v5p-128", "--preempted-every=-1"], "--preempted-every -1"),
        (["--accelerator=v5p-128", "--storage-gbps=0"], "--storage-gbps 0"),
        (["--accelerator=v5p-128", "--restart-minutes=-1"], "--restart-minutes -1"),
    ],
)  # fmt: skip
def test_mistaken_flags_are_refused_in_a_sentence(flags, message, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=message):
        run(settings(tmp_path), monkeypatch, *flags)


@pytest.mark.parametrize(
    "flags", [[], ["--accelerator=v5p-128", "--topology=v5p:4x4x4"], ["--accelerator=v5p-128", "--price=x"]]
)
def test_one_of_accelerator_and_topology(flags, capsys):
    with pytest.raises(SystemExit):
        cli.main(["plan", "--config=configs/quickstart.py", *flags])
    assert "usage" in capsys.readouterr().err


def test_what_does_not_fit_is_tried_lighter_until_it_does(tmp_path, monkeypatch, capsys):
    """In a device's memory: rows at once, and what a policy keeps of them."""
    order = {name: i for i, name in enumerate(variants.BY_MEMORY)}

    def plan(topology, config):
        need = 512 / 64 / config.train.microbatches * (1 + order[config.model.remat])
        return made(topology, config, fits=need <= 8)

    seen = run(settings(tmp_path), monkeypatch, "--accelerator=v5p-128", f"--json={tmp_path / 'j'}", plan=plan)
    text = capsys.readouterr().out
    assert "DOES NOT FIT" in text and "Money" not in text
    tried = [(c.train.microbatches, c.model.remat) for _, c in seen]
    assert tried == [(1, "minimal"), (2, "minimal"), (2, "all_but_mlp"), (2, "attention")]
    assert "not  --config.train.microbatches=2\n" in text
    assert "fits --config.train.microbatches=2 --config.model.remat=attention: " in text
    fitting = json.loads((tmp_path / "j").read_text())["fitting"]
    assert fitting["settings"] == "--config.train.microbatches=2 --config.model.remat=attention"
    assert len(fitting["tried"]) == 2


def test_if_nothing_lighter_fits_larger_slices_are_tried(tmp_path, monkeypatch, capsys):
    seen = run(
        settings(tmp_path), monkeypatch, "--accelerator=v5p-128", plan=lambda t, c: made(t, c, fits=t.chips >= 256)
    )
    assert [t.chips for t, _ in seen[-2:]] == [128, 256]
    assert "fits --accelerator=v5p-512" in capsys.readouterr().out
    run(settings(tmp_path), monkeypatch, "--accelerator=v5p-128", plan=lambda t, c: made(t, c, fits=False))
    assert "nothing that was tried" in capsys.readouterr().out


def test_lighter_settings_are_ones_that_a_run_takes(tmp_path):
    """Each differs from the one before, and none is refused by the trainer's own checks."""
    config = settings(tmp_path)
    mesh = {"slice": 1, "data": 1, "fsdp": 64, "context": 1, "tensor": 1}
    config.model.update(d_model=128)
    found = list(variants.lighter(config, mesh))
    assert [text for text, _ in found][-1] == (
        "--config.train.microbatches=8 --config.model.remat=full --config.train.loss_chunks=16"
    )
    assert len({json.dumps(c.to_dict(), default=str) for _, c in found}) == len(found) == 6
    for _, changed in found:
        assert config_problems(changed, synthetic.vocabulary(), 64) == []
    assert (config.model.remat, config.train.microbatches) == ("minimal", 1)  # the caller's is as it was
    offloading = {name for name in POLICIES if name.startswith("offload")}
    assert set(variants.BY_MEMORY) == POLICIES.keys() - offloading
    config.train.update(microbatches=8, loss_chunks=16)
    config.model.remat = "full"
    assert list(variants.lighter(config, mesh)) == []


@pytest.mark.parametrize(
    ("name", "slices", "batch", "expected"),
    [
        ("v5p-128", 1, 512, {"fsdp": 64}),
        ("v5p-128", 1, 480, {"fsdp": 32, "context": 2}),  # 480 rows do not divide over 64
        ("v5e-256", 1, 512, {"data": 16, "fsdp": 16}),
        ("v5e-256", 4, 1024, {"slice": 4, "data": 16, "fsdp": 16}),
        ("v5e-256", 4, 512, {"slice": 4, "data": 8, "fsdp": 16, "context": 2}),
        ("v5e-64", 1, 512, {"fsdp": 64}),  # no ring closes below 16
        ("tpu7x-128", 1, 512, {"fsdp": 128}),
    ],
)
def test_meshes_elsewhere(name, slices, batch, expected):
    topology = Accelerator.parse(name, slices).topology
    axes = variants.mesh_for(topology, batch)
    assert {axis: n for axis, n in axes.items() if n > 1} == expected
    assert math.prod(axes.values()) == topology.devices
    assert batch % math.prod(axes[axis] for axis in BATCH_AXES) == 0


def test_rows_that_divide_over_no_mesh_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"divides train\.batch_size=6; try a multiple of 1024"):
        variants.mesh_for(Accelerator.parse("v5e-256", 4).topology, 6)


def test_elsewhere_as_many_rows_are_in_memory_as_the_memory_allows(tmp_path):
    config = settings(tmp_path, microbatches=2)
    here = Topology.parse("v5p:4x4x4")
    mesh = main.mesh_axes(config.mesh, here)
    for there, parts in (
        (Topology.parse("v5p:4x4x8"), 1),
        (Topology.parse("v5p:2x4x4"), 4),
        (Topology.parse("v5e:16x16"), 2),
    ):
        changed = variants.on(config, mesh, here, there)
        assert changed.train.microbatches == parts, there
        rows = variants.rows_a_device(changed, changed.mesh)
        assert rows <= max(1, 4 * there.chip.hbm / here.chip.hbm)
    assert config.train.microbatches == 2


def test_neighbours_are_planned_with_their_money(tmp_path, monkeypatch, capsys):
    def plan(topology, config):
        if topology.chip.name == "v4":
            raise UserError("The compiler knows no such slice.")
        return made(topology, config, fits=topology.chip.name != "v6e")

    seen = run(
        settings(tmp_path), monkeypatch, "--accelerator=v5p-128", "--neighbours", f"--json={tmp_path / 'j'}", plan=plan
    )
    lines = capsys.readouterr().out.partition("The same elsewhere:")[2].splitlines()[2:-1]
    names = [line.split()[0] for line in lines]
    assert names == [a.name for a in (Accelerator.parse("v5p-128"), *Accelerator.parse("v5p-128").neighbours())]
    assert len(seen) == len(names)
    by_name = dict(zip(names, lines, strict=True))
    assert "no such slice" in by_name["v4-256"] and "does not fit" in by_name["v6e-32"]
    assert " - " in by_name["tpu7x-32"]  # no price
    # 100 hours of 128 chips of 4.20 dollars, and what interruptions add to that.
    assert 53.8 < float(by_name["v5p-256"].split()[8].replace(",", "")) < 55
    assert len(json.loads((tmp_path / "j").read_text())["neighbours"]) == 7


def test_a_sweep_over_kinds_ranks_by_tokens_a_dollar(tmp_path, monkeypatch, capsys):
    """The slowest chip of all is the cheapest a token; with one price for all the fastest leads."""
    tokens = {"v5p": 9000.0, "v5e": 3700.0, "v6e": 8000.0}

    def plan(topology, config):
        return made(topology, config, tokens=tokens[topology.chip.name])

    flags = [f"--accelerator={name}" for name in ("v5p-128", "v5e-64", "v6e-64")]
    flags += ["--sweep", "--sweep-mesh=fsdp=64", "--sweep-rows", "1", "--sweep-remat", "full"]
    run(settings(tmp_path), monkeypatch, *flags, f"--json={tmp_path / 'j'}", plan=plan)
    order = [e["topology"][:3] for e in json.loads((tmp_path / "j").read_text())]
    assert order == ["v5e", "v6e", "v5p"]
    assert "11.10" in capsys.readouterr().out.splitlines()[1]  # 3700 tokens × 3600 s / 1.20 dollars
    run(settings(tmp_path), monkeypatch, *flags, "--price=3", f"--json={tmp_path / 'j'}", plan=plan)
    assert [e["topology"][:3] for e in json.loads((tmp_path / "j").read_text())] == ["v5p", "v6e", "v5e"]


def test_a_candidate_that_no_run_takes_does_not_end_the_sweep(tmp_path, monkeypatch, capsys):
    """With two microbatches a row a device is too few, and two are enough."""

    def plan(topology, config):
        if config.train.batch_size < 128:
            raise UserError("train.batch_size=64 must be a multiple of 128.")
        return made(topology, config)

    config = settings(tmp_path, microbatches=2)
    flags = ["--accelerator=v5p-128", "--sweep", "--sweep-mesh=fsdp=64", "--sweep-remat", "full", "--sweep-rows", "1"]
    run(config, monkeypatch, *flags, "2", plan=plan)
    _, row, refused = capsys.readouterr().out.splitlines()
    assert row.endswith("batch 128")
    assert (
        refused == "not taken: v5p-128, fsdp=64, remat full, batch 64: train.batch_size=64 must be a multiple of 128."
    )
    with pytest.raises(UserError, match=r"(?s)No run takes any of these:.*batch 64: train.batch_size=64 must be"):
        run(config, monkeypatch, *flags, plan=plan)


def test_a_chip_without_a_price_is_ranked_after_those_with_one(tmp_path):
    config = settings(tmp_path)
    fast = made(Topology.parse("tpu7x:4x4x2"), config, tokens=20_000.0)
    slow, out = made(Topology.parse("v5p:4x4x4"), config), made(Topology.parse("v5p:4x4x4"), config, fits=False)
    assert sorted([out, fast, slow], key=sweep.rank) == [slow, fast, out]
    assert page.table([slow, fast]).splitlines()[2].split()[0] == "-"


def test_a_mesh_of_another_slice_is_refused_with_one_that_would_do(tmp_path, monkeypatch):
    config = settings(tmp_path, batch_size=480)
    config.mesh = {"fsdp": 32}
    vocabulary = synthetic.vocabulary()
    with pytest.raises(UserError, match=r"For example: --config.mesh.context=2\."):
        main.plan(config, vocabulary, Topology.parse("v5p:4x4x4"), None)
    config.train.batch_size = 4
    with pytest.raises(UserError, match=r"divides train\.batch_size=4; try a multiple of 64"):
        main.plan(config, vocabulary, Topology.parse("v5p:4x4x4"), None)
