"""The reader of compiled programs against numbers worked out by hand, and against XLA's own count of FLOPs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anygpt_jax.planning import collectives, hlo, timeline
from anygpt_jax.planning.chips import Topology
from anygpt_jax.planning.costs import Costs
from anygpt_jax.planning.flops import product_flops

V5E = Topology.parse("v5e:16x16")
PEAK, CLOCK, BANDWIDTH = V5E.chip.bf16, V5E.chip.clock, V5E.chip.hbm_bandwidth


def total_flops(module, computation=None):
    computation = computation or module.entry
    found = 0
    for x in computation.instructions:
        trips = module.trip_count(x) if x.opcode == "while" else 1
        found += product_flops(x, computation) + trips * sum(total_flops(module, c) for c in module.called_by(x))
    return found


def compiled(function, *shapes):
    return jax.jit(function).lower(*[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]).compile()


def step(text, topology=V5E):
    return timeline.Timeline(hlo.parse(text), topology).step()


def test_shapes_of_arrays_tuples_and_memories():
    shapes = hlo.parse_shapes("(bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, f32[]{:T(128)}, s4[3]{0}, u32[2]{0:S(2)})")
    assert [(s.dtype, s.dims, s.space, s.bytes) for s in shapes] == [
        ("bf16", (8, 128), hlo.VMEM, 2048), ("f32", (), hlo.HBM, 4), ("s4", (3,), hlo.HBM, 2), ("u32", (2,), 2, 8),
    ]  # fmt: skip


def test_an_instruction_and_its_attributes():
    text = """
ENTRY %main.1 (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %k.1 = (f32[4]{0}, s32[]{:S(2)}) custom-call(%a, /*index=1*/%a), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}, metadata={op_name="jit(step)/attention/k"}, backend_config={"window_config":{"estimated_cycles":"123"}}
  ROOT %g = f32[4]{0} get-tuple-element(%k.1), index=0
}
"""
    entry = hlo.parse(text).entry
    kernel = entry.by_name["k.1"]
    assert (kernel.opcode, kernel.operands, kernel.target) == ("custom-call", ("a", "a"), "tpu_custom_call")
    assert (kernel.scope, kernel.cycles, len(kernel.shapes)) == ("jit(step)/attention/k", 123, 2)
    assert entry.root.name == "g"
    assert entry.shapes_of("k.1#0")[0].dims == (4,)


def test_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.parse("HloModule nothing")


@pytest.mark.parametrize(("m", "k", "n", "trips"), [(8, 16, 32, 1), (5, 7, 3, 6), (64, 32, 16, 11)])
def test_products_in_a_loop_count_once_a_trip(m, k, n, trips):
    def function(x, w, v):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w) @ v, None), x, None, length=trips)[0]

    module = hlo.parse(compiled(function, (m, k), (k, n), (n, k)).as_text())
    assert total_flops(module) == trips * 2 * (2 * m * k * n)


def test_loops_in_loops():
    def inner(x, w):
        return jax.lax.scan(lambda x, _: (jnp.sin(x @ w), None), x, None, length=3)[0]

    def function(x, w):
        return jax.lax.scan(lambda x, _: (inner(x, w), None), x, None, length=5)[0]

    assert total_flops(hlo.parse(compiled(function, (4, 8), (8, 8)).as_text())) == 15 * 2 * 4 * 8 * 8


CONVOLUTIONS = [
    # (batch, spatial, features in, features out, window, stride, padding, lhs dilation, rhs dilation)
    (2, 16, 3, 5, 3, 1, (1, 1), 1, 1),
    (1, 17, 4, 4, 4, 2, (0, 3), 1, 1),
    (2, 9, 2, 3, 5, 1, (4, 4), 1, 2),
    (1, 8, 2, 2, 8, 7, (0, 0), 8, 1),  # a batch axis as the TPU writes it: eight products, one at each position
    (1, 6, 2, 2, 3, 2, (2, 1), 3, 1),
]


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions_count_the_window_positions_that_meet_an_element(case):
    batch, size, features, out, window, stride, padding, dilation, kernel_dilation = case
    dilated = (size - 1) * dilation + 1
    reach = (window - 1) * kernel_dilation + 1
    outputs = (dilated + sum(padding) - reach) // stride + 1
    text = f"""
