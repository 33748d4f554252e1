"""Lighter pictures of the same scene: visual meshes with fewer faces, smaller textures, untouched physics.

Software OpenGL spends its time on vertices, and LIBERO's visual meshes have 250,000 faces, most of them smaller than a
pixel of a policy image; its 2048-pixel textures fill a gigabyte per process. ``simplify_scene`` rewrites a scene's XML
to use reduced copies, made once and kept in a cache folder. Only geoms that cannot collide are touched, and LIBERO's
bodies take their mass from the collision geoms, so the simulation stays the same bit by bit (a test compares).
"""

import functools
import hashlib
import io
import os
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from pokevla_jax.typing import Float
from pokevla_jax.typing import Int

VERSION = "fast-v1"
"""The fast renderer's name; raise it when the code below changes what is drawn."""

# Faces kept: a fraction of the original, between a floor that keeps small parts closed and a ceiling per mesh.
KEEP_FRACTION = 0.05
MIN_FACES = 150
MAX_FACES = 800
AGGRESSIVENESS = 5.0
# What a reduced surface may differ by: distance as a fraction of the mesh's size, and the part of its area beyond that.
TOLERANCE = 0.01
MAX_MISPLACED = 0.02
# A mesh of several pieces keeps all its faces if it has few, or if the object is this long (metres).
SMALL_MESH = 1000
LARGE_OBJECT = 0.5
# Cosine of the angle between faces above which an edge is drawn sharp.
CREASE = 0.7
MAX_TEXTURE = 512


def cache_folder() -> Path:
    """Where generated files are kept: ``$XDG_CACHE_HOME/pokevla_jax``, by default under ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "pokevla_jax"


def settings() -> str:
    """Name and hash of everything that decides the reduced files, for results and for the cache folder's name."""
    import fast_simplification
    import PIL

    facts: tuple[Any, ...] = (KEEP_FRACTION, MIN_FACES, MAX_FACES, AGGRESSIVENESS, TOLERANCE, MAX_MISPLACED, CREASE)
    facts += (SMALL_MESH, LARGE_OBJECT, MAX_TEXTURE)
    facts += (fast_simplification.__version__, PIL.__version__, mujoco.__version__)
    return f"{VERSION}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:8]}"


def simplify_scene(xml: str) -> str:
    """The scene with its visual-only meshes and its textures replaced by reduced copies.

    Args:
        xml: a MuJoCo model whose files are absolute paths, as robosuite composes it.
    """
    root = ET.fromstring(xml)
    asset = root.find("asset")
    assert asset is not None, "a composed scene has assets"
    collides = {
        geom.get("mesh")
        for geom in root.iter("geom")
        if geom.get("contype", "1") != "0" or geom.get("conaffinity", "1") != "0"
    }
    folder = cache_folder() / settings()
    for mesh in asset.findall("mesh"):
        if mesh.get("name") in collides or not set(mesh.keys()) <= {"name", "file", "scale"}:
            continue
        scale = mesh.get("scale", "1 1 1")
        source = Path(mesh.attrib["file"])
        mesh.set("file", _cached(folder, source, scale, ".msh", functools.partial(_reduced_mesh, source, scale)))
        mesh.set("scale", "1 1 1")
    for texture in asset.findall("texture"):
        if texture.get("file"):
            source = Path(texture.attrib["file"])
            texture.set("file", _cached(folder, source, "", ".png", functools.partial(_reduced_texture, source)))
    return ET.tostring(root, encoding="unicode")


def _cached(folder: Path, source: Path, parameters: str, suffix: str, make: Callable[[], bytes]) -> str:
    """Path of what ``make`` returns for this content and these parameters; worker processes may race for it."""
    key = hashlib.sha256(source.read_bytes() + parameters.encode()).hexdigest()[:24]
    path = folder / f"{key}{suffix}"
    if not path.exists():
        content = make()
        folder.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=folder, suffix=".partial")
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.replace(partial, path)
    return str(path)


