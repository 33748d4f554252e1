"""Controls: what a rate is worth without eyes or words, on the very episodes of the policy.

Two kinds that are never mixed. *Ablated*: the policy itself, with something taken from it at every look
(``ABLATIONS``). It meets an input that it was not trained for, so its rate says what it uses, not what the task needs.
*Trained*: a second checkpoint that never had images or language (``--control NAME=DIR``); what it solves can be solved
without them. Beside both stand the *baselines* that see no picture: ``replay``, ``random`` and ``expert``.

Every control is a run folder of its own below the policy's, ``RUN/controls/NAME``.
"""

import dataclasses
import re
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Literal

import numpy as np

from eval.errors import EvaluationError
from eval.manifest import EpisodeSpec
from pokevla_jax.sim.experts.goals import is_solvable
from pokevla_jax.sim.tasks import MAX_STEPS
from pokevla_jax.sim.tasks import list_tasks
from pokevla_jax.sim.tasks import load_task

FOLDER = "controls"
IMAGES, LANGUAGE, INSTRUCTION = "ablate-images", "ablate-language", "ablate-instruction"
# What each ablation does, for readers of a report.
ABLATIONS = {
    IMAGES: "the policy itself, all its images black",
    LANGUAGE: "the policy itself, told nothing",
    INSTRUCTION: "the policy itself, told another task's instruction",
}
BASELINES = ("expert", "random", "replay")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

Kind = Literal["ablated", "trained", "baseline"]
KINDS: tuple[Kind, ...] = ("ablated", "trained", "baseline")


@dataclass(frozen=True)
class Control:
    """One control.

    Attributes:
        name: its folder's name; for an ablation one of ``ABLATIONS``.
        kind: which of the kinds it is.
        policy: what ``--policy`` would call who acts; None where the policy itself does.
    """

    name: str
    kind: Kind
    policy: str | None = None

    def folder(self, run_dir: Path) -> Path:
        """Its run folder."""
        return run_dir / FOLDER / self.name


def parse_controls(ablate: Sequence[str], control: Sequence[str]) -> list[Control]:
    """The controls of all ``--ablate`` and ``--control`` options, in their order.

    Raises:
        EvaluationError: for an unknown ablation, and for a control without a name or with one that is taken.
    """
    controls = []
    for what in ablate:
        name = f"ablate-{what}"
        if name not in ABLATIONS:
            known = ", ".join(known.removeprefix("ablate-") for known in ABLATIONS)
            raise EvaluationError(f"--ablate {what!r}: there is no such ablation; take one of {known}")
        controls.append(Control(name, "ablated"))
    for text in control:
        name, equals, policy = text.partition("=")
        kind = text.partition(":")[0]
        if kind in BASELINES and not equals:
            name, policy = kind, text
        if not policy or not _NAME.fullmatch(name):
            raise EvaluationError(
                f"--control {text!r}: write NAME=DIR with a name of letters, digits, dots and dashes, or one of "
                f"{', '.join(BASELINES)}"
            )
        if name.startswith("ablate-"):
            raise EvaluationError(f"--control {text!r}: names with ablate- belong to --ablate; take another")
        baseline = policy.partition(":")[0] in BASELINES
        controls.append(Control(name, "baseline" if baseline else "trained", policy))
    for taken, this in enumerate(controls):
        if this.name in [other.name for other in controls[:taken]]:
            raise EvaluationError(f"The control {this.name} is given twice; name each once")
    return controls


def check_control(control: Control, facts: Mapping[str, Any], policy: Mapping[str, Any], *, looks: bool) -> None:
    """Refuses a control that could show nothing.

    Args:
        control: the control.
        facts: its half of the protocol, without what was taken from it.
        policy: the policy's.
        looks: whether the policy looks at images and reads instructions.

    Raises:
        EvaluationError: when there is nothing to take away, or a trained control lacks nothing.
    """
    if control.kind == "ablated" and not looks:
        raise EvaluationError(f"--policy {policy['label']} neither looks nor reads; leave --ablate out")
    if control.kind == "trained":
        said = f"--control {control.name}={control.policy}"
        if facts["label"] == "policy":
            raise EvaluationError(
                f"{said} was trained with images and language, so it is no control; give it a run of its own and "
                "compare the two"
            )
        if facts.get("fingerprint") == policy.get("fingerprint"):
            raise EvaluationError(f"{said} is the policy itself; give another checkpoint")


def control_specs(control: Control, specs: Sequence[EpisodeSpec]) -> list[EpisodeSpec]:
    """The episodes of a control, in the order of the policy's: the same ones, or ablated ones with the same base id."""
    return [ablate(spec, control.name) for spec in specs] if control.kind == "ablated" else list(specs)


def playable(control: Control, specs: Sequence[EpisodeSpec]) -> list[EpisodeSpec]:
    """The episodes that the control can play: for the expert, and for replays of it, those of tasks that have one."""
    if control.policy not in ("expert", "replay"):
        return list(specs)
    return [spec for spec in specs if spec.suite not in MAX_STEPS or is_solvable(load_task(spec.suite, spec.task))]


def ablate(spec: EpisodeSpec, name: str) -> EpisodeSpec:
    """``spec`` with what the ablation takes away; the start, the goal and the budget stay."""
    told = {IMAGES: None, LANGUAGE: "", INSTRUCTION: other_instruction(spec) if name == INSTRUCTION else None}
    return dataclasses.replace(spec, control=name, told=told[name])


def other_instruction(spec: EpisodeSpec) -> str:
    """The instruction of another task of the suite, chosen by the episode's id: any of them is as likely."""
    languages = {task.language for task in list_tasks(spec.suite) if task.index != spec.task}
    others = sorted(languages - {spec.prompt})
    return others[int(spec.base_id, 16) % len(others)]


def control_facts(control: Control, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The policy half of a control's protocol; an ablated policy's results never stand among the policy's own."""
    return {**facts, "label": control.name, "control": control.name} if control.kind == "ablated" else dict(facts)


def perceived(observation: Mapping[str, Any], spec: EpisodeSpec) -> dict[str, Any]:
    """What the policy gets of an observation."""
    images = observation["images"]
    return {
        **observation,
        "images": np.zeros_like(images) if spec.control == IMAGES else images,
        "prompt": spec.instruction,
    }
