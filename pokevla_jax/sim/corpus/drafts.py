"""A question before it is worded: its type, what fills the gaps of a phrasing, and the answer with what proves it."""

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from typing import Literal

import numpy as np

from pokevla_jax.sim.corpus.facts import Frame
from pokevla_jax.sim.corpus.facts import box_of
from pokevla_jax.sim.corpus.facts import point_in
from pokevla_jax.typing import Bool


@dataclass(frozen=True, kw_only=True)
class Draft:
    """One question about a frame.

    Attributes:
        type: key of ``phrasings.TYPES``.
        slots: words for the gaps of a phrasing.
        answer: the text, or None for what ``place`` says.
        place: coordinates of the answer, fractions of the image: (x, y) or (x1, y1, x2, y2).
        mask: pixels where a point would be right.
        asked: coordinates that the question names, for the gap ``{place}``.
        view: which camera is shown.
        key: what the answers of this type are balanced over; the text by default.
    """

    type: str
    slots: Mapping[str, str] = field(default_factory=dict)
    answer: str | None = None
    place: tuple[float, ...] = ()
    mask: Bool[np.ndarray, "h w"] | None = None
    asked: tuple[float, ...] = ()
    view: str = "agentview"
    key: str = ""

    @property
    def form(self) -> Literal["text", "points", "box"]:
        """How the answer reads."""
        if self.answer is not None:
            return "text"
        return "points" if len(self.place) == 2 else "box"

    @property
    def balance(self) -> str:
        """What is counted, so that no answer becomes the usual one."""
        return self.key or self.answer or "/".join(self.slots.values())


def point(type_: str, mask: Bool[np.ndarray, "h w"], slots: Mapping[str, str], view: str = "agentview") -> Draft:
    """A question whose answer is any pixel of ``mask``."""
    return Draft(type=type_, slots=slots, place=point_in(mask), mask=mask, view=view)


def box(type_: str, mask: Bool[np.ndarray, "h w"], slots: Mapping[str, str], view: str = "agentview") -> Draft:
    """A question whose answer is the rectangle around ``mask``."""
    return Draft(type=type_, slots=slots, place=box_of(mask), view=view)


def yes_no(type_: str, holds: bool, slots: Mapping[str, str], view: str = "agentview") -> Draft:
    """A question whose answer is yes or no."""
    return Draft(type=type_, slots=slots, answer="yes" if holds else "no", view=view)


def views_of(frame: Frame) -> tuple[str, ...]:
    """Cameras of a frame, the third-person one first."""
    return tuple(sorted(frame.views, key=lambda name: name != "agentview"))
