"""Scenes, textures and objects of LIBERO-Plus's asset archive, found by the names in its task files.

The archive (6.4 GB) is not at hand: a small one is made of LIBERO's assets, with files where the benchmark's code looks
for them. What is tested is that tasks of the real metadata find theirs and are drawn with them.
"""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pokevla_jax.sim import bddl
from pokevla_jax.sim.environment import LiberoEnvironment
from pokevla_jax.sim.errors import AssetError
from pokevla_jax.sim.plus import asset_archive
from pokevla_jax.sim.plus import scenes
from pokevla_jax.sim.plus.metadata import SUITES
from pokevla_jax.sim.tasks import load_init_states
from tests import plus_metadata

pytestmark = pytest.mark.sim
RED, GREEN = (200, 20, 20), (20, 160, 20)


@pytest.fixture
def archive(libero_assets, tmp_path):
    """A folder like the archive's, nearly empty: LIBERO's files as links, and the two folders that it adds."""
    if libero_assets.kind == "standins":
        pytest.skip("needs LIBERO's assets: set LIBERO_ASSETS")
    root = tmp_path / "assets"
    root.mkdir()
    for entry in libero_assets.root.iterdir():
        if entry.name in ("scenes", "textures"):
            (root / entry.name).mkdir()
            for file in entry.iterdir():
                (root / entry.name / file.name).symlink_to(file)
        else:
            (root / entry.name).symlink_to(entry)
    (root / "scenes" / "lights").mkdir()
    (root / "new_objects").mkdir()
    return root


def task_with(metadata, suite, pattern):
    """The first task of the suite whose scene class matches, with that class."""
    for task in metadata.tasks(suite):
        if task.perturbation.category in ("light", "background"):
            path = metadata.bddl_file(task)
            if re.search(pattern, bddl.problem_name(path)):
                return task, re.search(r"\(problem\s+(\S+?)\s*\)", path.read_text())[1]
    raise AssertionError(f"no task with {pattern}")


def write_scene(stock, path, change):
    """The stock scene file elsewhere, its files still found, after ``change``."""
    tree = ET.parse(stock)
    for element in tree.getroot().iter():
        if element.get("file"):
            element.set("file", str((stock.parent / element.get("file")).resolve()))
    change(tree.getroot())
    path.unlink(missing_ok=True)
    tree.write(path)


def paint(path, colour):
    path.unlink(missing_ok=True)  # A link: the picture would be painted over in LIBERO's own folder.
    Image.new("RGB", (64, 64), colour).save(path)


def look(environment):
    return environment.render("agentview").rgb.astype(float)


@pytest.mark.slow
def test_light_scenes_and_floor_textures_are_played(libero_assets, archive):
    metadata = plus_metadata.real_metadata()
    light, problem = task_with(metadata, "libero_object", "light_sync")
    stem = problem.removeprefix("Libero_Floor_Manipulation_")

    def darken(root):
        for element in root.iter("light"):
            element.set("diffuse", "0.1 0.1 0.1")

    write_scene(
        archive / "scenes" / "libero_floor_base_style.xml", archive / "scenes" / "lights" / f"{stem}.xml", darken
    )
    floor, problem = task_with(metadata, "libero_object", "floorcarbonfiber")
    paint(archive / "textures" / f"{problem.removeprefix('Libero_Floor_Manipulation_Floor')}.png", RED)
    wall, problem = task_with(metadata, "libero_object", "floorcobble01_ao_wallstucco")
    paint(archive / "textures" / "Cobblestone01_AO_6K.png", GREEN)
    paint(archive / "textures" / "stucco_wall.png", RED)
    assets = asset_archive.open_assets(archive)
    assert assets.sha256 != libero_assets.sha256

    pictures = {}
    for name, task in (("light", light), ("floor", floor), ("wall", wall)):
        environment = scenes.make_environment(metadata, task, assets=assets)
        scenes.start_episode(environment, metadata, task)
        pictures[name] = look(environment)
        assert environment.sim_env.parsed_problem["goal_state"]
        environment.close()
    stock = LiberoEnvironment(light.base_task, assets=libero_assets)
    stock.reset(load_init_states(light.base_task)[0])
    plain = look(stock)
    stock.close()
    assert pictures["light"].mean() < 0.8 * plain.mean()
    # The lower edge shows the floor, the upper corners the walls.
    bottom, corner = np.s_[-20:, :], np.s_[:12, :12]

    def is_coloured(picture, channel):
        others = np.delete(picture.reshape(-1, 3).mean(axis=0), channel)
        return picture[..., channel].mean() > 1.5 * others.max()

    assert is_coloured(pictures["floor"][bottom], 0) and not is_coloured(plain[bottom], 0)
    assert is_coloured(pictures["wall"][bottom], 1) and is_coloured(pictures["wall"][corner], 0)
    assert not is_coloured(plain[corner], 0)


