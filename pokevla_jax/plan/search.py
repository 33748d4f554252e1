"""The largest batch and the cheapest rematerialisation that fit a slice."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pokevla_jax import config as config_lib
from pokevla_jax.config import Config
from pokevla_jax.plan.topologies import Topology

# From what computes least to what keeps least.
REMATS = ("none", "dots", "layers", "full")
LARGEST_BATCH = 4096

Planner = Callable[[Config], dict[str, Any]]
"""The report of one configuration, whether it fits or not."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """The largest batch of one remat level."""

    remat: str
    per_chip_batch: int  # 0: not even one sample fits
    report: dict[str, Any] | None


def search(config: Config, topology: Topology, plan: Planner, say: Callable[[str], None]) -> list[Candidate]:
    """For every remat level the largest batch per chip that fits, the fastest one first.

    The batch is doubled while it fits and then bisected. A level that keeps less memory never starts below what the
    cheaper one before it reached, because memory only falls along ``REMATS``.

    Args:
        config: the experiment; its own batch and remat are ignored.
        topology: the slice.
        plan: compiles one configuration; see ``cached``.
        say: told about every compile.
    """
    unit = config.optimizer.accumulation_steps
    found, reached = [], 0
    for remat in REMATS:
        reports: dict[int, dict[str, Any]] = {}

        def fits(batch: int, remat: str = remat, reports: dict[int, dict[str, Any]] = reports) -> bool:
            if batch not in reports:
                reports[batch] = plan(with_batch(config, topology, batch, remat))
                say(f"remat {remat}, {batch} per chip: {_in_words(reports[batch])}")
            return bool(reports[batch]["fits"])

        reached = largest(fits, unit=unit, start=max(reached, unit))
        found.append(Candidate(remat, reached, reports.get(reached)))
    speed = lambda c: -1.0 if c.report is None else c.report["samples_per_second"]  # noqa: E731 - a sort key
    return sorted(found, key=speed, reverse=True)


def largest(fits: Callable[[int], bool], *, unit: int = 1, start: int = 1, limit: int = LARGEST_BATCH) -> int:
    """The largest multiple of ``unit`` up to ``limit`` that fits, to within an eighth; 0 if none does.

    ``fits`` must hold up to some batch and for none above it.
    """
    low, high = 0, max(start // unit, 1)
    while high * unit <= limit and fits(high * unit):
        low, high = high, 2 * high
    high = min(high, limit // unit + 1)
    while high - low > max(1, low // 8):
        middle = (low + high) // 2
        if fits(middle * unit):
            low = middle
        else:
            high = middle
    return low * unit


def with_batch(config: Config, topology: Topology, per_chip: int, remat: str) -> Config:
    """``config`` with another batch and remat level."""
    values = config_lib.to_dict(config)
    values["batch_size"] = per_chip * topology.num_chips
    values["model"]["remat"] = remat
    return config_lib.from_config_dict(values)


def as_text(candidates: list[Candidate]) -> str:
    """A table of the candidates; the fastest stands first."""
    lines = [f"{'remat':<8} {'per chip':>8} {'GiB':>7} {'ms':>9} {'samples/s':>10} {'MFU':>6} {'calibrated':>10}"]
    for candidate in candidates:
        report = candidate.report
        if report is None or not candidate.per_chip_batch:
            lines.append(f"{candidate.remat:<8} {'none fits':>8}")
            continue
        calibrated = report["calibrated_mfu"]
        lines.append(
            f"{candidate.remat:<8} {candidate.per_chip_batch:>8} {report['hbm_gib']['total']:>7.2f} "
            f"{report['predicted_step_ms']:>9.1f} {report['samples_per_second']:>10.1f} "
            f"{report['predicted_mfu']:>6.1%} {'-' if calibrated is None else format(calibrated, '.1%'):>10}"
        )
    return "\n".join(lines)


def cached(plan: Planner, topology: Topology, folder: Path) -> Planner:
    """``plan`` that keeps its reports in ``folder``, by configuration, slice, versions and source code."""

    def remembered(config: Config) -> dict[str, Any]:
        path = folder / f"{_key(config, topology)}.json"
        if path.is_file():
            return json.loads(path.read_text())
        report = plan(config)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(report, indent=2))
        temporary.replace(path)
        return report

    return remembered


def _key(config: Config, topology: Topology) -> str:
    digest = hashlib.sha256(json.dumps([config_lib.to_dict(config), topology.name, versions()]).encode())
    for path in sources():
        digest.update(path.read_bytes())
    return digest.hexdigest()[:24]


def sources() -> Iterator[Path]:
    """The package's files that decide what is compiled and how it is priced."""
    root = Path(config_lib.__file__).parent
    for folder in ("", "data", "models", "training", "plan"):
        yield from sorted((root / folder).glob("*.py"))
    yield from sorted((root / "plan").glob("*.json"))


def versions() -> dict[str, str]:
    """Versions of what compiles."""
    from importlib import metadata

    found = {}
    for name in ("jax", "jaxlib", "flax", "optax", "libtpu"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def _in_words(report: dict[str, Any]) -> str:
    memory = report["hbm_gib"]
    if not report["fits"]:
        return f"{memory['total']:.2f} GiB, too much"
    return f"{memory['total']:.2f} GiB, {report['predicted_step_ms']:.1f} ms, MFU {report['predicted_mfu']:.1%}"
