"""Reader of XLA's scheduled HLO text: computations, instructions, shapes and loop trip counts.

Only what a cost model needs is understood: names, opcodes, result shapes, operands, called computations and a few
attributes. The text is what ``compiled.as_text()`` returns; its instructions stand in the order they are issued.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from collections.abc import Mapping

_DTYPE_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,]*)\]")
_HEADER = re.compile(r"^(ENTRY\s+)?%?([^\s(]+)\s+\(.*\)\s+->\s+.*\{\s*$")
_END = re.compile(r"^\}(?:, execution_thread=.*)?\s*$")
_NAME = re.compile(r"^\s*(?:ROOT\s+)?%?([^\s=]+)\s+=\s+")
_OPCODE = re.compile(r"\s*([a-z][a-z0-9\-]*)\(")
_OPERAND = re.compile(r"%([^\s,()]+)")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([^\s,})]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_OP_NAME = re.compile(r'\bop_name="((?:[^"\\]|\\.)*)"')
_TARGET = re.compile(r'\bcustom_call_target="([^"]*)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONSTANT = re.compile(r"^[su](?:8|16|32|64)\[\]")
_IOTA_GROUPS = re.compile(r"\breplica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH_GROUPS = re.compile(r"\breplica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
_MESH_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+)|=(\d+))?")
_CHAIN = re.compile(r'\bchain_id="(\d+)"')
_LIST_GROUPS = re.compile(r"\breplica_groups=\{(\{[\d,{}\s]*\})\}")
_BRACKETS = re.compile(r'[()"]|\\.')
_PAIRS = re.compile(r"\bsource_target_pairs=\{(\{[\d,{}\s]*\})\}")


class HloError(ValueError):
    """A program that cannot be read; a defect of this reader or a change of XLA's text."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    attributes: str  # everything behind the operands
    literal: str  # what stands between the parentheses
    is_root: bool = False

    @functools.cached_property
    def called(self) -> Mapping[str, str]:
        """Called computations by attribute: ``calls``, ``body``, ``condition``, ..."""
        return {key: name for key, name in _CALLED.findall(self.attributes)}

    @property
    def branches(self) -> tuple[str, ...]:
        """The computations of a conditional."""
        listed = _BRANCHES.search(self.attributes)
        if listed:
            return tuple(name.strip().lstrip("%") for name in listed[1].split(","))
        return tuple(self.called[key] for key in ("true_computation", "false_computation") if key in self.called)

    @functools.cached_property
    def cycles(self) -> int | None:
        """The compiler's estimate for one execution, or None where it gives none."""
        found = _CYCLES.search(self.attributes)
        return int(found[1]) if found else None

    @functools.cached_property
    def op_name(self) -> str:
        """The name scopes of the source operation, or ""."""
        found = _OP_NAME.search(self.attributes)
        return found[1] if found else ""

    @property
    def chain(self) -> str:
        """What the pieces of one collective that is fused with compute have in common, or ""."""
        found = _CHAIN.search(self.attributes)
        return found[1] if found else ""

    @property
    def custom_call_target(self) -> str:
        """The kernel of a custom call, or ""."""
        found = _TARGET.search(self.attributes)
        return found[1] if found else ""

    @property
    def bytes(self) -> int:
        """Size of the result."""
        return shape_bytes(self.shape)


@dataclasses.dataclass(frozen=True)
class Computation:
    """A list of instructions, in the order of the schedule."""

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> Mapping[str, Instruction]:
        """Instructions by their name."""
        return {instruction.name: instruction for instruction in self.instructions}

    @property
    def root(self) -> Instruction:
        """The instruction whose value the computation returns."""
        return next((i for i in self.instructions if i.is_root), self.instructions[-1])


