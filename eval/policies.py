"""``--policy``: a checkpoint folder, ``ws://HOST:PORT``, ``torch:DIR``, ``expert``, ``random`` or ``replay[:DATASET]``.

Resolved before anything runs.
"""

import dataclasses
import hashlib
import os
import platform
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import Any
from typing import Literal

import numpy as np

from eval.agents import Agent
from eval.agents import CheckpointAgent
from eval.agents import Chunk
from eval.agents import ExpertAgent
from eval.agents import RandomAgent
from eval.agents import ReplayAgent
from eval.episode import run_episode
from eval.errors import EvaluationError
from eval.manifest import EpisodeSpec
from eval.presets import Preset
from eval.protocol import POLICY_PACKAGES
from eval.protocol import versions
from eval.remote_policy import API_KEY
from eval.remote_policy import SCHEMES
from eval.remote_policy import RemoteInfer
from eval.remote_policy import read_server
from eval.scenes import Scenes
from eval.torch_policy import PACKAGES as TORCH_PACKAGES
from eval.torch_policy import LoadTorchPolicy
from eval.torch_policy import read_facts
from pokevla_jax.sim.experts.goals import check_solvable
from pokevla_jax.sim.tasks import MAX_STEPS
from pokevla_jax.sim.tasks import load_task


@dataclass(frozen=True)
class PolicyChoice:
    """A policy as the driver and the protocol need it.

    Attributes:
        facts: the policy half of the protocol; ``label`` groups seeds and controls in a report.
        agent: who acts, or None when ``load`` makes a network.
        load: makes the network, called inside the policy process.
        execute: actions taken of each chunk; None takes all.
    """

    facts: dict[str, Any]
    agent: Agent | None = None
    load: Callable[[], Any] | None = None
    execute: int | None = None


@dataclass(frozen=True)
class LoadPolicy:
    """Loads a checkpoint and compiles it for every batch size that ``workers`` simulators can ask for.

    Attributes:
        path: the training run's folder; on a cluster every host with a policy process must see it.
        step: which checkpoint.
        workers: simulators that ask one process.
        exact: the only batch size, or None.
        fingerprint: the weights that it has on ``host``, and must have wherever it is loaded.
    """

    path: Path
    step: int
    workers: int
    exact: int | None = None
    fingerprint: str = ""
    host: str = field(default_factory=platform.node)

    def __call__(self) -> Any:
        """The warm policy."""
        from pokevla_jax import checkpoints
        from pokevla_jax.policy import Policy

        if (here := platform.node()) != self.host:
            found = checkpoints.folder_hash(checkpoints.resolve(self.path, self.step) / "params")
            if found != self.fingerprint:
                raise EvaluationError(
                    f"{self.path} holds weights {found} on {here}, not {self.fingerprint} as on {self.host}; give "
                    "every host the same folder"
                )
        sizes = None if self.exact is None else (self.exact,)
        policy = Policy.load(self.path, step=self.step, batch_size=self.workers, batch_sizes=sizes)
        policy.warm_up()
        return policy


def resolve_policy(
    name: str,
    *,
    specs: Sequence[EpisodeSpec],
    scenes: Scenes,
    workers: int = 1,
    step: int | Literal["best"] | None = None,
    execute: int | None = None,
    exact: int | None = None,
) -> PolicyChoice:
    """What ``name`` stands for.

    With ``exact`` every batch of a network has this size; built-in policies see one episode at a time as it is.

    Raises:
        EvaluationError: for a name that is neither a built-in policy nor a checkpoint folder, or options that do not
            go with it.
    """
    if name.startswith(SCHEMES):
        return _served(name, step=step, execute=execute, exact=exact)
    kind, _, rest = name.partition(":")
    if kind in ("expert", "random", "replay"):
        if step is not None or execute is not None:
            raise EvaluationError(
                f"--step and --execute go with a checkpoint, not with --policy {kind}; leave them out"
            )
        if rest and kind != "replay":
            raise EvaluationError(f"--policy {name!r}: {kind} takes nothing after a colon; write --policy {kind}")
    if kind == "expert":
        check_experts(specs)
        return PolicyChoice({"kind": "expert", "label": "expert"}, ExpertAgent())
    if kind == "random":
        return PolicyChoice({"kind": "random", "label": "random"}, RandomAgent())
    if kind == "replay":
        demonstrations = dataset_demonstrations(Path(rest), specs) if rest else expert_demonstrations(scenes, specs)
        facts = {"kind": "replay", "label": "replay", "fingerprint": _fingerprint(demonstrations)}
        return PolicyChoice(facts, ReplayAgent(demonstrations))
    if kind == "torch":
        if step is not None:
            raise EvaluationError("--step goes with a training run's folder; an exported one holds one step")
        return _exported(Path(rest), workers=workers, execute=execute, exact=exact)
    return _checkpoint(name, workers=workers, step=step, execute=execute, exact=exact)


