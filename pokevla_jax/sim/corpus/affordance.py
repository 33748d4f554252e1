"""Affordance: where a gripper takes hold, where things may be put, and what can be opened, held or filled."""

from collections.abc import Iterator

import numpy as np

from pokevla_jax.sim.corpus import drafts
from pokevla_jax.sim.corpus.drafts import Draft
from pokevla_jax.sim.corpus.drafts import yes_no
from pokevla_jax.sim.corpus.facts import VISIBLE
from pokevla_jax.sim.corpus.facts import Frame
from pokevla_jax.sim.corpus.facts import Goal
from pokevla_jax.sim.corpus.facts import Thing
from pokevla_jax.sim.corpus.facts import View
from pokevla_jax.typing import Bool

# What fits between the fingers, and what certainly does not; metres.
FITS, TOO_WIDE = 0.074, 0.085
# The palm is 3 cm above the finger tips' middle: fingers reach this far below a thing's top.
REACH = 0.045
RIM_DEPTH, RIM_INNER, HANDLE_OUTER = 0.012, 0.75, 1.12
# Handles are thin: fewer pixels than of an object are enough.
SMALL = 0.0006
# The part of a receiver's width around its centre where things are put.
MIDDLE = 0.6
# Regions on things are a few millimetres thin, and a receiver's floor lies a little under its region; metres.
REGION_MARGIN = 0.02


def questions(frame: Frame, rng: np.random.Generator) -> Iterator[Draft]:
    """Every affordance question about a frame that has one answer."""
    del rng
    for view in drafts.views_of(frame):
        for thing in frame.named(view).values():
            yield from _grasps(frame, thing, view)
    named = frame.named("agentview")
    for thing in named.values():
        yield from _abilities(frame, thing, named)
        yield from _receiving(frame, thing, named)
    for goal in frame.goals:
        yield from _goal_place(frame, goal)


def _grasps(frame: Frame, thing: Thing, view: str) -> Iterator[Draft]:
    seen = frame.views[view]
    if thing.kind == "part":
        mask = seen.mask(thing.grip_labels)
        if mask.mean() >= SMALL:
            verb = "turn on the stove" if thing.state in ("on", "off") else f"open the {thing.noun}"
            if thing.state in ("closed", "off"):
                yield drafts.point("grasp_part", mask, {"to": verb}, view)
        return
    mask = grasp_mask(seen, thing)
    if thing.name != frame.held and mask.mean() >= SMALL:
        yield drafts.point("grasp", mask, {"thing": thing.noun, "part": _PART_PHRASES[thing.grasp or "body"]}, view)


_PART_PHRASES = {"body": "", "rim": " by its rim", "handle": " by its handle"}


def grasp_mask(view: View, thing: Thing) -> Bool[np.ndarray, "h w"]:
    """Pixels where fingers that point down can take the thing: at its upper end, at its rim, or by its handle."""
    mask = view.mask(thing.labels)
    if thing.grasp is None or (thing.grasp == "body" and thing.grip_width > FITS):
        return np.zeros_like(mask)
    height = view.points[..., 2]
    if thing.grasp == "body":
        return mask & (height >= thing.top - REACH)
    if thing.rim is None:
        return np.zeros_like(mask)
    x, y, radius = thing.rim
    away = np.linalg.norm(view.points[..., :2] - np.array([x, y]), axis=-1)
    if thing.grasp == "rim":
        return mask & (height >= thing.top - RIM_DEPTH) & (away >= RIM_INNER * radius)
    return mask & (away >= HANDLE_OUTER * radius)


def _abilities(frame: Frame, thing: Thing, named: dict[str, Thing]) -> Iterator[Draft]:
    """What can be opened, what fits between the fingers, and what can be put inside now."""
    yield yes_no("can_open", thing.opens, {"thing": thing.noun})
    fits = thing.grasp == "body" and thing.grip_width <= FITS
    if thing.kind == "object" and (fits or thing.grip_width >= TOO_WIDE):
        yield yes_no("fits_gripper", fits, {"thing": thing.noun})
    if thing.kind == "part" and thing.state in ("open", "closed") and not _is_covered(frame, thing):
        for other in named.values():
            if other.kind == "object" and other.inside != thing.name and _fits(other, thing):
                slots = {"thing": other.noun, "part": _inside_of(thing)}
                yield yes_no("can_put_inside", thing.state == "open", slots)


def _is_covered(frame: Frame, part: Thing) -> bool:
    """Whether a part of the same fixture that may be open stands above it: a drawer under an open drawer."""
    fixture = part.name.split("/")[0]
    others = (t for t in frame.things.values() if t.kind == "part" and t.name.startswith(f"{fixture}/"))
    return any(other.center[2] > part.center[2] + 0.02 and other.state != "closed" for other in others)


def _fits(thing: Thing, part: Thing) -> bool:
    """Whether a thing is certainly small enough for a drawer; a microwave takes all there is."""
    return "drawer" not in part.noun or bool((thing.half <= [0.06, 0.06, 0.03]).all())


def _inside_of(part: Thing) -> str:
    return part.noun.removesuffix(" door")


def _receiving(frame: Frame, thing: Thing, named: dict[str, Thing]) -> Iterator[Draft]:
    """Where to put something in or on what holds things."""
    if thing.kind != "object" or thing.receives is None:
        return
    view = frame.views["agentview"]
    offset = np.abs(view.points[..., :2] - thing.center[:2])
    mask = view.mask(thing.labels) & (offset <= MIDDLE * thing.half[:2]).all(-1)
    taken = any(other.inside == thing.name for other in frame.things.values())
    if mask.mean() < VISIBLE or taken or thing.inside is not None:
        return
    for other in named.values():
        # Small enough for it: the receiver's middle is where its centre goes.
        if other.kind == "object" and other is not thing and other.half[:2].max() < thing.half[:2].min():
            slots = {"thing": other.noun, "where": f"{thing.receives} the {thing.noun}"}
            yield drafts.point("put_where", mask, slots)


def _goal_place(frame: Frame, goal: Goal) -> Iterator[Draft]:
    """Where the task wants a thing, while it is not there yet."""
    if goal.holds or goal.region is None or goal.verb != "put":
        return
    mask = region_mask(frame, goal)
    if mask.mean() >= VISIBLE and (goal.place is None or goal.place in frame.visible("agentview")):
        yield drafts.point("goal_where", mask, {"task": goal.text})


def region_mask(frame: Frame, goal: Goal) -> Bool[np.ndarray, "h w"]:
    """Pixels of the goal's place (its receiver, or the bare table) in the goal's region, or close above or below it."""
    assert goal.region is not None
    view = frame.views["agentview"]
    places = view.points
    center, half = 0.5 * goal.region.sum(0), 0.5 * np.ptp(goal.region, axis=0)
    if goal.place is not None:
        # A basket's walls are not its inside.
        half = half * [MIDDLE, MIDDLE, 1.0]
    low, high = center - half, center + half
    margin = np.array([0.0, 0.0, REGION_MARGIN])
    # The roof over a microwave's inside is not its inside.
    within = ((places >= low - margin) & (places <= high + margin)).all(-1)
    if goal.place is None:
        return within & (view.labels == 0) & (np.abs(places[..., 2] - frame.surface) < 0.01)
    return within & view.mask(frame.things[goal.place].labels)
