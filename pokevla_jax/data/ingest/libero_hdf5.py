"""LIBERO's HDF5 demonstrations (``<task>_demo.hdf5``), and files laid out like them.

::

    DATA/<suite>/<task>_demo.hdf5
        data                      attributes: problem_info, JSON with language_instruction
        data/demo_0/actions       [t, 7], the gripper -1 to open and +1 to close
        data/demo_0/obs/...       agentview_rgb, eye_in_hand_rgb [t, h, w, 3]; ee_states [t, 6]; gripper_states [t, 2]

Which keys are read is the robot's description's to say. Pictures are rotated by 180 degrees, and steps that do nothing
are left out, as OpenVLA does.
"""

import json
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pokevla_jax.data.codec import Frame
from pokevla_jax.data.episode import Episode
from pokevla_jax.data.ingest import base
from pokevla_jax.data.ingest.base import Reference
from pokevla_jax.data.ingest.base import Reject
from pokevla_jax.data.ingest.base import Rejection
from pokevla_jax.data.ingest.robots import Robot
from pokevla_jax.data.ingest.robots import build_episode


@dataclass(frozen=True)
class Hdf5Adapter:
    """Reads every ``*.hdf5`` below the folder; an episode per ``data/demo_*``."""

    source: str
    licence: str
    robot: Robot
    size: int | None = None

    def settings(self) -> dict[str, Any]:
        return {"adapter": "libero_hdf5", "size": self.size, **self.robot.settings()}

    def inputs(self, data: Path) -> list[Path]:
        return base.found(sorted(data.glob("**/*.hdf5")), f"{data}/**/*.hdf5")

    def references(self, data: Path) -> Iterator[Reference | Rejection]:
        for path in self.inputs(data):
            name = path.relative_to(data).as_posix()
            # The task's name, not its folder: copies of a file hold the same demonstrations.
            stem = path.stem.removesuffix("_demo")
            try:
                with h5py.File(path) as file:
                    demos = sorted(file["data"], key=lambda key: (len(key), key))
            except (OSError, KeyError) as error:
                yield Rejection(f"{name}/...", "truncated shard", f"{name}: {error}")
                continue
            for demo in demos:
                yield Reference(f"{stem}/{demo}", (name, demo))

    def load(self, data: Path, reference: Reference) -> tuple[Episode, Mapping[int, Frame]]:
        name, demo = reference.payload
        robot = self.robot
        try:
            with h5py.File(data / name) as file:
                group = file["data"][demo]
                instruction = _instruction(file["data"].attrs)
                columns = {key: group[key][()] for key in (*robot.state, *robot.action) if key in group}
                keys = (*robot.views.values(), *robot.masks.values(), *robot.depth.values())
                pictures = {key: group[key][()] for key in keys if key in group}
                success = bool(np.any(group["dones"][()])) if "dones" in group else True
        except (OSError, KeyError, TypeError) as error:
            raise Reject("truncated shard", f"{name}: {error}") from error
        return build_episode(
            robot,
            id=reference.id,
            suite=self.source,
            instruction=instruction,
            columns=columns,
            pictures=pictures,
            size=self.size,
            success=success,
            source={"file": name, "demo": demo},
        )


def _instruction(attributes: Mapping[str, Any]) -> str:
    try:
        found = json.loads(attributes["problem_info"])["language_instruction"]
    except (KeyError, TypeError, ValueError) as error:
        raise Reject("malformed", "the file's problem_info names no language_instruction") from error
    return "".join(found).strip('"') if isinstance(found, list | str) else ""
