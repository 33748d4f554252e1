"""Embodied reasoning: what comes next, whether it is done, what changed, and whether a motion will succeed."""

from collections.abc import Iterator

import numpy as np

from pokevla_jax.sim.corpus.drafts import Draft
from pokevla_jax.sim.corpus.drafts import yes_no
from pokevla_jax.sim.corpus.facts import STRICT_DOMINANCE
from pokevla_jax.sim.corpus.facts import Frame
from pokevla_jax.sim.corpus.facts import Goal
from pokevla_jax.sim.corpus.facts import Outcome
from pokevla_jax.sim.corpus.facts import Thing

# Horizontal distance of gripper and thing: above it, certainly not above it, and far enough for a direction; metres.
ABOVE, NOT_ABOVE, FAR = 0.02, 0.035, 0.06
# Heights of the grip site above where it closes: there, certainly not there.
AT_GRASP, ABOVE_GRASP = 0.012, 0.05
# The grip site closes this far below a thing's top (the expert's), but not lower than this above the floor.
TOP_ABOVE_SITE, SITE_ABOVE_FLOOR = 0.029, 0.0125
# Of a carried thing: over the basket's middle, certainly not over it; its lower end still on the floor, above the rim.
OVER, NOT_OVER, LOW, HIGH = 0.03, 0.11, 0.06, 0.14
# What moved, and what did not, metres.
MOVED, UNMOVED = 0.06, 0.015
OPEN, CLOSED = 0.85, 0.5


def questions(frame: Frame, rng: np.random.Generator, before: Frame | None = None) -> Iterator[Draft]:
    """Every reasoning question about a frame, and about what changed since ``before``, that has one answer."""
    del rng
    yield from _goals(frame)
    yield from _directions(frame)
    yield from _next_motion(frame)
    for outcome in frame.outcomes:
        yield from _outcome(frame, outcome)
    if before is not None:
        answer = change(before, frame)
        if answer is not None:
            yield Draft(type="what_changed", answer=answer)


# --- the task ---


def _goals(frame: Frame) -> Iterator[Draft]:
    if not frame.task_text or not _shown(frame):
        return
    slots = {"task": frame.task_text}
    yield yes_no("goal_reached", all(goal.holds for goal in frame.goals), slots)
    yield Draft(type="next_subtask", slots=slots, answer=next_subtask(frame))


def _shown(frame: Frame) -> bool:
    """Whether everything that the task is about can be seen."""
    visible = frame.visible("agentview")
    names = {name for goal in frame.goals for name in (*goal.things, goal.place) if name is not None}
    return all(name in visible for name in names)


def next_subtask(frame: Frame) -> str:
    """The first sub-task that is not done, after what has to be done before it."""
    for goal in sorted(frame.goals, key=lambda goal: goal.verb == "close"):
        if not goal.holds:
            return _step_of(frame, goal)
    return "nothing, the task is done"


def _step_of(frame: Frame, goal: Goal) -> str:
    if goal.verb != "put":
        return goal.text
    place = frame.things.get(goal.place) if goal.place else None
    # A microwave is entered through its door; a drawer is its own.
    parts = [t for t in frame.things.values() if place and place.group == "microwave" and t.name.startswith(place.name)]
    door = next((part for part in parts if part.kind == "part"), place)
    if door is not None and door.state == "closed":
        return f"open the {door.noun}"
    if frame.held in goal.things:
        return goal.text
    left = [frame.things[name] for name in goal.things]
    return f"pick up the {left[0].noun}"


# --- the gripper ---


def _directions(frame: Frame) -> Iterator[Draft]:
    for thing in frame.named("agentview").values():
        if thing.kind == "object" and thing.name != frame.held:
            answer = direction(thing.center[:2] - frame.gripper[:2])
            if answer is not None:
                yield Draft(type="direction", slots={"thing": thing.noun}, answer=answer)


def direction(offset: np.ndarray) -> str | None:
    """The way along ``offset`` (forward, left; metres) as the robot calls it; "it is there" where there is none."""
    forward, left = float(offset[0]), float(offset[1])
    if np.hypot(forward, left) < ABOVE:
        return "it is above it"
    if abs(left) >= max(FAR, STRICT_DOMINANCE * abs(forward)):
        return "left" if left > 0 else "right"
    if abs(forward) >= max(FAR, STRICT_DOMINANCE * abs(left)):
        return "forward" if forward > 0 else "back"
    return None


def _next_motion(frame: Frame) -> Iterator[Draft]:
    """Only where the task is one thing into a basket, which is what the expert plays."""
    if len(frame.goals) != 1 or not _shown(frame):
        return
    (goal,) = frame.goals
    if goal.place is None:
        return
    thing, basket = frame.things[goal.things[0]], frame.things[goal.place]
    if basket.group != "basket":
        return
    answer = next_motion(frame, goal, thing, basket)
    if answer is not None:
        key = answer.replace(thing.noun, "thing")
        yield Draft(type="next_motion", slots={"task": goal.text}, answer=answer, key=key)


