"""What LIBERO's objects are called, and what can be done with them."""

import re
from dataclasses import dataclass
from typing import Literal

from pokevla_jax.sim.errors import SimulationError


@dataclass(frozen=True)
class Kind:
    """One category of objects.

    Attributes:
        noun: as LIBERO's instructions call it.
        group: the wider word under which it is counted.
        grasp: where a gripper takes it: across its body, at its rim, or by its handle.
        receives: the preposition with which things are put there ("in", "on"); None for what holds nothing.
    """

    noun: str
    group: str
    grasp: Literal["body", "rim", "handle"] | None = "body"
    receives: Literal["in", "on"] | None = None

    @property
    def plain(self) -> str:
        """The noun without its colour, for questions that ask for the colour."""
        return re.sub(r"^(?:(?:black|white|red|yellow)(?: and )?)+ ", "", self.noun)


KINDS = {
    "akita_black_bowl": Kind("black bowl", "bowl", "rim", "in"),
    "alphabet_soup": Kind("alphabet soup", "can"),
    "basket": Kind("basket", "basket", None, "in"),
    "bbq_sauce": Kind("bbq sauce", "bottle"),
    "black_book": Kind("book", "book", None),
    "butter": Kind("butter", "box"),
    "chefmate_8_frypan": Kind("frying pan", "pan", None),
    "chocolate_pudding": Kind("chocolate pudding", "box"),
    "cookies": Kind("cookie box", "box", None, "on"),
    "cream_cheese": Kind("cream cheese", "box"),
    "desk_caddy": Kind("caddy", "caddy", None, "in"),
    "flat_stove": Kind("stove", "stove", None, "on"),
    "glazed_rim_porcelain_ramekin": Kind("ramekin", "ramekin", "rim", "on"),
    "ketchup": Kind("ketchup", "bottle"),
    "microwave": Kind("microwave", "microwave", None, "in"),
    "milk": Kind("milk", "carton"),
    "moka_pot": Kind("moka pot", "pot", None),
    "orange_juice": Kind("orange juice", "carton"),
    "plate": Kind("plate", "plate", "rim", "on"),
    "porcelain_mug": Kind("white mug", "mug", "handle"),
    "red_coffee_mug": Kind("red mug", "mug", "handle"),
    "salad_dressing": Kind("salad dressing", "bottle"),
    "tomato_sauce": Kind("tomato sauce", "can"),
    "white_cabinet": Kind("cabinet", "cabinet", None, "on"),
    "white_yellow_mug": Kind("yellow and white mug", "mug", "handle"),
    "wine_bottle": Kind("wine bottle", "bottle"),
    "wine_rack": Kind("wine rack", "rack", None, "on"),
    "wooden_cabinet": Kind("cabinet", "cabinet", None, "on"),
}
"""Every category of the four suites."""

NOUNS = tuple(sorted({kind.noun for kind in KINDS.values()}))
GROUPS = ("bottle", "bowl", "box", "can", "carton", "mug", "plate")
"""Words under which objects are counted."""
_PLURALS = {"box": "boxes"}


@dataclass(frozen=True)
class PartKind:
    """A moving part of a fixture.

    Attributes:
        body, joint: their names behind the fixture's own.
        opened, closed: joint positions at and beyond which anybody calls it open (on) and closed (off).
        handle: what in a visual mesh's or body's name marks the part that a gripper takes.
    """

    noun: str
    body: str
    joint: str
    opened: float
    closed: float
    verb: Literal["open", "on"] = "open"


def _drawers() -> tuple[PartKind, ...]:
    return tuple(
        PartKind(f"{level} drawer", f"cabinet_{level}", f"{level}_level", -0.10, -0.006)
        for level in ("top", "middle", "bottom")
    )


PARTS: dict[str, tuple[PartKind, ...]] = {
    "wooden_cabinet": _drawers(),
    "white_cabinet": _drawers(),
    "microwave": (PartKind("microwave door", "microdoorroot", "microjoint", -1.2, -0.03),),
    "flat_stove": (PartKind("stove knob", "button", "button", 0.55, 0.05, "on"),),
}
"""Moving parts by the fixture's category."""


def category(instance: str) -> str:
    """``butter_1`` -> ``butter``."""
    return instance.rsplit("_", 1)[0]


def kind_of(instance: str) -> Kind:
    """The kind of an instance; raises ``SimulationError`` for one that has no name here."""
    if category(instance) not in KINDS:
        raise SimulationError(f"The corpus has no word for {instance!r}; add its category to sim/corpus/kinds.py")
    return KINDS[category(instance)]


def plural(noun: str) -> str:
    """More than one of it."""
    return _PLURALS.get(noun, f"{noun}s")