@dataclasses.dataclass(frozen=True)
class Program:
    """A whole module."""

    computations: Mapping[str, Computation]
    entry: str

    def inside(self, name: str) -> Iterator[Instruction]:
        """Every instruction of a computation and of those it calls."""
        for instruction in self.computations[name].instructions:
            yield instruction
            for called in instruction.called.values():
                yield from self.inside(called)

    def trip_count(self, loop: Instruction) -> int:
        """How often the body of a ``while`` runs.

        The loops of ``lax.scan`` and of collective matmuls count an integer up to a constant: from its start value,
        by what the body adds, while the condition's comparison holds.

        Raises:
            HloError: for a loop whose end is no constant.
        """
        known = _TRIPS.search(loop.attributes)
        if known:
            return int(known[1])
        condition = self.computations[loop.called["condition"]]
        limits = [_integer(i) for i in self.inside(condition.name) if _is_integer_constant(i)]
        directions = {
            found[1]
            for i in self.inside(condition.name)
            if i.opcode == "compare" and (found := re.search(r"\bdirection=(\w+)", i.attributes))
        }
        if len(limits) != 1 or len(directions) != 1:
            raise HloError(
                f"The trip count of loop {loop.name} cannot be read: its condition {condition.name} compares "
                f"{sorted(directions)} with the constants {limits}"
            )
        direction = directions.pop()
        step, start = self._counter(loop, condition)
        if direction in ("LT", "NE"):
            return max(0, math.ceil((limits[0] - start) / step))
        if direction == "LE":
            return max(0, (limits[0] - start) // step + 1)
        raise HloError(f"The trip count of loop {loop.name} cannot be read: it runs while {direction}")

    def _counter(self, loop: Instruction, condition: Computation) -> tuple[int, int]:
        """Step and start of a loop's counter; 1 and 0 where the text does not show them."""
        index = next(
            (
                int(found[1])
                for i in condition.instructions
                if i.opcode == "get-tuple-element"
                and re.match(r"^[su](?:8|16|32|64)\[\]", i.shape)
                and (found := re.search(r"\bindex=(\d+)", i.attributes))
            ),
            None,
        )
        if index is None:
            return 1, 0
        body = self.computations[loop.called["body"]]
        step, start = 1, 0
        root = body.root
        if root.opcode == "tuple" and index < len(root.operands):
            step = self._added(body, root.operands[index]) or 1
        owner = next((c for c in self.computations.values() if c.by_name.get(loop.name) is loop), None)
        if owner is not None and loop.operands:
            initial = owner.by_name.get(loop.operands[0])
            if initial is not None and initial.opcode == "tuple" and index < len(initial.operands):
                start = _constant_of(owner, initial.operands[index]) or 0
        return step, start

    def _added(self, body: Computation, name: str) -> int | None:
        """The constant that the body adds to its counter."""
        instruction = body.by_name.get(name)
        if instruction is None:
            return None
        if instruction.opcode in ("copy", "bitcast"):
            return self._added(body, instruction.operands[0])
        inside = list(self.inside(instruction.called["calls"])) if "calls" in instruction.called else [instruction]
        if not any(i.opcode == "add" for i in inside):
            return None
        constants = [_integer(i) for i in inside if _is_integer_constant(i)]
        constants += [value for operand in instruction.operands if (value := _constant_of(body, operand)) is not None]
        return constants[0] if len(constants) == 1 else None


def parse(text: str) -> Program:
    """The program of ``compiled.as_text()``.

    Raises:
        HloError: when there is no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, name, lines = "", "", list[str]()
    for line in text.splitlines():
        if not name:
            header = _HEADER.match(line)
            if header:
                name, lines = header[2], []
                entry = name if header[1] else entry
        elif _END.match(line):
            computations[name] = _computation(name, lines)
            name = ""
        elif line.startswith("  ") and _NAME.match(line):
            lines.append(line)
        elif lines:
            # Attributes that a kernel brings along may have line breaks of their own.
            lines[-1] += line
    if name:
        raise HloError(f"The text ends inside of computation {name}")
    if not entry:
        raise HloError("The text is no HLO module: it has no ENTRY computation")
    return Program(computations, entry)


def _computation(name: str, lines: list[str]) -> Computation:
    instructions = tuple(found for line in lines if (found := _instruction(line)) is not None)
    if sum(instruction.is_root for instruction in instructions) != 1:
        raise HloError(f"Computation {name} has no end that could be read")
    return Computation(name, instructions)


def shape_bytes(shape: str) -> int:
    """Bytes of an array, or of all arrays of a tuple together."""
    total = 0
    for dtype, dimensions in _ARRAY.findall(shape):
        count = math.prod(int(d) for d in dimensions.split(",") if d)
        total += (count * _bits(dtype) + 7) // 8
    return total


def arrays(shape: str) -> list[tuple[str, tuple[int, ...]]]:
    """Dtype and dimensions of every array of a shape."""
    return [(dtype, tuple(int(d) for d in dims.split(",") if d)) for dtype, dims in _ARRAY.findall(shape)]


def replica_groups(attributes: str, num_devices: int) -> list[list[int]]:
    """Groups of devices that take part in a collective together; all devices where none are given."""
    iota = _IOTA_GROUPS.search(attributes)
    if iota:
        dims = [int(d) for d in iota[3].split(",")]
        order = _transposed(dims, [int(d) for d in iota[4].split(",")] if iota[4] else list(range(len(dims))))
        return _chunks(order, int(iota[2]))
    mesh = _MESH_GROUPS.search(attributes)
    if mesh:
        return _mesh_groups(mesh[1], mesh[2])
    listed = _LIST_GROUPS.search(attributes) or _PAIRS.search(attributes)
    if listed:
        return [[int(x) for x in group.split(",") if x.strip()] for group in re.findall(r"\{([\d,\s]*)\}", listed[1])]
    return [list(range(num_devices))]


def _mesh_groups(mesh: str, axes: str) -> list[list[int]]:
    """Groups along some axes of a mesh, such as ``'a'=4,'b'=8`` and ``'b':(2)4``: the part of 4 behind one of 2."""
    wanted = {name: (int(before or 1), int(size or 0)) for name, before, size, _ in _MESH_AXIS.findall(axes)}
    dims, chosen = list[int](), list[bool]()
    for name, _, _, whole in _MESH_AXIS.findall(mesh):
        before, size = wanted.get(name, (1, 1))
        size = size or int(whole)
        dims += [before, size, int(whole) // (before * size)]
        chosen += [False, name in wanted, False]
    outer = [i for i, inside in enumerate(chosen) if not inside]
    inner = [i for i, inside in enumerate(chosen) if inside]
    return _chunks(_transposed(dims, outer + inner), math.prod(dims[i] for i in inner))


def _chunks(order: list[int], size: int) -> list[list[int]]:
    return [order[i : i + size] for i in range(0, len(order), size)]


def _transposed(dims: list[int], permutation: list[int]) -> list[int]:
    """``iota(dims)`` with its axes permuted, flattened."""
    strides = [math.prod(dims[i + 1 :]) for i in range(len(dims))]
    order = [0]
    for axis in permutation:
        order = [base + i * strides[axis] for base in order for i in range(dims[axis])]
    return order


def _bits(dtype: str) -> int:
    if dtype in _DTYPE_BITS:
        return _DTYPE_BITS[dtype]
    number = re.match(r"[a-z]+(\d+)", dtype)
    if number is None:
        raise HloError(f"Unknown element type {dtype!r}")
    return int(number[1])


def _instruction(line: str) -> Instruction | None:
    named = _NAME.match(line)
    if named is None:
        return None
    rest = line[named.end() :]
    if rest.startswith("("):
        end = _closing(rest, 0) + 1
    else:
        end = rest.find(" ")
    shape = rest[:end]
    opcode = _OPCODE.match(rest, end)
    if opcode is None:
        return None
    close = _closing(rest, opcode.end() - 1)
    literal = rest[opcode.end() : close]
    return Instruction(
        name=named[1],
        opcode=opcode[1],
        shape=shape,
        operands=tuple(_OPERAND.findall(literal)),
        attributes=rest[close + 1 :],
        literal=literal,
        is_root=line.lstrip().startswith("ROOT "),
    )


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at ``start``; quoted text does not count."""
    depth, quoted = 0, False
    for found in _BRACKETS.finditer(text, start):
        char = found[0]
        if char == '"':
            quoted = not quoted
        elif quoted or char.startswith("\\"):
            continue
        elif char == "(":
            depth += 1
        else:
            depth -= 1
            if depth == 0:
                return found.start()
    raise HloError(f"Unbalanced parentheses: {text[:80]}")


def _is_integer_constant(instruction: Instruction) -> bool:
    return instruction.opcode == "constant" and _CONSTANT.match(instruction.shape) is not None


def _integer(instruction: Instruction) -> int:
    return int(instruction.literal)


def _constant_of(computation: Computation, name: str) -> int | None:
    """The integer that ``name`` stands for, through copies; None if it is no constant."""
    instruction = computation.by_name.get(name)
    while instruction is not None and instruction.opcode in ("copy", "bitcast"):
        instruction = computation.by_name.get(instruction.operands[0])
    return _integer(instruction) if instruction is not None and _is_integer_constant(instruction) else None
