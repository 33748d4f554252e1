"""From foreign data to shards: listed once, converted in parallel, resumed after a kill, bad samples set aside.

The listing cuts the input into units, in its own order; a unit becomes one shard, whose bytes depend on the unit and
the settings alone. The number of workers, the machine, or a restart in between therefore changes nothing. A unit is
finished when ``<shard>.rejected.jsonl`` and its shard exist; the former is written first and opens with a digest of the
unit, by which a resumed run notices other input or settings.
"""

import functools
import hashlib
import json
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import asdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Literal

import numpy as np

from pokevla_jax.data import files
from pokevla_jax.data.codec import DataError
from pokevla_jax.data.codec import Frame
from pokevla_jax.data.corpus import CorpusSample
from pokevla_jax.data.corpus import check_sample
from pokevla_jax.data.corpus import write_corpus_shard
from pokevla_jax.data.episode import Episode
from pokevla_jax.data.episode import check_episode
from pokevla_jax.data.episode import check_frame
from pokevla_jax.data.ingest import executor
from pokevla_jax.data.ingest.base import Adapter
from pokevla_jax.data.ingest.base import Layout
from pokevla_jax.data.ingest.base import Reference
from pokevla_jax.data.ingest.base import Reject
from pokevla_jax.data.ingest.base import Rejection
from pokevla_jax.data.ingest.base import Unit
from pokevla_jax.data.manifest import sha256
from pokevla_jax.data.records import write_shard
from pokevla_jax.data.tokenize import load_tokenizer

_MAX_HASHED = 4 << 30


@dataclass(frozen=True)
class Job:
    """One ingestion: what is read, and where it goes.

    Attributes:
        kind: image-text samples or robot episodes.
        tokenizer: folder of Qwen2.5's tokenizer, to store lengths with conversations; None counts words only.
        layout: what all episodes must agree with; found by ``ingest``.
    """

    adapter: Any
    kind: Literal["corpus", "episodes"]
    data: Path
    out: Path
    tokenizer: str | None = None
    layout: Layout | None = None


@dataclass(frozen=True)
class UnitResult:
    """What became of one unit."""

    name: str
    ingested: int
    rejected: tuple[Rejection, ...]
    reused: bool