def next_motion(frame: Frame, goal: Goal, thing: Thing, basket: Thing) -> str | None:
    """What the hand does next and why, in the order above, down, close, lift, carry, open; None in between."""
    noun = thing.noun
    if goal.holds:
        return f"nothing, because the {noun} is in the basket" if frame.held is None else None
    if frame.held == thing.name:
        away = float(np.linalg.norm((thing.center - basket.center)[:2]))
        if away < OVER:
            return f"open the gripper, because the {noun} is above the basket"
        if away < NOT_OVER:
            return None
        if thing.bottom - frame.surface < LOW:
            return f"lift the {noun}, because it is between the fingers"
        if thing.bottom - frame.surface > HIGH:
            return f"move over the basket, because the {noun} is lifted"
        return None
    if frame.held is not None or thing.inside is not None:
        return None
    away = float(np.linalg.norm((thing.center - frame.gripper)[:2]))
    if away > NOT_ABOVE:
        return f"move over the {noun}, because the gripper is not above it"
    height = frame.gripper[2] - max(thing.top - TOP_ABOVE_SITE, frame.surface + SITE_ABOVE_FLOOR)
    if away < ABOVE and frame.opening > OPEN:
        if height > ABOVE_GRASP:
            return f"go down to the {noun}, because the gripper is above it"
        if height < AT_GRASP:
            return f"close the gripper, because the {noun} is between the fingers"
    return None


_MOTIONS = {"grasp": "moves straight down, closes and lifts", "release": "opens now"}


def _outcome(frame: Frame, outcome: Outcome) -> Iterator[Draft]:
    thing = frame.things[outcome.thing]
    if outcome.thing not in frame.named("agentview"):
        return
    answer = explain(frame, outcome, thing)
    if answer is not None:
        key = answer.replace(thing.noun, "thing")
        aim = "pick up" if outcome.motion == "grasp" else "drop"
        target = f"the {thing.noun}" if outcome.motion == "grasp" else f"the {thing.noun} into the basket"
        slots = {"motion": _MOTIONS[outcome.motion], "aim": f"{aim} {target}"}
        yield Draft(type="will_succeed", slots=slots, answer=answer, key=key)


def explain(frame: Frame, outcome: Outcome, thing: Thing) -> str | None:
    """Yes or no with the reason, where what the simulator did has the obvious one."""
    if outcome.motion == "release":
        basket = next(t for t in frame.things.values() if t.group == "basket")
        away = float(np.linalg.norm((thing.center - basket.center)[:2]))
        if outcome.success:
            return f"yes, because the {thing.noun} is above the basket" if away < NOT_OVER else None
        return f"no, because the {thing.noun} is not above the basket" if away > NOT_OVER else None
    offset = (frame.gripper - thing.center)[:2]
    away = float(np.linalg.norm(offset))
    if outcome.success:
        return f"yes, because the gripper is above the {thing.noun}" if away < ABOVE else None
    way = direction(offset) if away > NOT_ABOVE else None
    words = {"left": "too far to the left", "right": "too far to the right"}
    words |= {"forward": "too far forward", "back": "too far back"}
    return f"no, because the gripper is {words[way]}" if way in words else None


# --- change ---


def change(before: Frame, after: Frame) -> str | None:
    """The one thing that changed between two frames of a scene; None where several did, or something did a little."""
    if before.things.keys() != after.things.keys() or before.held or after.held:
        return None
    found: list[str] = []
    for name, thing in after.things.items():
        old = before.things[name]
        if thing.kind == "part":
            if "unclear" in (old.state, thing.state):
                return None
            if old.state != thing.state:
                found.append(_switched(thing))
            continue
        moved = float(np.linalg.norm(thing.center - old.center))
        if thing.kind == "object" and moved > UNMOVED:
            answer = _moved(before, after, old, thing) if moved >= MOVED else None
            if answer is None:
                return None
            found.append(answer)
    if not found:
        return "nothing was moved"
    return found[0] if len(found) == 1 else None


def _switched(thing: Thing) -> str:
    if thing.state in ("on", "off"):
        return f"the {thing.plain} was turned {thing.state}"
    return f"the {thing.noun} was {'opened' if thing.state == 'open' else 'closed'}"


def _moved(before: Frame, after: Frame, old: Thing, new: Thing) -> str | None:
    """How one thing was moved: into or onto another one, or to a side."""
    if new.name not in after.named("agentview") or old.name not in before.named("agentview"):
        return None
    if new.inside != old.inside:
        if new.inside is None:
            place = before.things[old.inside] if old.inside else None
            return f"the {new.noun} was taken off the {place.noun}" if place and place.receives == "on" else None
        place = after.things[new.inside]
        return f"the {new.noun} was put {place.receives} the {place.noun}" if place.receives else None
    way = direction((new.center - old.center)[:2])
    if way is None or new.inside is not None:
        return None
    words = {"left": "to the left", "right": "to the right", "forward": "away from the robot"}
    return f"the {new.noun} was moved {words.get(way, 'towards the robot')}"
