"""The TPU compiler itself, on a small decoder: what it makes of the sharding, and what the planner reads from it."""

import functools
import importlib.util
import json
import pathlib
from collections import Counter

import numpy as np
import pytest
import synthetic

from anygpt_jax.errors import UserError
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.sharding import make_mesh
from anygpt_jax.planning import estimate, hlo, main, sweep
from anygpt_jax.planning.chips import Topology
from anygpt_jax.planning.collectives import census
from anygpt_jax.planning.compile import compile_step, compiler_version, mesh_axes, topology_devices
from anygpt_jax.planning.timeline import Timeline
from anygpt_jax.training import step
from anygpt_jax.training.compiler import CPU, OVERLAP, WHOLE_PRODUCTS
from anygpt_jax.training.flops import matrix_parameters
from anygpt_jax.vocabulary import Vocabulary

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the TPU compiler (libtpu) is not installed"),
]
GOLDEN = pathlib.Path(__file__).parent / "golden" / "planning_collectives.json"
VOCABULARY = Vocabulary(500, "", 0, 1, 2, (), ())
ROWS, LENGTH, LAYERS = 2, 256, 3
WITH_CYCLES = "0.0.42.1"  # newer compilers do not tell their estimates


def settings(workdir="unused"):
    config = synthetic.config(workdir, batch_size=ROWS * 4, seq_len=LENGTH)
    config.model.update(
        d_model=256, n_layers=LAYERS, n_heads=2, n_kv_heads=2, head_dim=128, d_ff=512, vocab_multiple=128, qk_norm=False,
        tied_embeddings=False, compute_dtype="bfloat16", remat="minimal",
    )  # fmt: skip
    config.model.attention = "splash"
    return config


@functools.cache
def compiled(name, mesh="", microbatches=1):
    """`name` may end in ×N: so many slices. Without a mesh it is FSDP over the slice."""
    shape, _, slices = name.partition("×")
    topology, config = Topology.parse(shape, int(slices or 1)), settings()
    config.train.update(microbatches=microbatches, batch_size=ROWS * microbatches * topology.devices, loss_chunks=2)
    axes = mesh_axes(sweep.parse_mesh(mesh) if mesh else {}, topology)
    model = ModelConfig.from_config(config.model, VOCABULARY)
    return compile_step(model, config.train, axes, 4, topology), model, topology


PROGRAMS = [
    ("v5e:2x2", "", 1),
    ("v5p:2x2x1", "", 1),
    ("v5e:2x2", "data=2,fsdp=2", 2),
    ("v5p:2x2x1", "fsdp=2,tensor=2", 1),
    ("v5e:2x2×2", "slice=2,data=2,fsdp=2", 1),
]


@pytest.mark.parametrize(("name", "mesh", "microbatches"), PROGRAMS)
def test_collectives_and_the_largest_buffers_are_those_of_the_golden_file(name, mesh, microbatches):
    """A change that adds a collective or a copy to the layers is seen here. If it is meant, put what is printed into
    the file."""
    golden = json.loads(GOLDEN.read_text())
    if golden["libtpu"] != compiler_version():
        pytest.skip(f"the golden file is libtpu {golden['libtpu']}'s, and {compiler_version()} is installed")
    key = " ".join(filter(None, (name, mesh, f"microbatches={microbatches}" if microbatches > 1 else "")))
    found = shape_of(compiled(name, mesh, microbatches)[0].text)
    assert found == golden.get(key), json.dumps({key: found})


def shape_of(text):
    """Collectives by loop, and the copies of whole activations or weights in every computation that is run."""
    module = hlo.parse(text)
    copies = Counter(
        f"{x.shapes[0].dtype}{list(x.shapes[0].dims)}"
        for computation in module.computations.values()
        for x in computation.instructions
        if x.opcode in ("copy", "transpose") and x.shapes and x.shapes[0].elements >= LENGTH * 256
    )
    return {"collectives": census(module), "copies": dict(sorted(copies.items()))}


