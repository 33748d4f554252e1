"""The corpus on disk: one shard per task, made in parallel, reused when it is there; a description of the whole.

A shard is what ``data.corpus.write_corpus_shard`` writes. Its content follows from the plan's settings and its task
alone, so that neither the number of processes nor an interruption changes a byte.
"""

import functools
import json
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import Any

from pokevla_jax.data import files
from pokevla_jax.data.corpus import Corpus
from pokevla_jax.data.corpus import CorpusSample
from pokevla_jax.data.corpus import open_corpus
from pokevla_jax.data.corpus import read_shard
from pokevla_jax.data.corpus import write_corpus_shard
from pokevla_jax.data.ingest import executor
from pokevla_jax.data.tokenize import load_tokenizer
from pokevla_jax.sim.assets import Assets
from pokevla_jax.sim.corpus import phrasings
from pokevla_jax.sim.corpus import samples
from pokevla_jax.sim.corpus import splits
from pokevla_jax.sim.corpus import states
from pokevla_jax.sim.environment import LiberoEnvironment
from pokevla_jax.sim.errors import SimulationError
from pokevla_jax.sim.tasks import load_task
from pokevla_jax.sim.versions import protocol_facts

VERSION = 1
"""Raise it when the same settings give other samples."""
SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to make.

    Attributes:
        tasks: suite and index of each.
        layouts: layouts of each task, of up to ``frames`` frames.
        per_frame: questions kept of each pillar and frame.
        tokenizer: folder of Qwen2.5's tokenizer, to store lengths for packing with it.
    """

    tasks: tuple[tuple[str, int], ...]
    layouts: int
    frames: int
    seed: int
    assets: Assets
    image_size: int = 128
    per_frame: dict[str, int] = field(default_factory=lambda: dict(samples.PER_FRAME))
    tokenizer: str | None = None

    def settings(self) -> dict[str, Any]:
        """Everything but the task that decides a shard's content, in plain JSON types."""
        return {
            "corpus": VERSION,
            "licence": samples.LICENCE,
            "layouts": self.layouts,
            "frames": self.frames,
            "seed": self.seed,
            "per_frame": self.per_frame,
            "held_out": held_out(),
            "protocol": protocol_facts(self.assets, renderer="fast", image_size=self.image_size, hard_reset=False),
        }


@dataclass(frozen=True)
class ShardResult:
    """What became of one task.

    Attributes:
        failed: layouts in which nothing came to rest, with the reason.
    """

    name: str
    samples: int
    reused: bool
    failed: tuple[str, ...] = ()


def held_out() -> dict[str, Any]:
    """What no training sample has, in plain JSON types."""
    return {
        "tasks": {suite: list(tasks) for suite, tasks in splits.HELD_OUT_TASKS.items()},
        "layouts": splits.HELD_OUT_LAYOUTS,
        "phrasings": {type_: list(wordings.held_out) for type_, wordings in phrasings.TYPES.items()},
    }


def shard_name(suite: str, task: int) -> str:
    """File name of a task's shard, without extension."""
    return f"{samples.SOURCE}-{suite}-task{task:02d}"


