"""Reads the text of a compiled (scheduled) TPU program: computations, instructions, shapes, trip counts.

Only what an estimate needs. The grammar is that of XLA's HloModule::ToString; TPUs add to a layout the memory a
buffer lies in, `S(1)` for the on-chip VMEM, and to `backend_config` the compiler's `estimated_cycles`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

HBM, VMEM, HOST = 0, 1, 5  # memory spaces

BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128, "token": 0,
    "f4e2m1fn": 4, "f8e5m2": 8, "f8e4m3": 8, "f8e4m3fn": 8, "f8e4m3b11fnuz": 8, "f8e5m2fnuz": 8, "f8e8m0fnu": 8,
}  # fmt: skip
_SHAPE = re.compile(r"\b([a-z]+[0-9a-z]*)\[([0-9,<=]*)\](\{[^}]*\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array of one device and the memory it lies in."""

    dtype: str
    dims: tuple[int, ...]
    space: int = HBM

    @property
    def elements(self) -> int:
        """Their number; 1 of a scalar."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Rounded up to a whole one, without the padding of the chip's tiles."""
        return -(-self.elements * BITS[self.dtype] // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation; `operands` are names of others in it, see `Computation.shapes_of`."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # one, or a tuple's elements
    operands: tuple[str, ...]
    arguments: str  # what stands between the opcode's parentheses
    attributes: str  # what follows them
    root: bool

    @functools.cached_property
    def cycles(self) -> int:
        """The compiler's own estimate; 0 if it made none."""
        found = re.search(r'"estimated_cycles":"?(\d+)', self.attributes)
        return int(found[1]) if found else 0

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Names of the computations it runs, a loop's condition left out."""
        names = [name for key, name in _CALLED.findall(self.attributes) if key != "condition"]
        branches = _BRANCHES.search(self.attributes)
        return (*names, *(re.findall(r"[\w.\-]+", branches[1]) if branches else ()))

    @functools.cached_property
    def target(self) -> str:
        """What a custom call calls."""
        found = re.search(r'custom_call_target="([^"]+)"', self.attributes)
        return found[1] if found else ""

    @functools.cached_property
    def scope(self) -> str:
        """The path of jax names it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @functools.cached_property
    def channel(self) -> int | None:
        """The collective it belongs to; the parts of one that is spread over several fusions share it."""
        found = re.search(r"channel_id=(\d+)", self.attributes)
        return int(found[1]) if found else None

    def integers(self, key: str) -> tuple[int, ...]:
        """An attribute such as `lhs_contracting_dims={1,2}`."""
        found = re.search(rf"\b{key}=\{{([\d,]*)\}}", self.attributes)
        return tuple(int(n) for n in found[1].split(",") if n) if found else ()


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions as they stand in the text, which is the order that a scheduled program runs them in."""

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> Mapping[str, Instruction]:
        """Name, without its %, → instruction."""
        return {x.name: x for x in self.instructions}

    @functools.cached_property
    def root(self) -> Instruction:
        """What gives the computation's result: the one that is marked ROOT, otherwise the last."""
        return next((x for x in self.instructions if x.root), self.instructions[-1])

    @functools.cached_property
    def users(self) -> Mapping[str, tuple[Instruction, ...]]:
        """Operand → instructions that take it, in order. An element `name#k` is by itself, apart from `name`."""
        found: dict[str, list[Instruction]] = {}
        for x in self.instructions:
            for operand in dict.fromkeys(x.operands):
                found.setdefault(operand, []).append(x)
        return {name: tuple(users) for name, users in found.items()}

    def shapes_of(self, operand: str) -> tuple[Shape, ...]:
        """An operand's shapes. Newer compilers write the element k of a tuple as `name#k`."""
        name, _, element = operand.partition("#")
        if name not in self.by_name:
            return ()
        shapes = self.by_name[name].shapes
        return (shapes[int(element)],) if element else shapes


@dataclasses.dataclass(frozen=True)
class Module:
    """The computations of a program by name, and the one that it begins with."""

    computations: Mapping[str, Computation]
    entry: Computation

    def called_by(self, instruction: Instruction) -> Iterator[Computation]:
        """The computations of `Instruction.called` in that order, without those that are not in the text."""
        return (self.computations[name] for name in instruction.called if name in self.computations)

    def trip_count(self, loop: Instruction) -> int | None:
        """How often a `while` runs: what the compiler says, else what its condition compares with over its stride.

        The constant is the count of every `jax.lax.scan`: they begin at 0 and go up by 1. The loops in which
        the compiler passes a product's parts around a ring also begin at 0, and take two parts a turn.
        """
        known = re.search(r'known_trip_count"?[:=]\{"?n"?[:=]"?(\d+)', loop.attributes)
        if known:
            return int(known[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
        limit = self._largest_constant(condition[1]) if condition else None
        return None if condition is None or limit is None else -(-limit // self._stride(loop, condition[1]))

    def _stride(self, loop: Instruction, condition: str) -> int:
        """What the body adds to the counter that the condition compares; 1 where it cannot be seen."""
        body = next(self.called_by(loop), None)
        tests = [x for x in self.computations[condition].instructions if x.opcode == "compare"]
        if body is None or len(tests) != 1 or body.root.opcode != "tuple":
            return 1
        read = (self.computations[condition].by_name.get(name) for name in tests[0].operands)
        index = next((_element(x) for x in read if x is not None and x.opcode == "get-tuple-element"), None)
        update = None if index is None else body.by_name.get(body.root.operands[index])
        added = 0
        while update is not None and update.opcode == "add":
            terms = [body.by_name[name] for name in update.operands if name in body.by_name]
            constants = [int(x.arguments) for x in terms if x.opcode == "constant" and x.arguments.isdigit()]
            added += sum(constants)
            update = next((x for x in terms if x.opcode != "constant"), None) if len(constants) == 1 else None
        counted = update is not None and update.opcode == "get-tuple-element" and _element(update) == index
        return max(added, 1) if counted else 1

    def _largest_constant(self, name: str) -> int | None:
        found: list[int] = []
        for x in self.computations[name].instructions if name in self.computations else ():
            if x.opcode == "constant" and x.shapes[0].dims == () and x.arguments.isdigit():
                found.append(int(x.arguments))
            found.extend(c for called in x.called if (c := self._largest_constant(called)) is not None)
        return max(found, default=None)


def _element(x: Instruction) -> int:
    """Which element a `get-tuple-element` takes."""
    found = re.search(r"index=(\d+)", x.attributes)
    assert found is not None, x
    return int(found[1])


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """The arrays of a type: `bf16[8,128]{1,0:T(8,128)S(1)}`, or a tuple of such, nested ones flattened."""
    shapes = []
    for dtype, dims, layout in _SHAPE.findall(text):
        if dtype in BITS:
            space = re.search(r"S\((\d+)\)", layout)
            sizes = tuple(int(n) for n in dims.replace("<=", "").split(",") if n)
            shapes.append(Shape(dtype, sizes, int(space[1]) if space else HBM))
    return tuple(shapes)


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    return len(text)


def _parse_instruction(line: str) -> Instruction | None:
    found = _INSTRUCTION.match(line)
    if not found:
        return None
    root, name, rest = found.groups()
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    opcode = re.match(r" *([\w\-]+)\(", rest[end:])
    if not opcode:
        return None
    opened = end + opcode.end() - 1
    closed = _closing(rest, opened)
    arguments = rest[opened + 1 : closed]
    operands = tuple(re.findall(r"%([\w.\-]+(?:#\d+)?)", arguments))
    return Instruction(
        name, opcode[1], parse_shapes(rest[:end]), operands, arguments.strip(), rest[closed + 1 :], bool(root)
    )


def _logical_lines(text: str) -> Iterator[str]:
    """Lines with those joined that an attribute (a kernel's metadata) breaks."""
    held = ""
    for line in text.splitlines():
        if held and not line.startswith(" ") and line != "}" and not _COMPUTATION.match(line):
            held += line
            continue
        yield held
        held = line
    yield held


def parse(text: str) -> Module:
    """The module of `jax.stages.Compiled.as_text()`. ValueError if there is no entry computation."""
    computations: dict[str, Computation] = {}
    entry, name = "", ""
    held: list[Instruction] = []
    for line in _logical_lines(text):
        header = _COMPUTATION.match(line)
        if header:
            name, held = header[2], []
            entry = name if header[1] else entry
        elif line == "}" and name:
            computations[name] = Computation(name, tuple(held))
            name = ""
        elif name:
            instruction = _parse_instruction(line)
            if instruction:
                held.append(instruction)
    if entry not in computations:
        raise ValueError("this text has no ENTRY computation")
    return Module(computations, computations[entry])