def _reduced_texture(source: Path) -> bytes:
    """The image as PNG, scaled down to at most ``MAX_TEXTURE`` pixels a side."""
    from PIL import Image

    image = Image.open(source).convert("RGB")
    image.thumbnail((MAX_TEXTURE, MAX_TEXTURE), Image.Resampling.BOX)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _reduced_mesh(source: Path, scale: str) -> bytes:
    """The mesh in MuJoCo's binary format, scaled, with few faces, creased normals and transferred texture."""
    corners, uv = _load_corners(source, scale)
    points, inverse = np.unique(np.round(corners.reshape(-1, 3), 6), axis=0, return_inverse=True)
    faces = _without_degenerate(inverse.reshape(-1, 3))
    points, faces = _reduced_surface(points, faces)
    new_corners = points[faces]
    new_uv = None if uv is None else _transfer_texture(corners, uv, new_corners)
    return _write_msh(new_corners, _creased_normals(points, faces), new_uv)


def _reduced_surface(
    points: Float[np.ndarray, "n 3"], faces: Int[np.ndarray, "f 3"]
) -> tuple[Float[np.ndarray, "m 3"], Int[np.ndarray, "g 3"]]:
    """The surface with as few faces as still show it; unchanged if fewer would tear or turn parts of it over.

    Texture seams are ignored, so that a closed surface stays closed; the texture is put back afterwards.
    """
    import fast_simplification

    # The library's error thresholds are absolute: at LIBERO's centimetres it would merge anything, so it gets every
    # mesh at unit size.
    size = float(np.linalg.norm(np.ptp(points, axis=0)))
    if _num_pieces(faces) > 1 and (len(faces) < SMALL_MESH or size > LARGE_OBJECT):
        # Pieces that nearly touch (a table's top and its frame, a burner's rings) would show through each other.
        return points, faces
    target = int(np.clip(KEEP_FRACTION * len(faces), MIN_FACES, MAX_FACES))
    while target < 0.7 * len(faces):
        reduced, kept = fast_simplification.simplify(points / size, faces, target_count=target, agg=AGGRESSIVENESS)
        kept = _without_degenerate(kept)
        if len(kept) and misplaced_area((reduced, kept), (points / size, faces)) < MAX_MISPLACED:
            return reduced * size, kept
        target *= 2
    return points, faces


