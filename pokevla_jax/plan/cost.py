"""Time and collectives of a scheduled program.

Compute is the compiler's own estimate per instruction, at the chip's clock, times the trip counts of the loops around
it. Collectives are priced by their bytes and the links they can use, and run beside the compute that the schedule puts
between their start and their end; what is left of them is exposed. Pallas kernels, for which the text has no
estimate, are priced in ``kernels``.

Left out: contention for memory between collectives and compute, the host, stragglers, and clocks below their nominal
value. ``calibrate`` measures what all of that is worth.
"""

import collections
import dataclasses
import re
from collections.abc import Mapping
from collections.abc import Sequence

from pokevla_jax.plan import hlo
from pokevla_jax.plan import kernels
from pokevla_jax.plan.topologies import Topology

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
# What moves or names values without work of its own. Copies between memories ("copy-start", "slice-start") run
# beside the compute; the compiler prices what they delay.
FREE = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "after-all", "add-dependency"),
        *("partition-id", "replica-id", "opt-barrier", "domain", "get-dimension-size"),
        *("copy-start", "copy-done", "slice-start", "slice-done"),
    )
)
# Time for one hop, which bounds small collectives (jax-ml.github.io/scaling-book).
HOP_SECONDS = 1e-6


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program's text."""

    kind: str
    bytes: float  # that each chip sends, per execution
    seconds: float


def _sums() -> dict[str, float]:
    return collections.defaultdict(float)


