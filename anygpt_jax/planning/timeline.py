"""Walks a scheduled program in its own order and adds up the time of one step on one device.

Matrix products take the compiler's estimated cycles, or the roofline if that is longer: its cycles are within
2 to 30 % of the peak for large products on every generation. Everything else is taken to be bound by HBM (the
compiler's cycles are 2 to 4 times too long there). Attention kernels, which have no estimate, run at an assumed
share of the peak. A collective occupies the network (ICI, or DCN between slices) first come first served; what
of an asynchronous one is not hidden when its result is waited for is exposed, a synchronous one is exposed whole.
With `queued_memory` HBM is a queue as well, as decoding needs it, which HBM bounds: what an operation reads comes after
what was begun to be fetched into VMEM before it, and what is waited for is told apart (`Breakdown.waits`). A train step
is bound by its products, and there fetches are taken as hidden behind them.
"""

from __future__ import annotations

import dataclasses

from anygpt_jax.planning.chips import Chip, Topology
from anygpt_jax.planning.collectives import DCN, Collective, base_kind, inside, read, rendezvous
from anygpt_jax.planning.costs import FREE, Costs, is_kernel
from anygpt_jax.planning.hlo import HBM, HOST, Computation, Instruction, Module, Shape

ATTENTION_EFFICIENCY = 0.55  # of peak, on causal FLOPs: an assumption, see `Costs.kernel_flops`
HBM_EFFICIENCY = 0.9  # of the bandwidth, for what is bound by it
_PREFETCH = {"copy-start", "slice-start", "dynamic-slice-start"}  # between HBM, VMEM and the host
_FETCHED = {opcode.replace("-start", "-done") for opcode in _PREFETCH}


