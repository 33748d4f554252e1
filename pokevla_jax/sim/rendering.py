"""Images, instance masks and metric depth from a MuJoCo model, and the camera geometry that goes with them.

Every image is LIBERO's policy image: the frame buffer as OpenGL stores it (bottom row first) rotated by 180 degrees.
Seen from the camera this is the upright picture mirrored left to right, so the horizontal focal length of its
intrinsics is negative; the extrinsics stay a rigid transform.
"""

import contextlib
from dataclasses import dataclass
from typing import Any
from typing import Protocol

import mujoco
import numpy as np

from pokevla_jax.typing import Float
from pokevla_jax.typing import UInt8

CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}
"""View name -> MuJoCo camera name."""

GeomLabels = UInt8[np.ndarray, " g"]
"""A number below 255 for each geom of a model; 0 is the surroundings."""


@dataclass(frozen=True)
class ViewFrame:
    """One rendered view; what was not asked for is None.

    Attributes:
        rgb: colours, uint8.
        mask: the label of what is visible; 1 for objects of interest and else 0, unless other labels were asked for.
        depth: metres along the optical axis.
    """

    rgb: UInt8[np.ndarray, "h w 3"] | None = None
    mask: UInt8[np.ndarray, "h w"] | None = None
    depth: Float[np.ndarray, "h w"] | None = None


@dataclass(frozen=True)
class Camera:
    """Pinhole geometry of one view of the policy image (x right, y down, z forward).

    A pixel (column u, row v) at depth z lies at ``z * inv(intrinsics) @ [u + 0.5, v + 0.5, 1]`` in the camera frame,
    metres; ``intrinsics[0, 0]`` is negative because the policy image is mirrored.
    """

    intrinsics: Float[np.ndarray, "3 3"]
    base_from_camera: Float[np.ndarray, "4 4"]


def camera_geometry(
    model: mujoco.MjModel, data: mujoco.MjData, camera: str, size: int, base_from_world: Float[np.ndarray, "4 4"]
) -> Camera:
    """Intrinsics and extrinsics of ``camera`` for a square policy image of ``size`` pixels."""
    index = model.camera(camera).id
    focal = 0.5 * size / np.tan(0.5 * np.deg2rad(model.cam_fovy[index]))
    intrinsics = np.array([[-focal, 0.0, 0.5 * size], [0.0, focal, 0.5 * size], [0.0, 0.0, 1.0]])
    world_from_camera = np.eye(4)
    # MuJoCo's cameras look along -z with y up.
    world_from_camera[:3, :3] = data.cam_xmat[index].reshape(3, 3) * np.array([1.0, -1.0, -1.0])
    world_from_camera[:3, 3] = data.cam_xpos[index]
    return Camera(intrinsics, base_from_world @ world_from_camera)


class Renderer(Protocol):
    """Draws one camera of one model; a new one is needed after a hard reset."""

    def render(
        self, data: mujoco.MjData, camera: str, *, rgb: bool, labels: GeomLabels | None, depth: bool
    ) -> ViewFrame:
        """The policy image of ``camera``; the mask shows the label of each geom, None for no mask."""

    def close(self) -> None:
        """Frees the OpenGL resources."""


def metric_depth(buffer: Float[np.ndarray, "h w"], model: mujoco.MjModel) -> Float[np.ndarray, "h w"]:
    """Depth-buffer values (0 at the near plane, 1 at the far plane) as metres along the optical axis."""
    near = model.vis.map.znear * model.stat.extent
    far = model.vis.map.zfar * model.stat.extent
    return (near / (1.0 - buffer.astype(np.float64) * (1.0 - near / far))).astype(np.float32)


def mark_segments(scene: mujoco.MjvScene, labels: GeomLabels) -> None:
    """Numbers the scene's geoms by their labels, so that a segmentation pass draws the mask itself.

    MuJoCo draws ``segid + 1`` as a 24-bit colour and skips what has -1: sites and fully transparent geoms, which the
    pass would otherwise draw solid, in front of what they do not hide. Reading one byte back also avoids robosuite's
    conversion, which overflows on numpy 2.
    """
    kind = int(mujoco.mjtObj.mjOBJ_GEOM)
    for index in range(scene.ngeom):
        geom = scene.geoms[index]
        shown = geom.objtype == kind and geom.rgba[3] > 0.0
        geom.segid = int(labels[geom.objid]) if shown else -1