ENTRY %main (l: f32[{batch},{size},{features}], r: f32[{window},{features},{out}]) -> f32[{batch},{outputs},{out}] {{
  %l = f32[{batch},{size},{features}]{{2,1,0}} parameter(0)
  %r = f32[{window},{features},{out}]{{2,1,0}} parameter(1)
  ROOT %c = f32[{batch},{outputs},{out}]{{2,1,0}} convolution(%l, %r), window={{size={window} stride={stride} pad={padding[0]}_{padding[1]} lhs_dilate={dilation} rhs_dilate={kernel_dilation}}}, dim_labels=b0f_0io->b0f
}}
"""
    # Brute force: lay the window on every output and ask which positions are elements.
    meetings = 0
    for o in range(outputs):
        for w in range(window):
            at = o * stride + w * kernel_dilation - padding[0]
            meetings += 0 <= at < dilated and at % dilation == 0
    assert total_flops(hlo.parse(text)) == 2 * batch * features * out * meetings


def test_xla_counts_convolutions_alike():
    def convolve(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (2,), [(2, 3)], rhs_dilation=(2,), dimension_numbers=("NWC", "WIO", "NWC")
        )

    program = compiled(convolve, (4, 33, 8), (5, 8, 16))
    (analysis,) = [program.cost_analysis()]
    assert total_flops(hlo.parse(program.as_text())) == analysis["flops"]


MATMUL = """
%fused (p0: bf16[1024,512], p1: bf16[512,2048]) -> bf16[1024,2048] {
  %p0 = bf16[1024,512]{1,0} parameter(0)
  %p1 = bf16[512,2048]{1,0} parameter(1)
  ROOT %conv = bf16[1024,2048]{1,0} convolution(%p0, %p1), dim_labels=bf_io->bf
}

ENTRY %main (a: bf16[1024,512], w: bf16[512,2048]) -> bf16[1024,2048] {
  %a = bf16[1024,512]{1,0} parameter(0)
  %w = bf16[512,2048]{1,0} parameter(1)
  ROOT %f = bf16[1024,2048]{1,0} fusion(%a, %w), kind=kOutput, calls=%fused, backend_config={"estimated_cycles":"CYCLES"}
}
"""


def test_a_product_takes_its_cycles_or_the_roofline():
    flops = 2 * 1024 * 512 * 2048
    moved = 2 * (1024 * 512 + 512 * 2048 + 1024 * 2048)
    roofline = max(flops / PEAK, moved / BANDWIDTH)
    spent = step(MATMUL.replace("CYCLES", "30000"))
    assert spent.matmul_flops == flops and spent.hbm_bytes == moved
    assert spent.matmul == pytest.approx(30000 / CLOCK) and spent.matmul_roofline == pytest.approx(roofline)
    assert step(MATMUL.replace("CYCLES", "10")).matmul == pytest.approx(roofline)
    assert spent.seconds == spent.matmul


def test_int8_products_have_their_own_peak():
    text = MATMUL.replace("bf16", "s8").replace("CYCLES", "0")
    module = hlo.parse(text)
    work = Costs(module, V5E.chip).work(module.entry.root, module.entry)
    assert work.flops / work.peak_seconds == V5E.chip.int8
    assert step(text).uncosted_products == 1


def test_slices_and_updates_in_place_count_what_they_touch():
    text = """
%fused (p0: f32[64,1024], p1: f32[64,1024], p2: s32[]) -> f32[64,1024] {
  %p0 = f32[64,1024]{1,0} parameter(0)
  %p1 = f32[64,1024]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %row = f32[1,1024]{1,0} dynamic-slice(%p1, %p2, %zero), dynamic_slice_sizes={1,1024}
  %twice = f32[1,1024]{1,0} add(%row, %row)
  ROOT %u = f32[64,1024]{1,0} dynamic-update-slice(%p0, %twice, %p2, %zero)
}

