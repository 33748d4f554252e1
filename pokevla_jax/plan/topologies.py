"""TPU chips and slices: what the compiler does not say about them, with sources."""

import difflib
import importlib.util
import math
import os
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pokevla_jax.config import ConfigError


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One generation of TPU."""

    name: str
    # Ticks of ``estimated_cycles``. Peak FLOP/s = clock x cores x matrix units x 2 x side squared, which the published
    # peaks confirm (v5e: 1.5 GHz x 4 units x 2 x 128 x 128 = 197 TFLOP/s).
    clock_hz: float
    peak_flops: float  # bfloat16, per chip
    hbm_bytes_per_second: float
    hbm_gib: float  # what the compiler lets a program use: the published capacity less its reserve
    # One link, one direction. A chip has two links per dimension of its torus.
    link_bytes_per_second: float
    dimensions: int
    # A dimension closes to a ring when its size is a multiple of this.
    wraps_at: int
    # libtpu's name of the configuration in which a chip is one device.
    chip_config_name: str = "default"


# Peaks, memory and bandwidth: cloud.google.com/tpu/docs/system-architecture-tpu-vm. Links: 90 % of the published ones,
# which is what collectives reach (jax-ml.github.io/scaling-book, chapter "TPUs"); v5e, for example, publishes 400 GB/s
# per chip for four links in both directions, so 50 GB/s each, of which 45 are counted.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            clock_hz=1.05e9,
            peak_flops=275e12,
            hbm_bytes_per_second=1.2e12,
            hbm_gib=30.75,
            link_bytes_per_second=45e9,
            dimensions=3,
            wraps_at=4,
            chip_config_name="megacore",
        ),
        Chip(
            name="v5e",
            clock_hz=1.5e9,
            peak_flops=197e12,
            hbm_bytes_per_second=8.2e11,
            hbm_gib=15.75,
            link_bytes_per_second=45e9,
            dimensions=2,
            wraps_at=16,
        ),
        Chip(
            name="v5p",
            clock_hz=1.75e9,
            peak_flops=459e12,
            hbm_bytes_per_second=2.765e12,
            hbm_gib=95.74,
            link_bytes_per_second=90e9,
            dimensions=3,
            wraps_at=4,
        ),
        Chip(
            name="v6e",
            clock_hz=1.75e9,
            peak_flops=918e12,
            hbm_bytes_per_second=1.64e12,
            hbm_gib=31.25,
            link_bytes_per_second=90e9,
            dimensions=2,
            wraps_at=16,
        ),
    )
}

_SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")
SLICES = {name: _SQUARES if chip.dimensions == 2 else _CUBES for name, chip in CHIPS.items()}


@dataclass(frozen=True)
class Topology:
    """A slice, such as ``v5e:16x16``."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """As it is given on the command line."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def num_chips(self) -> int:
        """Chips of the slice, each of which is one JAX device."""
        return math.prod(self.shape)

    def devices(self) -> list[Any]:
        """Devices that can be compiled for, and nothing else.

        Raises:
            ConfigError: without libtpu, or for a slice that it does not know.
        """
        require_compiler()
        from jax.experimental import topologies

        try:
            described = topologies.get_topology_desc(
                platform="tpu",
                topology_name=self.name,
                chip_config_name=self.chip.chip_config_name,
            )
        except Exception as error:
            raise ConfigError(
                f"--topology {self.name}: the TPU compiler refuses it ({_first_sentence(error)}); "
                f"nearest: {', '.join(self._nearest())}"
            ) from error
        return list(described.devices)

    def bandwidth(self, coordinates: Iterable[Sequence[int]]) -> float:
        """Bytes per second at which one chip of a group sends and receives in an all-gather over the group.

        Every dimension along which the group extends contributes one link in each direction; where the dimension is
        an open line instead of a ring, half of that (jax-ml.github.io/scaling-book, chapter "Sharded matrices").
        """
        columns = list(zip(*coordinates, strict=True))
        total = 0.0
        for column, size in zip(columns, (*self.shape, 1)[: len(columns)], strict=True):
            extent = len(set(column))
            if extent > 1:
                ring = extent == size and size % self.chip.wraps_at == 0
                total += self.chip.link_bytes_per_second * (2.0 if ring else 1.0)
        return total or self.chip.link_bytes_per_second

    def _nearest(self) -> list[str]:
        names = sorted(
            SLICES[self.chip.name], key=lambda name: abs(math.log(math.prod(_sizes(name)) / max(self.num_chips, 1)))
        )
        return [f"{self.chip.name}:{name}" for name in names[:2]]


def parse(name: str) -> Topology:
    """The topology called ``name``.

    Raises:
        ConfigError: for an unknown chip or slice, naming the nearest known one.
    """
    chip_name, _, shape = name.partition(":")
    known = [f"{chip}:{slice_}" for chip, slices in SLICES.items() for slice_ in slices]
    if chip_name not in CHIPS:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"--topology {name!r}: there is no chip {chip_name!r} here; known: {', '.join(CHIPS)}; nearest: {near}"
        )
    if not shape or not all(part.isdigit() and int(part) for part in shape.split("x")):
        near = difflib.get_close_matches(name, [k for k in known if k.startswith(f"{chip_name}:")], n=1, cutoff=0.0)[0]
        raise ConfigError(f"--topology {name!r}: give the slice's sizes, such as {near}")
    topology = Topology(CHIPS[chip_name], _sizes(shape))
    plain = tuple(sorted(topology.shape)) in {tuple(sorted(_sizes(known))) for known in SLICES[chip_name]}
    # The three-dimensional pods are cut in whole cubes of 4 x 4 x 4, in more shapes than the list.
    cubes = topology.chip.dimensions == 3 and len(topology.shape) == 3 and not any(size % 4 for size in topology.shape)
    if not (plain or cubes):
        raise ConfigError(
            f"--topology {name!r} is not a slice of {chip_name}; nearest: {', '.join(topology._nearest())}"
        )
    return topology


def require_compiler() -> None:
    """Prepares this process for compiling for TPUs without one; call it before JAX starts a backend.

    Raises:
        ConfigError: when libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None and not os.environ.get("TPU_LIBRARY_PATH"):
        raise ConfigError(
            "The TPU compiler is missing; install it with: pip install -r requirements-plan.txt "
            "(Linux on x86-64 only; about 200 MB)"
        )
    # Computation itself stays on the CPU; the metadata server of a Google VM is not asked; and another process of
    # this machine may have libtpu open.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # What libtpu writes about hosts that do not exist.
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")


def _sizes(shape: str) -> tuple[int, ...]:
    return tuple(int(part) for part in shape.split("x"))


def _first_sentence(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(". ") if str(error).strip() else type(error).__name__