def build(
    plan: Plan,
    out: Path,
    *,
    workers: int = 1,
    address: str | None = None,
    progress: Callable[[int, int], None] = lambda tasks, samples: None,
) -> dict[str, Any]:
    """Makes all shards in ``out`` and returns the summary that is also written to ``<out>/ingest-<source>.json``.

    Args:
        plan: what to make.
        out: the corpus's folder; complete shards of the same settings are kept.
        workers: processes of this machine, or pieces at a time on a cluster.
        address: of a Ray cluster; see ``data.ingest.executor``.
        progress: called with the numbers of tasks and samples that are done.

    Raises:
        SimulationError: when ``out`` holds a shard made with other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    results: list[ShardResult] = []
    progress(0, 0)
    for result in executor.run(
        functools.partial(_build_shard, plan, out), plan.tasks, workers=workers, address=address
    ):
        results.append(result)
        progress(len(results), sum(done.samples for done in results))
    results.sort(key=lambda result: result.name)
    failed = [failure for result in results for failure in result.failed]
    summary = {
        "source": samples.SOURCE,
        "pillar": None,
        "licence": samples.LICENCE,
        "settings": plan.settings(),
        "ingested": sum(result.samples for result in results),
        "rejected": len(failed),
        "rejected_reasons": {"did not come to rest": len(failed)} if failed else {},
        "rejected_samples": failed,
        "held_out": held_out(),
        "reused_shards": sum(result.reused for result in results),
        **describe(open_corpus(out)),
    }
    files.write_json(out / f"ingest-{samples.SOURCE}.json", summary)
    return summary


def _build_shard(plan: Plan, out: Path, task: tuple[str, int]) -> ShardResult:
    """Makes one task's shard, unless it is there."""
    suite, index = task
    name = shard_name(suite, index)
    table = out / f"{name}.parquet"
    if table.exists():
        header, _ = read_shard(table)
        if header["settings"] != json.loads(json.dumps(plan.settings())):
            raise SimulationError(f"{table} was made with other settings; choose another --out or delete the folder")
        failed = tuple(json.loads(failures(out, name).read_text()))
        return ShardResult(name, header["num_samples"], True, failed)
    found: list[str] = []
    environment = LiberoEnvironment(load_task(suite, index), assets=plan.assets, image_size=plan.image_size)
    tokenizer = load_tokenizer(plan.tokenizer) if plan.tokenizer else None
    try:

        def made() -> Iterator[CorpusSample]:
            yield from task_samples(environment, plan, found)
            # On disk before the shard appears, so that a resumed run knows them.
            files.write_json(failures(out, name), found)

        header = write_corpus_shard(out, name, made(), settings=plan.settings(), tokenizer=tokenizer)
    finally:
        environment.close()
    return ShardResult(name, header["num_samples"], False, tuple(found))


def failures(out: Path, name: str) -> Path:
    """The file that lists the layouts a shard left out."""
    return out / f"{name}.failed.json"


def task_samples(environment: LiberoEnvironment, plan: Plan, failed: list[str]) -> Iterator[CorpusSample]:
    """All samples of the environment's task; layouts that never came to rest are added to ``failed``."""
    balance = samples.Balance()
    for layout in range(plan.layouts):
        try:
            for look in states.looks(environment, plan.seed, layout, plan.frames):
                yield from samples.ask(look.frame, plan.seed, balance, look.before, plan.per_frame)
        except SimulationError as error:
            failed.append(str(error))


# --- what is in it ---


def describe(corpus: Corpus) -> dict[str, Any]:
    """Frames, samples per type, and how often the most common answer of each type is right, in plain JSON types.

    Reads every sample. A network must beat ``best_constant`` to show that it looks; points and boxes have no answer
    that is right twice.
    """
    frames: set[str] = set()
    counts: Counter[str] = Counter()
    answers: dict[str, Counter[str]] = {}
    out: Counter[str] = Counter()
    for index in range(len(corpus)):
        sample = corpus[index]
        labels = sample.labels
        frames.add(labels["frame"])
        counts[labels["type"]] += 1
        out.update(labels["held_out"])
        if labels["form"] == "text":
            answers.setdefault(labels["type"], Counter())[sample.turns[1]] += 1
    return {
        "frames": len(frames),
        "types": dict(sorted(counts.items())),
        "held_out_samples": dict(sorted(out.items())),
        "best_constant": {
            type_: {"answer": top[0][0], "share": round(top[0][1] / counts[type_], 4), "answers": len(found)}
            for type_, found in sorted(answers.items())
            for top in [found.most_common(1)]
        },
    }


def tasks_of(suites: Sequence[str], tasks: Callable[[str], Sequence[int]]) -> tuple[tuple[str, int], ...]:
    """Suite and index of every task asked for."""
    return tuple((suite, index) for suite in suites for index in tasks(suite))
