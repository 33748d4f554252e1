"""Task names, the 10,030 tasks with the benchmark's own counts, and archives that are not to be trusted."""

import hashlib
import io
import json
import pickle
import re
import shutil
import tarfile
from collections import Counter

import pytest

from pokevla_jax.sim.errors import AssetError
from pokevla_jax.sim.errors import SimulationError
from pokevla_jax.sim.plus import unpack
from pokevla_jax.sim.plus.metadata import SUITES
from pokevla_jax.sim.plus.metadata import open_metadata
from pokevla_jax.sim.plus.names import CATEGORIES
from pokevla_jax.sim.plus.names import View
from pokevla_jax.sim.plus.names import parse_name
from tests import plus_metadata

BASES = ["open_it", "put_the_cup_on_the_plate", "put_the_cup_on_the_plate_and_close_it"]
# The benchmark's table: suites in the order of SUITES, then how many of the category run on LIBERO's own assets.
OFFICIAL = {
    "camera": (376, 396, 408, 419, 1599),
    "robot": (350, 398, 409, 393, 1550),
    "language": (390, 354, 410, 383, 1537),
    "light": (292, 297, 279, 274, 0),
    "background": (258, 248, 281, 289, 0),
    "noise": (351, 422, 379, 449, 1601),
    "layout": (385, 403, 425, 312, 696),
}


@pytest.mark.parametrize(
    ("suffix", "category", "fields"),
    [
        ("_view_30_15_120_2_358_initstate_0", "camera", {"view": View(30, 15, 120, 2, 358)}),
        ("_view_0_0_100_0_0_initstate_450", "robot", {"robot": 450}),
        ("_view_0_0_100_0_0_initstate_0_noise_41", "noise", {"noise": 41}),
        ("_language_7_view_0_0_100_0_0_initstate_0", "language", {"language": 7}),
        ("_light_12", "light", {"needs_assets": True, "own_scene": True}),
        ("_table_3", "background", {"needs_assets": True, "own_scene": True}),
        ("_tb_3", "background", {"needs_assets": True}),
        ("_add_5", "layout", {"needs_assets": True}),
        ("_level1_sample2", "layout", {"needs_assets": False, "own_scene": True}),
        ("_moved_level3_sample9", "layout", {"needs_assets": False}),
    ],
)
def test_a_name_says_what_is_perturbed(suffix, category, fields):
    base, found = parse_name(BASES[2] + suffix, BASES)
    assert (base, found.category, found.text) == (2, category, suffix[1:])
    neutral = {"view": View(), "robot": 0, "noise": 0, "language": 0}
    expected = neutral | fields
    assert {name: getattr(found, name) for name in expected} == expected
    assert parse_name(BASES[1] + suffix, BASES)[0] == 1


@pytest.mark.parametrize(
    "suffix",
    [
        "",
        "_view_0_0_100_0_0_initstate_0",
        "_view_9_0_100_0_0_initstate_3",
        "_view_0_0_100_0_initstate_3",
        "_light_",
        "_level1",
        "_light_3_noise_4",
    ],
)
def test_other_names_are_refused(suffix):
    with pytest.raises(SimulationError):
        parse_name(BASES[1] + suffix, BASES)


def test_the_real_metadata_has_the_official_counts():
    metadata = plus_metadata.real_metadata()
    tasks = {suite: metadata.tasks(suite) for suite in SUITES}
    counts = Counter((suite, task.perturbation.category) for suite in SUITES for task in tasks[suite])
    stock = Counter(
        task.perturbation.category for suite in SUITES for task in tasks[suite] if not task.perturbation.needs_assets
    )
    assert {name: (*(counts[suite, name] for suite in SUITES), stock[name]) for name in CATEGORIES} == OFFICIAL
    assert (sum(counts.values()), sum(stock.values())) == (10030, 6983)
    ungraded = [task for suite in SUITES for task in tasks[suite] if task.level is None]
    assert len(ungraded) == 121 and {task.perturbation.category for task in ungraded} == {"light"}
    assert {len({task.base for task in tasks[suite]}) for suite in SUITES} == {10}


