"""Compiles the train step that would run for a TPU slice that need not exist."""

import contextlib
import dataclasses
import re
import time
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from pokevla_jax import sharding
from pokevla_jax.config import Config
from pokevla_jax.data.schema import ArraySpec
from pokevla_jax.data.schema import batch_spec
from pokevla_jax.plan.topologies import Topology
from pokevla_jax.training import stages
from pokevla_jax.training import step
from pokevla_jax.training.objective import Objective
from pokevla_jax.training.optimizer import make_optimizer
from pokevla_jax.training.state import StateFactory
from pokevla_jax.training.state import TrainState

GIB = 2**30


class OutOfMemoryError(ValueError):
    """The program does not fit; carries what it needs and what there is, in GiB."""

    def __init__(self, needed: float, limit: float):
        super().__init__(f"needs {needed:.2f} GiB of HBM per chip, and the compiler allows {limit:.2f} GiB")
        self.needed = needed
        self.limit = limit


@dataclasses.dataclass(frozen=True)
class Memory:
    """GiB on each chip, as the compiler laid them out."""

    params: float
    optimizer: float
    ema: float
    batch: float
    temporary: float  # activations, gradients and everything else of the step
    limit: float

    @property
    def total(self) -> float:
        """What must fit into ``limit``."""
        return self.params + self.optimizer + self.ema + self.batch + self.temporary


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A train step as the TPU would run it."""

    text: str  # the scheduled program
    memory: Memory
    coordinates: tuple[tuple[int, ...], ...]  # of each device in the torus, in the program's numbering
    state: TrainState  # shapes and shardings
    seconds: float  # that compiling took


def what_runs(config: Config) -> tuple[Objective, Mapping[str, ArraySpec]]:
    """The objective that ``pokevla-train`` would train for ``config``, and the shapes of its global batch."""
    return stages.make_objective(config), batch_spec(config, config.batch_size)


def compile_step(
    objective: Objective, config: Config, spec: Mapping[str, ArraySpec], topology: Topology
) -> CompiledStep:
    """The train step of ``objective`` on ``topology``.

    Args:
        objective: what is trained.
        config: batch size, mesh and optimizer; an open mesh axis takes the slice's chips.
        spec: shapes of the global batch.
        topology: the slice.

    Raises:
        ConfigError: when the mesh or the batch does not fit the slice, or libtpu is missing.
        OutOfMemoryError: when the program does not fit into the chips' memory.
    """
    mesh = sharding.make_mesh(config.mesh, topology.devices())
    sharding.check_batch_size(config.batch_size, config.optimizer.accumulation_steps, mesh)
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    state = StateFactory(objective, config.optimizer, optimizer, mesh).abstract
    batch = step.abstract_batch(spec, mesh)
    start = time.perf_counter()
    try:
        # A program for a TPU is of no use in the cache of this machine, and without a TPU it cannot be loaded from it.
        with _without_cache():
            compiled: Any = step.make_train_step(objective, config, optimizer, mesh, state, batch)
    except jax.errors.JaxRuntimeError as error:
        raise read_out_of_memory(str(error), topology) or error from None
    seconds = time.perf_counter() - start
    return CompiledStep(
        text=compiled.as_text(),
        memory=_memory(compiled.memory_analysis(), state, batch, topology),
        coordinates=device_coordinates(mesh),
        state=state,
        seconds=seconds,
    )


def read_out_of_memory(message: str, topology: Topology) -> OutOfMemoryError | None:
    """The compiler's refusal as an exception with its two numbers; None for any other error."""
    if "memory" not in message or "hbm" not in message.lower():
        return None
    units = {"K": 2**-20, "M": 2**-10, "G": 1.0, "T": 2**10}
    for pattern in (
        r"([\d.]+)([KMGT])\)?\s+exceeds\s+available\s+HBM\s+\(([\d.]+)([KMGT])\)",
        r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm",
    ):
        found = re.search(pattern, message)
        if found:
            return OutOfMemoryError(float(found[1]) * units[found[2]], float(found[3]) * units[found[4]])
    if "RESOURCE_EXHAUSTED" in message:
        return OutOfMemoryError(float("nan"), topology.chip.hbm_gib)
    return None


def device_coordinates(mesh: Mesh) -> tuple[tuple[int, ...], ...]:
    """Position in the torus of every device, in the order in which the program numbers them."""
    return tuple(tuple(device.coords) for device in mesh.devices.flat)


def bytes_per_device(tree: Any) -> int:
    """Bytes that one device holds of a tree of ``ShapeDtypeStruct``s with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(_local_bytes(leaf) for leaf in leaves)


def largest_replicated(state: TrainState) -> float:
    """MiB of the largest array of the train state that lies whole on every device."""
    whole = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state) if leaf.sharding.is_fully_replicated]
    return max(whole, default=0) / 2**20


def _local_bytes(leaf: Any) -> int:
    size = leaf.dtype.itemsize
    for dimension in leaf.sharding.shard_shape(leaf.shape):
        size *= dimension
    return size


def _memory(analysis: Any, state: TrainState, batch: Any, topology: Topology) -> Memory:
    params = bytes_per_device((state.trained, state.frozen))
    optimizer = bytes_per_device(state.opt_state)
    ema = bytes_per_device(state.ema)
    inputs = bytes_per_device(batch)
    total = (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
        + analysis.generated_code_size_in_bytes
    )
    return Memory(
        params=params / GIB,
        optimizer=optimizer / GIB,
        ema=ema / GIB,
        batch=inputs / GIB,
        temporary=max(total - params - optimizer - ema - inputs, 0) / GIB,
        limit=topology.chip.hbm_gib,
    )


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """JAX's persistent compilation cache is off inside."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