@pytest.mark.slow
def test_distractors_and_table_scenes_are_played(libero_assets, archive):
    metadata = plus_metadata.real_metadata()
    butter = libero_assets.root / "stable_hope_objects" / "butter" / "butter.xml"
    for folder in asset_archive.DISTRACTORS.values():
        path = archive / "new_objects" / folder / "usd" / "MJCF" / f"{Path(folder).name}.xml"
        path.parent.mkdir(parents=True)

        def flatten(root):
            # The archive's objects are one level less deep than LIBERO's, sites and all.
            world = root.find("worldbody")
            outer = world.find("body")
            inner = outer.find("body")
            inner.extend(outer.findall("site"))
            world.remove(outer)
            world.append(inner)

        write_scene(butter, path, flatten)
    table, problem = task_with(metadata, "libero_goal", "_wall_stucco")
    stem = problem.removeprefix("Libero_Tabletop_Manipulation_").removesuffix("_Wall_stucco")
    paint(archive / "textures" / "stucco_wall.png", RED)
    (archive / "scenes" / "tabletop250").mkdir()
    stock = archive / "scenes" / "libero_tabletop_base_style.xml"
    write_scene(stock, archive / "scenes" / "tabletop250" / f"{stem}.xml", lambda root: None)
    # The wall's texture is found beside the scene's own, in the archive.
    for element in (tree := ET.parse(archive / "scenes" / "tabletop250" / f"{stem}.xml")).getroot().iter("texture"):
        if element.get("file"):
            element.set("file", str(archive / "textures" / Path(element.get("file")).name))
    tree.write(archive / "scenes" / "tabletop250" / f"{stem}.xml")
    assets = asset_archive.open_assets(archive)

    environment = scenes.make_environment(metadata, table, assets=assets)
    scenes.start_episode(environment, metadata, table)
    assert look(environment)[:10, :10, 0].mean() > 1.5 * look(environment)[:10, :10, 1].mean()
    environment.close()

    layout = next(t for t in metadata.tasks("libero_spatial") if t.perturbation.text.startswith("add_"))
    environment = scenes.make_environment(metadata, layout, assets=assets)
    scenes.start_episode(environment, metadata, layout, settle_steps=1)
    present = {name.rsplit("_", 1)[0] for name in environment.sim_env.obj_body_id}
    assert present & set(asset_archive.DISTRACTORS)
    (state,) = load_init_states(environment.task)
    assert len(environment.sim_state()) == len(state)
    environment.close()


def test_every_task_that_needs_the_archive_is_understood(archive):
    """All 3,047 names lead to a file; here they lead to the error that names it, or to LIBERO's own textures."""
    metadata = plus_metadata.real_metadata()
    wanted, seen, found, missing = set(), 0, [], []
    for suite in SUITES:
        for task in metadata.tasks(suite):
            path = metadata.bddl_file(task)
            if task.perturbation.category not in ("light", "background"):
                continue
            seen += 1
            problem = bddl.problem_name(path)
            if problem in wanted:
                continue
            wanted.add(problem)
            try:
                found.append(asset_archive.scene_arguments(problem, archive, path))
            except AssetError as error:
                missing.append(str(error))
    assert seen == 1142 + 1076
    assert all(set(arguments) == {"scene_properties"} for arguments in found)
    sentence = re.compile(r"\w+ needs the (scene|texture) [\w. -]+\.(xml|png), which \S+ lacks")
    assert missing and all(sentence.fullmatch(message) for message in missing)


def test_a_folder_that_is_not_the_archive_is_refused(libero_assets, archive, tmp_path):
    with pytest.raises(AssetError, match="does not exist"):
        asset_archive.open_assets(tmp_path / "nowhere")
    with pytest.raises(AssetError, match="holds no new_objects"):
        asset_archive.open_assets(libero_assets.root)
    metadata, assets = plus_metadata.real_metadata(), asset_archive.open_assets(archive)
    layout = next(t for t in metadata.tasks("libero_spatial") if t.perturbation.text.startswith("add_"))
    with pytest.raises(AssetError, match=r"needs new_objects/.*\.xml"):
        scenes.make_environment(metadata, layout, assets=assets)