def test_what_needs_assets_is_told_by_the_name_as_by_the_files():
    """A task needs the archive if its scene class or one of its objects is not LIBERO's."""
    metadata = plus_metadata.real_metadata()
    known = {"scenes": set(), "objects": set()}
    for name in ("libero_floor", "libero_tabletop", "libero_kitchen_tabletop", "libero_living_room_tabletop"):
        known["scenes"].add(f"{name}_manipulation")
    known["scenes"].add("libero_study_tabletop_manipulation")

    def read(path):
        text = path.read_text().lower()
        problem = re.search(r"\(problem\s+(\S+?)\s*\)", text)[1]
        section = re.search(r"\(:objects(.*?)\n\s*\)", text, re.DOTALL)[1]
        return problem, set(re.findall(r"-\s+(\S+)", section))

    for suite in SUITES:
        for task in {task.base_task for task in metadata.tasks(suite)}:
            known["objects"] |= read(task.bddl_file)[1]
    wrong = []
    for suite in SUITES:
        for task in metadata.tasks(suite):
            if not task.perturbation.own_scene:
                continue
            problem, objects = read(metadata.bddl_file(task))
            needs = problem not in known["scenes"] or not objects <= known["objects"]
            if needs != task.perturbation.needs_assets:
                wrong.append(task.name)
    assert wrong == []


def test_a_rewritten_instruction_changes_nothing_but_the_instruction():
    """So all categories without a scene of their own can be played in LIBERO's compiled scene."""
    metadata = plus_metadata.real_metadata()

    def without_language(path):
        return " ".join(re.sub(r"\(:language[^)]*\)", "", path.read_text().lower()).split())

    base_texts = {}
    for suite in SUITES:
        for task in metadata.tasks(suite):
            if not task.perturbation.language:
                continue
            base = task.base_task.bddl_file
            expected = base_texts.setdefault(base, without_language(base))
            assert without_language(metadata.bddl_file(task)) == expected, task.name


@pytest.fixture
def small(tmp_path):
    return plus_metadata.write_metadata(tmp_path / "plus")


def test_tasks_are_those_of_the_classification_in_its_order(small):
    metadata = open_metadata(small)
    (small / "bddl_files" / "libero_object" / "stray_light_1.bddl").write_text("(define)")
    tasks = metadata.tasks("libero_object")
    assert [task.perturbation.text for task in tasks] == [suffix for _, suffix, _, _ in plus_metadata.TASKS]
    assert [task.number for task in tasks] == list(range(1, len(tasks) + 1))
    assert metadata.task("libero_object", tasks[3].name) is tasks[3]
    assert metadata.tasks("libero_goal") == ()
    with pytest.raises(SimulationError, match="has no task"):
        metadata.task("libero_object", "pick_up_the_moon_light_1")
    with pytest.raises(SimulationError, match="did you mean libero_object"):
        metadata.tasks("libero_objects")
    with pytest.raises(SimulationError, match="its suites are"):
        metadata.tasks("libero_90")


def test_the_hash_covers_what_an_episode_is_made_of_and_nothing_else(small):
    before = open_metadata(small)
    assert not before.is_release
    (small / "README.md").write_text("more")
    assert open_metadata(small).sha256 == before.sha256
    states = next((small / "init_files").rglob("*level1*"))
    states.write_bytes(states.read_bytes() + b"\0")
    assert open_metadata(small).sha256 != before.sha256
    states.unlink()
    with pytest.raises(AssetError, match="lacks init_files"):
        _ = open_metadata(small).sha256


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": 7}, "contradicts its name"),
        ({"category": "Light Conditions"}, "contradicts its name"),
        ({"category": "Weather"}, "is no LIBERO-Plus classification"),
        ({"name": "pick_up_the_moon_light_1"}, "is no LIBERO-Plus task"),
        ({"difficulty_level": 6}, "level 6, expected 1 to 5"),
    ],
)
def test_a_damaged_classification_is_named(small, change, words):
    path = small / "benchmark" / "task_classification.json"
    content = json.loads(path.read_text())
    content["libero_object"][0] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(SimulationError, match=words):
        open_metadata(small).tasks("libero_object")
    path.write_text("{")
    with pytest.raises(SimulationError, match="restore the file"):
        open_metadata(small).tasks("libero_goal")