class FastRenderer:
    """One small off-screen buffer, no multisampling, visual geoms only: what recordings and moved layouts use."""

    def __init__(self, model: mujoco.MjModel, size: int):
        self._model = model
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        model.vis.quality.offsamples = 0
        self._gl = mujoco.gl_context.GLContext(size, size)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._size = size
        self._scene = mujoco.MjvScene(model, maxgeom=model.ngeom + model.nsite + 16)
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = 0
        self._option.geomgroup[1] = 1
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED

    def render(
        self, data: mujoco.MjData, camera: str, *, rgb: bool, labels: GeomLabels | None, depth: bool
    ) -> ViewFrame:
        self._gl.make_current()
        self._camera.fixedcamid = self._model.camera(camera).id
        mujoco.mjv_updateScene(
            self._model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        return draw(self._model, self._scene, self._context, self._size, rgb=rgb, labels=labels, depth=depth)

    def close(self) -> None:
        """Frees textures and buffers in the context they belong to; may be called twice."""
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None

    def __del__(self) -> None:
        # Left to themselves, MuJoCo's objects would be freed in whichever OpenGL context is current.
        with contextlib.suppress(Exception):
            self.close()


class RobosuiteRenderer:
    """robosuite's own off-screen context (640 x 480, four samples per pixel): what published protocols use."""

    def __init__(self, sim: Any, size: int):
        self._sim = sim
        self._size = size
        self._offscreen = sim._render_context_offscreen

    def render(
        self, data: mujoco.MjData, camera: str, *, rgb: bool, labels: GeomLabels | None, depth: bool
    ) -> ViewFrame:
        offscreen = self._offscreen
        # robosuite assumes that its context is the only one in the process.
        offscreen.gl_ctx.make_current()
        offscreen.cam.type = mujoco.mjtCamera.mjCAMERA_FIXED
        offscreen.cam.fixedcamid = self._sim.model.camera_name2id(camera)
        model = self._sim.model._model
        mujoco.mjv_updateScene(
            model, data, offscreen.vopt, offscreen.pert, offscreen.cam, mujoco.mjtCatBit.mjCAT_ALL, offscreen.scn
        )
        return draw(model, offscreen.scn, offscreen.con, self._size, rgb=rgb, labels=labels, depth=depth)

    def close(self) -> None:
        """Nothing to free: the context belongs to robosuite's simulator."""


def draw(
    model: mujoco.MjModel,
    scene: mujoco.MjvScene,
    context: mujoco.MjrContext,
    size: int,
    *,
    rgb: bool,
    labels: GeomLabels | None,
    depth: bool,
) -> ViewFrame:
    """Draws an updated scene into the current context: depth comes with the colours, the mask takes a second pass."""
    rect = mujoco.MjrRect(0, 0, size, size)
    colours = np.empty((size, size, 3), np.uint8)
    zbuffer = np.empty((size, size), np.float32) if depth else None
    image = mask = metres = None
    if rgb or (depth and labels is None):
        mujoco.mjr_render(rect, scene, context)
        mujoco.mjr_readPixels(colours, zbuffer, rect, context)
        image = rotated(colours) if rgb else None
    if labels is not None:
        mark_segments(scene, labels)
        scene.flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = 1
        scene.flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 1
        mujoco.mjr_render(rect, scene, context)
        mujoco.mjr_readPixels(colours, None if rgb else zbuffer, rect, context)
        scene.flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = 0
        scene.flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 0
        # Where nothing is drawn stays 0; so does label 0.
        mask = rotated(np.maximum(colours[..., 0], 1) - 1)
    if zbuffer is not None:
        metres = rotated(metric_depth(zbuffer, model))
    return ViewFrame(image, mask, metres)


def rotated(image: np.ndarray) -> np.ndarray:
    """The frame buffer turned by 180 degrees, as a contiguous array."""
    return np.ascontiguousarray(image[::-1, ::-1])
