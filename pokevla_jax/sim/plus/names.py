"""What a LIBERO-Plus task name says: the base task, and the numbers of its perturbation.

A name is that of a LIBERO task followed by one of::

    _view_H_V_S_R_P_initstate_N                     camera viewpoint (N = 0) or robot initial state (N > 0)
    _view_0_0_100_0_0_initstate_0_noise_N           sensor noise
    _language_N_view_0_0_100_0_0_initstate_0        rewritten instruction
    _light_N   _table_N   _tb_N                     light; background textures
    _add_N     [_moved]_levelL_sampleS              layout with distractors; layout with the target moved
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pokevla_jax.sim.errors import SimulationError

CATEGORIES = {
    "camera": "Camera Viewpoints",
    "robot": "Robot Initial States",
    "language": "Language Instructions",
    "light": "Light Conditions",
    "background": "Background Textures",
    "noise": "Sensor Noise",
    "layout": "Objects Layout",
}
"""Short name -> the benchmark's name, in the order of its published tables."""

_SUFFIX = re.compile(
    r"(?:_language_(?P<language>\d+))?"
    r"_view_(?P<view>\d+_\d+_\d+_\d+_\d+)_initstate_(?P<robot>\d+)(?:_noise_(?P<noise>\d+))?"
    r"|_(?P<asset_kind>light|table|tb|add)_\d+"
    r"|(?:_moved)?_level\d+_sample\d+"
)
_CATEGORY_OF_ASSET = {"light": "light", "table": "background", "tb": "background", "add": "layout"}


@dataclass(frozen=True)
class View:
    """How the agent view's camera is moved; degrees, and percent of its distance from the pivot over the table.

    Attributes:
        azimuth: about the world's vertical axis.
        elevation: upwards, about the axis parallel to y through the pivot.
        distance: percent.
        yaw: of the camera alone, about the world's vertical axis.
        pitch: of the camera alone, about the world's y axis.
    """

    azimuth: int = 0
    elevation: int = 0
    distance: int = 100
    yaw: int = 0
    pitch: int = 0


@dataclass(frozen=True)
class Perturbation:
    """One perturbation, as its task's name gives it.

    Attributes:
        text: what follows the base task's name, without the first underscore.
        category: key of ``CATEGORIES``.
        view: camera movement; the neutral one for all but ``camera``.
        robot: number of the arm's start posture, 0 for the stock one.
        noise: number of the image noise (1 to 50), 0 for none.
        language: number of the rewritten instruction, 0 for the stock one.
        needs_assets: whether scene or objects are in the benchmark's asset archive only.
    """

    text: str
    category: str
    view: View = View()
    robot: int = 0
    noise: int = 0
    language: int = 0
    needs_assets: bool = False

    @property
    def own_scene(self) -> bool:
        """Whether it is played in a scene of its own; the others share the base task's."""
        return self.category in ("light", "background", "layout")


def parse_name(name: str, base_names: Sequence[str]) -> tuple[int, Perturbation]:
    """Index of the base task in ``base_names``, and the perturbation.

    Raises:
        SimulationError: for a name that is not one of the above.
    """
    for index, base in enumerate(base_names):
        match = _SUFFIX.fullmatch(name[len(base) :]) if name.startswith(base) else None
        if match is not None:
            return index, _perturbation(match)
    raise SimulationError(f"{name!r} is no LIBERO-Plus task: it is not a task of the suite with a known perturbation")


def _perturbation(match: re.Match[str]) -> Perturbation:
    text = match[0][1:]
    if match["view"] is None:
        kind = match["asset_kind"]
        return Perturbation(text, _CATEGORY_OF_ASSET.get(kind, "layout"), needs_assets=kind is not None)
    view = View(*(int(number) for number in match["view"].split("_")))
    language, robot, noise = (int(match[group] or 0) for group in ("language", "robot", "noise"))
    kinds = {"language": language, "noise": noise, "robot": robot, "camera": view != View()}
    active = [name for name, value in kinds.items() if value]
    if len(active) != 1:
        raise SimulationError(f"Perturbation {text!r} is {' and '.join(active) or 'none at all'}; expected exactly one")
    return Perturbation(text, active[0], view, robot, noise, language)
