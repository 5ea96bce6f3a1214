"""The TPUs that can be planned for: what a chip can do, and how its slices are wired.

Figures are the vendor's data sheets (cloud.google.com/tpu/docs/system-architecture-tpu-vm); those of the networks,
with the share of a link that a collective really gets, are from "How to Scale Your Model" (jax-ml.github.io/
scaling-book, part 2). Clocks are peak / (2 · multipliers), which the compiler's own cycle counts agree with.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from anygpt_jax.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One generation. Everything is of one *device* as jax counts them: half a chip on tpu7x."""

    name: str
    dimensions: int  # of the torus
    hbm: int  # bytes a program may use
    bf16: float  # FLOP/s, dense
    int8: float | None  # operations a second; None: the chip has no such matrix unit
    fp8: float | None
    hbm_bandwidth: float  # bytes/s
    link: float  # bytes/s that a collective gets out of one ICI link, one way
    dcn: float  # bytes/s to other slices, one way
    clock: float  # Hz of the compiler's cycles
    devices_per_chip: int = 1
    wraps_at: int = 4  # a torus dimension closes into a ring when its length is a multiple of this
    wraps_alone: bool = False  # each dimension for itself, or only all of them together
    config_name: str | None = None  # libtpu's name of the chip's mode

    def peak(self, dtype: str) -> float:
        """FLOP/s of matrix products of an HLO element type. What has no unit of its own runs as bfloat16."""
        if dtype in ("s8", "u8", "s4", "u4") and self.int8:
            return self.int8
        if dtype.startswith("f8") and self.fp8:
            return self.fp8
        return self.bf16


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 3, int(30.75 * GIB), 275e12, 275e12, None, 1228e9, 45e9, 6.25e9, 1.05e9, config_name="megacore"),
        Chip("v5e", 2, int(15.75 * GIB), 197e12, 394e12, None, 819e9, 45e9, 6.25e9, 1.5e9, wraps_at=16, wraps_alone=True),
        Chip("v5p", 3, int(95.74 * GIB), 459e12, 918e12, None, 2765e9, 90e9, 6.25e9, 1.75e9),
        Chip("v6e", 2, int(31.25 * GIB), 918e12, 1836e12, None, 1640e9, 90e9, 12.5e9, 1.75e9, wraps_at=16, wraps_alone=True),
        Chip("tpu7x", 3, int(94.75 * GIB), 1153.5e12, None, 2307e12, 3690e9, 45e9, 6.25e9, 2.2e9, devices_per_chip=2),
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Topology:
    """`slices` slices of one shape, for example v5p:4x4x4."""

    chip: Chip
    shape: tuple[int, ...]  # chips along each dimension of a slice
    slices: int = 1

    @classmethod
    def parse(cls, text: str, slices: int = 1) -> Topology:
        """Reads `CHIP:AxBxC`. UserError if there is no such chip or shape."""
        name, _, sizes = text.partition(":")
        if name not in CHIPS:
            raise UserError(f"Unknown chip '{name}' in --topology {text}; known ones: {', '.join(CHIPS)}.")
        chip = CHIPS[name]
        example = "x".join(["4"] * chip.dimensions)
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sizes) or sizes.count("x") + 1 != chip.dimensions:
            raise UserError(f"--topology {text} must give {chip.dimensions} sizes, as in {name}:{example}.")
        if slices < 1:
            raise UserError(f"--slices {slices} must be at least 1.")
        return cls(chip, tuple(map(int, sizes.split("x"))), slices)

    @property
    def name(self) -> str:
        """CHIP:AxBxC, as `parse` reads it: one slice, whatever their number."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """Of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def slice_devices(self) -> int:
        """Of one slice, as jax counts them: two a chip on tpu7x."""
        return math.prod(self.shape) * self.chip.devices_per_chip

    @property
    def devices(self) -> int:
        """Of all slices, as jax counts them."""
        return self.slice_devices * self.slices

    @property
    def wrap(self) -> tuple[bool, ...]:
        """Which dimensions close into rings. Without them every gather of weights becomes a synchronous all-reduce."""
        closed = [size % self.chip.wraps_at == 0 for size in self.shape]
        return tuple(closed if self.chip.wraps_alone else [all(closed)] * len(closed))

    def arguments(self) -> dict[str, Any]:
        """What `jax.experimental.topologies.get_topology_desc` takes beside the name: always three dimensions."""
        spare = 3 - len(self.shape)
        host = [min(2, size) for size in self.shape[:2]]
        arguments: dict[str, Any] = {
            "chips_per_host_bounds": (*host, 1),
            "wrap": (*self.wrap, *[False] * spare),
            "num_slices": self.slices,
        }
        if self.chip.config_name:
            arguments["chip_config_name"] = self.chip.config_name
        return arguments

    def ici(self, group: int) -> float:
        """Bytes/s that each of `group` devices of a slice sends in a ring collective.

        A closed dimension of the torus gives two links, an open or a partly used one gives one.
        """
        links = sum(2 if closed else 1 for _, closed in self._along(group))
        return self.chip.link * max(links, 1)

    def distance(self, group: int) -> float:
        """Links that a byte crosses on average between two of `group` devices: a quarter of a ring, a third of a line."""
        return max(sum(size / (4 if closed else 3) for size, closed in self._along(group)), 1.0)

    def _along(self, group: int) -> list[tuple[int, bool]]:
        """(length, closed) of the dimensions a group lies along: as few as hold it, the longest first."""
        left, found = max(group // self.chip.devices_per_chip, 1), []
        for size, closed in sorted(zip(self.shape, self.wrap, strict=True), reverse=True):
            part = math.gcd(left, size)
            if part > 1:
                found.append((part, closed and part == size))
                left //= part
        return found