def test_where_the_metadata_is_looked_for(small, tmp_path, monkeypatch):
    monkeypatch.delenv("LIBERO_PLUS", raising=False)
    with pytest.raises(AssetError, match="give --plus or LIBERO_PLUS a clone"):
        open_metadata()
    with pytest.raises(AssetError, match="holds no benchmark/task_classification"):
        open_metadata(tmp_path)
    clone = tmp_path / "clone"
    (clone / "libero").mkdir(parents=True)
    (clone / "libero" / "libero").symlink_to(small)
    monkeypatch.setenv("LIBERO_PLUS", str(clone))
    assert open_metadata().sha256 == open_metadata(small).sha256


# -- archives --------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where archives are unpacked."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pokevla_jax" / "libero_plus"


def add(tar, name, content=b"{}", **fields):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in fields.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("prefix", ["", "./", "LIBERO-plus/libero/libero/"])
def test_an_archive_is_unpacked_once(small, tmp_path, cache, prefix):
    path = tmp_path / "plus.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(small, prefix.rstrip("/") or ".", recursive=True)
        add(tar, f"{prefix}notes/secret.txt")
    metadata = open_metadata(path)
    assert metadata.sha256 == open_metadata(small).sha256
    assert [folder.name for folder in cache.iterdir()] == [hashlib.sha256(path.read_bytes()).hexdigest()[:16]]
    assert not list(cache.rglob("secret.txt"))
    classification = metadata.root / "benchmark" / "task_classification.json"
    before = classification.stat().st_mtime_ns
    open_metadata(path)
    assert classification.stat().st_mtime_ns == before
    # On another host there is the archive, but not what was unpacked here.
    travels = pickle.dumps(metadata)
    shutil.rmtree(cache)
    assert pickle.loads(travels).tasks("libero_object") == metadata.tasks("libero_object")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("a/b", {})], "holds 0 files benchmark"),
        ([("benchmark/task_classification.json", {}), ("x/benchmark/task_classification.json", {})], "holds 2 files"),
        ([("benchmark/task_classification.json", {}), ("bddl_files/../../evil", {})], "leads out of its folder"),
        ([("benchmark/task_classification.json", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"})], "holds 0"),
    ],
)
def test_an_archive_cannot_reach_out_of_its_folder(tmp_path, cache, members, words):
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as tar:
        for name, fields in members:
            add(tar, name, b"" if fields else b"{}", **fields)
    with pytest.raises(AssetError, match=words):
        open_metadata(path)
    assert not cache.exists() or not list(cache.iterdir())
    assert not list(tmp_path.rglob("evil"))


def test_links_and_names_elsewhere_are_left_in_the_archive(small, tmp_path, cache):
    path = tmp_path / "links.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(small, ".")
        add(tar, "bddl_files/link.bddl", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "/bddl_files/absolute.bddl")
    root = open_metadata(path).root
    assert not (root / "bddl_files" / "link.bddl").is_symlink()
    assert not list(root.rglob("absolute.bddl"))


def test_a_bomb_is_not_unpacked(small, tmp_path, cache, monkeypatch):
    path = tmp_path / "bomb.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(small, ".")
        add(tar, "bddl_files/zeros", bytes(2**20))
    monkeypatch.setattr(unpack, "MAX_BYTES", 2**20)
    with pytest.raises(AssetError, match="larger than any"):
        open_metadata(path)
    monkeypatch.setattr(unpack, "MAX_BYTES", 2**30)
    monkeypatch.setattr(unpack, "MAX_FILES", 3)
    with pytest.raises(AssetError, match="larger than any"):
        open_metadata(path)
    assert not list(cache.iterdir())


def test_a_broken_archive_is_one_sentence(tmp_path, cache):
    path = tmp_path / "broken.tar.gz"
    path.write_bytes(b"\x1f\x8b\x08 and nothing")
    with pytest.raises(AssetError, match=r"broken\.tar\.gz cannot be unpacked"):
        open_metadata(path)
