"""What a plan says, against closed forms; what it refuses; how a sweep ranks."""

import argparse
import dataclasses
import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
import synthetic

from anygpt_jax import cli
from anygpt_jax.errors import UserError
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.planning import compile as planning_compile
from anygpt_jax.planning import estimate, hlo, main, page, sweep
from anygpt_jax.planning.chips import GIB, Topology
from anygpt_jax.planning.compile import Compiled, Memory, mesh_axes
from anygpt_jax.planning.timeline import Breakdown
from anygpt_jax.training.flops import batch_flops

TINY = ModelConfig(
    vocab_size=96, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=48, compute_dtype="bfloat16"
)
V5P = Topology.parse("v5p:4x4x4")
SPENT = Breakdown(
    matmul=2.0, attention=0.3, elementwise=0.15, exposed=0.05, matmul_roofline=1.5, collectives=0.1,
    matmul_flops=6e14, attention_flops=8e13,
)  # fmt: skip


def compiled(**changes):
    values = {
        "key": "0123456789abcdef00", "text": "", "memory": Memory(700, 650, 600, 400, 50), "refused": "",
        "seconds": 3.0, "from_cache": False, "parameters": 1000, "state": {"params": 200, "optimizer": 400},
    }  # fmt: skip
    return Compiled(**values | changes)


def test_model_flops_are_those_of_training_on_full_rows():
    rows, length = 3, 16
    batch = {
        "segment_ids": np.ones((rows, length), np.int32),
        "positions": np.tile(np.arange(length), (rows, 1)),
    }
    assert estimate.model_flops(TINY, rows * length, length) == pytest.approx(batch_flops(TINY, batch))


def test_model_flops_by_counting_every_product():
    """Forward: two FLOPs a multiply-add; backward twice as many."""
    tokens, length = 32, 16
    D, H, G, K, F, V = 32, 4, 2, 8, 48, 96
    products = [(D, H * K), (D, G * K), (D, G * K), (H * K, D), (D, F), (D, F), (F, D)] * 2 + [(D, V)]
    pairs = sum(query + 1 for query in range(length)) * (tokens // length)
    forward = sum(2 * tokens * a * b for a, b in products) + 2 * pairs * H * (2 * K + 2 * K)
    assert estimate.model_flops(TINY, tokens, length) == 3 * forward
    assert estimate.model_flops(TINY, tokens, length, causal=False) - 3 * forward == 3 * 2 * H * 4 * K * (
        tokens * length - pairs
    )


def test_speed_follows_from_the_breakdown():
    speed = estimate.speed_of(SPENT, TINY, V5P, 64, 128, steps=1000)
    assert speed.step_seconds == pytest.approx(2.5)
    assert speed.tokens == 64 * 128 * 1000
    assert speed.tokens_per_second_per_chip == pytest.approx(64 * 128 / 2.5 / 64)
    assert speed.days == pytest.approx(2500 / 86400)
    assert speed.chip_hours == pytest.approx(64 * 2500 / 3600)
    assert speed.mfu == pytest.approx(estimate.model_flops(TINY, 64 * 128, 128) / (64 * 459e12 * 2.5))
    assert speed.hardware_flops == pytest.approx(64 * 6.8e14)
    assert speed.roofline_seconds == pytest.approx(1.5 + 8e13 / 459e12 + 0.135)
    assert speed.mfu < speed.mfu_full_attention


def test_a_chip_of_two_devices_is_one_chip():
    ironwood = Topology.parse("tpu7x:2x2x1")
    speed = estimate.speed_of(SPENT, TINY, ironwood, 64, 128, steps=1000)
    assert speed.tokens_per_second_per_chip == pytest.approx(64 * 128 / 2.5 / 4)
    assert speed.chip_hours == pytest.approx(4 * 2500 / 3600)
    assert speed.mfu == pytest.approx(estimate.model_flops(TINY, 64 * 128, 128) / (4 * 2307e12 * 2.5))


LOOP = """
%cond (t: (s32[], bf16[4,8,16], f32[4,100])) -> pred[] {
  %t = (s32[], bf16[4,8,16]{2,1,0}, f32[4,100]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %n = s32[] constant(4)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%body (u: (s32[], bf16[4,8,16], f32[4,100])) -> (s32[], bf16[4,8,16], f32[4,100]) {
  ROOT %u = (s32[], bf16[4,8,16]{2,1,0}, f32[4,100]{1,0}) parameter(0)
}

ENTRY %main (w: f32[4,100], i: s32[]) -> s32[] {
  %w = f32[4,100]{1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  %moved = f32[4,100]{1,0} copy(%w)
  %kept = bf16[4,8,16]{2,1,0} custom-call(), custom_call_target="AllocateBuffer"
  %fast = bf16[4,8,16]{2,1,0:S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %t.1 = (s32[], bf16[4,8,16]{2,1,0}, f32[4,100]{1,0}, bf16[4,8,16]{2,1,0:S(1)}) tuple(%i.1, %kept, %w, %fast)
  %forward = (s32[], bf16[4,8,16]{2,1,0}, f32[4,100]{1,0}) while(%t.1), condition=%cond, body=%body, metadata={op_name="jit(step)/jvp()/while"}
  %gradients = f32[4,100]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %t.2 = (s32[], f32[4,100]{1,0}) tuple(%i.1, %gradients)
  %backward = (s32[], f32[4,100]{1,0}) while(%t.2), condition=%cond, body=%body, metadata={op_name="jit(step)/transpose(jvp())/while"}
  ROOT %r = s32[] get-tuple-element(%backward), index=0
}
"""


def test_memory_by_kind():
    """Activations are the forward loop's own buffers in HBM: not the weights, not VMEM, not the gradients."""
    module = hlo.parse(LOOP)
    assert estimate.saved_activations(module) == 2 * 4 * 8 * 16
    memory = estimate.memory_of(compiled(memory=Memory(700, 650, 600, 5000, 50)), module, V5P)
    assert (memory.parameters, memory.optimizer, memory.batch) == (200, 400, 150)
    assert (memory.activations, memory.temporaries, memory.program) == (1024, 5000 - 1024, 50)
    assert memory.total == 700 + 650 - 600 + 5000 + 50 and memory.fits
    assert not dataclasses.replace(memory, limit=memory.total - 1).fits


def test_what_the_compiler_refuses_does_not_fit():
    refused = compiled(refused="RESOURCE_EXHAUSTED: …", memory=Memory(temporaries=200 * GIB))
    planned = estimate.estimate(refused, TINY, V5P, {"fsdp": 64}, 64, 128, 10, "1.2")
    assert not planned.fits and planned.speed is None
    assert planned.memory.total == 200 * GIB
    assert "DOES NOT FIT" in page.page(planned)
    assert json.loads(json.dumps(main.as_json(planned)))["fits"] is False


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        ("RESOURCE_EXHAUSTED: … Used 19.50G of 15.75G hbm. Exceeded", 19.5 * GIB),
        ("… required for HLO temporaries (300.00G) exceeds available HBM (15.75G).", 300 * GIB),
        ("something else", 0),
    ],
)
def test_how_much_was_needed(message, needed):
    assert planning_compile._needed(message) == needed