def under_protocol(choice: PolicyChoice, preset: Preset) -> PolicyChoice:
    """The policy, asked as the protocol has it; built-in ones see no image and have no chunks to cut.

    Raises:
        EvaluationError: when the protocol executes more actions than the policy's chunks have.
    """
    if "chunk" not in choice.facts:
        return choice
    horizon = choice.facts["chunk"]
    execute = preset.execute or horizon
    if execute > horizon:
        raise EvaluationError(
            f"--protocol {preset.name} executes {execute} actions of each chunk, the policy's have {horizon}; it "
            "cannot be evaluated under this protocol"
        )
    facts = {**choice.facts, "execute": execute, "images": preset.images, "gripper": preset.gripper}
    return dataclasses.replace(choice, facts=facts, execute=execute)


def dataset_demonstrations(path: Path, specs: Sequence[EpisodeSpec]) -> dict[tuple[str, int], Chunk]:
    """For each task of ``specs`` the executed actions of the dataset's first successful episode of it.

    The first in the dataset's order, so that the choice depends on nothing but the dataset.

    Raises:
        EvaluationError: when a task has no successful episode there.
    """
    from pokevla_jax.data.records import open_dataset

    dataset = open_dataset(path)
    demonstrations: dict[tuple[str, int], Chunk] = {}
    for index, info in enumerate(dataset.episodes):
        key = (info.suite, info.task)
        if info.success and key not in demonstrations:
            rows = slice(int(dataset.starts[index]), int(dataset.starts[index + 1]))
            demonstrations[key] = np.array(dataset.executed[rows], np.float32)
    for spec in specs:
        if (spec.suite, spec.task) not in demonstrations:
            raise EvaluationError(
                f"--policy replay:{path}: the dataset has no successful episode of {spec.suite} task {spec.task} "
                f"({spec.task_name}); record one with pokevla-record, or use --policy replay"
            )
    return demonstrations


def check_experts(specs: Sequence[EpisodeSpec]) -> None:
    """Raises ``SimulationError`` where a LIBERO task has no scripted expert, naming those that have one."""
    for suite, task in sorted({(spec.suite, spec.task) for spec in specs if spec.suite in MAX_STEPS}):
        check_solvable(load_task(suite, task))


def expert_demonstrations(scenes: Scenes, specs: Sequence[EpisodeSpec]) -> dict[tuple[str, int], Chunk]:
    """For each task of ``specs`` the actions of the scripted expert's first success over the stored states 0, 1, 2 ...

    Raises:
        EvaluationError: when the expert fails on the first five.
    """
    check_experts(specs)
    demonstrations: dict[tuple[str, int], Chunk] = {}
    for spec in specs:
        if (spec.suite, spec.task) in demonstrations:
            continue
        stored = dataclasses.replace(
            spec, benchmark="libero", init_state=0, layout=None, perturbation=None, category=None, level=None
        )
        environment = scenes.build(stored)
        for state in range(5):
            stored = dataclasses.replace(stored, init_state=state)
            scenes.place(environment, stored)
            agent = _Remember(ExpertAgent())
            if run_episode(environment, stored, agent).success:
                demonstrations[spec.suite, spec.task] = np.concatenate(agent.chunks)
                break
        environment.close()
        if (spec.suite, spec.task) not in demonstrations:
            raise EvaluationError(
                f"--policy replay: the expert does not solve {spec.task_name} from a stored state; give replay:DATASET"
            )
    return demonstrations


class _Remember:
    """An agent that keeps the chunks it hands out."""

    def __init__(self, agent: Agent):
        self._agent, self.chunks, self.needs_images = agent, list[Chunk](), agent.needs_images

    def begin(self, environment: Any, spec: EpisodeSpec) -> None:
        self._agent.begin(environment, spec)

    def act(self, observation: dict[str, Any] | None) -> Chunk:
        self.chunks.append(self._agent.act(observation))
        return self.chunks[-1]