def test_no_weight_crosses_between_slices_within_the_layers():
    program, _, topology = compiled("v5e:2x2×2", "slice=2,data=2,fsdp=2")
    spent = Timeline(hlo.parse(program.text), topology).step()
    assert spent.dcn_bytes_in_loops == 0
    # Once a step every device sends its part of the gradients, in float32 or less.
    part = program.parameters / 4
    assert part <= spent.dcn_bytes <= 1.1 * 4 * part


@pytest.mark.parametrize("name", ["v5e:2x2", "v5p:2x2x1"])
def test_weights_are_gathered_once_forward_and_never_summed_there(name):
    """FSDP: the forward loop gathers each of a layer's seven matrices, and moves nothing else."""
    counts = census(hlo.parse(compiled(name)[0].text))
    assert counts[f"loop 1 of {LAYERS}"] == {"all-gather": 7}
    backward = counts[f"loop 3 of {LAYERS}"]  # the second is over parts of the logits
    assert backward["all-gather"] == 7


@pytest.mark.parametrize("name", ["v5e:2x2", "v5p:2x2x1"])
def test_the_program_does_the_products_of_the_model_and_no_others(name):
    """With every product's inputs saved the program's FLOPs are 6N, and attention kernels' 14 causal units, not 12."""
    program, model, topology = compiled(name)
    spent = Timeline(hlo.parse(program.text), topology).step()
    tokens = ROWS * LENGTH
    assert spent.matmul_flops == pytest.approx(6 * matrix_parameters(model) * tokens, rel=0.01)
    pairs = ROWS * LAYERS * 2 * LENGTH * LENGTH / 2
    assert spent.attention_flops == pytest.approx((4 + 10) * pairs * 128)
    assert spent.unknown_loops == 0
    assert 0 < spent.matmul_roofline <= spent.matmul < 20 * spent.matmul_roofline
    if compiler_version() == WITH_CYCLES:
        assert spent.uncosted_products == 0 and spent.matmul > spent.matmul_roofline


