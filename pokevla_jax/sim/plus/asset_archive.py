"""The scenes and objects that only LIBERO-Plus's asset archive holds: lights, backgrounds, distractors.

The benchmark has a scene class for each of its 6,700 scenes. All they differ in stands in their name: the scene file,
or the textures of floor and wall. So the classes are made here from the name that a BDDL file gives its problem::

    Libero_Tabletop_Manipulation_tabletop_light_sync_modified_7       scenes/lights/tabletop_light_sync_modified_7.xml
    Libero_Tabletop_Manipulation_tabletop_table_Tiles01_3K_Wall_cream scenes/tabletop_table_Tiles01_3K.xml and a wall
    Libero_Floor_Manipulation_FloorMarble01_GLOSS_3K                  textures/Marble01_GLOSS_3K.png on the floor
    Libero_Floor_Manipulation_Combined_Floorlight_Wallstucco          textures of floor and wall
"""

import functools
import hashlib
import itertools
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from pokevla_jax.sim import bddl
from pokevla_jax.sim.assets import Assets
from pokevla_jax.sim.assets import inspect_assets
from pokevla_jax.sim.errors import AssetError
from pokevla_jax.sim.errors import SimulationError
from pokevla_jax.sim.plus.camera import AGENTVIEW
from pokevla_jax.sim.upstream import import_libero

FLOORS = {
    "dapper-gray": "dapper_gray_floor.png",
    "gray": "gray_floor.png",
    "light": "light_floor.png",
    "marble": "marble_floor.png",
    "brick-disp": "Bricks02_DISP_6K.png",
    "cliffde-ao": "CliffDesert006_AO_HIRES.png",
    "cobble01-ao": "Cobblestone01_AO_6K.png",
    "cobble01-disp": "Cobblestone01_DISP_6K copy.png",
    "marble-gloss": "Marble01_GLOSS_3K.png",
}
"""Floors that are neither LIBERO's nor named after their texture."""

WALLS = {
    "gray": "gray_wall.png",
    "stucco": "stucco_wall.png",
    "canvas": "canvas_sky_blue.png",
    "capriccio": "capriccio_sky.png",
    "cream": "cream_plaster.png",
    "gray-ceramic": "gray_ceramic_tile.png",
}
"""Walls that are not LIBERO's."""

DISTRACTORS = {
    "bag_of_yeast": "bag_of_yeast/ibvtik",
    "bottle_of_alfredo_sauce": "bottle_of_alfredo_sauce/xwzqjr",
    "bottle_of_antihistamines": "bottle_of_antihistamines/agavwx",
    "bottle_of_aspirin": "bottle_of_aspirin/psvktc",
    "bottle_of_baby_oil": "bottle_of_baby_oil/xpdlrr",
    "bottle_of_barbecue_sauce__2": "bottle_of_barbecue_sauce/nkqvex",
    "box_of_shampoo__1": "box_of_shampoo/bclpiq",
    "box_of_vegetable_juice__1": "box_of_vegetable_juice/jsnnlv",
    "box_of_yogurt__1": "box_of_yogurt/jkemqc",
    "boxed_ink_cartridge__3": "boxed_ink_cartridge/oinelo",
    "can_of_sardines": "can_of_sardines/dpgmry",
    "can_of_soda__1": "can_of_soda/bfrzvk",
    "canned_food__1": "canned_food/acgdtc",
}
"""Objects that stand around in layouts with distractors -> folder below ``new_objects``."""


def open_assets(path: str | Path) -> Assets:
    """LIBERO-Plus's unpacked ``assets`` folder, which replaces LIBERO's.

    The hash of LIBERO's own files in it is joined with the names and sizes of the others, which hold gigabytes.

    Raises:
        AssetError: if it does not exist, lacks one of LIBERO's files, or holds nothing beyond them.
    """
    stock = inspect_assets(Path(path))
    more = [stock.root / name for name in ("new_objects", "scenes/lights")]
    if missing := [folder for folder in more if not folder.is_dir()]:
        raise AssetError(
            f"{path} is not LIBERO-Plus's assets: it holds no {missing[0].relative_to(stock.root)}; give --plus-assets "
            "the folder `assets` of its unpacked archive"
        )
    files = sorted((str(file.relative_to(stock.root)), file.stat().st_size) for file in _files(stock.root))
    names = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    sha256 = hashlib.sha256(f"{stock.sha256} {names}".encode()).hexdigest()
    return Assets(stock.root, stock.kind, sha256, stock.replaced)


def register(bddl_file: Path, assets: Assets) -> None:
    """Teaches LIBERO the scene class and the objects of ``bddl_file``, found in ``assets``.

    Raises:
        AssetError: if a file is missing there, naming it.
        SimulationError: for a scene class or an object that LIBERO-Plus does not have.
    """
    libero = import_libero(assets.root)
    problem = bddl.problem_name(bddl_file)
    if problem not in AGENTVIEW:
        from libero.libero.envs.regions import REGION_SAMPLERS

        stock, arguments = _stock_problem(problem), scene_arguments(problem, assets.root, bddl_file)
        libero.TASK_MAPPING[problem] = _scene_class(libero.TASK_MAPPING[stock], problem, arguments)
        REGION_SAMPLERS[problem] = REGION_SAMPLERS[stock]
    objects = bddl.section(bddl_file, "objects")
    for before, category in itertools.pairwise(objects):
        if before == "-":
            _register_object(category, assets.root, bddl_file)