ENTRY %main (a: f32[64,1024], b: f32[64,1024], i: s32[]) -> f32[64,1024] {
  %a = f32[64,1024]{1,0} parameter(0)
  %b = f32[64,1024]{1,0} parameter(1)
  %i = s32[]{:S(6)} parameter(2)
  %v = f32[64,1024]{1,0:S(1)} copy(%b)
  ROOT %f = f32[64,1024]{1,0} fusion(%a, %b, %i), kind=kLoop, calls=%fused
}
"""
    module = hlo.parse(text)
    costs = Costs(module, V5E.chip)
    assert costs.work(module.entry.root, module.entry).bytes == 2 * 4 * 1024  # one row read, one written
    assert costs.work(module.entry.by_name["v"], module.entry).bytes == 4 * 64 * 1024  # VMEM is free
    assert step(text).elementwise == pytest.approx((4 * 64 * 1024 + 2 * 4 * 1024) / (0.9 * BANDWIDTH))


def test_attention_kernels_run_at_the_assumed_share_of_the_peak():
    B, H, L, K = 2, 8, 1024, 128
    text = f"""
ENTRY %main (q: bf16[{B},{H},{L},{K}]) -> bf16[{B},{H},{L},{K}] {{
  %m = s8[1,1,1]{{2,1,0}} constant({{...}})
  %q = bf16[{B},{H},{L},{K}]{{3,2,1,0}} parameter(0)
  %splash_mha_NAME.2 = bf16[{B},{H},{L},{K}]{{3,2,1,0}} custom-call(%m, %q, %q, %q), custom_call_target="tpu_custom_call"
  ROOT %other = bf16[{B},{H},{L},{K}]{{3,2,1,0}} custom-call(%splash_mha_NAME.2), custom_call_target="tpu_custom_call"
}}
"""
    pairs = B * H * L * L / 2
    for name, per_pair in (("fwd", 4), ("dq", 6), ("dkv", 10)):  # dkv alone makes dq too
        spent = step(text.replace("NAME", name))
        assert spent.attention_flops == per_pair * pairs * K
        assert spent.attention == pytest.approx(spent.attention_flops / (0.55 * PEAK))
        assert spent.elementwise == pytest.approx(2 * 2 * B * H * L * K / (0.9 * BANDWIDTH))
    both = (
        text.replace("NAME", "dkv").replace("%other", "%splash_mha_dq.1").replace("(%splash_mha_dkv.2)", "(%m, %q, %q)")
    )
    assert step(both).attention_flops == pytest.approx((8 + 6) * pairs * K)


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups=[16,8]<=[128]", 8),
        ("replica_groups=[2,64]<=[8,16]T(1,0)", 64),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", 4),
        ("replica_groups=mesh['a'=4,'b'=2] {'a','b'}", 8),
        ("source_target_pairs={{0,1},{1,2},{2,3},{3,0}}", 4),
        ("source_target_pairs={{0,1},{1,0},{2,3},{3,2}}", 2),
    ],
)
def test_group_sizes_in_every_notation(attributes, size):
    assert collectives.group_size(f", channel_id=1, {attributes}, use_global_device_ids=true") == size


def collective(opcode, operand, result, group=16):
    return f"""
ENTRY %main (a: {operand}) -> {result} {{
  %a = {operand}{{0}} parameter(0)
  ROOT %c = {result}{{0}} {opcode}(%a), channel_id=1, replica_groups=[16,{group}]<=[256]
}}
"""


@pytest.mark.parametrize(
    ("opcode", "operand", "result", "moved"),
    [
        ("all-gather", "f32[1000]", "f32[16000]", 64000 * 15 / 16),
        ("reduce-scatter", "f32[16000]", "f32[1000]", 64000 * 15 / 16),
        ("all-reduce", "f32[16000]", "f32[16000]", 2 * 64000 * 15 / 16),
        ("all-to-all", "f32[16000]", "f32[16000]", 64000 * 15 / 16 * 4),  # four links away on average
        ("collective-permute", "f32[16000]", "f32[16000]", 64000),
    ],
)
def test_synchronous_collectives_are_exposed_whole(opcode, operand, result, moved):
    spent = step(collective(opcode, operand, result))
    assert spent.exposed == spent.collectives == pytest.approx(moved / (2 * V5E.chip.link))
    assert spent.seconds == spent.exposed


OVERLAPPED = """
%fused (p0: bf16[1024,512], p1: bf16[512,2048]) -> bf16[1024,2048] {
  %p0 = bf16[1024,512]{1,0} parameter(0)
  %p1 = bf16[512,2048]{1,0} parameter(1)
  ROOT %conv = bf16[1024,2048]{1,0} convolution(%p0, %p1), dim_labels=bf_io->bf
}