@pytest.mark.parametrize("name", ["v5e:2x2", "v5p:2x2x1"])
def test_memory_is_that_of_the_state(name):
    """float32 master weights and two moments: a quarter of the matrices on every device, the norms' scales on all."""
    program, model, topology = compiled(name)
    scales = (2 * LAYERS + 1) * model.d_model
    assert program.state["params"] == 4 * ((program.parameters - scales) // 4 + scales)
    assert program.state["optimizer"] == pytest.approx(2 * program.state["params"], rel=0.001)
    assert program.whole_state["params"] == 4 * program.parameters  # what a checkpoint holds
    assert sum(program.whole_state.values()) == pytest.approx(12 * program.parameters, rel=0.001)
    memory = estimate.memory_of(program, hlo.parse(program.text), topology)
    assert memory.fits
    assert program.memory.arguments == pytest.approx(3 * program.state["params"], rel=0.05)
    assert program.memory.aliased == pytest.approx(program.memory.outputs, rel=0.01)  # the state is updated in place


def test_a_plan_from_the_command_is_cached(tmp_path, capsys):
    config = settings(tmp_path)
    found = [main.plan(config, VOCABULARY, Topology.parse("v5e:2x2"), tmp_path / "cache") for _ in range(2)]
    assert [e.from_cache for e in found] == [False, True]
    assert found[0].fits and found[0].speed == found[1].speed and found[0].memory == found[1].memory
    assert found[0].libtpu == compiler_version()
    assert len(list((tmp_path / "cache").iterdir())) == 1
    config.train.batch_size = 4
    assert not main.plan(config, VOCABULARY, Topology.parse("v5e:2x2"), tmp_path / "cache").from_cache


@pytest.mark.parametrize("name", ["v4:2x2x1", "v6e:2x2", "tpu7x:2x2x1", "v5e:4x8"])
def test_the_compiler_knows_every_chip(name):
    assert len(topology_devices(Topology.parse(name))) == Topology.parse(name).devices


def test_a_run_is_compiled_with_the_options_of_its_plan():
    """Matrices that are cut over tensor, or over all devices, are gathered whole."""
    train = settings().train
    model = ModelConfig.from_config(settings().model, VOCABULARY)
    made = [
        step.build(model, train, make_mesh(axes, topology_devices(Topology.parse("v5e:2x2"))), 4).compiler_options
        for axes in ({"data": 2, "fsdp": 2}, {"fsdp": 4}, {"fsdp": 2, "tensor": 2})
    ]
    assert made == [OVERLAP, OVERLAP | WHOLE_PRODUCTS, OVERLAP | WHOLE_PRODUCTS]
    assert step.build(model, train, make_mesh({}), 4).compiler_options == CPU


def test_slices_are_told_apart():
    devices = topology_devices(Topology.parse("v5e:2x2", 2))
    assert [d.slice_index for d in devices] == [0] * 4 + [1] * 4


@pytest.mark.parametrize(
    ("name", "mesh"),
    [("v5p:4x4x4", "fsdp=32,tensor=2"), ("v5e:16x16", "fsdp=32,tensor=8"), ("v5p:4x4x4", "fsdp=16,tensor=4")],
)
def test_a_mesh_may_have_any_divisor_shape(name, mesh):
    """Every device once; the innermost axis' devices are a block of neighbours on the torus."""
    topology = Topology.parse(name)
    made = make_mesh(sweep.parse_mesh(mesh), topology_devices(topology))
    assert len({device.id for device in made.devices.flat}) == topology.devices
    for row in made.devices.reshape(-1, made.shape["tensor"]):
        size = np.prod(np.ptp([device.coords for device in row], axis=0) + 1)
        assert size == len(row)


def test_a_shape_that_nobody_builds_is_refused():
    with pytest.raises(UserError, match="knows no topology v5e:3x5"):
        topology_devices(Topology.parse("v5e:3x5"))


def variant(name, mesh="", **model):
    topology, config = Topology.parse(name), settings()
    config.model.update(**model)
    return compile_step(
        ModelConfig.from_config(config.model, VOCABULARY), config.train,
        mesh_axes(sweep.parse_mesh(mesh) if mesh else {}, topology), 4, topology,
    )  # fmt: skip


@pytest.mark.parametrize(("head_dim", "heads", "kv_heads"), [(64, 4, 1), (80, 2, 2), (96, 6, 2)])
def test_any_head_dimension_and_grouped_queries_compile_with_the_kernel(head_dim, heads, kv_heads):
    program = variant("v5e:2x2", head_dim=head_dim, n_heads=heads, n_kv_heads=kv_heads)
    assert not program.refused and "splash" in program.text


def test_offloaded_activations_wait_in_the_hosts_memory():
    on_device, on_host = variant("v5p:2x2x1", remat="most"), variant("v5p:2x2x1", remat="offload_mlp")
    moved = 2 * LAYERS * ROWS * LENGTH * 512 * 2  # gate and up, bfloat16
    assert on_device.memory.host == 0
    assert moved <= on_host.memory.host <= 1.1 * moved


@pytest.mark.parametrize(
    ("name", "quantization", "dtype"), [("v5e:2x2", "int8", "s8"), ("tpu7x:2x2x1", "fp8", "f8e4m3fn")]
)
def test_quantized_products_run_in_eight_bits_forward_and_backward(name, quantization, dtype):
    """Of each of the layers' seven matrices three products; what is left is the head's."""
    program = variant(name, quantization=quantization)
    module = hlo.parse(program.text)
    eight = Counter()
    for computation in module.computations.values():
        for x in computation.instructions:
            if x.opcode in ("convolution", "dot"):
                eight[any(s.dtype == dtype for o in x.operands for s in computation.shapes_of(o))] += 1
    assert eight[True] == 3 * 7, eight
    assert eight[False] < 7, eight