def _stock_problem(problem: str) -> str:
    return next(name for name in AGENTVIEW if problem.startswith(name))


def _scene_class(base: type, problem: str, arguments: dict[str, Any]) -> type:
    """The stock scene class with another scene file or other textures, under the name that the task file expects."""

    class Variant(base):  # type: ignore[misc, valid-type]
        def __init__(self, bddl_file_name: str, **kwargs: Any):
            super().__init__(bddl_file_name, **(kwargs | arguments))

    # LIBERO compares it with the task file's.
    Variant.__name__ = problem
    return Variant


def scene_arguments(problem: str, root: Path, bddl_file: Path) -> dict[str, Any]:
    """What the scene class is given besides its stock arguments: the scene file, or floor and wall."""
    rest = problem.removeprefix(_stock_problem(problem)).removeprefix("_")
    if both := re.fullmatch(r"combined_floor(.+)_wall(.+)", rest):
        return {"scene_properties": _styles(root, bddl_file, floor=both[1], wall=both[2])}
    if rest.startswith("floor") and not rest.startswith("floor_"):
        return {
            "scene_properties": _styles(root, bddl_file, floor=rest.removeprefix("floor"), wall="light-gray-plaster")
        }
    stem, _, wall = rest.partition("_wall_")
    scenes = [path for path in (root / "scenes").rglob("*.xml") if path.stem.lower() == stem]
    if not scenes:
        raise AssetError(f"{bddl_file.stem} needs the scene {stem}.xml, which {root / 'scenes'} lacks")
    arguments: dict[str, Any] = {"scene_xml": str(scenes[0].relative_to(root))}
    if wall:
        arguments["scene_properties"] = _styles(root, bddl_file, floor="light-gray", wall=wall)
    return arguments


def _styles(root: Path, bddl_file: Path, *, floor: str, wall: str) -> dict[str, str]:
    """Names of the two textures for LIBERO's arenas, which are told of textures that they do not know."""
    from libero.libero.envs.arenas import style

    known: dict[str, dict[str, str]] = style.STYLE_MAPPING
    result = {}
    for kind, name, others in (("floor", floor, FLOORS), ("wall", wall, WALLS)):
        # LIBERO's own are spelt with hyphens or with underscores; problem names have underscores only.
        own = next((key for key in known[kind] if key.replace("_", "-") == name.replace("_", "-")), None)
        if own is None:
            file = _texture(root, others.get(name.replace("_", "-"), f"{name}.png"), bddl_file)
            known[kind][name] = file.name
            own = name
        result[f"{kind}_style"] = own
    return result


def _texture(root: Path, name: str, bddl_file: Path) -> Path:
    """A texture by its name in any case: task files are read in lower case."""
    for path in sorted((root / "textures").iterdir()):
        if path.name.lower() == name.lower():
            return path
    raise AssetError(f"{bddl_file.stem} needs the texture {name}, which {root / 'textures'} lacks")


def _register_object(category: str, root: Path, bddl_file: Path) -> None:
    """Adds a distractor to LIBERO's objects; the stock ones are there."""
    from libero.libero.envs.base_object import OBJECTS_DICT

    if category in OBJECTS_DICT and category not in DISTRACTORS:
        return
    if category not in DISTRACTORS:
        raise SimulationError(
            f"{bddl_file.stem} needs an object {category!r}, an object of neither LIBERO nor LIBERO-Plus"
        )
    folder = root / "new_objects" / DISTRACTORS[category]
    path = folder / "usd" / "MJCF" / f"{folder.name}.xml"
    if not path.is_file():
        raise AssetError(f"{bddl_file.stem} needs {path.relative_to(root)}, which {root} lacks")
    OBJECTS_DICT[category] = _object_class(category, path)


def _object_class(category: str, path: Path) -> type:
    """A free object with its own geometry, standing upright where its region puts it."""
    from robosuite.models.objects import MujocoXMLObject

    class Distractor(MujocoXMLObject):
        def __init__(self, name: str = category, **_: Any):
            super().__init__(
                str(path),
                name=name,
                joints=[{"type": "free", "damping": "0.0005"}],
                obj_type="all",
                duplicate_collision_geoms=False,
            )
            self.category_name = category
            self.object_properties: dict[str, Any] = {"vis_site_names": {}}
            self.rotation = {axis: (sign * angle, sign * angle) for axis, sign, angle in _UPRIGHT}
            self.rotation_axis = None

        def _get_object_subtree(self) -> Any:
            # robosuite looks for the object, but not for its sites, one level deeper than these files have it.
            found = self.worldbody.find("./body[@name='object']")
            if found is None:
                return super()._get_object_subtree()
            outer = type(found)("body")
            outer.append(found)
            self.worldbody.remove(found)
            self.worldbody.append(outer)
            try:
                return super()._get_object_subtree()
            finally:
                self.worldbody.remove(outer)
                self.worldbody.append(found)

    return Distractor


_UPRIGHT = (("x", -1, np.pi / 2), ("y", -1, np.pi), ("z", 1, np.pi))


@functools.cache
def _files(root: Path) -> tuple[Path, ...]:
    return tuple(Path(folder) / name for folder, _, names in os.walk(root) for name in names)
