"""Slices as clouds name them: how many chips, in which shape, on how many hosts, under which label.

Names count TensorCores on v4, v5p and tpu7x (v5p-128 is 64 chips), chips on v5e and v6e. Sources:
cloud.google.com/tpu/docs (accelerator types, TPU software versions) and cloud.google.com/kubernetes-engine/docs/concepts/
plan-tpus (machine types and topologies).
"""

from __future__ import annotations

import dataclasses
import math

from anygpt_jax.errors import UserError
from anygpt_jax.planning.chips import CHIPS, Topology


@dataclasses.dataclass(frozen=True)
class Family:
    """One generation's names."""

    chip: str  # of planning.chips
    tpu_vm: str  # prefix of accelerator types
    cores: int  # that a name counts for a chip
    runtime: str  # the TPU VM's software version
    gke_label: str  # cloud.google.com/gke-tpu-accelerator
    machine: str  # GKE's machine type; {} is the chips of a host
    shapes: tuple[str, ...]
    one_host: int  # chips of the largest slice that is one host; larger ones have four a host


_CUBES = (
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16",
)  # fmt: skip
_SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")

FAMILIES = {
    family.chip: family
    for family in (
        Family("v4", "v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice", "ct4p-hightpu-{}t", _CUBES, 4),
        Family("v5e", "v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", "ct5lp-hightpu-{}t", _SQUARES, 8),
        Family("v5p", "v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice", "ct5p-hightpu-{}t", _CUBES, 4),
        Family("v6e", "v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice", "ct6e-standard-{}t", _SQUARES, 8),
        Family("tpu7x", "tpu7x", 2, "v2-alpha-tpu7-ubuntu2404", "tpu7x", "tpu7x-standard-{}t", _CUBES, 4),
    )
}


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """So many slices of one kind, for example v5p-128."""

    family: Family
    topology: Topology

    @classmethod
    def parse(cls, text: str, slices: int = 1) -> Accelerator:
        """Reads CHIP-N as in v5p-128 (v5litepod-256 is v5e-256). UserError if there is no such slice."""
        name, _, count = text.partition("-")
        name = next((f.chip for f in FAMILIES.values() if f.tpu_vm == name), name)
        if name not in FAMILIES:
            raise UserError(f"Unknown accelerator '{text}'; known are {', '.join(f'{n}-N' for n in FAMILIES)}.")
        family = FAMILIES[name]
        sizes = {_chips(shape) * family.cores: shape for shape in family.shapes}
        if not count.isdigit() or int(count) not in sizes:
            raise UserError(f"There is no {text}; {name} comes as {', '.join(f'{name}-{n}' for n in sizes)}.")
        return cls(family, Topology.parse(f"{name}:{sizes[int(count)]}", slices))

    @classmethod
    def of(cls, topology: Topology) -> Accelerator:
        """The slices of a topology, also where clouds have no name for its shape."""
        return cls(FAMILIES[topology.chip.name], topology)

    @property
    def name(self) -> str:
        """CHIP-N, as this project and GKE's tools say it."""
        return f"{self.family.chip}-{self.count}"

    @property
    def tpu_vm_type(self) -> str:
        """As `gcloud compute tpus` says it."""
        return f"{self.family.tpu_vm}-{self.count}"

    @property
    def count(self) -> int:
        """What names count in one slice: TensorCores on v4, v5p and tpu7x, chips on v5e and v6e."""
        return self.slice_chips * self.family.cores

    @property
    def slices(self) -> int:
        """Their number, all of one shape."""
        return self.topology.slices

    @property
    def slice_chips(self) -> int:
        """Of one slice, on all its hosts."""
        return math.prod(self.topology.shape)

    @property
    def shape(self) -> str:
        """As GKE's label has it: 4x4x4."""
        return "x".join(map(str, self.topology.shape))

    @property
    def chips_per_host(self) -> int:
        """The whole slice if it is one host, otherwise 4."""
        return self.slice_chips if self.slice_chips <= self.family.one_host else 4

    @property
    def hosts(self) -> int:
        """Of one slice."""
        return self.slice_chips // self.chips_per_host

    @property
    def machine(self) -> str:
        """GKE's type of one host, for example ct5p-hightpu-4t."""
        return self.family.machine.format(self.chips_per_host)

    def sizes(self) -> list[Accelerator]:
        """All slices of this kind, so many of them, from the smallest."""
        return [
            Accelerator(self.family, dataclasses.replace(self.topology, shape=_shape(shape)))
            for shape in self.family.shapes
        ]

    def neighbours(self) -> list[Accelerator]:
        """The next smaller and larger slice of this kind, and the nearest of each other kind in bfloat16 FLOP/s."""
        sizes = self.sizes()
        smaller = [a for a in sizes if a.slice_chips < self.slice_chips]
        larger = [a for a in sizes if a.slice_chips > self.slice_chips]
        found = [*smaller[-1:], *larger[:1]]
        peak = self.topology.chip.bf16 * self.topology.devices
        for family in FAMILIES.values():
            if family is self.family:
                continue
            others = [
                Accelerator(family, Topology(CHIPS[family.chip], _shape(shape), self.slices)) for shape in family.shapes
            ]
            found.append(min(others, key=lambda a: abs(math.log(a.topology.chip.bf16 * a.topology.devices / peak))))
        return found


def _shape(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("x")))


def _chips(text: str) -> int:
    return math.prod(_shape(text))