@dataclasses.dataclass
class Breakdown:
    """One step of one device: seconds, operations and bytes."""

    matmul: float = 0.0
    attention: float = 0.0
    elementwise: float = 0.0
    exposed: float = 0.0  # collectives that nothing hides
    waits: float = 0.0  # for what HBM must deliver first, or has not yet delivered into VMEM
    matmul_roofline: float = 0.0  # of the same products at peak, or at HBM bandwidth
    collectives: float = 0.0  # all of them, hidden or not
    matmul_flops: float = 0.0  # recomputation included
    attention_flops: float = 0.0  # of kernels, causal
    hbm_bytes: float = 0.0
    ici_seconds_sync: float = 0.0
    dcn_bytes: float = 0.0
    dcn_bytes_in_loops: float = 0.0
    prefetch_bytes: float = 0.0
    host_bytes: float = 0.0
    unknown_loops: float = 0.0  # loops whose count could not be read: counted once
    uncosted_products: float = 0.0  # matrix products without the compiler's cycles: at the roofline

    @property
    def seconds(self) -> float:
        """The step's: what is hidden, and the roofline, are no part of it."""
        return self.matmul + self.attention + self.elementwise + self.exposed + self.waits

    def add(self, other: Breakdown, times: float = 1.0) -> None:
        """Adds every field of another one, so many times, to this one."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + times * getattr(other, field.name))


class Timeline:
    """The walk over one module."""

    def __init__(
        self,
        module: Module,
        topology: Topology,
        attention_efficiency: float = ATTENTION_EFFICIENCY,
        queued_memory: bool = False,
    ):
        self.module, self.topology, self.chip = module, topology, topology.chip
        self.attention_efficiency, self.queued_memory = attention_efficiency, queued_memory
        self.costs = Costs(module, topology.chip)

    def step(self) -> Breakdown:
        """The entry from end to end: loops by their trip counts, of a conditional the longest branch."""
        return self._run(self.module.entry, in_loop=False)

    def _run(self, computation: Computation, in_loop: bool) -> Breakdown:
        spent, network, memory = Breakdown(), _Network(self.topology), _Memory(self.chip)
        for x in computation.instructions:
            if x.opcode in FREE:
                continue
            if x.opcode == "while":
                self._loop(x, spent)
            elif x.opcode == "call":
                for called in self.module.called_by(x):
                    spent.add(self._run(called, in_loop))
            elif x.opcode == "conditional":
                branches = [self._run(called, in_loop) for called in self.module.called_by(x)]
                spent.add(max(branches, key=lambda branch: branch.seconds, default=Breakdown()))
            elif x.opcode in _PREFETCH:
                ends = _ends(x)
                spent.prefetch_bytes += ends[0].bytes
                if any(end.space == HOST for end in ends):
                    spent.host_bytes += ends[0].bytes
                elif self.queued_memory:
                    memory.start(x.name, ends[0].bytes * sum(end.space == HBM for end in ends), spent)
            elif x.opcode in _FETCHED:
                memory.wait(_source(x, computation), spent)
            elif not self._communicate(x, computation, spent, network, in_loop):
                began, bytes_before = spent.seconds, spent.hbm_bytes
                self._compute(x, computation, spent)
                if self.queued_memory:
                    memory.use(spent.hbm_bytes - bytes_before, began, spent)
        return spent

    def _loop(self, x: Instruction, spent: Breakdown) -> None:
        trips = self.module.trip_count(x)
        if trips is None:
            spent.unknown_loops += 1
        bodies = [c for c in self.module.called_by(x)]
        for body in bodies:
            spent.add(self._run(body, in_loop=True), 1 if trips is None else trips)

    def _communicate(
        self, x: Instruction, computation: Computation, spent: Breakdown, network: _Network, in_loop: bool
    ) -> bool:
        """Whether the instruction is nothing but communication; if so it is accounted for."""
        if x.opcode == "send" and "is_host_transfer" in x.attributes:
            part = read(x, computation)
            network.start(part, part.key, spent)
            spent.dcn_bytes += part.bytes
            spent.dcn_bytes_in_loops += part.bytes if in_loop else 0.0
            return True
        if x.opcode == "recv-done":
            source = computation.by_name.get(x.operands[0]) if x.operands else None
            network.wait(rendezvous(source) if source else "", spent)
            return True
        if x.opcode in ("send", "recv", "send-done"):
            return True
        if base_kind(x.opcode):
            part = read(x, computation)
            network.start(part, x.name, spent)
            if not x.opcode.endswith("-start"):
                network.wait_now(part, x.name, spent)
            return True
        if x.opcode.endswith("-done"):
            network.wait(_source(x, computation), spent)
            return True
        parts = inside(x, self.module) if x.called and x.opcode in ("fusion", "async-start") else []
        if not parts:
            return False
        return self._fused(x, computation, [part for part, _ in parts], spent, network)

    def _fused(
        self, x: Instruction, computation: Computation, parts: list[Collective], spent: Breakdown, network: _Network
    ) -> bool:
        """A collective inside a fusion: its start, a step or the end of it, or all of it beside the fusion's own work."""
        targets = {y.target for called in self.module.called_by(x) for y in called.instructions}
        if "AsyncCollectiveStart" in targets or x.opcode == "async-start":
            for part in parts:
                network.start(part, part.key, spent)
            network.alias(x.name, parts[0].key)
            return True
        if "AsyncCollectiveDone" in targets:
            for part in parts:
                network.wait(part.key, spent)
            return True
        if all(network.in_flight(part.key) for part in parts):
            return False  # a step of what is under way: the fusion's own work counts
        for part in parts:
            network.start(part, part.key, spent)
        self._compute(x, computation, spent)
        for part in parts:
            network.wait_now(part, part.key, spent)
        return True

    def _compute(self, x: Instruction, computation: Computation, spent: Breakdown) -> None:
        chip = self.chip
        if is_kernel(x):
            flops = self.costs.kernel_flops(x, computation)
            moved = self.costs.work(x, computation).bytes
            spent.hbm_bytes += moved
            if flops is None:
                spent.elementwise += moved / (HBM_EFFICIENCY * chip.hbm_bandwidth)
            else:
                spent.attention += flops / (chip.bf16 * self.attention_efficiency)
                spent.attention_flops += flops
            return
        if x.opcode == "custom-call":  # buffers, annotations: nothing runs
            return
        work, cycles = self.costs.work(x, computation), x.cycles / chip.clock
        spent.hbm_bytes += work.bytes
        if work.flops:
            roofline = max(work.peak_seconds, work.bytes / chip.hbm_bandwidth)
            seconds = max(cycles, roofline)
            spent.matmul_flops += work.flops
            spent.matmul_roofline += roofline
            spent.uncosted_products += not x.cycles
            if "/attention/" in x.scope:
                spent.attention += seconds
            else:
                spent.matmul += seconds
            return
        bound = work.bytes / (HBM_EFFICIENCY * chip.hbm_bandwidth)
        spent.elementwise += min(cycles, bound) if cycles else bound


