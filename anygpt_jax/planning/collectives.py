"""What a collective of a compiled program moves, and between how many devices."""

from __future__ import annotations

import dataclasses
import math
import re

from anygpt_jax.planning.chips import Topology
from anygpt_jax.planning.hlo import Computation, Instruction, Module

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
DCN = "dcn"  # a transfer between slices, by way of the hosts


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective, or a transfer to other slices, as one device takes part in it."""

    kind: str
    key: str  # the same for all parts of one that is spread over several instructions
    bytes: float  # of the whole array on a device: an all-gather's output, a reduce-scatter's input
    group: int  # devices that take part

    def seconds(self, topology: Topology) -> float:
        """By the usual ring algorithms at full bandwidth, no latency (scaling-book, part 3)."""
        if self.kind == DCN:  # reduced on the way: out and in again
            return self.bytes * 2 * (topology.slices - 1) / topology.slices / topology.chip.dcn
        share = self.bytes * (self.group - 1) / max(self.group, 1)
        rate = topology.ici(self.group)
        if self.kind == "all-reduce":
            return 2 * share / rate
        if self.kind.endswith("all-to-all"):
            return share * topology.distance(self.group) / rate
        return (self.bytes if self.kind == "collective-permute" else share) / rate


def base_kind(opcode: str) -> str | None:
    """The kind of a collective instruction, of its start if it is asynchronous; None for any other."""
    kind = opcode.removesuffix("-start")
    return kind if kind in KINDS else None


def read(x: Instruction, computation: Computation) -> Collective:
    """An instruction for which `base_kind` is not None, or a `send` to other slices."""
    if x.opcode == "send":
        return Collective(DCN, rendezvous(x), x.shapes[0].bytes, 1)
    kind = base_kind(x.opcode)
    assert kind is not None
    group = group_size(x.attributes)
    sizes = [shape.bytes for shape in x.shapes]
    operands = [shape.bytes for operand in x.operands for shape in computation.shapes_of(operand)]
    if kind == "all-gather":  # an asynchronous one returns its operands too
        size = sum(sizes) - (sum(operands) if x.opcode.endswith("-start") else 0)
    else:
        size = sum(operands) or sum(sizes)
    key = f"channel {x.channel}" if x.channel is not None else x.name
    if kind == "all-reduce" and _is_scattered(x, computation):
        kind = "reduce-scatter"
    return Collective(kind, key, float(size), group)


def _is_scattered(x: Instruction, computation: Computation) -> bool:
    """A fusion that keeps only this device's slice of a sum does not send the rest round."""
    users = computation.users.get(x.name, ())
    return bool(users) and not x.root and all(user.opcode == "dynamic-slice" for user in users)


def rendezvous(x: Instruction) -> str:
    """What a host transfer's send and receive have in common."""
    found = re.search(r'_xla_host_transfer_rendezvous="([^"]+)"', x.attributes)
    return found[1] if found else x.name


def group_size(attributes: str) -> int:
    """Devices in one replica group, in each of XLA's ways of writing it; of a permutation, in its first cycle."""
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}", attributes)
    if mesh:
        sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        return math.prod(sizes.get(axis, 1) for axis in re.findall(r"'([^']+)'", mesh[2]))
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]", attributes)
    if iota:
        return int(iota[1])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    if listed:
        return listed[1].count(",") + 1
    pairs = dict(
        re.findall(r"\{(\d+),(\d+)\}", attributes.partition("source_target_pairs=")[2].partition("}}")[0] + "}")
    )
    if pairs:
        first = at = next(iter(pairs))
        for length in range(1, len(pairs) + 1):
            at = pairs.get(at, first)
            if at == first:
                return max(length, 2)
    return 2


def inside(x: Instruction, module: Module) -> list[tuple[Collective, Instruction]]:
    """The collectives within what a fusion or an asynchronous call runs."""
    found = []
    for computation in module.called_by(x):
        for y in computation.instructions:
            if base_kind(y.opcode):
                found.append((read(y, computation), y))
            elif y.called and y.opcode in ("fusion", "call", "async-start"):
                found.extend(inside(y, module))
    return found


def census(module: Module) -> dict[str, dict[str, int]]:
    """How many collectives of each kind the entry and every loop hold: {"entry" or "loop N of TRIPS": {kind: n}}.

    A collective in several parts counts once; loops are numbered as they stand in the program. An asynchronous
    one is counted as such.
    """
    counts: dict[str, dict[str, int]] = {}

    def count(computation: Computation, place: str) -> None:
        seen: set[str] = set()
        here = counts.setdefault(place, {})
        for x in computation.instructions:
            if x.opcode == "while":
                for body in module.called_by(x):
                    count(body, f"loop {len(counts)} of {module.trip_count(x)}")
                continue
            if base_kind(x.opcode) or (x.opcode == "send" and "is_host_transfer" in x.attributes):
                parts = [read(x, computation)]
            else:
                parts = [part for part, _ in inside(x, module)] if x.called else []
            for part in parts:
                if part.key not in seen:
                    seen.add(part.key)
                    here[part.kind] = here.get(part.kind, 0) + 1

    count(module.entry, "entry")
    return counts
