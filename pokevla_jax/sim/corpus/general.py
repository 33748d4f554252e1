"""General questions: what is there, how many, in which colour, where in the picture, in which state."""

from collections import Counter
from collections.abc import Iterator

import cv2
import numpy as np

from pokevla_jax.sim.corpus import kinds
from pokevla_jax.sim.corpus.drafts import Draft
from pokevla_jax.sim.corpus.drafts import views_of
from pokevla_jax.sim.corpus.drafts import yes_no
from pokevla_jax.sim.corpus.facts import Frame
from pokevla_jax.sim.corpus.facts import Thing
from pokevla_jax.sim.corpus.facts import centroid
from pokevla_jax.typing import UInt8

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
# Parts of an object's pixels that have its colour, and that may have another one.
MAIN_COLOUR, OTHER_COLOUR = 0.6, 0.25
# Distance from the lines that divide the picture into nine, as a part of it.
REGION_MARGIN = 0.04
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")


def questions(frame: Frame, rng: np.random.Generator) -> Iterator[Draft]:
    """Every general question about a frame that has one answer; absent things are drawn at random."""
    yield from _what_is_there(frame)
    for view in views_of(frame):
        yield from _is_there(frame, view, rng)
    yield from _counts(frame)
    yield from _colours(frame)
    yield from _regions(frame)
    yield from _states(frame)
    yield Draft(type="holding", answer=frame.things[frame.held].noun if frame.held else "nothing")


def _what_is_there(frame: Frame) -> Iterator[Draft]:
    """All objects and fixtures, in alphabetical order."""
    if frame.unclear("agentview"):
        return
    seen = Counter(thing.noun for thing in frame.visible("agentview").values() if thing.kind != "part")
    words = [noun if n == 1 else f"{NUMBERS[n]} {kinds.plural(noun)}" for noun, n in sorted(seen.items())]
    if words:
        yield Draft(type="what_is_there", answer=", ".join(words))


def _is_there(frame: Frame, view: str, rng: np.random.Generator) -> Iterator[Draft]:
    nouns = sorted(thing.noun for thing in frame.named(view).values() if thing.kind != "part")
    for noun in nouns:
        yield yes_no("is_there", True, {"thing": noun}, view)
    absent = sorted(set(kinds.NOUNS) - {thing.noun for thing in frame.things.values()})
    for index in rng.permutation(len(absent))[: len(nouns)]:
        yield yes_no("is_there", False, {"thing": absent[index]}, view)


def _counts(frame: Frame) -> Iterator[Draft]:
    if frame.unclear("agentview"):
        return
    seen = Counter(thing.group for thing in frame.visible("agentview").values())
    for group in kinds.GROUPS:
        yield Draft(type="count", slots={"group": kinds.plural(group)}, answer=NUMBERS[seen[group]])


def _colours(frame: Frame) -> Iterator[Draft]:
    view = frame.views["agentview"]
    plain = Counter(thing.plain for thing in frame.things.values())
    for thing in frame.visible("agentview").values():
        colour = main_colour(view.image[view.mask(thing.labels)])
        if thing.kind != "part" and plain[thing.plain] == 1 and colour is not None:
            yield Draft(type="colour", slots={"thing": thing.plain}, answer=colour)


def main_colour(pixels: UInt8[np.ndarray, "n 3"]) -> str | None:
    """The colour that most of these pixels have and no other one has a quarter of; None where there is none.

    Black, white, grey, brown and six hues, by thresholds in OpenCV's HSV (hue 0 to 180); pixels between white and grey
    have no name, since shading makes one of the other.
    """
    hue, saturation, value = cv2.cvtColor(pixels[None], cv2.COLOR_RGB2HSV)[0].astype(int).T
    names = np.array(["red", "orange", "yellow", "green", "blue", "purple", "red"])
    named = names[np.searchsorted([8, 20, 33, 85, 130, 168], hue, side="right")]
    named = np.where((hue >= 5) & (hue < 24) & (value < 150), "brown", named)
    pale = saturation < 45
    named = np.where(pale & (value >= 185), "white", named)
    named = np.where(pale & (value < 185), "", named)
    named = np.where(pale & (value < 140), "grey", named)
    named = np.where(value < 55, "black", named)
    counts = Counter(named.tolist())
    (first, most), *rest = counts.most_common(2)
    others = rest[0][1] if rest else 0
    return first if first and most >= MAIN_COLOUR * len(named) and others <= OTHER_COLOUR * len(named) else None


def _regions(frame: Frame) -> Iterator[Draft]:
    view = frame.views["agentview"]
    for thing in frame.named("agentview").values():
        answer = region(centroid(view.mask(thing.labels)))
        if answer is not None:
            yield Draft(type="where", slots={"thing": thing.noun}, answer=answer)


def region(place: tuple[float, float]) -> str | None:
    """Which ninth of the picture a place is in, None near a border between two: "top left", "centre", ..."""
    if any(abs(value - line) < REGION_MARGIN for value in place for line in (1 / 3, 2 / 3)):
        return None
    row, column = _ROWS[int(place[1] * 3)], _COLUMNS[int(place[0] * 3)]
    if row == "middle":
        return column
    return row if column == "centre" else f"{row} {column}"


def _states(frame: Frame) -> Iterator[Draft]:
    for thing in frame.named("agentview").values():
        yield from _state(thing)


def _state(thing: Thing) -> Iterator[Draft]:
    if thing.state in ("open", "closed"):
        yield yes_no("is_open", thing.state == "open", {"thing": thing.noun})
    if thing.state in ("on", "off"):
        # The knob is the part that turns, the stove is what is on.
        yield yes_no("is_on", thing.state == "on", {"thing": thing.plain})