def planned(**changes):
    made = estimate.estimate(compiled(text=LOOP), TINY, V5P, {"fsdp": 64}, 64, 128, 1000, "1.2")
    return dataclasses.replace(made, **{"speed": estimate.speed_of(SPENT, TINY, V5P, 64, 128, 1000)} | changes)


def test_the_page_and_the_json_say_everything():
    e = planned()
    text = page.page(e)
    for word in (
        "v5p:4x4x4", "fsdp=64", "FITS", "optimizer", "activations", "temporaries", "exposed collectives", "MFU",
        "tokens/s/chip", "days", "chip-hours", "6 FLOPs a token", "Not in the step", "MaxText", "libtpu 1.2",
    ):  # fmt: skip
        assert word in text
    written = json.loads(json.dumps(main.as_json(e)))
    assert written["fits"] and written["memory"]["total"] == e.memory.total
    assert written["speed"]["step_seconds"] == pytest.approx(2.5)
    assert {"flops_convention", "assumptions", "omitted", "published", "collectives"} <= set(written)


def test_warnings_name_what_is_wrong():
    speed = estimate.speed_of(SPENT, TINY, V5P, 64, 128, 1000)
    assert estimate.warnings_of(SPENT, speed) == ()
    bad = dataclasses.replace(
        SPENT, attention=0.0, exposed=1.0, unknown_loops=1, uncosted_products=7, dcn_bytes_in_loops=2**21
    )
    found = estimate.warnings_of(bad, estimate.speed_of(bad, TINY, V5P, 64, 128, 1000))
    for words, warning in zip(("unknown length", "7 matrix", "model.attention", "2.0 MiB", "32%"), found, strict=True):
        assert words in warning


@pytest.mark.parametrize(
    ("mesh", "slices", "expected"),
    [
        ({"data": 1, "fsdp": 1, "tensor": 1}, 1, {"fsdp": 64}),  # a laptop's mesh: all of the slice is FSDP
        ({}, 2, {"slice": 2, "fsdp": 64}),
        ({"fsdp": 16, "tensor": 4}, 1, {"fsdp": 16, "tensor": 4}),
        ({"slice": 2, "data": 2, "fsdp": 32}, 2, {"slice": 2, "data": 2, "fsdp": 32}),
    ],
)
def test_meshes(mesh, slices, expected):
    axes = mesh_axes(mesh, Topology.parse("v5p:4x4x4", slices))
    assert {axis: n for axis, n in axes.items() if n > 1} == expected


@pytest.mark.parametrize(("mesh", "slices"), [({"fsdp": 32}, 1), ({"fsdp": 128}, 2), ({"slice": 2, "fsdp": 32}, 1)])
def test_meshes_of_another_size_are_refused(mesh, slices):
    with pytest.raises(UserError, match=r"config.mesh \(.*fsdp.*v5p:4x4x4 × .*--config.mesh"):
        mesh_axes(mesh, Topology.parse("v5p:4x4x4", slices))


