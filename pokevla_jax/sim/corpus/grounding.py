"""Spatial grounding: point to it, box it, name it, and how things stand to each other and to free space."""

from collections.abc import Iterable
from collections.abc import Iterator

import numpy as np

from pokevla_jax.sim.corpus import drafts
from pokevla_jax.sim.corpus import facts
from pokevla_jax.sim.corpus.drafts import Draft
from pokevla_jax.sim.corpus.facts import SIDE_PHRASES
from pokevla_jax.sim.corpus.facts import SIDES
from pokevla_jax.sim.corpus.facts import VISIBLE
from pokevla_jax.sim.corpus.facts import Frame
from pokevla_jax.sim.corpus.facts import Side
from pokevla_jax.sim.corpus.facts import Thing
from pokevla_jax.typing import Bool

# Space kept around what is to be placed, and how far "beside" reaches, metres.
CLEARANCE, BESIDE = 0.015, 0.22
# Difference of two distances from the robot that can be seen, metres.
ROBOT_MARGIN = 0.08


def questions(frame: Frame, rng: np.random.Generator) -> Iterator[Draft]:
    """Every grounding question about a frame that has one answer."""
    for view in drafts.views_of(frame):
        yield from _places(frame, view)
    standing = {name: thing for name, thing in frame.named("agentview").items() if _stands(frame, thing)}
    yield from _pairs(frame, standing)
    yield from _described(frame, standing)
    yield from _free_places(frame, standing, rng)


def _stands(frame: Frame, thing: Thing) -> bool:
    """Whether relations on the table make sense for it: parts, and what hangs in the gripper, are left out."""
    return thing.kind != "part" and thing.name != frame.held


def _places(frame: Frame, view: str) -> Iterator[Draft]:
    seen = frame.views[view]
    for thing in frame.named(view).values():
        mask = seen.mask(thing.labels)
        yield drafts.point("point_object", mask, {"thing": thing.noun}, view)
        yield drafts.box("box_object", mask, {"thing": thing.noun}, view)
    for thing in frame.visible(view).values():
        if thing.kind == "object":
            place = facts.point_in(seen.mask(thing.labels))
            yield Draft(type="name_at", asked=place, answer=thing.noun, view=view)


def _pairs(frame: Frame, things: dict[str, Thing]) -> Iterator[Draft]:
    """Relations of two or three things that all have names."""
    everything = [thing for thing in frame.things.values() if _stands(frame, thing)]
    for b in things.values():
        for a in things.values():
            if a is b or b.name == a.inside or a.name == b.inside:
                continue
            for side in SIDES:
                holds = facts.is_at_side(frame, a, b, side)
                if holds is not None:
                    slots = {"a": a.noun, "side": SIDE_PHRASES[side], "b": b.noun}
                    yield drafts.yes_no("is_at_side", holds, slots)
            main = facts.main_side(frame, a, b)
            if main is not None:
                yield Draft(type="which_side", slots={"a": a.noun, "b": b.noun}, answer=SIDE_PHRASES[main])
            # A fixture is so large that its parts are at several distances.
            if a.noun < b.noun and a.kind == b.kind == "object":
                yield from _which_is_nearer(a, b)
                yield from _between(frame, a, b, everything)
        others = [thing for thing in everything if thing is not b]
        closest = facts.nearest(b, others)
        if closest is not None and closest.name in things:
            yield Draft(type="nearest", slots={"b": b.noun}, answer=closest.noun)


def _which_is_nearer(a: Thing, b: Thing) -> Iterator[Draft]:
    """Which of two stands nearer to the robot's base, the origin."""
    far_a, far_b = (float(np.linalg.norm(thing.center[:2])) for thing in (a, b))
    if abs(far_a - far_b) >= ROBOT_MARGIN:
        answer = a.noun if far_a < far_b else b.noun
        yield Draft(type="nearer_to_robot", slots={"a": a.noun, "b": b.noun}, answer=answer)


def _between(frame: Frame, a: Thing, b: Thing, everything: Iterable[Thing]) -> Iterator[Draft]:
    verdicts = {c.name: facts.is_between(c, a, b) for c in everything if c is not a and c is not b}
    inside = [name for name, verdict in verdicts.items() if verdict]
    if len(inside) == 1 and None not in verdicts.values() and inside[0] in frame.named("agentview"):
        yield Draft(type="between", slots={"a": a.noun, "b": b.noun}, answer=frame.things[inside[0]].noun)


