"""What is known of one frame, and what follows from it with a margin; pure functions of arrays, no simulator.

Places are in the robot's base frame: x forward, away from the robot and towards the third-person camera, y to the
robot's left, z up, metres. The policy image shows the robot's left on its left, so that left and right mean one thing.
Every relation answers True, False, or None where people could disagree; nothing is asked where the answer is None.
"""

import functools
from collections.abc import Iterable
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from typing import Literal

import cv2
import numpy as np

from pokevla_jax.typing import Bool
from pokevla_jax.typing import Float
from pokevla_jax.typing import UInt8

# Parts of the image: from here on an object is visible, up to here it is not.
VISIBLE = 0.002
HIDDEN = 0.0002
# What two things must differ by along the axis in question, metres and parts of the image.
SIDE_MARGIN, SIDE_MARGIN_IMAGE = 0.05, 0.04
DEPTH_MARGIN, DEPTH_MARGIN_IMAGE = 0.06, 0.03
# ... and the axis in question by this factor more than the other one, and further than either thing reaches from its
# centre: "left" and "in front" are directions, and a stove is wide.
DOMINANCE, STRICT_DOMINANCE = 0.5, 2.0
# The nearest is nearer than the second by this factor and by this much.
NEAREST_FACTOR, NEAREST_MARGIN = 1.3, 0.02
Side = Literal["left", "right", "in front", "behind"]
SIDES: tuple[Side, ...] = ("left", "right", "in front", "behind")
SIDE_PHRASES: dict[Side, str] = {
    "left": "to the left of",
    "right": "to the right of",
    "in front": "in front of",
    "behind": "behind",
}


