"""Where assets come from and what kind they are."""

import hashlib
import json

import pytest

from pokevla_jax.sim import assets
from pokevla_jax.sim import bddl
from pokevla_jax.sim import standins
from pokevla_jax.sim.errors import AssetError
from pokevla_jax.sim.tasks import list_tasks


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A small "benchmark" of three files, and a manifest that knows it."""
    root = tmp_path / "assets"
    for name in ("scenes/a.xml", "objects/can.msh", "objects/can.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(assets.build_manifest(root)))
    monkeypatch.setattr(assets, "_MANIFEST", manifest)
    assets._inspect.cache_clear()
    return root


def test_the_kind_follows_from_the_files(tree):
    real = assets.resolve_assets(tree)
    assert (real.kind, real.replaced) == ("real", ())
    (tree / "objects/can.png").write_text("a flat colour")
    assets._inspect.cache_clear()
    mixed = assets.resolve_assets(tree)
    assert (mixed.kind, mixed.replaced) == ("real+standins", ("objects/can.png",))
    assert mixed.sha256 != real.sha256


def test_a_missing_file_or_folder_is_named(tree):
    (tree / "objects/can.msh").unlink()
    with pytest.raises(AssetError, match=r"lacks objects/can\.msh"):
        assets.resolve_assets(tree)
    with pytest.raises(AssetError, match="nowhere does not exist"):
        assets.resolve_assets(tree / "nowhere")


def test_the_manifest_uses_the_original_hash_of_a_replaced_file(tree):
    (tree / "STANDINS.txt").write_text("objects/can.png\nobjects/can.msh\n")
    original = hashlib.sha256(b"the real picture").hexdigest()
    files = assets.build_manifest(tree, {"objects/can.png": original})["files"]
    assert sorted(files) == ["objects/can.png", "scenes/a.xml"] and original.startswith(files["objects/can.png"])


def test_the_shipped_manifest_covers_the_floor_scene():
    files = json.loads(assets._MANIFEST.read_text())["files"]
    assert len(files) > 300 and all(len(digest) == 16 for digest in files.values())
    assert {"scenes/libero_floor_base_style.xml", "stable_hope_objects/milk/milk.xml"} <= set(files)


def test_the_environment_variable_comes_before_the_package_and_the_stand_ins(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(assets, "libero_package", lambda: tmp_path / "package")
    monkeypatch.setenv("LIBERO_ASSETS", str(tree))
    assert assets.resolve_assets().root == tree
    monkeypatch.delenv("LIBERO_ASSETS")
    # Nothing installed and no hub (HF_HUB_OFFLINE): the project's own shapes.
    assert assets.resolve_assets().kind == "standins"
    (tmp_path / "package").mkdir()
    (tmp_path / "package/assets").symlink_to(tree)
    assert assets.resolve_assets().kind == "real"


def test_stand_ins_are_the_same_bytes_everywhere_and_told_from_the_real(tmp_path):
    first, second = (assets.inspect_assets(standins.generate(tmp_path / name)) for name in "ab")
    assert first.kind == second.kind == "standins" and first.sha256 == second.sha256
    (first.root / "textures/light-gray-plaster.png").write_bytes(b"")
    assets._inspect.cache_clear()
    assert assets.inspect_assets(first.root).sha256 != second.sha256


def test_stand_ins_cover_every_object_of_libero_object():
    needed = {token for task in list_tasks("libero_object") for token in bddl.section(task.bddl_file, "objects")}
    categories = {name for name in needed if name != "-" and not name[-1].isdigit()}
    assert categories == {*standins.SHAPES, "basket"}