def _checkpoint(
    name: str, *, workers: int, step: int | Literal["best"] | None, execute: int | None, exact: int | None
) -> PolicyChoice:
    path = Path(name)
    if not path.is_dir():
        raise EvaluationError(
            f"--policy {name!r} is no folder, nor ws://HOST:PORT, torch:DIR, expert, random or replay[:DATASET]; "
            "give a training run's folder"
        )
    from pokevla_jax import checkpoints

    folder = Path(checkpoints.resolve(path, step))
    step = int(folder.name)
    config, assets = checkpoints.load_assets(path, step)
    horizon = _checked_horizon(config.model.action_horizon, execute)
    facts: dict[str, Any] = {
        "kind": "checkpoint",
        "label": control_label(config.data.zero_images, config.data.zero_language),
        "preset": config.model.preset,
        "step": step,
        "seed": config.seed,
        "pictures": list(assets.pictures),
        "fingerprint": checkpoints.folder_hash(folder / "params"),
        "chunk": horizon,
        "execute": execute or horizon,
        **_exactness(exact),
        "versions": versions(POLICY_PACKAGES),
    }
    load = LoadPolicy(path.resolve(), step, workers, exact, facts["fingerprint"])
    return PolicyChoice(facts, load=load, execute=execute)


def _exported(path: Path, *, workers: int, execute: int | None, exact: int | None) -> PolicyChoice:
    from pokevla_jax import checkpoints

    found = read_facts(path)
    horizon = _checked_horizon(found["action_horizon"], execute)
    facts = {
        "kind": "torch",
        "label": control_label(found["zero_images"], found["zero_language"]),
        **{name: found[name] for name in ("preset", "step", "seed", "pictures")},
        "fingerprint": checkpoints.folder_hash(path),
        "chunk": horizon,
        "execute": execute or horizon,
        **_exactness(exact),
        "versions": versions(TORCH_PACKAGES),
    }
    return PolicyChoice(facts, load=LoadTorchPolicy(path.resolve(), workers, exact), execute=execute)


def _served(
    address: str, *, step: int | Literal["best"] | None, execute: int | None, exact: int | None
) -> PolicyChoice:
    if step is not None:
        raise EvaluationError("--step goes with a checkpoint's folder; give it to pokevla-serve instead")
    key = os.environ.get(API_KEY) or None
    found = read_server(address, key)
    horizon = _checked_horizon(found["action_horizon"], execute)
    facts = {
        "kind": "server",
        "label": control_label(found["zero_images"], found["zero_language"]),
        **{name: found[name] for name in ("preset", "step", "seed", "pictures", "fingerprint")},
        "chunk": horizon,
        "execute": execute or horizon,
        **_exactness(_served_batch(address, found, exact)),
        "versions": found["packages"],
    }
    # Each simulator asks the server itself, which batches them: no policy process here.
    agent = CheckpointAgent(RemoteInfer(address, found["fingerprint"], key))
    return PolicyChoice(facts, agent, execute=execute)


def _exactness(batch: int | None) -> dict[str, int]:
    """The only batch size, where there is one; left out otherwise, as in protocols from before there was a choice."""
    return {} if batch is None else {"exact_batch": batch}


def _served_batch(address: str, found: dict[str, Any], exact: int | None) -> int | None:
    """The server's only batch size, or None where it has several."""
    size = found["max_batch_size"] if found["exact"] else None
    if exact not in (None, size):
        batches = f"batches of {size}" if size else "batches of several sizes"
        raise EvaluationError(
            f"--exact {exact}: the server at {address} computes {batches}; start it with --exact --max-batch {exact}"
        )
    return size


def _checked_horizon(horizon: int, execute: int | None) -> int:
    if execute is not None and not 1 <= execute <= horizon:
        raise EvaluationError(f"--execute {execute}: the policy's chunks have {horizon} actions; give 1 to {horizon}")
    return horizon


def control_label(zero_images: bool, zero_language: bool) -> str:
    """What a report calls a checkpoint: ``policy``, or the control that its configuration makes of it."""
    senses = [name for name, zero in (("blind", zero_images), ("no-language", zero_language)) if zero]
    return f"{'-'.join(senses)}-trained" if senses else "policy"


def _fingerprint(demonstrations: dict[tuple[str, int], Chunk]) -> str:
    digest = hashlib.sha256()
    for key in sorted(demonstrations):
        digest.update(repr(key).encode())
        digest.update(np.ascontiguousarray(demonstrations[key], np.float32).tobytes())
    return digest.hexdigest()[:16]