def _ends(x: Instruction) -> tuple[Shape, Shape]:
    """What an asynchronous copy writes, and what it reads that from: (target, source, …), or (operands…, target, …)."""
    at = 0 if x.opcode == "copy-start" else len(x.operands)
    return x.shapes[at], x.shapes[1 if at == 0 else 0]


class _Memory:
    """HBM's queue during one computation: first come first served, at the share of the bandwidth it gives."""

    def __init__(self, chip: Chip):
        self._bandwidth = HBM_EFFICIENCY * chip.hbm_bandwidth
        self._free = 0.0  # when everything asked for so far has been moved
        self._done: dict[str, float] = {}

    def start(self, name: str, moved: float, spent: Breakdown) -> None:
        """Begins to fetch into VMEM, or to write from there, beside what follows."""
        self._free = self._done[name] = max(self._free, spent.seconds) + moved / self._bandwidth

    def wait(self, name: str, spent: Breakdown) -> None:
        spent.waits += max(0.0, self._done.pop(name, 0.0) - spent.seconds)

    def use(self, moved: float, began: float, spent: Breakdown) -> None:
        """An operation that moves these bytes itself, begun at `began`, does not end before they have had their turn."""
        if moved:
            self._free = max(self._free, began) + moved / self._bandwidth
            spent.waits += max(0.0, self._free - spent.seconds)


class _Network:
    """The two networks' queues during one computation."""

    def __init__(self, topology: Topology):
        self.topology = topology
        self._free = {"ici": 0.0, DCN: 0.0}  # when each network has sent all that was given to it
        self._done: dict[str, float] = {}
        self._names: dict[str, str] = {}

    def start(self, part: Collective, key: str, spent: Breakdown) -> None:
        queue = DCN if part.kind == DCN else "ici"
        seconds = part.seconds(self.topology)
        self._free[queue] = self._done[key] = max(self._free[queue], spent.seconds) + seconds
        spent.collectives += seconds

    def alias(self, name: str, key: str) -> None:
        self._names[name] = key

    def in_flight(self, key: str) -> bool:
        return key in self._done

    def wait(self, key: str, spent: Breakdown) -> None:
        done = self._done.pop(self._names.get(key, key), 0.0)
        spent.exposed += max(0.0, done - spent.seconds)

    def wait_now(self, part: Collective, key: str, spent: Breakdown) -> None:
        spent.ici_seconds_sync += part.seconds(self.topology)
        self.wait(key, spent)


def _source(x: Instruction, computation: Computation) -> str:
    """The start that a `-done` belongs to, seen through tuples and updates."""
    name = x.operands[0] if x.operands else ""
    while name in computation.by_name:
        y = computation.by_name[name]
        if y.opcode not in ("get-tuple-element", "async-update", "bitcast", "tuple") or not y.operands:
            break
        name = y.operands[0]
    return name
