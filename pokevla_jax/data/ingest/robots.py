"""Descriptions of robots and their data sets: which keys hold what, and how their actions are meant.

A description is a JSON file, or one of ``KNOWN``. It is the one place where a new robot is described; see
docs/add_your_data.md.
"""

import difflib
import json
import zlib
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pokevla_jax.config import ConfigError
from pokevla_jax.config import from_dict
from pokevla_jax.data.codec import DataError
from pokevla_jax.data.codec import Frame
from pokevla_jax.data.conventions import Gripper
from pokevla_jax.data.conventions import gripper_dims
from pokevla_jax.data.conventions import noop_steps
from pokevla_jax.data.conventions import to_stored_gripper
from pokevla_jax.data.episode import Episode
from pokevla_jax.data.ingest.base import Reject


@dataclass(frozen=True, kw_only=True)
class Robot:
    """Where a data set keeps what, and what it means.

    Attributes:
        name: the suite of its episodes.
        views: our name of a camera -> the key of its images, in the order in which the network sees them.
        state: keys whose numbers, one after the other, are the proprio.
        action: likewise of the action.
        instruction: key of the text.
        masks: view -> key of a mask of the objects of interest.
        depth: view -> key of depth images, in units of ``depth_unit`` metres; needs the next two.
        intrinsics: view -> 3 x 3 pinhole matrix, pixels.
        base_from_camera: view -> 4 x 4 pose of a fixed camera in the robot's base frame.
        gripper_dims: entries of the action that command grippers; none for a robot without.
        gripper: how they command.
        absolute: whether actions are target positions rather than motions.
        rotate_180: whether pictures are stored upside down, as LIBERO's HDF5 files have them.
        drop_noops: leave out steps that tell the robot to do nothing, as the ``*_no_noops`` sets do.
        licence: as the publisher states it.
    """

    name: str
    views: dict[str, str]
    state: tuple[str, ...]
    action: tuple[str, ...]
    instruction: str = "language_instruction"
    masks: dict[str, str] = field(default_factory=dict)
    depth: dict[str, str] = field(default_factory=dict)
    depth_unit: float = 1e-3
    intrinsics: dict[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    base_from_camera: dict[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    gripper_dims: tuple[int, ...] = (-1,)
    gripper: Gripper = "minus_opens"
    absolute: bool = False
    rotate_180: bool = False
    drop_noops: bool = False
    licence: str = "not stated"

    def settings(self) -> dict[str, Any]:
        """What shards keep of it."""
        return {
            "robot": json.loads(json.dumps(asdict(self))),
            "actions": {"gripper_dims": list(self.gripper_dims), "absolute": self.absolute},
        }


_LIBERO_TERMS = "MIT (LIBERO)"
KNOWN = {
    # openvla/modified_libero_rlds: pictures upright, no-ops left out, state = position, axis-angle, two gripper joints.
    "libero_rlds": Robot(
        name="libero",
        views={"agentview": "observation/image", "wrist": "observation/wrist_image"},
        state=("observation/state",),
        action=("action",),
        licence=_LIBERO_TERMS,
    ),
    # The benchmark's own files: pictures as OpenGL draws them.
    "libero_hdf5": Robot(
        name="libero",
        views={"agentview": "obs/agentview_rgb", "wrist": "obs/eye_in_hand_rgb"},
        state=("obs/ee_states", "obs/gripper_states"),
        action=("actions",),
        rotate_180=True,
        drop_noops=True,
        licence=_LIBERO_TERMS,
    ),
    "libero_lerobot": Robot(
        name="libero",
        views={"agentview": "observation.images.image", "wrist": "observation.images.wrist_image"},
        state=("observation.state",),
        action=("action",),
        instruction="task",
        licence=_LIBERO_TERMS,
    ),
    # Open X-Embodiment: WidowX arm of BridgeData V2; the gripper's entry is 1 to open, 0 to close.
    "bridge_rlds": Robot(
        name="bridge",
        views={"agentview": "observation/image_0"},
        state=("observation/state",),
        action=("action",),
        gripper="one_opens",
        licence="CC-BY-4.0 (BridgeData V2)",
    ),
}


def load_robot(spec: str) -> Robot:
    """The description called ``spec``, or in the JSON file ``spec``.

    Raises:
        DataError: for an unknown name, key or value, naming the nearest.
    """
    if spec in KNOWN:
        return KNOWN[spec]
    path = Path(spec)
    if path.suffix != ".json" or not path.is_file():
        near = difflib.get_close_matches(spec, KNOWN, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(KNOWN)}, or give a JSON file"
        raise DataError(f"No robot {spec!r}; {hint}")
    try:
        robot = from_dict(Robot, json.loads(path.read_text()), path="robot")
    except (ConfigError, ValueError) as error:
        raise DataError(f"{path} does not describe a robot: {error}; see docs/add_your_data.md") from error
    return check_robot(robot)


def check_robot(robot: Robot) -> Robot:
    """``robot``, if its parts fit together; raises ``DataError``."""
    if not robot.views or not robot.state or not robot.action:
        raise DataError(f"Robot {robot.name!r} needs at least one view, one state key and one action key")
    for part in ("masks", "depth", "intrinsics", "base_from_camera"):
        unknown = set(getattr(robot, part)) - set(robot.views)
        if unknown:
            raise DataError(f"{part} of robot {robot.name!r} names view {min(unknown)!r}, which views does not have")
    if set(robot.depth) - (set(robot.intrinsics) & set(robot.base_from_camera)):
        raise DataError(f"Depth of robot {robot.name!r} needs intrinsics and base_from_camera of the same view")
    for part, shape in (("intrinsics", (3, 3)), ("base_from_camera", (4, 4))):
        for view, matrix in getattr(robot, part).items():
            if np.shape(matrix) != shape:
                raise DataError(f"{part} of view {view!r} of robot {robot.name!r} must be {shape[0]} x {shape[1]}")
    return robot


def task_number(instruction: str) -> int:
    """A number for a task that is known by its instruction alone."""
    return zlib.crc32(instruction.strip().lower().encode()) & 0x7FFFFFFF


def build_episode(
    robot: Robot,
    *,
    id: str,
    suite: str,
    instruction: str,
    columns: Mapping[str, Any],
    pictures: Mapping[str, Sequence[np.ndarray]],
    size: int | None = None,
    success: bool = True,
    task: int | None = None,
    source: Mapping[str, Any] | None = None,
) -> tuple[Episode, dict[int, Frame]]:
    """One episode in this project's conventions.

    Args:
        robot: says what is where.
        id: unique in its dataset.
        suite: of the episode; weights of mixtures go by it.
        instruction: what was asked for.
        columns: for every key of ``state`` and ``action``: numbers [t, n] or [t].
        pictures: for every key of ``views``, ``masks`` and ``depth``: one array per step.
        size: side to which pictures are resized (squeezed to a square, as training does); None keeps them.
        success: whether it did what was asked for.
        task: number of the task; made from the instruction where it is None.
        source: where it comes from, plain JSON.

    Raises:
        Reject: where lengths, types or sizes contradict each other.
    """
    state, action = (_numbers(columns, keys) for keys in (robot.state, robot.action))
    length = len(action)
    for name, count in {"state": len(state), **{key: len(images) for key, images in pictures.items()}}.items():
        if count != length:
            raise Reject("malformed", f"{name} has {count} steps, the action {length}")
    if not length:
        raise Reject("malformed", "the episode has no steps")
    if not isinstance(instruction, str) or not instruction.strip():
        raise Reject("empty answer", "the episode has no instruction")
    try:
        grippers = gripper_dims(robot.gripper_dims, action.shape[1])
    except DataError as error:
        raise Reject("wrong size", str(error)) from error
    action[:, list(grippers)] = to_stored_gripper(action[:, list(grippers)], robot.gripper)
    keep = np.arange(length)
    if robot.drop_noops:
        first = keep == 0
        keep = np.flatnonzero(~noop_steps(action, first, grippers, absolute=robot.absolute))
        if not len(keep):
            raise Reject("malformed", "every step tells the robot to do nothing")
    frames = {new: _frame(robot, pictures, int(old), size) for new, old in enumerate(keep)}
    count, views = len(keep), tuple(robot.views)
    poses = np.stack([np.asarray(robot.base_from_camera.get(view, np.eye(4)), np.float32) for view in views])
    intrinsics = np.stack([np.asarray(robot.intrinsics.get(view, np.eye(3)), np.float64) for view in views])
    if size is not None and robot.intrinsics:
        height, width = pictures[robot.views[views[0]]][0].shape[:2]
        intrinsics = np.diag([size / width, size / height, 1]) @ intrinsics
    episode = Episode(
        id=id,
        suite=suite,
        task=task_number(instruction) if task is None else task,
        instruction=instruction.strip(),
        success=success,
        source=dict(source or {}),
        views=views,
        intrinsics=intrinsics,
        state=state[keep],
        action=action[keep],
        executed=action[keep],
        chunk_end=np.full(count, count, np.int32),
        base_from_camera=np.broadcast_to(poses, (count, *poses.shape)),
        keypoints=np.zeros((count, 0, 3), np.float32),
    )
    return episode, frames


def _numbers(columns: Mapping[str, Any], keys: Sequence[str]) -> np.ndarray:
    """The columns of ``keys`` side by side, float32 [t, n]."""
    parts = []
    for key in keys:
        if key not in columns:
            near = difflib.get_close_matches(key, columns, n=1)
            raise Reject("malformed", f"there is no {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        array = np.asarray(columns[key])
        if array.dtype.kind not in "fiub":
            raise Reject("wrong type", f"{key} holds {array.dtype}, not numbers")
        parts.append(array.astype(np.float32).reshape(len(array), -1))
    lengths = {key: len(part) for key, part in zip(keys, parts, strict=True)}
    if len(set(lengths.values())) > 1:
        raise Reject("malformed", f"columns have different lengths: {lengths}")
    return np.concatenate(parts, axis=1)


def _frame(robot: Robot, pictures: Mapping[str, Sequence[np.ndarray]], step: int, size: int | None) -> Frame:
    images = {view: _picture(pictures, key, step, robot) for view, key in robot.views.items()}
    for view, image in images.items():
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise Reject("wrong type", f"image {view!r} at step {step} is {image.dtype}{image.shape}, not RGB bytes")
    masks = {view: _picture(pictures, key, step, robot) for view, key in robot.masks.items()}
    depth = {view: _picture(pictures, key, step, robot) for view, key in robot.depth.items()}
    for view, array in [*masks.items(), *depth.items()]:
        if array.squeeze().ndim != 2 or array.dtype.kind not in "fiub":
            raise Reject("wrong type", f"mask or depth of {view!r} at step {step} is {array.dtype}{array.shape}")
    return Frame(
        images={view: _sized(image, size, cv2.INTER_AREA) for view, image in images.items()},
        masks={
            view: _sized((mask.squeeze() > 0).astype(np.uint8), size, cv2.INTER_NEAREST) for view, mask in masks.items()
        }
        or None,
        depth={
            view: _sized(_metres(values.squeeze(), robot.depth_unit), size, cv2.INTER_NEAREST)
            for view, values in depth.items()
        }
        or None,
    )


def _picture(pictures: Mapping[str, Sequence[np.ndarray]], key: str, step: int, robot: Robot) -> np.ndarray:
    if key not in pictures:
        raise Reject("missing image", f"there is no {key!r}; there are {', '.join(pictures) or 'no pictures'}")
    array = np.asarray(pictures[key][step])
    return np.ascontiguousarray(array[::-1, ::-1]) if robot.rotate_180 else array


def _metres(values: np.ndarray, unit: float) -> np.ndarray:
    # A sensor that saw nothing says 0, infinite or not a number.
    return np.nan_to_num(values.astype(np.float32) * np.float32(unit), nan=0.0, posinf=0.0, neginf=0.0)


def _sized(array: np.ndarray, size: int | None, interpolation: int) -> np.ndarray:
    if size is None or array.shape[:2] == (size, size):
        return array
    return cv2.resize(array, (size, size), interpolation=interpolation)