def ingest(
    job: Job,
    *,
    shard_size: int,
    workers: int = 1,
    address: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Converts all of ``job.data`` and returns the summary that is also written to ``<out>/ingest-<source>.json``.

    Args:
        job: what to read.
        shard_size: samples (or episodes) listed per shard.
        workers: processes; see ``executor.run``.
        address: of a Ray cluster.
        progress: called with the numbers of ingested and rejected samples so far.

    Raises:
        DataError: when the folder holds shards of other input or settings, or nothing at all could be used.
        FileNotFoundError: when the input is not there.
    """
    adapter: Adapter = job.adapter
    inputs = adapter.inputs(job.data)
    job.out.mkdir(parents=True, exist_ok=True)
    for left in job.out.glob(f".{adapter.source}-*.tmp"):
        left.unlink(missing_ok=True)
    if job.kind == "episodes":
        job = Job(**{**_shallow(job), "layout": _common_layout(job)})
    results: list[UnitResult] = []
    ingested = rejected = 0
    work = plan_units(adapter, job.data, shard_size)
    for result in executor.run(functools.partial(convert_unit, job), work, workers=workers, address=address):
        results.append(result)
        ingested, rejected = ingested + result.ingested, rejected + len(result.rejected)
        if progress:
            progress(ingested, rejected)
    results.sort(key=lambda result: result.name)
    _check_no_more(job, results)
    summary = _summary(job, inputs, results)
    files.write_json(job.out / f"ingest-{adapter.source}.json", summary)
    if not ingested:
        reasons = ", ".join(f"{n} {reason}" for reason, n in summary["rejected_reasons"].items()) or "it is empty"
        raise DataError(f"Nothing of {job.data} could be used as {adapter.source}: {reasons}")
    return summary


def plan_units(adapter: Adapter, data: Path, shard_size: int) -> Iterator[Unit]:
    """Cuts the input into units; a sample whose id came before is set aside."""
    seen: set[bytes] = set()
    references: list[Reference] = []
    rejected: list[Rejection] = []
    number = listed = 0

    def unit() -> Unit:
        return Unit(f"{adapter.source}-{number:05d}", tuple(references), tuple(rejected))

    for item in adapter.references(data):
        if isinstance(item, Rejection):
            rejected.append(item)
        else:
            key = hashlib.sha256(item.id.encode()).digest()[:16]
            if key in seen:
                rejected.append(Rejection(item.id, "duplicate id", "the first one is kept"))
            else:
                seen.add(key)
                references.append(item)
        listed += 1
        if listed == shard_size:
            yield unit()
            number, listed, references, rejected = number + 1, 0, [], []
    if listed:
        yield unit()


def convert_unit(job: Job, unit: Unit) -> UnitResult:
    """Writes one shard, unless it is there already."""
    digest = _digest(job, unit)
    finished = _finished(job.out, unit.name, digest)
    if finished is not None:
        return finished
    rejected = list(unit.rejected)
    settings = {**job.adapter.settings(), "licence": job.adapter.licence}
    if job.kind == "corpus":
        samples = list(_attempt(unit, functools.partial(_load_sample, job), rejected))
        _write_rejected(job.out, unit.name, digest, len(samples), rejected)
        if samples:
            tokenizer = load_tokenizer(job.tokenizer) if job.tokenizer else None
            write_corpus_shard(job.out, unit.name, samples, settings=settings, tokenizer=tokenizer)
        return UnitResult(unit.name, len(samples), tuple(rejected), False)
    # Episodes are large: they are written as they come, and what was set aside is on disk before the shard appears.
    written: list[str] = []

    def episodes() -> Iterator[tuple[Episode, Mapping[int, Frame]]]:
        for episode, frames in _attempt(unit, functools.partial(_load_episode, job), rejected):
            written.append(episode.id)
            yield episode, frames
        _write_rejected(job.out, unit.name, digest, len(written), rejected)

    stream = episodes()
    first = next(stream, None)
    if first is not None:
        write_shard(job.out, unit.name, _chain(first, stream), settings=settings, update_manifest=False)
    return UnitResult(unit.name, len(written), tuple(rejected), False)


def read_rejected(path: Path) -> tuple[dict[str, Any], tuple[Rejection, ...]]:
    """Header and entries of a ``<shard>.rejected.jsonl``."""
    header, *rows = (json.loads(line) for line in path.read_text().splitlines())
    return header, tuple(Rejection(**row) for row in rows)


# --- one unit ---


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _attempt(unit: Unit, load: Callable[[Reference], Any], rejected: list[Rejection]) -> Iterator[Any]:
    """What could be loaded; the rest is added to ``rejected``."""
    for reference in unit.references:
        try:
            loaded = load(reference)
        except Reject as error:
            rejected.append(Rejection(reference.id, error.reason, error.detail[:500]))
        except DataError as error:
            rejected.append(Rejection(reference.id, "malformed", str(error)[:500]))
        else:
            yield loaded


def _load_sample(job: Job, reference: Reference) -> CorpusSample:
    sample = job.adapter.load(job.data, reference)
    check_sample(sample)
    return sample


def _load_episode(job: Job, reference: Reference) -> tuple[Episode, Mapping[int, Frame]]:
    episode, frames = job.adapter.load(job.data, reference)
    for name in ("state", "action", "executed", "base_from_camera"):
        if not np.isfinite(getattr(episode, name)).all():
            raise Reject("not finite", f"{name} of {episode.id!r} holds a value that is not finite")
    check_episode(episode)
    found = _layout(episode, frames)
    if job.layout is not None and found != job.layout:
        raise Reject("wrong size", f"the episode has {_differences(found, job.layout)}")
    for step, frame in frames.items():
        try:
            check_frame(episode, step, frame, found.image_size)
        except DataError as error:
            raise Reject("wrong size", str(error)) from error
    return episode, frames


def _layout(episode: Episode, frames: Mapping[int, Frame]) -> Layout:
    first = next(iter(frames.values()), None)
    size = next(iter(first.images.values())).shape[:2] if first else None
    return Layout(episode.views, size, episode.state.shape[1], episode.action.shape[1])


def _differences(found: Layout, expected: Layout) -> str:
    parts = [
        f"{name} {value}, the first ones have {getattr(expected, name)}"
        for name, value in asdict(found).items()
        if value != getattr(expected, name)
    ]
    return "; ".join(parts)


def _common_layout(job: Job) -> Layout | None:
    """The layout that most of the first few usable episodes share (the earliest, where several are as common)."""
    found: list[Layout] = []
    for item in job.adapter.references(job.data):
        if isinstance(item, Rejection):
            continue
        try:
            found.append(_layout(*_load_episode(job, item)))
        except DataError:
            continue
        if len(found) == 3:
            break
    return max(found, key=found.count) if found else None


# --- files ---


def _digest(job: Job, unit: Unit) -> str:
    """Names everything that a unit's shard depends on."""
    described = [
        job.adapter.settings(),
        job.kind,
        job.tokenizer,
        asdict(job.layout) if job.layout else None,
        [[reference.id, repr(reference.payload)] for reference in unit.references],
        [asdict(rejection) for rejection in unit.rejected],
    ]
    return hashlib.sha256(json.dumps(described, default=str).encode()).hexdigest()


def _finished(out: Path, name: str, digest: str) -> UnitResult | None:
    """The result of a unit that an earlier run completed."""
    path, table = out / f"{name}.rejected.jsonl", out / f"{name}.parquet"
    if not path.is_file():
        if table.is_file():
            raise DataError(f"Shard {table} was not written by pokevla-ingest; choose another --out")
        return None
    header, rejected = read_rejected(path)
    if header["unit"] != digest:
        raise DataError(
            f"Shard {name} of {out} was made from other input, settings or --shard-size; choose another --out, or "
            f"delete the {name.rpartition('-')[0]}-* files there"
        )
    if header["ingested"] and not table.is_file():
        return None
    return UnitResult(name, header["ingested"], rejected, True)


def _write_rejected(out: Path, name: str, digest: str, ingested: int, rejected: list[Rejection]) -> None:
    lines = [{"unit": digest, "ingested": ingested}, *map(asdict, rejected)]
    files.write_text(out / f"{name}.rejected.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def _check_no_more(job: Job, results: list[UnitResult]) -> None:
    """Raises ``DataError`` for shards of this source that this input does not account for."""
    known = {result.name for result in results}
    for path in sorted(job.out.glob(f"{job.adapter.source}-*.rejected.jsonl")):
        name = path.name.removesuffix(".rejected.jsonl")
        if name not in known:
            raise DataError(f"{job.out} holds shard {name}, which this input does not have; choose another --out")


def _summary(job: Job, inputs: list[Path], results: list[UnitResult]) -> dict[str, Any]:
    """Counts, licence, hashes and what was set aside, plain JSON; the same for any number of workers."""
    reasons: dict[str, int] = {}
    listed = []
    for result in results:
        for rejection in result.rejected:
            reasons[rejection.reason] = reasons.get(rejection.reason, 0) + 1
            listed.append(asdict(rejection))
    return {
        "source": job.adapter.source,
        "pillar": getattr(job.adapter, "pillar", None),
        "licence": job.adapter.licence,
        "settings": job.adapter.settings(),
        "ingested": sum(result.ingested for result in results),
        "rejected": len(listed),
        "rejected_reasons": dict(sorted(reasons.items())),
        "inputs": [_described(path, job.data) for path in inputs],
        "shards": {
            result.name: {"ingested": result.ingested, "sha256": _shard_hashes(job.out, result.name)}
            for result in results
        },
        # All of them: they are few, or something is wrong that this shows.
        "rejected_samples": listed,
    }


def _shard_hashes(out: Path, name: str) -> dict[str, str]:
    paths = [out / f"{name}.{suffix}" for suffix in ("arrayrecord", "parquet")]
    return {path.suffix[1:]: sha256(path) for path in paths if path.is_file()}


def _described(path: Path, data: Path) -> dict[str, Any]:
    relative = path.relative_to(data).as_posix() if path.is_relative_to(data) else path.name
    size = path.stat().st_size
    return {"path": relative, "bytes": size, "sha256": sha256(path) if size <= _MAX_HASHED else None}


def _shallow(job: Job) -> dict[str, Any]:
    return {name: getattr(job, name) for name in job.__dataclass_fields__}