def test_candidates_keep_the_rows_of_a_device():
    topology = Topology.parse("v5p:4x4x4", 2)
    meshes = sweep.default_meshes(topology)
    assert all(np.prod(list(mesh.values())) == 128 and mesh["slice"] == 2 for mesh in meshes)
    groups = list(sweep.candidates(meshes, ["full", "minimal"], [4, 1]))
    assert len(groups) == 2 * len(meshes)
    assert [c.rows for c in groups[0]] == [1, 4]
    assert [c.batch_size for c in groups[0]] == [128, 512]
    assert next(iter(sweep.candidates([{"fsdp": 16, "tensor": 4}], ["full"], [2])))[0].batch_size == 32


def test_a_sweep_ranks_what_fits_and_stops_where_nothing_does():
    seen = []

    def plan(candidate):
        seen.append((candidate.remat, candidate.rows))
        fits = candidate.rows <= (2 if candidate.remat == "minimal" else 8)
        speed = dataclasses.replace(
            estimate.speed_of(SPENT, TINY, V5P, 64, 128, 1),
            tokens_per_second_per_chip=candidate.rows * (3.0 if candidate.remat == "minimal" else 1.0),
        )
        return planned(speed=speed, refused="" if fits else "too much", remat=candidate.remat)

    found, refused = sweep.sweep(sweep.candidates([{"fsdp": 64}], ["minimal", "full"], [1, 2, 4, 8]), plan)
    assert not refused
    assert seen == [("minimal", 1), ("minimal", 2), ("minimal", 4), *[("full", n) for n in (1, 2, 4, 8)]]
    speeds = [e.speed.tokens_per_second_per_chip for e in found]
    assert speeds[:-1] == [8.0, 6.0, 4.0, 3.0, 2.0, 1.0]
    assert not found[-1].fits
    assert page.table(found).count("\n") == len(found)
    assert "does not fit" in page.table(found).splitlines()[-1]


def test_sweep_meshes_are_read():
    assert sweep.parse_mesh("fsdp=16,tensor=4") == {"fsdp": 16, "tensor": 4}
    for wrong in ("fsdp", "fsdp=x", "pipeline=2", "fsdp=0", ""):
        with pytest.raises(UserError, match="--sweep-mesh"):
            sweep.parse_mesh(wrong)


def arguments(**changes):
    parser = argparse.ArgumentParser()
    main.add_arguments(parser)
    return argparse.Namespace(**vars(parser.parse_args(["--topology", "v5e:2x2"])) | changes)


def test_without_the_compiler_it_says_how_to_get_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(planning_compile.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["plan", "--config=configs/quickstart.py", "--topology=v5e:2x2"]) == 2
    message = capsys.readouterr().err
    assert "libtpu" in message and "pip install" in message and message.count("\n") == 1


def test_mistakes_are_refused_before_anything_is_compiled(monkeypatch, tmp_path):
    monkeypatch.setattr(main, "compiler_version", lambda: "1.2")
    config = synthetic.config(tmp_path)
    with pytest.raises(UserError, match=r"No vocabulary in .*tokenize.*--vocab-size"):
        main.run(config, arguments())
    with pytest.raises(UserError, match="--vocab-size 0"):
        main.run(config, arguments(vocab_size=0))
    with pytest.raises(UserError, match="Unknown chip"):
        main.run(config, arguments(topology="h100:8"))
    with pytest.raises(UserError, match="--sweep-rows"):
        main.run(config, arguments(vocab_size=64, sweep=True, sweep_rows=[0]))
    config.kind = "tokenizer"
    with pytest.raises(UserError, match="plans a decoder"):
        main.run(config, arguments())


def test_the_abstract_batch_is_a_real_ones():
    from anygpt_jax.data.loader import pack_row
    from anygpt_jax.training.step import abstract_batch

    vocabulary = synthetic.vocabulary()
    record = synthetic.record(vocabulary, synthetic.TASKS[0], 0, np.random.default_rng(0))
    row = pack_row([record], 64, vocabulary.pad, vocabulary.modality_ids())
    abstract = abstract_batch(3, 64, None)
    assert {name: (3, *array.shape) for name, array in row.items()} == {n: a.shape for n, a in abstract.items()}
    assert {name: jnp.dtype(array.dtype) for name, array in row.items()} == {n: a.dtype for n, a in abstract.items()}


@pytest.mark.parametrize(
    ("installed", "devices", "expected"),
    [
        ({"libtpu"}, [], "cpu"),
        ({"libtpu"}, ["/dev/accel0"], None),
        ({"libtpu"}, ["/dev/vfio/0"], None),
        ({"libtpu", "jax_plugins"}, [], None),
        (set(), [], None),
    ],
)
def test_a_compiler_without_a_tpu_is_not_asked_for_one(installed, devices, expected, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: name if name in installed else None)
    monkeypatch.setattr(cli.glob, "glob", lambda pattern: [d for d in devices if d.startswith(pattern[:9])])
    cli._spare_the_search_for_tpus()
    assert os.environ.get("JAX_PLATFORMS") == expected