@dataclasses.dataclass
class Tally:
    """Sums over a computation, loops unrolled."""

    seconds: float = 0.0  # from its first instruction to its last
    compute: float = 0.0
    exposed: float = 0.0  # spent waiting for collectives
    kernels: float = 0.0  # the part of ``compute`` that Pallas kernels were priced at
    by_bytes: float = 0.0  # the part of ``compute`` that has no estimate and was priced by the bytes it moves
    # By kind of collective: executions, bytes that each chip sends, seconds on the links.
    counts: dict[str, float] = dataclasses.field(default_factory=_sums)
    bytes: dict[str, float] = dataclasses.field(default_factory=_sums)
    wire: dict[str, float] = dataclasses.field(default_factory=_sums)
    # By source operation: seconds of compute, and of waiting for collectives.
    sources: dict[str, float] = dataclasses.field(default_factory=_sums)
    waits: dict[str, float] = dataclasses.field(default_factory=_sums)

    def add(self, other: "Tally", times: int) -> None:
        """Adds ``other`` executed ``times`` times in a row."""
        for name in ("seconds", "compute", "exposed", "kernels", "by_bytes"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        for name in ("counts", "bytes", "wire", "sources", "waits"):
            mine = getattr(self, name)
            for key, value in getattr(other, name).items():
                mine[key] += times * value


def analyze(program: hlo.Program, topology: Topology, coordinates: Sequence[Sequence[int]]) -> Tally:
    """Time and collectives of one execution of ``program``.

    Args:
        program: the scheduled program of one device of an SPMD partition.
        topology: the slice it was compiled for.
        coordinates: of each device in the torus, by its number in the program's replica groups.
    """
    return _Analysis(program, topology, coordinates).computation(program.entry)


class _Analysis:
    """Walks a program; each computation is analysed once."""

    def __init__(self, program: hlo.Program, topology: Topology, coordinates: Sequence[Sequence[int]]):
        self._program = program
        self._topology = topology
        self._coordinates = coordinates
        self._known: dict[str, Tally] = {}

    def computation(self, name: str) -> Tally:
        """The tally of one execution."""
        if name not in self._known:
            self._known[name] = self._walk(self._program.computations[name])
        return self._known[name]

    def _walk(self, computation: hlo.Computation) -> Tally:
        tally = Tally()
        links_free = 0.0  # when the collectives issued so far have left the links
        ends: dict[str, float] = {}  # of collectives in flight, by the name of what started them
        for instruction in computation.instructions:
            inner, times = self._called(instruction)
            if inner is not None:
                tally.add(inner, times)
                # Its own collectives are over; one that was in flight before has had all of its time.
                links_free = max(links_free, tally.seconds)
                continue
            finished = self._finished_by(instruction, ends, computation)
            if finished is not None:
                self._wait(tally, ends.pop(finished), instruction)
            seconds = self._compute(tally, instruction, computation)
            tally.compute += seconds
            tally.seconds += seconds
            if seconds:
                tally.sources[instruction.op_name or f"({instruction.opcode})"] += seconds
            for collective, key in self._begun_by(instruction, computation):
                tally.counts[collective.kind] += 1
                tally.bytes[collective.kind] += collective.bytes
                tally.wire[collective.kind] += collective.seconds
                links_free = max(links_free, tally.seconds) + collective.seconds
                if key:
                    ends[key] = links_free
                else:
                    self._wait(tally, links_free, instruction)
        for end in ends.values():
            self._wait(tally, end, computation.root)
        return tally

    def _called(self, instruction: hlo.Instruction) -> tuple[Tally | None, int]:
        """What a control-flow instruction executes, and how often; the costlier branch of a conditional."""
        if instruction.opcode == "while":
            return self.computation(instruction.called["body"]), self._program.trip_count(instruction)
        if instruction.opcode == "conditional":
            return max((self.computation(name) for name in instruction.branches), key=lambda t: t.seconds), 1
        if instruction.opcode == "call":
            return self.computation(instruction.called["to_apply"]), 1
        return None, 0

    def _wait(self, tally: Tally, end: float, instruction: hlo.Instruction) -> None:
        if end > tally.seconds:
            tally.exposed += end - tally.seconds
            tally.waits[instruction.op_name or f"({instruction.opcode})"] += end - tally.seconds
            tally.seconds = end

    def _finished_by(
        self, instruction: hlo.Instruction, ends: Mapping[str, float], computation: hlo.Computation
    ) -> str | None:
        """The collective in flight that ``instruction`` waits for, if it does."""
        if not _is_done(instruction):
            return None
        chain = self._chain(instruction)
        if chain in ends:
            return chain
        seen = list(instruction.operands)
        while seen:
            name = seen.pop()
            if name in ends:
                return name
            producer = computation.by_name.get(name)
            if producer is not None and producer.opcode in ("get-tuple-element", "bitcast", "tuple", "async-update"):
                seen.extend(producer.operands)
        return None

    def _chain(self, instruction: hlo.Instruction) -> str:
        """The chain of a piece of a collective that is fused with compute, or ""."""
        called = instruction.called.get("calls")
        if called is None or instruction.opcode != "fusion":
            return ""
        return next((f"chain {i.chain}" for i in self._program.inside(called) if i.chain), "")

    def _compute(self, tally: Tally, instruction: hlo.Instruction, computation: hlo.Computation) -> float:
        chip = self._topology.chip
        if instruction.opcode in FREE or instruction.opcode.endswith(("-done", "-update")):
            return 0.0
        if instruction.cycles is not None:
            return instruction.cycles / chip.clock_hz
        if instruction.opcode == "custom-call":
            if not kernels.is_kernel(instruction):
                return 0.0  # sharding and layout markers
            operands = [computation.by_name[name] for name in instruction.operands if name in computation.by_name]
            seconds = kernels.seconds(instruction, operands, chip)
            tally.kernels += seconds
            return seconds
        if _kind(instruction.opcode) is not None or _is_done(instruction) or _is_start(instruction):
            return 0.0
        moved = instruction.bytes + sum(
            computation.by_name[name].bytes for name in instruction.operands if name in computation.by_name
        )
        seconds = moved / chip.hbm_bytes_per_second
        tally.by_bytes += seconds
        return seconds

    def _begun_by(self, instruction: hlo.Instruction, computation: hlo.Computation) -> list[tuple[Collective, str]]:
        """The collectives that begin with an instruction, each with the name that its end finds it by.

        The name is "" where the instruction itself waits for the end. A collective that is fused with compute is cut
        into pieces: one that starts it, some inside of other fusions, one that ends it. All carry the collective and
        its chain; the first counts.
        """
        if _is_done(instruction):
            return []
        kind = _kind(instruction.opcode)
        if kind is not None:
            key = instruction.name if instruction.opcode.endswith("-start") else ""
            return [(self._price(instruction, computation, kind), key)]
        called = instruction.called.get("calls")
        if called is None:
            return []
        if instruction.opcode == "async-start":
            return [(collective, instruction.name) for collective, _ in self._fused(called)]
        if _is_start(instruction):
            return [(collective, f"chain {chain}" if chain else "") for collective, chain in self._fused(called)]
        return [(collective, "") for collective, chain in self._fused(called) if not chain]

    def _fused(self, name: str) -> list[tuple[Collective, str]]:
        """The collectives inside of a computation, and the chains they are pieces of."""
        computation, found = self._program.computations[name], []
        for instruction in computation.instructions:
            kind = _kind(instruction.opcode)
            if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"  # XLA for TPU writes it as a sum of which each device keeps its slice.
            if kind is not None:
                found.append((self._price(instruction, computation, kind), instruction.chain))
            elif "calls" in instruction.called:
                found += self._fused(instruction.called["calls"])
        return found

    def _price(self, instruction: hlo.Instruction, computation: hlo.Computation, kind: str) -> Collective:
        groups = hlo.replica_groups(instruction.attributes, len(self._coordinates))
        size = sum(computation.by_name[name].bytes for name in instruction.operands if name in computation.by_name)
        chip = self._topology.chip
        if kind == "collective-permute":
            hops = max((self._hops(*pair) for pair in groups), default=1)
            return Collective(kind, size, size * hops / chip.link_bytes_per_second + hops * HOP_SECONDS)
        n = max(len(group) for group in groups)
        members = [self._coordinates[i] for i in max(groups, key=len)]
        bandwidth = self._topology.bandwidth(members)
        latency = HOP_SECONDS * sum(len(set(column)) - 1 for column in zip(*members, strict=True)) / 2
        share = (n - 1) / n
        sent = {
            "all-gather": size * n * share,
            "reduce-scatter": size * share,
            "all-reduce": 2 * size * share,
            "all-to-all": size * share,
            "collective-broadcast": size,
        }[kind]
        # Around a ring, an all-to-all moves a quarter of the whole array past every link.
        wire = size * n / 4 if kind == "all-to-all" else sent
        return Collective(kind, sent, max(wire / bandwidth, latency))

    def _hops(self, source: int, target: int) -> int:
        """Links between two devices, by the shortest way."""
        total = 0
        shape = (*self._topology.shape, 1, 1)
        for a, b, size in zip(self._coordinates[source], self._coordinates[target], shape, strict=False):
            distance = abs(a - b)
            ring = size % self._topology.chip.wraps_at == 0
            total += min(distance, size - distance) if ring else distance
        return max(total, 1)


def _kind(opcode: str) -> str | None:
    """The collective that an opcode starts or ends, without ``-start`` and ``-done``."""
    base = re.sub(r"-(start|done)$", "", opcode)
    return base if base in KINDS else None


def _is_start(instruction: hlo.Instruction) -> bool:
    return instruction.opcode.endswith("-start") or (instruction.opcode == "fusion" and "-start" in instruction.name)


def _is_done(instruction: hlo.Instruction) -> bool:
    return instruction.opcode.endswith("-done") or (instruction.opcode == "fusion" and "-done" in instruction.name)
