"""``--benchmark libero_plus``: LIBERO-Plus's 10,030 tasks, one episode each, in seven categories of perturbation.

Three of the categories (light, background, layouts with distractors) are played in scenes that only the benchmark's
asset archive holds. Without ``--plus-assets`` their episodes are counted as not run, and every summary says so.
"""

import argparse
import collections
from dataclasses import dataclass
from typing import TYPE_CHECKING
from typing import Any

from eval.benchmarks.sampling import stratified
from eval.benchmarks.selection import common_fields
from eval.benchmarks.selection import parse_suites
from eval.benchmarks.selection import selected_tasks
from eval.errors import EvaluationError
from eval.manifest import EpisodeSpec
from pokevla_jax.sim.plus import noise
from pokevla_jax.sim.plus.language import PromptMode
from pokevla_jax.sim.plus.language import prompt
from pokevla_jax.sim.plus.metadata import RELEASE
from pokevla_jax.sim.plus.metadata import SUITES
from pokevla_jax.sim.plus.metadata import Metadata
from pokevla_jax.sim.plus.metadata import PlusTask
from pokevla_jax.sim.plus.metadata import open_metadata
from pokevla_jax.sim.plus.names import CATEGORIES
from pokevla_jax.sim.plus.robot_pose import RobotMode

if TYPE_CHECKING:
    from eval.run import Options


