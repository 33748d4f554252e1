"""Reads the controls beside a run."""

from dataclasses import dataclass
from pathlib import Path

from eval.controls import FOLDER
from eval.controls import KINDS
from eval.controls import Kind
from eval.errors import EvaluationError
from eval.results import RunFolder


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
