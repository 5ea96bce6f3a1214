"""What one instruction of a compiled program computes and moves through HBM."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

from anygpt_jax.planning.chips import Chip
from anygpt_jax.planning.collectives import base_kind
from anygpt_jax.planning.flops import product_flops
from anygpt_jax.planning.hlo import HBM, Computation, Instruction, Module, Shape

# Nobody's time: they name, forward or mark.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "opt-barrier", "add-dependency", "domain", "async-update",
}  # fmt: skip
_SAME = {"bitcast", "copy", "reshape", "convert", "transpose"}  # within a fusion they cost no trip to HBM
_SLICES = {"dynamic-slice", "slice", "gather"}
_UPDATES = {"dynamic-update-slice", "scatter"}
# Matrix products of splash and flash attention kernels, two FLOPs a multiply-add: scores and values; with
# recomputed scores, dq needs three, dk and dv four, all three together five.
_KERNELS = (("dq", 6), ("dkv", 8), ("fwd", 4))
_FUSED_BACKWARD = 10


@dataclasses.dataclass(frozen=True)
class Work:
    """Of one execution, on one device."""

    flops: float = 0.0  # of matrix products
    peak_seconds: float = 0.0  # those at the peak of their own number format
    bytes: float = 0.0  # to and from HBM


def _hbm(shapes: tuple[Shape, ...]) -> float:
    return float(sum(shape.bytes for shape in shapes if shape.space == HBM))


class Costs:
    """Reads instructions of one module for one chip; what a computation does is worked out once."""

    def __init__(self, module: Module, chip: Chip):
        self.module, self.chip = module, chip
        kernels = [x.name for c in module.computations.values() for x in c.instructions if is_kernel(x)]
        self._separate_dq = any("dq" in name for name in kernels)
        self._read = functools.cache(self._read_bytes)
        self._written = functools.cache(self._written_bytes)
        self._products = functools.cache(self._product_work)

    def work(self, x: Instruction, computation: Computation) -> Work:
        """Of one instruction. A fusion's products are those inside it, its bytes what goes between it and HBM."""
        flops, seconds = self._product(x, computation)
        for called in self.module.called_by(x) if x.opcode == "fusion" else ():
            more = self._products(called.name)
            flops, seconds = flops + more[0], seconds + more[1]
        return Work(flops, seconds, self._bytes(x, computation))

    def kernel_flops(self, x: Instruction, computation: Computation) -> float | None:
        """Causal FLOPs of an attention kernel, half of all query-key pairs; None if it is another kernel.

        Its first two operands of three axes or more, [..., heads, L, K], are queries and keys.
        """
        arrays = [
            s for o in x.operands for s in computation.shapes_of(o) if len(s.dims) >= 3 and s.dtype[:2] in ("bf", "f3")
        ]
        if len(arrays) < 2 or not re.search("splash|flash|mha|attention", x.name):
            return None
        queries, keys = arrays[0].dims, arrays[1].dims
        per_pair = next((n for name, n in _KERNELS if name in x.name), 4)
        if per_pair == 8 and not self._separate_dq:
            per_pair = _FUSED_BACKWARD
        return 0.5 * per_pair * math.prod(queries[:-1]) * keys[-2] * queries[-1]

    def _product(self, x: Instruction, computation: Computation) -> tuple[float, float]:
        flops = product_flops(x, computation)
        if not flops:
            return 0.0, 0.0
        dtypes = [shapes[0].dtype for o in x.operands[:2] if (shapes := computation.shapes_of(o))]
        return float(flops), flops / min(self.chip.peak(dtype) for dtype in dtypes)

    def _product_work(self, name: str) -> tuple[float, float]:
        computation = self.module.computations[name]
        parts = [self._product(x, computation) for x in computation.instructions]
        parts += [self._products(y.name) for x in computation.instructions for y in self.module.called_by(x)]
        return sum(part[0] for part in parts), sum(part[1] for part in parts)

    def _bytes(self, x: Instruction, computation: Computation) -> float:
        """HBM traffic. What a fusion only slices counts as the slice, what it updates in place as the update."""
        operands = [computation.shapes_of(operand) for operand in x.operands]
        if x.opcode in _SLICES:
            return 2 * _hbm(x.shapes)
        if x.opcode in _UPDATES:
            return 2 * _hbm(operands[_update_operand(x)])
        if x.opcode != "fusion":
            return sum(map(_hbm, operands)) + _hbm(x.shapes)
        total = 0.0
        for called in self.module.called_by(x):
            for i, shapes in enumerate(operands):
                part = self._read(called.name, i)
                total += _hbm(shapes) if part is None else min(part, _hbm(shapes))
            for i, shape in enumerate(x.shapes):
                part = self._written(called.name, i)
                total += _hbm((shape,)) if part is None else min(part, _hbm((shape,)))
        return total

    def _read_bytes(self, name: str, index: int) -> float | None:
        """How much of parameter `index` a fused computation reads; None for all of it."""
        computation = self.module.computations[name]
        parameters = (x for x in computation.instructions if x.opcode == "parameter")
        parameter = next((x for x in parameters if x.arguments == str(index)), None)
        if parameter is None:
            return None
        total = 0.0
        for user, operand in _through(computation, parameter.name):
            if user.opcode in _SLICES and user.operands[0] == operand:
                total += sum(shape.bytes for shape in user.shapes)
            elif user.opcode in _UPDATES and user.operands[0] == operand:
                continue
            elif user.opcode == "tuple" or base_kind(user.opcode) or user.target.startswith("AsyncCollective"):
                continue  # handed on; what a collective moves is counted with it
            elif user.opcode == "fusion":
                inner = [self._read(c.name, user.operands.index(operand)) for c in self.module.called_by(user)]
                if not inner or inner[0] is None:
                    return None
                total += inner[0]
            else:
                return None
        return total

    def _written_bytes(self, name: str, index: int) -> float | None:
        """How much of result `index` a fused computation writes; None for all of it."""
        computation = self.module.computations[name]
        x: Instruction | None = computation.root
        if x is not None and x.opcode == "tuple":
            x = computation.by_name.get(x.operands[index]) if index < len(x.operands) else None
        while x is not None and x.opcode in _SAME:
            x = computation.by_name.get(x.operands[0])
        if x is None:
            return None
        if x.opcode in _UPDATES:
            return float(sum(shape.bytes for shape in computation.shapes_of(x.operands[_update_operand(x)])))
        if x.opcode == "parameter" or base_kind(x.opcode) or x.target.startswith("AsyncCollective"):
            return 0.0
        return None


def is_kernel(x: Instruction) -> bool:
    """A Pallas (Mosaic) kernel."""
    return x.opcode == "custom-call" and x.target == "tpu_custom_call"


def _update_operand(x: Instruction) -> int:
    return 2 if x.opcode == "scatter" and len(x.operands) > 2 else 1


def _through(computation: Computation, name: str, depth: int = 0) -> list[tuple[Instruction, str]]:
    """Who uses a value, seen through what only reshapes it: (instruction, the operand's name there)."""
    found = []
    for user in computation.users.get(name, ()):
        if user.opcode in _SAME and depth < 4 and not user.root:
            found.extend(_through(computation, user.name, depth + 1))
        else:
            found.append((user, name))
    return found