@dataclass(frozen=True)
class View:
    """One rendered camera.

    Attributes:
        image: the policy image.
        labels: which part of which thing each pixel shows; 0 is the surroundings.
        depth: metres along the optical axis.
        intrinsics, base_from_camera: as ``rendering.Camera``.
    """

    image: UInt8[np.ndarray, "h w 3"]
    labels: UInt8[np.ndarray, "h w"]
    depth: Float[np.ndarray, "h w"]
    intrinsics: Float[np.ndarray, "3 3"]
    base_from_camera: Float[np.ndarray, "4 4"]

    def mask(self, labels: Iterable[int]) -> Bool[np.ndarray, "h w"]:
        """Pixels that show one of ``labels``."""
        chosen = np.zeros(256, bool)
        chosen[list(labels)] = True
        return chosen[self.labels]

    @functools.cached_property
    def points(self) -> Float[np.ndarray, "h w 3"]:
        """Where what each pixel shows lies, base frame, metres."""
        height, width = self.labels.shape
        v, u = np.mgrid[:height, :width]
        rays = np.stack([u + 0.5, v + 0.5, np.ones_like(u)], -1) @ np.linalg.inv(self.intrinsics).T
        return (rays * self.depth[..., None]) @ self.base_from_camera[:3, :3].T + self.base_from_camera[:3, 3]

    def project(self, places: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 2"]:
        """Places of the base frame in the image (right, down), as fractions."""
        seen = (places - self.base_from_camera[:3, 3]) @ self.base_from_camera[:3, :3]
        pixels = (seen @ self.intrinsics.T)[:, :2] / seen[:, 2:]
        return pixels / self.labels.shape[::-1]


@dataclass(frozen=True, kw_only=True)
class Thing:
    """An object, a fixture, or a moving part of one.

    Attributes:
        name: of the instance; ``noun``, ``plain`` and ``group`` are its words (``kinds.Kind``).
        labels: of its pixels; ``grip_labels`` of the part that is made for a gripper (a handle, a knob).
        center, half: of the box around it, along the base frame's axes.
        grasp, receives: what can be done with it (``kinds.Kind``).
        opens: whether it has, or is, a door or a drawer.
        grip_width: the smaller horizontal width, metres.
        state: of a moving part; "unclear" between open and closed.
        inside: the thing that it lies in or on, touching it; None for the table.
        rim: centre and radius of the circle around its upper end, for what is grasped at rim or handle.
    """

    name: str
    noun: str
    plain: str
    group: str
    kind: Literal["object", "fixture", "part"]
    labels: frozenset[int]
    center: Float[np.ndarray, "3"]
    half: Float[np.ndarray, "3"]
    grip_labels: frozenset[int] = frozenset()
    grasp: Literal["body", "rim", "handle"] | None = None
    receives: Literal["in", "on"] | None = None
    opens: bool = False
    grip_width: float = 0.0
    state: Literal["open", "closed", "on", "off", "unclear"] | None = None
    inside: str | None = None
    rim: tuple[float, float, float] | None = None

    @property
    def top(self) -> float:
        """Height of its highest point."""
        return float(self.center[2] + self.half[2])

    @property
    def bottom(self) -> float:
        """Height of its lowest point."""
        return float(self.center[2] - self.half[2])


@dataclass(frozen=True)
class Goal:
    """One conjunct of the task.

    Attributes:
        text: the sub-task as an instruction, e.g. "put the butter in the basket".
        verb: "put", "open", "close" or "turn on".
        things: instances that fulfil it: all of them ("both"), or any one of several alike.
        place: the thing that receives them; None for a place on the table, and where nothing is put.
        region: lowest and highest corner of the place, base frame.
        holds: LIBERO's predicate.
    """

    text: str
    verb: str
    things: tuple[str, ...]
    holds: bool
    place: str | None = None
    region: Float[np.ndarray, "2 3"] | None = None


@dataclass(frozen=True)
class Outcome:
    """What the simulator did in a branch of its own: a motion, the thing it was about, and what came of it."""

    motion: Literal["grasp", "release"]
    thing: str
    success: bool


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Everything about one state of a scene.

    Attributes:
        id: unique over the corpus; ``layout`` is the number of the layout it comes from.
        task_text: the task as an instruction; None where words cannot tell which instance is meant.
        goals: conjuncts in the order in which they are to be done; empty where ``task_text`` is None.
        gripper: grip site.
        opening: 0 closed, 1 open.
        held: the thing between the fingers.
        surface: height of the table or floor; ``workspace`` the part of it that is used (low x, y; high x, y).
        outcomes: what motions from here led to.
    """

    id: str
    suite: str
    task: int
    layout: int
    views: Mapping[str, View]
    things: Mapping[str, Thing]
    gripper: Float[np.ndarray, "3"]
    opening: float
    surface: float
    workspace: Float[np.ndarray, "2 2"]
    task_text: str | None = None
    goals: tuple[Goal, ...] = ()
    held: str | None = None
    outcomes: tuple[Outcome, ...] = field(default=())

    def share(self, view: str, thing: Thing) -> float:
        """The part of the image that shows ``thing``."""
        return float(self.views[view].mask(thing.labels).mean())

    def visible(self, view: str) -> dict[str, Thing]:
        """Things of which enough is seen to be spoken of."""
        return {name: thing for name, thing in self.things.items() if self.share(view, thing) >= VISIBLE}

    def unclear(self, view: str) -> bool:
        """Whether any object or fixture shows just a few pixels, so that counts and lists could be disputed."""
        shares = (self.share(view, thing) for thing in self.things.values() if thing.kind != "part")
        return any(HIDDEN < share < VISIBLE for share in shares)

    def named(self, view: str) -> dict[str, Thing]:
        """Visible things that their noun tells from everything else in the scene, hidden or not."""
        nouns = [thing.noun for thing in self.things.values()]
        return {name: thing for name, thing in self.visible(view).items() if nouns.count(thing.noun) == 1}


# --- places in the image ---


def box_of(mask: Bool[np.ndarray, "h w"]) -> tuple[float, float, float, float]:
    """The rectangle around a mask, x1, y1, x2, y2 as fractions of the image: outer edges of the outermost pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = mask.shape
    return (columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height)


def centroid(mask: Bool[np.ndarray, "h w"]) -> tuple[float, float]:
    """The mean place of a mask, as fractions; it may lie outside it."""
    rows, columns = np.nonzero(mask)
    height, width = mask.shape
    return float((columns.mean() + 0.5) / width), float((rows.mean() + 0.5) / height)


def point_in(mask: Bool[np.ndarray, "h w"]) -> tuple[float, float]:
    """The centre of the mask's pixel nearest to its centroid, of those at least half as deep inside as the deepest."""
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    rows, columns = np.nonzero((depth >= 0.5 * depth.max()) & mask)
    height, width = mask.shape
    x, y = centroid(mask)
    best = np.argmin((columns + 0.5 - x * width) ** 2 + (rows + 0.5 - y * height) ** 2)
    return float((columns[best] + 0.5) / width), float((rows[best] + 0.5) / height)


# --- relations ---


def is_left_of(frame: Frame, a: Thing, b: Thing) -> bool | None:
    """Whether ``a`` is to the left of ``b`` for the robot and in the third-person image, which must agree."""
    across, along = a.center[1] - b.center[1], a.center[0] - b.center[0]
    view = frame.views["agentview"]
    shown = centroid(view.mask(b.labels))[0] - centroid(view.mask(a.labels))[0]
    if abs(across) < max(SIDE_MARGIN, DOMINANCE * abs(along), a.half[1], b.half[1]) or abs(shown) < SIDE_MARGIN_IMAGE:
        return None
    return bool(across > 0) if (across > 0) == (shown > 0) else None


def is_in_front_of(frame: Frame, a: Thing, b: Thing) -> bool | None:
    """Whether ``a`` is nearer to the third-person camera than ``b``: further from the robot, lower in the image."""
    across, along = a.center[1] - b.center[1], a.center[0] - b.center[0]
    view = frame.views["agentview"]
    shown = box_of(view.mask(a.labels))[3] - box_of(view.mask(b.labels))[3]
    if abs(along) < max(DEPTH_MARGIN, DOMINANCE * abs(across), a.half[0], b.half[0]) or abs(shown) < DEPTH_MARGIN_IMAGE:
        return None
    return bool(along > 0) if (along > 0) == (shown > 0) else None


def is_at_side(frame: Frame, a: Thing, b: Thing, side: Side) -> bool | None:
    """Whether ``a`` is at this side of ``b``."""
    found = is_left_of(frame, a, b) if side in ("left", "right") else is_in_front_of(frame, a, b)
    return None if found is None else found == (side in ("left", "in front"))


def main_side(frame: Frame, a: Thing, b: Thing) -> Side | None:
    """The one side of ``b`` at which ``a`` is, where one axis counts twice as much as the other."""
    across, along = abs(a.center[1] - b.center[1]), abs(a.center[0] - b.center[0])
    if across > STRICT_DOMINANCE * along:
        left = is_left_of(frame, a, b)
        return None if left is None else ("left" if left else "right")
    if along > STRICT_DOMINANCE * across:
        front = is_in_front_of(frame, a, b)
        return None if front is None else ("in front" if front else "behind")
    return None


def distance(a: Thing, b: Thing) -> float:
    """Horizontal distance of two centres, metres."""
    return float(np.linalg.norm((a.center - b.center)[:2]))


def gap(a: Thing, b: Thing) -> float:
    """Horizontal distance of two outlines, metres; 0 where they overlap."""
    return float(np.linalg.norm(np.maximum(np.abs(a.center - b.center)[:2] - a.half[:2] - b.half[:2], 0.0)))


def nearest(to: Thing, candidates: Iterable[Thing]) -> Thing | None:
    """The candidate nearest to a thing by centre and by outline; None where a second is nearly as near by either."""
    ordered = sorted(candidates, key=lambda thing: distance(to, thing))
    if not ordered:
        return None
    first, others = ordered[0], ordered[1:]
    for other in others:
        far = distance(to, other) >= NEAREST_FACTOR * distance(to, first) + NEAREST_MARGIN
        if not far or gap(to, other) < gap(to, first) + NEAREST_MARGIN:
            return None
    return first


def is_between(c: Thing, a: Thing, b: Thing) -> bool | None:
    """Whether ``c`` stands between ``a`` and ``b``: in the middle half of the line from one to the other, near it."""
    line = (b.center - a.center)[:2]
    length = float(np.linalg.norm(line))
    if length < 0.15:
        return None
    offset = (c.center - a.center)[:2]
    along = float(offset @ line) / length**2
    beside = abs(float(offset[0] * line[1] - offset[1] * line[0])) / length
    if 0.25 <= along <= 0.75 and beside <= 0.2 * length:
        return True
    if not 0.1 <= along <= 0.9 or beside >= 0.4 * length:
        return False
    return None


def free_surface(frame: Frame, radius: float, view: str = "agentview") -> Bool[np.ndarray, "h w"]:
    """Pixels of the bare table where something of this radius could stand without touching what stands there.

    Args:
        frame: the scene.
        radius: of the thing's outline and the space around it, metres.
        view: camera.
    """
    seen = frame.views[view]
    places = seen.points
    low, high = frame.workspace
    bare = (seen.labels == 0) & (np.abs(places[..., 2] - frame.surface) < 0.01)
    bare &= ((places[..., :2] >= low) & (places[..., :2] <= high)).all(-1)
    for thing in frame.things.values():
        # What hangs in the gripper or stands on something else takes no room on the table, but it is not far from it.
        gap = np.maximum(np.abs(places[..., :2] - thing.center[:2]) - thing.half[:2], 0.0)
        bare &= np.linalg.norm(gap, axis=-1) >= radius
    return bare
