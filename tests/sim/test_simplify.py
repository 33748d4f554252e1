"""Reduced meshes and textures: fewer faces, the same surface, and nothing that collides is touched."""

import xml.etree.ElementTree as ET

import mujoco
import numpy as np
import pytest
from PIL import Image

from pokevla_jax.sim import simplify


def _sphere(path, rings=60):
    """A textured sphere of radius 5 cm with 2 * rings * (2 * rings) faces, in MuJoCo's format."""
    v, u = np.meshgrid(np.linspace(0, np.pi, rings + 1), np.linspace(0, 2 * np.pi, 2 * rings + 1), indexing="ij")
    points = 0.05 * np.stack([np.sin(v) * np.cos(u), np.sin(v) * np.sin(u), np.cos(v)], axis=-1)
    index = np.arange(v.size).reshape(v.shape)
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    faces = np.concatenate([np.stack(t, axis=-1).reshape(-1, 3) for t in ((a, b, c), (a, c, d))])
    uv = np.stack([u / (2 * np.pi), v / np.pi], axis=-1)
    corners = points.reshape(-1, 3)[faces]
    path.write_bytes(simplify._write_msh(corners, corners / 0.05, uv.reshape(-1, 2)[faces]))
    return len(faces)


@pytest.fixture
def scene(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    faces = _sphere(tmp_path / "sphere.msh")
    Image.fromarray(np.full((2048, 1024, 3), 90, np.uint8)).save(tmp_path / "label.png")
    xml = f"""<mujoco>
      <asset>
        <mesh name="seen" file="{tmp_path}/sphere.msh" scale="1 1 2"/>
        <mesh name="solid" file="{tmp_path}/sphere.msh"/>
        <texture name="label" type="2d" file="{tmp_path}/label.png"/>
        <material name="label" texture="label"/>
      </asset>
      <worldbody>
        <body pos="0.1 0 0"><freejoint/>
          <geom type="mesh" mesh="seen" material="label" contype="0" conaffinity="0" group="1" mass="0"/>
          <geom type="mesh" mesh="solid" group="0"/>
        </body>
      </worldbody>
    </mujoco>"""
    return xml, faces


def test_only_what_cannot_collide_is_reduced(scene):
    xml, faces = scene
    before = mujoco.MjModel.from_xml_string(xml)
    after = mujoco.MjModel.from_xml_string(simplify.simplify_scene(xml))
    assert after.mesh_facenum[0] <= simplify.MAX_FACES < faces / 10
    assert after.mesh_facenum[1] == before.mesh_facenum[1]
    assert (after.tex_height[0], after.tex_width[0]) == (512, 256)
    np.testing.assert_array_equal(after.body_inertia, before.body_inertia)
    np.testing.assert_array_equal(after.geom_pos[1], before.geom_pos[1])


def test_a_reduced_mesh_keeps_its_place_shape_and_texture(scene):
    xml, _ = scene
    after = mujoco.MjModel.from_xml_string(simplify.simplify_scene(xml))
    data = mujoco.MjData(after)
    mujoco.mj_forward(after, data)
    vertices = after.mesh_vert[: after.mesh_vertnum[0]] @ data.geom_xmat[0].reshape(3, 3).T + data.geom_xpos[0]
    centred = (vertices - [0.1, 0, 0]) / [1, 1, 2]
    np.testing.assert_allclose(np.linalg.norm(centred, axis=1), 0.05, atol=1e-3)
    # Latitude is the second texture coordinate.
    uv = after.mesh_texcoord[: after.mesh_texcoordnum[0]]
    latitude = np.arccos(np.clip(centred[:, 2] / np.linalg.norm(centred, axis=1), -1, 1)) / np.pi
    np.testing.assert_allclose(uv[:, 1], latitude, atol=0.05)


def test_reduced_files_are_made_once(scene):
    xml, _ = scene
    first = simplify.simplify_scene(xml)
    written = {p: p.stat().st_mtime_ns for p in (simplify.cache_folder() / simplify.settings()).iterdir()}
    assert simplify.simplify_scene(xml) == first and len(written) == 2
    assert written == {p: p.stat().st_mtime_ns for p in written}
    assert {ET.fromstring(first).find(f"asset/{kind}").get("file") for kind in ("mesh", "texture")} == set(
        map(str, written)
    )


def test_a_torn_surface_counts_as_misplaced():
    square = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0.0]]) / np.sqrt(2)
    whole, half, flipped = (np.array(f) for f in ([[0, 1, 2], [0, 2, 3]], [[0, 1, 2]], [[0, 2, 1], [0, 3, 2]]))
    assert simplify.misplaced_area((square, whole), (square, whole)) == 0
    assert 0.3 < simplify.misplaced_area((square, half), (square, whole)) < 0.5
    assert simplify.misplaced_area((square, flipped), (square, whole)) == 1
