"""``python -m eval run``: from options to a complete run folder."""

import argparse
import contextlib
import dataclasses
import functools
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Literal

from eval import cluster
from eval import presets
from eval import summary as summaries
from eval.benchmarks import build_manifest
from eval.benchmarks import chosen_benchmark
from eval.benchmarks import libero_plus
from eval.controls import Control
from eval.controls import check_control
from eval.controls import control_facts
from eval.controls import control_specs
from eval.controls import parse_controls
from eval.controls import playable
from eval.driver import Driver
from eval.driver import Limits
from eval.driver import Setup
from eval.errors import EvaluationError
from eval.manifest import EpisodeSpec
from eval.manifest import LayoutKind
from eval.policies import PolicyChoice
from eval.policies import resolve_policy
from eval.policies import under_protocol
from eval.protocol import Protocol
from eval.protocol import host_facts
from eval.protocol import machine
from eval.protocol import simulation_half
from eval.results import Record
from eval.results import RunFolder
from eval.scenes import LiberoScenes
from eval.videos import VideoOptions
from pokevla_jax import terminal
from pokevla_jax.sim.assets import resolve_assets
from pokevla_jax.sim.plus.asset_archive import open_assets
from pokevla_jax.sim.plus.language import PromptMode
from pokevla_jax.sim.plus.robot_pose import RobotMode

# Observations of one batch: enough to feed an accelerator, few sizes to compile.
EXACT_BATCH = 8
LARGEST_BATCH = 16
# So many errors without an episode that ended otherwise are a defect, not bad luck.
HOPELESS = 8