def _described(frame: Frame, references: dict[str, Thing]) -> Iterator[Draft]:
    """Points and boxes of one among several of a noun or group, told apart by what it stands beside."""
    view = frame.views["agentview"]
    visible = frame.visible("agentview")
    words = {word for thing in visible.values() for word in (thing.noun, thing.group) if thing.kind == "object"}
    for word in sorted(words):
        alike = [thing for thing in frame.things.values() if word in (thing.noun, thing.group)]
        if len(alike) < 2 or not all(thing.name in visible and _stands(frame, thing) for thing in alike):
            continue
        for reference in references.values():
            if reference in alike:
                continue
            found: list[tuple[str, Thing]] = []
            for side in SIDES:
                verdicts = [facts.is_at_side(frame, thing, reference, side) for thing in alike]
                if None not in verdicts and sum(map(bool, verdicts)) == 1:
                    found.append((SIDE_PHRASES[side], alike[verdicts.index(True)]))
            closest = facts.nearest(reference, alike)
            if closest is not None:
                found.append(("nearest to", closest))
            for relation, thing in found:
                slots = {"word": word, "relation": relation, "b": reference.noun}
                mask = view.mask(thing.labels)
                yield drafts.point("point_related", mask, slots)
                yield drafts.box("box_related", mask, slots)


# --- free places ---


def _free_places(frame: Frame, things: dict[str, Thing], rng: np.random.Generator) -> Iterator[Draft]:
    """Where something could stand: anywhere, beside a thing, between two."""
    movable = [thing for thing in things.values() if thing.kind == "object"]
    if not movable:
        return
    # One thing to be placed is enough for a frame: the masks take time.
    thing = movable[int(rng.integers(len(movable)))]
    radius = float(np.linalg.norm(thing.half[:2])) + CLEARANCE
    free = facts.free_surface(frame, radius)
    slots = {"thing": thing.noun, "surface": "floor" if frame.suite == "libero_object" else "table"}
    if _large(free):
        yield drafts.point("point_free", free, slots)
    others = [other for other in things.values() if other is not thing]
    for other in others:
        for side in SIDES:
            mask = free & beside(frame, other, side, radius)
            if _large(mask):
                yield drafts.point("point_free_side", mask, {**slots, "side": SIDE_PHRASES[side], "b": other.noun})
    for a in others:
        for b in others:
            if a.noun < b.noun:
                mask = free & between(frame, a, b)
                if _large(mask):
                    yield drafts.point("point_free_between", mask, {**slots, "a": a.noun, "b": b.noun})


def _large(mask: Bool[np.ndarray, "h w"]) -> bool:
    return bool(mask.mean() >= VISIBLE)


def beside(frame: Frame, thing: Thing, side: Side, radius: float) -> Bool[np.ndarray, "h w"]:
    """Pixels of the third-person image whose places are at this side of ``thing`` and not far from it."""
    offset = frame.views["agentview"].points[..., :2] - thing.center[:2]
    axis = 1 if side in ("left", "right") else 0
    sign = 1.0 if side in ("left", "in front") else -1.0
    ahead, aside = sign * offset[..., axis], np.abs(offset[..., 1 - axis])
    reach = thing.half[axis] + radius
    return (ahead >= reach) & (ahead <= reach + BESIDE) & (ahead >= facts.STRICT_DOMINANCE * aside)


def between(frame: Frame, a: Thing, b: Thing) -> Bool[np.ndarray, "h w"]:
    """Pixels of the third-person image whose places are in the middle half of the way from ``a`` to ``b``."""
    line = (b.center - a.center)[:2]
    length = float(np.linalg.norm(line))
    offset = frame.views["agentview"].points[..., :2] - a.center[:2]
    along = offset @ line / max(length, 1e-6) ** 2
    aside = np.abs(offset[..., 0] * line[1] - offset[..., 1] * line[0]) / max(length, 1e-6)
    return (along >= 0.25) & (along <= 0.75) & (aside <= 0.2 * length) & (length >= 0.15)
