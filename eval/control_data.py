"""Reads the controls beside a run: what each scores on the policy's episodes, task by task.

::

    for control in read_controls("runs/eval/libero"):
        pairs = paired(RunFolder("runs/eval/libero"), control.folder)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.compare import check_comparable
from eval.compare import comparison
from eval.compare import decided
from eval.compare import pair
from eval.controls import FOLDER
from eval.controls import KINDS
from eval.controls import Kind
from eval.errors import EvaluationError
from eval.results import Record
from eval.results import RunFolder
from eval.summary import tally


@dataclass(frozen=True)
class ControlRun:
    """One control's run folder: ``RUN/controls/NAME``."""

    name: str
    kind: Kind
    folder: RunFolder


def read_controls(run_dir: Path | str) -> list[ControlRun]:
    """The controls of a run: the ablated ones, then the trained ones, then the baselines, each by name.

    Raises:
        EvaluationError: for a folder among them that is no control.
    """
    found = []
    for path in sorted((Path(run_dir) / FOLDER).glob("*/protocol.json")):
        folder = RunFolder(path.parent)
        said = folder.context().get("control")
        if not isinstance(said, dict) or said.get("kind") not in KINDS or said.get("name") != path.parent.name:
            raise EvaluationError(f"{path.parent} is no control of {run_dir}; move the folder away")
        found.append(ControlRun(said["name"], said["kind"], folder))
    return sorted(found, key=lambda run: KINDS.index(run.kind))


def paired(policy: RunFolder, control: RunFolder) -> list[tuple[Record, Record]]:
    """The records of policy and control on the episodes that are decided for both.

    Raises:
        EvaluationError: when the two were simulated under different conditions.
    """
    check_comparable(policy, control)
    return pair(decided(policy), decided(control))


def task_table(run_dir: Path | str) -> list[dict[str, Any]]:
    """Which tasks need sight and language: one row per task of the run.

    Each row holds ``suite``, ``task``, ``name``, the policy's tally as ``policy``, and in ``controls`` for every
    control its ``kind`` and the paired comparison with the policy (``compare.comparison``; a is the policy, b the
    control), whose ``pairs`` is 0 where the control has not run yet.
    """
    policy = RunFolder(run_dir)
    pairs = {control: paired(policy, control.folder) for control in read_controls(run_dir)}
    records = policy.records().values()
    rows = []
    for suite, task, name in dict.fromkeys((spec.suite, spec.task, spec.task_name) for spec in policy.specs()):
        here = (suite, task)
        rows.append(
            {
                "suite": suite,
                "task": task,
                "name": name,
                "policy": tally(record for record in records if _task(record) == here),
                "controls": {
                    control.name: {"kind": control.kind, **comparison([two for two in both if _task(two[0]) == here])}
                    for control, both in pairs.items()
                },
            }
        )
    return rows


def _task(record: Record) -> tuple[str, int]:
    return record["suite"], record["task"]