@dataclass(frozen=True)
class Options:
    """The command line of ``run``; see ``add_arguments`` for what each means."""

    policy: str
    run_dir: Path
    protocol: str = presets.DEFAULT
    benchmark: str | None = None
    suite: str = "libero_object"
    tasks: str = "all"
    init_states: str | None = None
    layouts: int | None = None
    layout_seed: int = 0
    layout_kind: LayoutKind = "moved"
    category: str | None = None
    sample: int | None = None
    sample_seed: int = 0
    prompt: PromptMode = "clean"
    robot: RobotMode = "official"
    plus: str | None = None
    plus_assets: str | None = None
    max_steps: int | None = None
    ablate: Sequence[str] = ()
    control: Sequence[str] = ()
    seed: int | None = None
    step: int | Literal["best"] | None = None
    execute: int | None = None
    videos: Literal["none", "failures", "all"] = "none"
    video_stride: int = 1
    assets: str | Path | None = None
    renderer: str | None = None
    image_size: int | None = None
    images: str | None = None
    hard_reset: bool | None = None
    exact: int | None = None
    workers: int | None = None
    address: str | None = None
    policy_actors: int | None = None
    retries: int = 2
    episode_timeout: float | None = None
    recycle_episodes: int = 200
    recycle_memory: float = 4.0
    json: bool = False

    @property
    def preset(self) -> presets.Preset:
        """The protocol with the conditions that were given."""
        names = ("max_steps", "renderer", "image_size", "images", "hard_reset", "execute", "seed")
        return presets.resolve(self.protocol, {name: getattr(self, name) for name in names})

    def limits(self) -> Limits:
        """When attempts and processes are given up."""
        given = self.episode_timeout
        times = {} if given is None else {"episode_seconds": given, "step_seconds": 0.0}
        memory = self.recycle_memory * 2**30
        return Limits(retries=self.retries, episodes=self.recycle_episodes, memory_bytes=memory, **times)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of ``run``, in groups; what a first run needs comes first."""
    parser.usage = "%(prog)s --policy POLICY --run-dir DIR [options]"
    parser.description = (
        "Runs episodes into a folder and prints the success rate with its interval.\n"
        "The same command again runs only what is missing."
    )
    group = parser.add_argument_group
    _add_policy(group("policy"))
    _add_episodes(group("episodes"))
    _add_output(group("output"))
    _add_controls(group("controls", "The same episodes once more, each control as a run of its own below --run-dir."))
    conditions = "All of them are recorded, and results of different conditions are never merged."
    _add_conditions(group("conditions", conditions))
    libero_plus.add_arguments(group("LIBERO-Plus", "Options of --benchmark libero_plus alone."))
    cluster.add_arguments(group("processes and hosts", "No result depends on these."))


def _add_policy(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    policies = (
        "a training run's folder, ws://HOST:PORT (a server), torch:DIR (an export), expert, random or replay[:DATASET]"
    )
    add("--policy", required=True, help=policies)
    terminal.add_step(group, "which checkpoint of the run")
    add(
        "--execute",
        type=int,
        metavar="N",
        help="actions of each chunk that are executed (default: the protocol's, or all)",
    )
    exact = f"always compute batches of N (default {EXACT_BATCH}), padded: the same actions whatever the load"
    add("--exact", type=int, nargs="?", const=EXACT_BATCH, metavar="N", help=exact)


def _add_episodes(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    kinds = "libero: stored initial states; libero_moved: sampled layouts; libero_plus: perturbed scenes"
    add("--benchmark", metavar="NAME", help=f"{kinds} (default: the one that other options belong to)")
    suites = "libero_spatial, libero_object, libero_goal, libero_10 (several with commas), or all"
    add("--suite", default="libero_object", help=f"{suites} (default: %(default)s)")
    add("--tasks", default="all", help="indices (0,1 or 0-4), full names, or all (default: %(default)s)")
    add("--init-states", metavar="40-49", help="libero: stored initial states (default: as many as the protocol plays)")
    add("--layouts", type=int, metavar="N", help="libero_moved: sampled layouts per task")
    seeds = "libero_moved: layouts of different seeds never meet; train and test on others (default: %(default)s)"
    add("--layout-seed", type=int, default=0, metavar="N", help=seeds)
    scenes = "libero_moved: each task's own scene, or one that shows the objects of many (default: %(default)s)"
    add("--layout-kind", choices=("moved", "shared"), default="moved", help=scenes)


def _add_output(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--run-dir", type=Path, required=True, metavar="DIR", help="folder of results, new or of the same command")
    filmed = "which episodes are filmed afterwards (default: %(default)s)"
    add("--videos", choices=("none", "failures", "all"), default="none", help=filmed)
    add("--video-stride", type=int, default=1, metavar="K", help="film every K-th step (default: %(default)s)")
    add("--json", action="store_true", help="print the summary as JSON")


def _add_controls(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    what = "images (black), language (told nothing) or instruction (told another task's); repeat for more"
    add("--ablate", action="append", default=[], metavar="WHAT", help=what)
    controls = "replay, random, expert, or NAME=DIR: a checkpoint trained without images or language; repeat for more"
    add("--control", action="append", default=[], help=controls)


def _add_conditions(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    published = ", ".join(name for name, preset in presets.PRESETS.items() if preset.published)
    named = f"{published}: as their evaluators do it; {presets.DEFAULT}: fast, and as options choose"
    add("--protocol", default=presets.DEFAULT, metavar="NAME", help=f"{named} (default: {presets.DEFAULT})")
    add("--max-steps", type=int, metavar="N", help="policy steps per episode (default: the suite's published budget)")
    add("--seed", type=int, metavar="N", help="of the environments and of --policy random (default: the protocol's)")
    terminal.add_assets(group)
    renderers = "robosuite: as in published evaluations (default: the protocol's; pokevla: fast)"
    add("--renderer", choices=("fast", "robosuite"), help=renderers)
    sizes = "side of the rendered images (default: the protocol's; pokevla: 128 fast, 256 robosuite)"
    add("--image-size", type=int, metavar="PIXELS", help=sizes)
    paths = "what becomes of images before the policy sees them (default: the protocol's; pokevla: native, unchanged)"
    add("--images", choices=("native", "openvla", "openvla-crop", "openpi"), help=paths)
    again = "recompile the scene for each episode (always with robosuite)"
    add("--hard-reset", action="store_true", default=None, help=again)


def check_options(options: Options) -> None:
    """Raises ``EvaluationError`` for numbers that make no sense."""
    positive = ("layouts", "sample", "max_steps", "workers", "video_stride", "image_size", "exact", "policy_actors")
    for name in (*positive, "episode_timeout", "recycle_episodes", "recycle_memory"):
        value = getattr(options, name)
        if value is not None and not value >= 1:  # nor is it a NaN
            raise EvaluationError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    for name in ("layout_seed", "sample_seed", "seed", "retries"):
        if (getattr(options, name) or 0) < 0:
            raise EvaluationError(f"--{name.replace('_', '-')} must not be negative, got {getattr(options, name)}")


@dataclass(frozen=True)
class Part:
    """The policy's own episodes, or those of one control: a run folder each."""

    folder: RunFolder
    specs: Sequence[EpisodeSpec]
    policy: PolicyChoice
    where: str
    control: Control | None = None


def run(options: Options, command: str, *, progress: bool = True) -> dict[str, Any]:
    """Runs what is missing and returns the summary of the whole run; ``controls`` holds those of its controls.

    Raises:
        EvaluationError: for bad input, before anything is simulated; SimulationError and AssetError likewise.
    """
    check_options(options)
    controls = parse_controls(options.ablate, options.control)
    specs = build_manifest(options)
    plus = libero_plus.Choices.of(options) if chosen_benchmark(options) == "libero_plus" else None
    assets = open_assets(options.plus_assets) if options.plus_assets else resolve_assets(options.assets)
    preset = options.preset
    scenes = LiberoScenes(assets=assets, preset=preset, plus=plus)
    # On a cluster: as many as its hosts have cores, whenever they join.
    workers = options.workers if options.address else options.workers or len(os.sched_getaffinity(0))
    parts = _parts(options, controls, specs, scenes, workers)
    simulation = simulation_half(assets, preset)
    coverage = {}
    if plus is not None:
        simulation = plus.protocol(simulation)
        coverage = {"coverage": libero_plus.coverage(options)}
        print(libero_plus.banner(coverage["coverage"]), file=sys.stderr)
    with contextlib.ExitStack() as stack:
        # All folders are taken before anything runs, so that what is wrong with one of them shows at once.
        for part in parts:
            context: dict[str, Any] = {
                "command": command,
                "policy": part.where,
                "assets": str(assets.root),
                "workers": workers,
            }
            if part.control is not None:
                context["control"] = {"name": part.control.name, "kind": part.control.kind}
            protocol = Protocol(simulation=simulation, policy=part.policy.facts)
            if part.control is None and (note := protocol.unlike_training()):
                print(f"warning: {note}", file=sys.stderr)
            stack.callback(part.folder.close)
            part.folder.open(part.specs, protocol, context | coverage | machine())
        results = [_run_part(part, options, scenes, workers, progress) for part in parts]
    names = [part.control.name for part in parts if part.control is not None]
    return results[0] | ({"controls": dict(zip(names, results[1:], strict=True))} if names else {})


