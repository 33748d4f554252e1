"""Made-up scenes of boxes on a table, seen by a ray caster that shares no code with the package."""

import numpy as np

from pokevla_jax.sim.corpus import affordance
from pokevla_jax.sim.corpus import general
from pokevla_jax.sim.corpus import grounding
from pokevla_jax.sim.corpus import kinds
from pokevla_jax.sim.corpus import reasoning
from pokevla_jax.sim.corpus.facts import Frame
from pokevla_jax.sim.corpus.facts import Thing
from pokevla_jax.sim.corpus.facts import View

SIZE = 96
FOCAL = 1.2 * SIZE
EYE = np.array([1.5, 0.0, 0.9])


def camera():
    """Intrinsics of the mirrored policy image, and the pose of a camera that looks back at the robot."""
    forward = np.array([0.5, 0.0, 0.0]) - EYE
    forward /= np.linalg.norm(forward)
    right = np.array([0.0, 1.0, 0.0])
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    pose[:3, 3] = EYE
    return np.array([[-FOCAL, 0, SIZE / 2], [0, FOCAL, SIZE / 2], [0, 0, 1]]), pose


def cast(boxes):
    """Labels (1, 2, ... in the order of ``boxes``) and depth of boxes (centre, half sides) on the plane z = 0."""
    intrinsics, pose = camera()
    row, column = np.mgrid[:SIZE, :SIZE]
    pixels = np.stack([column.ravel() + 0.5, row.ravel() + 0.5, np.ones(SIZE * SIZE)])
    # Rays with a step of 1 along the optical axis, so that how far they go is the depth.
    rays = (pose[:3, :3] @ np.linalg.solve(intrinsics, pixels)).T
    labels, depth = np.zeros(SIZE * SIZE, np.uint8), np.full(SIZE * SIZE, 5.0)
    down = rays[:, 2] < 0
    depth[down] = -EYE[2] / rays[down, 2]
    for label, (center, half) in enumerate(boxes, start=1):
        with np.errstate(divide="ignore"):
            a, b = (center - half - EYE) / rays, (center + half - EYE) / rays
        near, far = np.minimum(a, b).max(1), np.maximum(a, b).min(1)
        hit = (near > 0) & (near <= far) & (near < depth)
        labels[hit], depth[hit] = label, near[hit]
    return labels.reshape(SIZE, SIZE), depth.reshape(SIZE, SIZE)


def thing(name, label, center, half=(0.03, 0.03, 0.05), **overrides):
    """An object of a LIBERO category."""
    kind = kinds.kind_of(name)
    values = {
        "name": name,
        "noun": kind.noun,
        "plain": kind.plain,
        "group": kind.group,
        "kind": "object",
        "labels": frozenset({label}),
        "center": np.array(center, float),
        "half": np.array(half, float),
        "grasp": kind.grasp,
        "receives": kind.receives,
        "grip_width": 2 * min(half[:2]),
    }
    return Thing(**{**values, **overrides})


def frame(things, **overrides):
    """The frame of these things, which must be labelled 1, 2, ... in their order."""
    labels, depth = cast([(t.center, t.half) for t in things])
    intrinsics, pose = camera()
    image = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
    values = {
        "id": "libero_object/0/0/0/0",
        "suite": "libero_object",
        "task": 0,
        "layout": 0,
        "views": {"agentview": View(image, labels, depth, intrinsics, pose)},
        "things": {t.name: t for t in things},
        "gripper": np.array([0.45, 0.0, 0.3]),
        "opening": 1.0,
        "surface": 0.0,
        "workspace": np.array([[0.25, -0.35], [0.8, 0.35]]),
    }
    return Frame(**{**values, **overrides})


NAMES = ("butter_1", "milk_1", "ketchup_1", "alphabet_soup_1", "basket_1", "tomato_sauce_1")


def random_frame(seed, count=5):
    """Things of different names at random places, none nearer than 9 cm to another."""
    rng = np.random.default_rng(seed)
    places = []
    while len(places) < count:
        place = rng.uniform([0.3, -0.3], [0.75, 0.3])
        if all(np.linalg.norm(place - other) > 0.09 for other in places):
            places.append(place)
    return frame([thing(NAMES[i], i + 1, (*place, 0.05)) for i, place in enumerate(places)])


def all_drafts(scene, before=None):
    """Every question of every pillar."""
    rng = np.random.default_rng(0)
    return [
        *general.questions(scene, rng),
        *grounding.questions(scene, rng),
        *affordance.questions(scene, rng),
        *reasoning.questions(scene, rng, before),
    ]


def turn(a, b):
    """Degrees from one direction to another."""
    return abs((a - b + 180) % 360 - 180)
