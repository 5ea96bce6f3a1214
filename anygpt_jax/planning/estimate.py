"""From a compiled step to what someone who rents the chips wants to know: does it fit, how fast, how long, how sure."""

from __future__ import annotations

import dataclasses

from anygpt_jax.model.config import ModelConfig
from anygpt_jax.planning.chips import Topology
from anygpt_jax.planning.collectives import census
from anygpt_jax.planning.compile import Compiled
from anygpt_jax.planning.hlo import HBM, Computation, Instruction, Module, parse
from anygpt_jax.planning.timeline import ATTENTION_EFFICIENCY, HBM_EFFICIENCY, Breakdown, Timeline
from anygpt_jax.training.flops import matrix_parameters

CONVENTION = (
    "6 FLOPs a token and matrix parameter (the head once, the embedding look-up not at all) plus 12·layers·heads·head_dim "
    "for each key a token attends, causal, every row one full sequence; recomputation counts as nothing"
)
ASSUMPTIONS = (
    f"attention kernels run at {ATTENTION_EFFICIENCY:.0%} of the bfloat16 peak on causal FLOPs (the compiler has no estimate)",
    f"what HBM bounds gets {HBM_EFFICIENCY:.0%} of its bandwidth",
    "collectives run as rings at full bandwidth, without latency; a group lies along as few torus dimensions as hold it",
    "matrix products take the compiler's own cycles, or the roofline if that is longer",
)
OMITTED = (
    "contention for HBM and VMEM, work on data that stays in VMEM, and prefetches that do not hide",
    "latency of collectives, stragglers, gaps between programs",
    "reading data, saving checkpoints, evaluation, compilation, restarts",
    "padding and short sequences: rows are taken as full",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A published run of a dense decoder, to judge an estimate by. MFU in percent of the bfloat16 peak."""

    name: str
    chip: str
    mfu: float
    source: str  # who published it


# No MFU of a 7B LLaMA on TPUs is published; these are the nearest. Until July 2025 MaxText counted attention
# without the causal half, which raises a 7B at 4096 positions by about 4 points and larger models by less.
PUBLISHED = (
    Run("32B", "v5p", 71.0, "MaxText"),
    Run("Llama 2 70B", "v5p", 65.0, "MaxText"),
    Run("fuji-7B", "v5p", 53.0, "axlearn: 51 to 55"),
    Run("16B", "v5e", 61.0, "MaxText"),
    Run("fuji-7B on 1024 chips", "v5e", 46.0, "axlearn"),
    Run("Llama 3.1 8B", "v6e", 45.0, "MaxText"),
)
# The same method on MaxText's own llama2-7b (its settings for the chip, libtpu 0.0.42.1), percent.
MAXTEXT_7B_BY_THIS_METHOD = {"v5p": 58.9, "v5e": 57.5}


@dataclasses.dataclass(frozen=True)
class MemoryUse:
    """HBM of one device, bytes."""

    parameters: int
    optimizer: int
    batch: int  # and what the compiler pads
    activations: int  # kept by the layers' loop for the backward pass
    temporaries: int  # gradients, one layer's working set, gathered weights, logits
    program: int
    limit: int
    host: int = 0  # bytes offloaded to the host, not HBM
    peak: int = 0  # the most in use at one time, which the rest allocates and pads; 0 if the compiler does not tell

    @property
    def total(self) -> int:
        """What is allocated in HBM: all parts, but neither `host` nor `peak`."""
        return self.parameters + self.optimizer + self.batch + self.activations + self.temporaries + self.program

    @property
    def fits(self) -> bool:
        """By the sum alone; `Estimate.fits` also knows whether the compiler refused."""
        return self.total <= self.limit


@dataclasses.dataclass(frozen=True)
class Speed:
    """One step, and the run. A chip is a chip, also where it is two devices."""

    step_seconds: float
    matmul_seconds: float
    matmul_roofline_seconds: float  # of the same products at their peak, or at HBM's bandwidth
    attention_seconds: float
    elementwise_seconds: float
    exposed_seconds: float
    collective_seconds: float  # hidden or not
    roofline_seconds: float  # no step of this program is faster: products at peak, nothing exposed
    model_flops: float  # of a step, over all devices, by CONVENTION
    hardware_flops: float  # that the program does: recomputation included
    mfu: float  # model FLOPs / (devices · bfloat16 peak · seconds)
    mfu_full_attention: float  # the same with attention counted over all pairs, as older figures were
    tokens_per_second_per_chip: float
    tokens: int  # of the run
    days: float
    chip_hours: float


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Everything `anygpt plan` tells."""

    topology: str
    slices: int
    chips: int
    mesh: dict[str, int]
    parameters: int
    batch_size: int
    seq_len: int
    remat: str
    memory: MemoryUse
    speed: Speed | None  # None: it does not fit
    collectives: dict[str, dict[str, int]]
    dcn_bytes_in_layers: float  # that every step sends to other slices from within the layers' loops, a device
    warnings: tuple[str, ...]
    program: str
    compile_seconds: float
    from_cache: bool
    libtpu: str
    refused: str
    microbatches: int = 1
    quantization: str = "none"
    state_bytes: int = 0  # of all training state, as a checkpoint holds it

    @property
    def fits(self) -> bool:
        """Whether the compiler took the program and what it allocates is within HBM."""
        return not self.refused and self.memory.fits


def model_flops(model: ModelConfig, tokens: int, seq_len: int, causal: bool = True) -> float:
    """FLOPs that `tokens` tokens in full rows of `seq_len` need, forward and backward, by CONVENTION."""
    keys = (seq_len + 1) / 2 if causal else seq_len
    return tokens * (6.0 * matrix_parameters(model) + 12.0 * model.n_layers * model.n_heads * model.head_dim * keys)


def speed_of(
    spent: Breakdown, model: ModelConfig, topology: Topology, batch_size: int, seq_len: int, steps: int
) -> Speed:
    """The measurements that follow from a step's breakdown."""
    tokens, chip, seconds = batch_size * seq_len, topology.chip, spent.seconds
    capacity = topology.devices * chip.bf16 * seconds
    roofline = spent.matmul_roofline + spent.attention_flops / chip.bf16 + spent.elementwise * HBM_EFFICIENCY
    return Speed(
        step_seconds=seconds,
        matmul_seconds=spent.matmul,
        matmul_roofline_seconds=spent.matmul_roofline,
        attention_seconds=spent.attention,
        elementwise_seconds=spent.elementwise,
        exposed_seconds=spent.exposed,
        collective_seconds=spent.collectives,
        roofline_seconds=roofline,
        model_flops=model_flops(model, tokens, seq_len),
        hardware_flops=(spent.matmul_flops + spent.attention_flops) * topology.devices,
        mfu=model_flops(model, tokens, seq_len) / capacity,
        mfu_full_attention=model_flops(model, tokens, seq_len, causal=False) / capacity,
        tokens_per_second_per_chip=tokens / seconds / topology.chips,
        tokens=tokens * steps,
        days=steps * seconds / 86_400,
        chip_hours=steps * seconds / 3600 * topology.chips,
    )


def saved_activations(module: Module) -> int:
    """Bytes of HBM that the layers' forward loops fill for the backward pass: buffers they get empty, one row a layer.

    The layers' loops are the program's, or lie in its loop over microbatches.
    """
    inner = (body for x in module.entry.instructions if x.opcode == "while" for body in module.called_by(x))
    return sum(_filled(module, computation) for computation in (module.entry, *inner))


def _filled(module: Module, computation: Computation) -> int:
    total = 0
    for x in computation.instructions:
        if x.opcode != "while" or "transpose(" in x.scope:
            continue
        trips = module.trip_count(x)
        carried = computation.by_name.get(x.operands[0]) if x.operands else None
        for operand in carried.operands if carried is not None and carried.opcode == "tuple" else ():
            source = _origin(computation, operand)
            if source is None or not (source.target == "AllocateBuffer" or source.opcode == "broadcast"):
                continue
            total += sum(s.bytes for s in source.shapes if s.space == HBM and s.dims and s.dims[0] == trips)
    return total


def _origin(computation: Computation, name: str) -> Instruction | None:
    x = computation.by_name.get(name)
    while x is not None and x.opcode in ("bitcast", "copy", "copy-done", "copy-start") and x.operands:
        x = computation.by_name.get(x.operands[0])
    return x


def memory_of(compiled: Compiled, module: Module | None, topology: Topology) -> MemoryUse:
    """`module` is the parsed program, None where there is none because it does not fit.

    The compiler tells one number of such a program: what is not the state is then temporaries, and the total is
    above the limit.
    """
    memory, parameters, optimizer = compiled.memory, compiled.state["params"], compiled.state["optimizer"]
    activations = min(saved_activations(module), memory.temporaries) if module else 0
    rest = memory.arguments + memory.outputs - memory.aliased - parameters - optimizer
    if compiled.refused:  # the compiler tells one number for everything, or for what does not fit
        needed = max(memory.temporaries, topology.chip.hbm + 1)
        return MemoryUse(parameters, optimizer, 0, 0, max(needed - parameters - optimizer, 0), 0, topology.chip.hbm)
    return MemoryUse(
        parameters, optimizer, max(rest, 0), activations, memory.temporaries - activations, memory.program,
        topology.chip.hbm, memory.host, memory.peak,
    )  # fmt: skip


def warnings_of(spent: Breakdown, speed: Speed) -> tuple[str, ...]:
    """What makes this estimate worse than usual, or the program slower than it needs to be."""
    found = []
    if spent.unknown_loops:
        found.append(f"{spent.unknown_loops:.0f} loops of unknown length are counted once")
    if spent.uncosted_products:
        found.append(
            f"{spent.uncosted_products:.0f} matrix products have no cycles from this libtpu and are taken at the roofline"
        )
    if not spent.attention:
        found.append("attention is XLA's, counted with the matrix products; on TPUs set model.attention=splash")
    if spent.dcn_bytes_in_loops:
        found.append(
            f"every layer sends to other slices: {spent.dcn_bytes_in_loops / 2**20:.1f} MiB a step and device over DCN"
        )
    if speed.exposed_seconds > 0.1 * speed.step_seconds:
        found.append(
            f"collectives that nothing hides take {speed.exposed_seconds / speed.step_seconds:.0%} of the step"
        )
    return tuple(found)


def estimate(
    compiled: Compiled,
    model: ModelConfig,
    topology: Topology,
    mesh: dict[str, int],
    batch_size: int,
    seq_len: int,
    steps: int,
    libtpu: str,
    microbatches: int = 1,
) -> Estimate:
    """Reads the compiled program. `steps` is the whole run's."""
    module = parse(compiled.text) if compiled.text else None
    spent = Timeline(module, topology).step() if module else None
    speed = speed_of(spent, model, topology, batch_size, seq_len, steps) if spent else None
    return Estimate(
        topology=topology.name,
        slices=topology.slices,
        chips=topology.chips,
        mesh=mesh,
        parameters=compiled.parameters,
        batch_size=batch_size,
        seq_len=seq_len,
        remat=model.remat,
        memory=memory_of(compiled, module, topology),
        speed=speed,
        collectives=census(module) if module else {},
        dcn_bytes_in_layers=spent.dcn_bytes_in_loops if spent else 0.0,
        warnings=warnings_of(spent, speed) if spent and speed else (),
        program=compiled.key,
        compile_seconds=compiled.seconds,
        from_cache=compiled.from_cache,
        libtpu=libtpu,
        refused=compiled.refused,
        microbatches=microbatches,
        quantization=model.quantization,
        state_bytes=sum(compiled.whole_state.values()),
    )