def _parts(
    options: Options,
    controls: Sequence[Control],
    specs: Sequence[EpisodeSpec],
    scenes: LiberoScenes,
    workers: int | None,
) -> list[Part]:
    """The policy's part, then one per control, all resolved and checked."""

    def resolve(name: str, specs: Sequence[EpisodeSpec], *, checkpoint: bool = True) -> tuple[PolicyChoice, str]:
        choice: dict[str, Any] = {"step": options.step, "execute": options.execute} if checkpoint else {}
        most = min(workers or LARGEST_BATCH, LARGEST_BATCH, len(specs))
        policy = resolve_policy(name, specs=specs, scenes=scenes, workers=most, exact=options.exact, **choice)
        policy = under_protocol(policy, options.preset)
        return policy, str(Path(name.removeprefix("torch:")).resolve()) if policy.load else name

    policy, where = resolve(options.policy, specs)
    parts = [Part(RunFolder(options.run_dir), specs, policy, where)]
    for control in controls:
        own = playable(control, specs)
        if own and len(own) < len(specs):
            left = sorted({(spec.suite, spec.task) for spec in specs} - {(spec.suite, spec.task) for spec in own})
            tasks = ", ".join(f"{suite} task {task}" for suite, task in left)
            print(f"control {control.name}: no scripted expert for {tasks}; left out", file=sys.stderr)
        acts, its = policy, where
        if control.policy is not None:
            # Without anything to play it is refused there, in a sentence that says what could be played.
            acts, its = resolve(control.policy, own or specs, checkpoint=control.kind == "trained")
        check_control(control, acts.facts, policy.facts, looks=policy.agent is None or policy.agent.needs_images)
        acts = dataclasses.replace(acts, facts=control_facts(control, acts.facts))
        folder = RunFolder(control.folder(options.run_dir))
        parts.append(Part(folder, control_specs(control, own), acts, its, control))
    return parts


def _run_part(
    part: Part, options: Options, scenes: LiberoScenes, workers: int | None, progress: bool
) -> dict[str, Any]:
    """Runs what is missing of one part and writes its summary."""
    if missing := part.folder.missing():
        videos = None
        if options.videos != "none":
            path = part.folder.path.resolve() / "videos"
            videos = VideoOptions(options.videos, path, options.video_stride)
        policy = part.policy
        facts = functools.partial(host_facts, scenes.assets.root) if options.address else None
        setup = Setup(scenes, policy.agent, policy.load, policy.execute, videos, facts, options.policy_actors)
        with cluster.connect(options.address, workers) as ray:
            driver = Driver(
                ray=ray, setup=setup, workers=workers, limits=options.limits(), save_video=part.folder.write_video
            )
            title = part.control.name if part.control else None
            _run_missing(missing, part.folder, driver, progress, title=title, one_machine=options.address is None)
    result = summaries.summarize(part.folder)
    part.folder.write_summary(result)
    return result


def _run_missing(
    missing: Sequence[EpisodeSpec],
    folder: RunFolder,
    driver: Driver,
    progress: bool,
    *,
    title: str | None,
    one_machine: bool,
) -> None:
    from tqdm import tqdm

    with tqdm(total=len(missing), desc=title, unit="episode", disable=not progress, file=sys.stderr) as bar:
        outcomes: Counter[str] = Counter()
        reasons: Counter[str] = Counter()

        def on_record(record: Record) -> None:
            folder.append(record)
            outcomes[record["outcome"]] += 1
            reasons.update(summaries.reasons([record]))
            bar.set_postfix({name: outcomes[name] for name in ("success", "failure", "error")})
            bar.update()
            # On several machines it can be one of them that fails, sooner than the others succeed.
            if one_machine and outcomes.total() == HOPELESS:
                _check_hope(reasons)

        driver.run(missing, on_record)


def _check_hope(reasons: Counter[str]) -> None:
    """Raises ``EvaluationError`` when all of the first episodes ended in an error, and in the same."""
    for reason, count in reasons.items():
        if count == HOPELESS:
            raise EvaluationError(
                f"The first {HOPELESS} episodes all ended in the same error ({reason}); mend that and run the same "
                "command again"
            )