def _num_pieces(faces: Int[np.ndarray, "f 3"]) -> int:
    """Connected pieces of a surface."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    vertices, index = np.unique(faces, return_inverse=True)
    a, b, c = index.reshape(-1, 3).T
    links = (np.ones(2 * len(a)), (np.concatenate([a, b]), np.concatenate([b, c])))
    return int(connected_components(coo_matrix(links, shape=(len(vertices),) * 2), directed=False)[0])


def misplaced_area(
    first: tuple[Float[np.ndarray, "n 3"], Int[np.ndarray, "f 3"]],
    second: tuple[Float[np.ndarray, "m 3"], Int[np.ndarray, "g 3"]],
) -> float:
    """The larger fraction of either surface that has none of the other nearby and facing the same way.

    Estimated on random points; "nearby" is ``TOLERANCE`` of the mesh's size, which is 1 here.
    """
    from scipy.spatial import KDTree

    fractions = []
    for one, other in ((first, second), (second, first)):
        places, normals, _ = _sample(one, 2000)
        dense, dense_normals, spacing = _sample(other, 10000)
        distance, index = KDTree(dense).query(places, k=8)
        near = distance < TOLERANCE + 2.0 * spacing
        same_side = np.einsum("id,ikd->ik", normals, dense_normals[index]) > 0.0
        fractions.append(1.0 - float(np.mean((near & same_side).any(axis=1))))
    return max(fractions)


def _sample(
    surface: tuple[Float[np.ndarray, "n 3"], Int[np.ndarray, "f 3"]], count: int
) -> tuple[Float[np.ndarray, "c 3"], Float[np.ndarray, "c 3"], float]:
    """Points spread evenly over a surface, its normals there, and their typical distance."""
    points, faces = surface
    a, b, c = points[faces].transpose(1, 0, 2)
    normal = np.cross(b - a, c - a)
    area = np.linalg.norm(normal, axis=1)
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(faces), count, p=area / area.sum())
    weights = rng.dirichlet([1.0, 1.0, 1.0], count)
    places = np.einsum("ik,ikd->id", weights, points[faces][chosen])
    return places, normal[chosen] / area[chosen, None], float(np.sqrt(0.5 * area.sum() / count))


def _load_corners(source: Path, scale: str) -> tuple[Float[np.ndarray, "f 3 3"], Float[np.ndarray, "f 3 2"] | None]:
    """Corner positions (metres) and texture coordinates of every face of any file that MuJoCo reads."""
    xml = (
        f'<mujoco><asset><mesh name="m" file="{source}" scale="{scale}"/></asset>'
        '<worldbody><geom type="mesh" mesh="m" contype="0" conaffinity="0"/></worldbody></mujoco>'
    )
    model = mujoco.MjModel.from_xml_string(xml)
    rotation = np.empty(9)
    mujoco.mju_quat2Mat(rotation, model.mesh_quat[0])
    # The compiler centres a mesh and turns it to its principal axes; undo that.
    corners = model.mesh_vert[model.mesh_face].astype(np.float64) @ rotation.reshape(3, 3).T + model.mesh_pos[0]
    uv = model.mesh_texcoord[model.mesh_facetexcoord].astype(np.float64) if model.mesh_texcoordnum[0] else None
    return corners, uv


def _without_degenerate(faces: Int[np.ndarray, "f 3"]) -> Int[np.ndarray, "g 3"]:
    """The faces whose three vertices differ."""
    a, b, c = faces.T
    return faces[(a != b) & (b != c) & (a != c)].astype(np.int64)


def _creased_normals(points: Float[np.ndarray, "n 3"], faces: Int[np.ndarray, "f 3"]) -> Float[np.ndarray, "f 3 3"]:
    """A normal per corner: the mean over the faces around the vertex that bend less than ``CREASE`` away."""
    a, b, c = points[faces].transpose(1, 0, 2)
    area = np.cross(b - a, c - a)
    direction = area / np.maximum(np.linalg.norm(area, axis=1, keepdims=True), 1e-20)
    around: list[list[int]] = [[] for _ in points]
    for index, face in enumerate(faces):
        for vertex in face:
            around[vertex].append(index)
    normals = np.empty((len(faces), 3, 3))
    for index, face in enumerate(faces):
        for corner, vertex in enumerate(face):
            near = np.array(around[vertex])
            smooth = near[direction[near] @ direction[index] > CREASE]
            total = area[smooth].sum(axis=0) if len(smooth) else direction[index]
            normals[index, corner] = total / max(np.linalg.norm(total), 1e-20)
    return normals


def _transfer_texture(
    corners: Float[np.ndarray, "f 3 3"], uv: Float[np.ndarray, "f 3 2"], new_corners: Float[np.ndarray, "g 3 3"]
) -> Float[np.ndarray, "g 3 2"]:
    """Texture coordinates of the new corners: those of the nearest old vertex on the same piece of the texture.

    All corners of a face take them from one connected piece (that of the old face nearest to its centre); taken from
    two pieces, the face would show everything that lies between them in the image.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import KDTree

    vertices = np.concatenate([corners.reshape(-1, 3), uv.reshape(-1, 2)], axis=1)
    unique, inverse = np.unique(np.round(vertices, 5), axis=0, return_inverse=True)
    a, b, c = inverse.reshape(-1, 3).T
    edges = np.concatenate([np.stack([a, b]), np.stack([b, c])], axis=1)
    graph = coo_matrix((np.ones(edges.shape[1]), edges), shape=(len(unique),) * 2)
    _, piece = connected_components(graph, directed=False)
    _, nearest = KDTree(corners.mean(axis=1)).query(new_corners.mean(axis=1))
    piece_of_face = piece[a[nearest]]
    result = np.empty((len(new_corners), 3, 2))
    for label in np.unique(piece_of_face):
        members = np.flatnonzero(piece == label)
        chosen = piece_of_face == label
        _, index = KDTree(unique[members, :3]).query(new_corners[chosen])
        result[chosen] = unique[members[index], 3:]
    return result


def _write_msh(
    corners: Float[np.ndarray, "f 3 3"], normals: Float[np.ndarray, "f 3 3"], uv: Float[np.ndarray, "f 3 2"] | None
) -> bytes:
    """MuJoCo's legacy ``.msh``: four counts, vertices, normals, texture coordinates (float32), faces (int32)."""
    columns = [corners, normals] if uv is None else [corners, normals, uv]
    rows = np.concatenate([part.reshape(-1, part.shape[-1]) for part in columns], axis=1).astype(np.float32)
    unique, inverse = np.unique(rows, axis=0, return_inverse=True)
    header = np.array([len(unique), len(unique), 0 if uv is None else len(unique), len(corners)], np.int32)
    parts = [header, unique[:, :3], unique[:, 3:6], unique[:, 6:], inverse.astype(np.int32)]
    return b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