%body (t: (s32[], bf16[1024,512], bf16[512,2048], f32[1000])) -> (s32[], bf16[1024,512], bf16[512,2048], f32[1000]) {
  %t = (s32[], bf16[1024,512]{1,0}, bf16[512,2048]{1,0}, f32[1000]{0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %a = bf16[1024,512]{1,0} get-tuple-element(%t), index=1
  %w = bf16[512,2048]{1,0} get-tuple-element(%t), index=2
  %s = f32[1000]{0} get-tuple-element(%t), index=3
  %ag = (f32[1000]{0}, f32[256000]{0}) all-gather-start(%s), channel_id=1, replica_groups=[1,256]<=[256]
  %ag2 = (f32[1000]{0}, f32[256000]{0}) all-gather-start(%s), channel_id=2, replica_groups=[1,256]<=[256]
  %f = bf16[1024,2048]{1,0} fusion(%a, %w), kind=kOutput, calls=%fused, backend_config={"estimated_cycles":"12000"}
  %done = f32[256000]{0} all-gather-done(%ag)
  %done2 = f32[256000]{0} all-gather-done(%ag2)
  ROOT %r = (s32[], bf16[1024,512]{1,0}, bf16[512,2048]{1,0}, f32[1000]{0}) tuple(%i, %a, %w, %s)
}

%cond (t: (s32[], bf16[1024,512], bf16[512,2048], f32[1000])) -> pred[] {
  %t.1 = (s32[], bf16[1024,512]{1,0}, bf16[512,2048]{1,0}, f32[1000]{0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%t.1), index=0
  %n = s32[] constant(7)
  ROOT %lt = pred[] compare(%i.1, %n), direction=LT
}

ENTRY %main (t: (s32[], bf16[1024,512], bf16[512,2048], f32[1000])) -> (s32[], bf16[1024,512], bf16[512,2048], f32[1000]) {
  %t.2 = (s32[], bf16[1024,512]{1,0}, bf16[512,2048]{1,0}, f32[1000]{0}) parameter(0)
  ROOT %loop = (s32[], bf16[1024,512]{1,0}, bf16[512,2048]{1,0}, f32[1000]{0}) while(%t.2), condition=%cond, body=%body
}
"""


def test_only_what_outlasts_the_work_beside_it_is_exposed():
    gather = 1024000 * 255 / 256 / (4 * V5E.chip.link)  # of each of two, one after the other
    work = max(12000 / CLOCK, 2 * 1024 * 512 * 2048 / PEAK)
    assert gather < work < 2 * gather
    spent = step(OVERLAPPED)
    assert spent.collectives == pytest.approx(7 * 2 * gather)
    assert spent.exposed == pytest.approx(7 * (2 * gather - work))
    assert spent.seconds == pytest.approx(7 * 2 * gather)
    assert spent.matmul_flops == 7 * 2 * 1024 * 512 * 2048
    assert collectives.census(hlo.parse(OVERLAPPED)) == {"entry": {}, "loop 1 of 7": {"all-gather": 2}}


def test_a_loop_of_unknown_length_counts_once_and_is_reported():
    text = OVERLAPPED.replace("%n = s32[] constant(7)", "%n = s32[] get-tuple-element(%t.1), index=0")
    spent = step(text)
    assert spent.unknown_loops == 1
    assert spent.matmul_flops == 2 * 1024 * 512 * 2048


STEPS = """
%start (p: f32[3000]) -> (f32[3000], f32[768000]) {
  %p = f32[3000]{0} parameter(0)
  %g.1 = f32[768000]{0} all-gather(%p), channel_id=9, replica_groups=[1,256]<=[256]
  ROOT %c.1 = (f32[3000]{0}, f32[768000]{0}) custom-call(%g.1), custom_call_target="AsyncCollectiveStart"
}

%beside (p0: bf16[1024,512], p1: bf16[512,2048], p2: f32[3000]) -> (bf16[1024,2048], f32[768000]) {
  %p0 = bf16[1024,512]{1,0} parameter(0)
  %p1 = bf16[512,2048]{1,0} parameter(1)
  %p2 = f32[3000]{0} parameter(2)
  %conv = bf16[1024,2048]{1,0} convolution(%p0, %p1), dim_labels=bf_io->bf
  %g.2 = f32[768000]{0} all-gather(%p2), channel_id=9, replica_groups=[1,256]<=[256]
  ROOT %r = (bf16[1024,2048]{1,0}, f32[768000]{0}) tuple(%conv, %g.2)
}

%end (p: f32[3000], q: f32[768000]) -> f32[768000] {
  %p.3 = f32[3000]{0} parameter(0)
  %q = f32[768000]{0} parameter(1)
  %g.3 = f32[768000]{0} all-gather(%p.3), channel_id=9, replica_groups=[1,256]<=[256]
  ROOT %c.3 = f32[768000]{0} custom-call(%q, %g.3), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (a: bf16[1024,512], w: bf16[512,2048], s: f32[3000]) -> f32[768000] {
  %a = bf16[1024,512]{1,0} parameter(0)
  %w = bf16[512,2048]{1,0} parameter(1)
  %s = f32[3000]{0} parameter(2)
  %async-collective-start = (f32[3000]{0}, f32[768000]{0}) fusion(%s), kind=kCustom, calls=%start
  %f = (bf16[1024,2048]{1,0}, f32[768000]{0}) fusion(%a, %w, %s), kind=kOutput, calls=%beside, backend_config={"estimated_cycles":"3000"}
  %g = f32[768000]{0} get-tuple-element(%f), index=1
  ROOT %async-collective-done = f32[768000]{0} fusion(%s, %g), kind=kCustom, calls=%end
}
"""


def test_a_collective_spread_over_fusions_is_one_and_overlaps():
    """As the TPU compiler writes it: its start, steps inside other fusions, and its end share a channel."""
    gather = 3072000 * 255 / 256 / (4 * V5E.chip.link)
    moved = 2 * (1024 * 512 + 512 * 2048 + 1024 * 2048)
    work = max(3000 / CLOCK, 2 * 1024 * 512 * 2048 / PEAK)
    assert 0 < work < gather
    spent = step(STEPS)
    assert spent.collectives == pytest.approx(gather)
    assert spent.hbm_bytes == moved  # the gathered buffer that is handed on is not this fusion's traffic
    assert spent.matmul == pytest.approx(work)
    assert spent.exposed == pytest.approx(gather - work)
    assert collectives.census(hlo.parse(STEPS)) == {"entry": {"all-gather": 1}}


def test_a_sum_of_which_a_slice_is_kept_is_a_reduce_scatter():
    text = """
%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %s = f32[] add(%x, %y)
}

%all-reduce-scatter (input: f32[16000]) -> f32[1000] {
  %input = f32[16000]{0} parameter(0)
  %all-reduce.1 = f32[16000]{0} all-reduce(%input), channel_id=3, replica_groups=[16,16]<=[256], to_apply=%add
  %at = s32[] constant(0)
  ROOT %slice = f32[1000]{0} dynamic-slice(%all-reduce.1, %at), dynamic_slice_sizes={1000}
}

ENTRY %main (a: f32[16000]) -> f32[1000] {
  %a = f32[16000]{0} parameter(0)
  ROOT %f = f32[1000]{0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter
}
"""
    spent = step(text)
    assert spent.collectives == pytest.approx(64000 * 15 / 16 / (2 * V5E.chip.link))
    assert collectives.census(hlo.parse(text)) == {"entry": {"reduce-scatter": 1}}


def test_transfers_between_slices_are_waited_for_at_their_end():
    text = """
ENTRY %main (a: f32[1000]) -> f32[1000] {
  %a = f32[1000]{0} parameter(0)
  %token = token[] after-all()
  %send = (f32[1000]{0}, u32[], token[]) send(%a, %token), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="all-reduce.1_0"}
  %recv = (f32[1000]{0}, u32[], token[]) recv(%token), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="all-reduce.1_0"}
  %sent = token[] send-done(%send), channel_id=1, is_host_transfer=true
  %received = (f32[1000]{0}, token[]) recv-done(%recv), channel_id=2, is_host_transfer=true
  ROOT %r = f32[1000]{0} get-tuple-element(%received), index=0
}
"""
    four = Topology.parse("v5e:16x16", 4)
    spent = step(text, four)
    assert spent.exposed == pytest.approx(4000 * 2 * 3 / 4 / four.chip.dcn)
    assert spent.dcn_bytes == 4000 and spent.dcn_bytes_in_loops == 0
    assert collectives.census(hlo.parse(text)) == {"entry": {"dcn": 1}}


def test_only_the_longest_branch_counts():
    text = (
        MATMUL.replace("CYCLES", "30000").replace("ENTRY %main", "%long")
        + """
%short (a: bf16[1024,512], w: bf16[512,2048]) -> bf16[1024,2048] {
  %a.2 = bf16[1024,512]{1,0} parameter(0)
  ROOT %z = bf16[1024,2048]{1,0} broadcast(%a.2), dimensions={}
}

ENTRY %main (p: s32[]) -> bf16[1024,2048] {
  %p = s32[] parameter(0)
  ROOT %c = bf16[1024,2048]{1,0} conditional(%p, %p, %p), branch_computations={%short, %long}
}
"""
    )
    assert step(text).matmul_flops == 2 * 1024 * 512 * 2048
    assert step(text).elementwise == 0


def test_breakdowns_add_up():
    rng = np.random.default_rng(0)
    names = [field.name for field in dataclasses.fields(timeline.Breakdown)]
    one, other = (timeline.Breakdown(**dict(zip(names, rng.random(len(names)), strict=True))) for _ in range(2))
    expected = {name: getattr(one, name) + 3 * getattr(other, name) for name in names}
    one.add(other, 3)
    assert dataclasses.asdict(one) == expected


def queued(text):
    return timeline.Timeline(hlo.parse(text), V5E, queued_memory=True).step()


FETCHED = """
%fused (p0: bf16[1024,512], p1: bf16[512,2048]) -> bf16[1024,2048] {
  %p0 = bf16[1024,512]{1,0} parameter(0)
  %p1 = bf16[512,2048]{1,0} parameter(1)
  ROOT %conv = bf16[1024,2048]{1,0} convolution(%p0, %p1), dim_labels=bf_io->bf
}

ENTRY %main (a: bf16[1024,512], w: bf16[512,2048], k: f32[SIZE]) -> f32[SIZE] {
  %a = bf16[1024,512]{1,0SPACE} parameter(0)
  %w = bf16[512,2048]{1,0SPACE} parameter(1)
  %k = f32[SIZE]{0} parameter(2)
  %start = (f32[SIZE]{0:S(1)}, f32[SIZE]{0}, u32[]{:S(2)}) copy-start(%k)
  %f = bf16[1024,2048]{1,0SPACE} fusion(%a, %w), kind=kOutput, calls=%fused, backend_config={"estimated_cycles":"12000"}
  %done = f32[SIZE]{0:S(1)} copy-done(%start)
  ROOT %r = f32[SIZE]{0:S(1)} negate(%done)
}
"""


@pytest.mark.parametrize("size", [1_000, 10_000_000])
def test_a_fetch_into_vmem_is_waited_for_unless_the_work_beside_it_is_longer(size):
    spent = queued(FETCHED.replace("SIZE", str(size)).replace("SPACE", ":S(1)"))
    fetch, work = 4 * size / (0.9 * BANDWIDTH), max(12000 / CLOCK, 2 * 1024 * 512 * 2048 / PEAK)
    assert spent.prefetch_bytes == 4 * size and spent.elementwise == 0
    assert spent.waits == pytest.approx(max(0.0, fetch - work))
    assert spent.seconds == pytest.approx(max(fetch, work))
    assert step(FETCHED.replace("SIZE", str(size)).replace("SPACE", ":S(1)")).seconds == pytest.approx(work)


def test_an_operation_that_reads_memory_comes_after_what_was_being_fetched():
    spent = queued(FETCHED.replace("SIZE", "10000000").replace("SPACE", ""))
    moved = 4 * 10_000_000 + 2 * (1024 * 512 + 512 * 2048 + 1024 * 2048)
    assert spent.seconds == pytest.approx(moved / (0.9 * BANDWIDTH))