@dataclass(frozen=True)
class Choices:
    """How the benchmark is read, where its code and its description part; recorded in the protocol.

    Attributes:
        metadata: the benchmark's files.
        prompt: ``official`` gives the file name's words as the instruction, ``clean`` LIBERO's.
        robot: ``official`` lets the arm drift towards its start posture, ``strict`` puts it there.
    """

    metadata: Metadata
    prompt: PromptMode
    robot: RobotMode

    @classmethod
    def of(cls, options: "Options") -> "Choices":
        """Those of the command line."""
        return cls(open_metadata(options.plus), options.prompt, options.robot)

    def protocol(self, simulation: dict[str, Any]) -> dict[str, Any]:
        """The simulation half of the protocol with these choices in it, as plain JSON types.

        ``published`` holds only where all of them are those of the benchmark's own code.
        """
        as_published = self.prompt == self.robot == "official" and self.metadata.is_release
        return simulation | {
            "published": simulation["published"] and as_published,
            "prompt": self.prompt,
            "libero_plus": {
                "robot": self.robot,
                "noise": "agent view, drawn per episode and step",
                "metadata": f"release {RELEASE['commit']}" if self.metadata.is_release else "changed",
                "metadata_sha256": self.metadata.sha256,
            },
        }


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Declares the options that this benchmark alone has."""
    add = group.add_argument
    add("--category", help=f"{', '.join(CATEGORIES)} (several with commas; default: all)")
    add("--sample", type=int, metavar="N", help="N episodes, balanced over suite, category and level (default: all)")
    add("--sample-seed", type=int, default=0, metavar="N", help="another seed, another sample (default: %(default)s)")
    files = "folder or tar of LIBERO-Plus's metadata, such as a clone of its repository (default: LIBERO_PLUS)"
    add("--plus", metavar="PATH", help=files)
    add("--plus-assets", metavar="DIR", help="its asset archive, unpacked; replaces LIBERO's assets")
    prompts = (
        "LIBERO's instruction, or the words of the file name, as the benchmark's code has it (default: %(default)s)"
    )
    add("--prompt", choices=("clean", "official"), default="clean", help=prompts)
    robots = (
        "the arm drifts towards the start posture, as the benchmark's code does, or starts there (default: %(default)s)"
    )
    add("--robot", choices=("official", "strict"), default="official", help=robots)


def specs(options: "Options") -> list[EpisodeSpec]:
    """The chosen tasks that can be run, or a sample of them, in the benchmark's order.

    Raises:
        EvaluationError: for unknown categories, or if none of what is asked for can be run.
    """
    choices = Choices.of(options)
    chosen = _chosen(options, choices.metadata)
    runnable = [task for task in chosen if options.plus_assets or not task.perturbation.needs_assets]
    if chosen and not runnable:
        raise EvaluationError(
            f"All {len(chosen)} episodes asked for need LIBERO-Plus's assets; give --plus-assets the folder `assets` "
            "of its unpacked archive, or another --category"
        )
    size = options.preset.image_size
    if size > noise.FOG_MAP and any(noise.is_fog(task.perturbation.noise) for task in runnable):
        raise EvaluationError(
            f"LIBERO-Plus's fog covers pictures of up to {noise.FOG_MAP} pixels, and these have {size}; "
            f"use --image-size {noise.FOG_MAP}, or leave noise out of --category"
        )
    if options.sample is not None:
        runnable = _sample(runnable, options)
    return [_spec(task, options, choices) for task in runnable]


def coverage(options: "Options") -> dict[str, Any]:
    """How many of the chosen tasks are run, and why not all, as plain JSON types."""
    chosen = _chosen(options, open_metadata(options.plus))
    lacking = [task for task in chosen if task.perturbation.needs_assets and not options.plus_assets]
    runnable = len(chosen) - len(lacking)
    return {
        "benchmark": "LIBERO-Plus",
        "episodes": len(chosen),
        "run": runnable if options.sample is None else min(options.sample, runnable),
        "need_assets": dict(collections.Counter(task.perturbation.category for task in lacking)),
    }


def banner(coverage: dict[str, Any]) -> str:
    """``coverage`` in one sentence."""
    total, run, lacking = coverage["episodes"], coverage["run"], coverage["need_assets"]
    parts = [f"{run:,} of {total:,} {coverage['benchmark']} episodes are run"]
    if lacking:
        counts = ", ".join(f"{name} {lacking[name]:,}" for name in CATEGORIES if name in lacking)
        parts.append(f"{sum(lacking.values()):,} need LIBERO-Plus's assets: {counts}; give --plus-assets")
    if (left := total - sum(lacking.values()) - run) > 0:
        parts.append(f"{left:,} are left out by --sample")
    return "; ".join(parts)


def parse_categories(text: str | None) -> tuple[str, ...]:
    """The categories of ``--category``: all of them, or short names separated by commas.

    Raises:
        EvaluationError: for a name that is not one of them, or comes twice.
    """
    if text in (None, "all"):
        return tuple(CATEGORIES)
    names = tuple(part.strip() for part in str(text).split(","))
    for name in names:
        if name not in CATEGORIES:
            raise EvaluationError(f"--category {name!r} is unknown; LIBERO-Plus has {', '.join(CATEGORIES)}")
    if len(set(names)) < len(names):
        raise EvaluationError(f"--category {text!r} names a category twice; each episode is run once")
    return names


def _chosen(options: "Options", metadata: Metadata) -> list[PlusTask]:
    """The tasks of the suites, base tasks and categories asked for, whether they can be run or not."""
    categories = parse_categories(options.category)
    bases = {(task.suite, task.index) for task in selected_tasks(options, SUITES)}
    suites = [suite for suite in parse_suites(options.suite, SUITES) if any(suite == name for name, _ in bases)]
    return [
        task
        for suite in suites
        for task in metadata.tasks(suite)
        if task.perturbation.category in categories and (task.suite, task.base) in bases
    ]


def _sample(tasks: list[PlusTask], options: "Options") -> list[PlusTask]:
    assert options.sample is not None
    return stratified(
        tasks,
        options.sample,
        name=lambda task: f"{task.suite}/{task.name}",
        stratum=lambda task: (task.suite, task.perturbation.category, task.level),
        seed=options.sample_seed,
    )


def _spec(task: PlusTask, options: "Options", choices: Choices) -> EpisodeSpec:
    fields = common_fields(options, task.base_task) | {"prompt": prompt(choices.metadata, task, choices.prompt)}
    return EpisodeSpec(
        benchmark="libero_plus",
        perturbation=task.perturbation.text,
        category=task.perturbation.category,
        level=task.level,
        **fields,
    )
