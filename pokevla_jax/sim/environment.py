"""One LIBERO task in MuJoCo: reset, step, look - and render only when asked."""

import atexit
import contextlib
import dataclasses
import weakref
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from typing import Literal

import mujoco
import numpy as np

from pokevla_jax.sim import bddl
from pokevla_jax.sim.assets import Assets
from pokevla_jax.sim.errors import AssetError
from pokevla_jax.sim.errors import SimulationError
from pokevla_jax.sim.geometry import descendants
from pokevla_jax.sim.rendering import CAMERAS
from pokevla_jax.sim.rendering import Camera
from pokevla_jax.sim.rendering import FastRenderer
from pokevla_jax.sim.rendering import GeomLabels
from pokevla_jax.sim.rendering import Renderer
from pokevla_jax.sim.rendering import RobosuiteRenderer
from pokevla_jax.sim.rendering import ViewFrame
from pokevla_jax.sim.rendering import camera_geometry
from pokevla_jax.sim.simplify import simplify_scene
from pokevla_jax.sim.tasks import CONTROL_HZ
from pokevla_jax.sim.tasks import TaskSpec
from pokevla_jax.sim.upstream import import_libero
from pokevla_jax.typing import Float
from pokevla_jax.typing import UInt8

VIEWS = tuple(CAMERAS)
SETTLE_ACTION = np.array([0.0] * 6 + [-1.0])
"""What every LIBERO evaluator sends while the objects come to rest: no motion, gripper open."""
MAX_PLACEMENTS = 100

SensorNoise = Callable[[str, int, UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "h w 3"]]
"""View, control steps since the reset, picture -> the picture that is seen."""


class LiberoEnvironment:
    """One compiled LIBERO scene that can be reset, stepped at 20 Hz and looked at.

    Args:
        task: what to do and in which scene (``task.bddl_file``).
        assets: where the scene's meshes and textures are.
        renderer: "robosuite" draws and observes as published evaluations do (multisampled, one physics step behind);
            "fast" draws a simplified copy of the scene without multisampling. The physics is the same, bit by bit.
        image_size: side of the square policy images, pixels.
        hard_reset: recompile the scene on every reset, as published protocols do.
        seed: drives what a reset draws at random, anew at each reset.

    Attributes:
        sensor_noise: disturbs every picture that is rendered, until the next reset.
    """

    def __init__(
        self,
        task: TaskSpec,
        *,
        assets: Assets,
        renderer: Literal["robosuite", "fast"] = "fast",
        image_size: int = 128,
        hard_reset: bool = False,
        seed: int = 0,
    ):
        if renderer not in ("robosuite", "fast"):
            raise SimulationError(f"Unknown renderer {renderer!r}; known: robosuite, fast")
        self.assets = assets
        self.renderer_name = renderer
        self.image_size = image_size
        self._hard_reset = hard_reset
        self._seed = seed
        self._start_time = 0.0
        self.sensor_noise: SensorNoise | None = None
        self._renderer: Renderer | None = None
        self.sim_env = self._build(task.bddl_file)
        self.task = task
        _close_at_exit(self)

    def _build(self, bddl_file: Path) -> Any:
        """robosuite's environment for the scene that the task file describes."""
        bddl.parse(bddl_file)  # so that a broken file is answered in one sentence
        libero = import_libero(self.assets.root)
        import robosuite
        from libero.libero.envs import bddl_utils

        problem = bddl_utils.get_problem_info(str(bddl_file))["problem_name"]
        scene_class = libero.TASK_MAPPING[problem]
        if self.renderer_name == "fast":
            scene_class = _with_scene_filter(scene_class, simplify_scene)
        try:
            with _seeded(self._seed):
                env = scene_class(
                    bddl_file_name=str(bddl_file),
                    robots=["Panda"],
                    controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
                    gripper_types="default",
                    initialization_noise=None,
                    use_camera_obs=False,
                    has_renderer=False,
                    has_offscreen_renderer=self.renderer_name == "robosuite",
                    control_freq=CONTROL_HZ,
                    ignore_done=True,
                    hard_reset=self._hard_reset,
                )
        except FileNotFoundError as error:
            covers = "; the generated stand-ins cover libero_object only" if self.assets.kind == "standins" else ""
            raise AssetError(f"{bddl_file.stem} needs {error.filename}, which is missing{covers}") from error
        except ValueError as error:
            if "Error opening file" not in str(error):
                raise
            raise AssetError(f"{bddl_file.stem} cannot be built ({str(error).splitlines()[0]})") from error
        # Nothing reads robosuite's observables (``proprio`` and ``render`` look at the simulator when asked), but each
        # of the 25 physics steps would update them, and a hard reset expects to find them.
        self._observables, env._observables = env._observables, {}
        # robosuite hides its coloured marks (grip site and axis) at a reset; states may be drawn before the first one.
        env.visualize(vis_settings=dict.fromkeys(env._visualizations, False))
        return env

    def set_task(self, task: TaskSpec) -> None:
        """Asks for another task in the same compiled scene; instruction, mask and goal ("target in goal") follow.

        Raises:
            SimulationError: if the scene lacks the target, or the goal object has no region to put things into.
        """
        for name in (task.target, task.goal_object):
            self._require(name)
        region = f"{task.goal_object}_contain_region"
        if region not in self.sim_env.object_states_dict:
            raise SimulationError(f"{task.goal_object} has no contain_region, so {task.target} cannot be put into it")
        self.sim_env.parsed_problem["goal_state"] = [["in", task.target, region]]
        self.sim_env.parsed_problem["obj_of_interest"] = list(task.objects_of_interest)
        self.sim_env.obj_of_interest = list(task.objects_of_interest)
        self.task = task

    @property
    def model(self) -> mujoco.MjModel:
        """The compiled model; another object after a hard reset."""
        return self.sim_env.sim.model._model

    @property
    def data(self) -> mujoco.MjData:
        """The simulator state; another object after a hard reset."""
        return self.sim_env.sim.data._data

    def reset(
        self,
        sim_state: Float[np.ndarray, "d"] | None = None,
        *,
        settle_steps: int = 10,
        posture: Float[np.ndarray, "7"] | None = None,
        seed: int | None = None,
        draw: int = 0,
        compiled: int = 0,
    ) -> None:
        """Starts an episode from ``sim_state`` (or from positions drawn by the task's own placement rules).

        Fixtures (cabinets, stoves) are placed at random, within 2 cm, in every case: they have no joint, so that no
        ``sim_state`` holds where they stand.

        Args:
            sim_state: time, joint positions, joint velocities, as ``tasks.load_init_states`` and ``sim_state`` give.
            settle_steps: control steps without motion and with the gripper open, while objects come to rest.
            posture: joint angles (radians) with which the controller is built; the robot's own by default. It remembers
                them when ``sim_state`` puts the arm elsewhere: their orientation of the hand is its goal until an
                action turns the hand, and its null space pulls towards them.
            seed: of what is drawn, instead of the environment's own.
            draw: how many resets came before this one since the generator was seeded, for evaluators that seed it once.
            compiled: how often such an evaluator had compiled the scene before that. LIBERO never forgets whom it asks
                how far drawers stand open: once more for each compilation, which shifts all that is drawn afterwards.
        """
        self.sensor_noise = None
        robot = self.sim_env.robots[0]
        robot.init_qpos = robot.robot_model.init_qpos if posture is None else np.asarray(posture, np.float64)
        # A hard reset makes a new robot, from this.
        self.sim_env.robot_configs[0]["initial_qpos"] = robot.init_qpos
        self.sim_env._observables = self._observables
        if self._hard_reset:
            import_libero(self.assets.root)  # another environment of this process may use other assets
        with _seeded(self._seed if seed is None else seed):
            self._reset_robosuite(draw, compiled)
        self.sim_env._observables = {}
        for robot in self.sim_env.robots:
            # A soft reset keeps the gripper's ramp, so that the first closing would start where the last ended.
            robot.gripper.current_action = np.zeros_like(robot.gripper.current_action)
        if self._hard_reset and self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        start = self.sim_state() if sim_state is None else sim_state
        # The constraint solver starts from its last accelerations, which robosuite leaves from whatever was simulated
        # before (other episodes, or the random placement that ``sim_state`` replaces). Clearing them makes an episode a
        # function of its state and actions alone.
        mujoco.mj_resetData(self.model, self.data)
        self.set_sim_state(start)
        self._start_time = self.data.time
        for _ in range(settle_steps):
            self.step(SETTLE_ACTION)

    def _reset_robosuite(self, draw: int = 0, compiled: int = 0) -> None:
        """robosuite's reset, tried again when random placement finds no room, as LIBERO does.

        Everything that a reset draws is drawn ``draw`` times before, and forgotten: the scene is compiled only once.
        What an environment of LIBERO's own would have kept from its earlier compilations is kept by count alone, so
        that nothing depends on how often this one was reset.
        """
        from robosuite.utils.errors import RandomizationError

        env, place, left, copies = self.sim_env, self.sim_env._reset_internal, draw, compiled

        def place_again() -> None:
            nonlocal left, copies
            body_pos, body_quat = self.model.body_pos.copy(), self.model.body_quat.copy()
            samplers = env.object_property_initializers
            try:
                while True:
                    copies += 1
                    env.object_property_initializers = samplers * copies
                    place()
                    if not left:
                        return
                    left -= 1
                    env.sim.reset()
                    # Fixtures are placed by changing the model.
                    self.model.body_pos[:], self.model.body_quat[:] = body_pos, body_quat
            finally:
                env.object_property_initializers = samplers

        env._reset_internal = place_again
        try:
            for _ in range(MAX_PLACEMENTS):
                if self._hard_reset:
                    env.object_property_initializers = []  # compiling adds them, and nothing takes them away
                try:
                    env.reset()
                    return
                except RandomizationError:
                    continue
        finally:
            del env._reset_internal
        raise SimulationError(f"No collision-free placement for {self.task.name} in {MAX_PLACEMENTS} tries")

    def step(self, action: Float[np.ndarray, "7"]) -> bool:
        """Acts for one control step (50 ms) and returns whether the task's goal holds.

        Args:
            action: translation (1 = 5 cm), rotation (1 = 0.5 rad), gripper (-1 open, +1 close), each in [-1, 1].
        """
        self.sim_env.step(np.asarray(action, np.float64))
        success = bool(self.sim_env._check_success())
        if self.renderer_name == "fast":
            # robosuite's observations lag one physics step (2 ms) behind the joint positions. Here everything that is
            # read follows from the state, so that pictures of stored states equal those taken live. Positions alone
            # are recomputed: another solver call would change the accelerations that the next step starts from.
            mujoco.mj_kinematics(self.model, self.data)
            mujoco.mj_camlight(self.model, self.data)
        return success

    def move_camera(self, view: str, position: Float[np.ndarray, "3"], quaternion: Float[np.ndarray, "4"]) -> None:
        """Puts a camera elsewhere, until the scene is compiled again; physics does not notice.

        Args:
            view: the view it takes.
            position: metres, in the frame of the body that carries the camera (the world, for the agent view).
            quaternion: wxyz, in the same frame.
        """
        camera = self.model.camera(CAMERAS[view])
        camera.pos, camera.quat = position, np.asarray(quaternion) / np.linalg.norm(quaternion)
        mujoco.mj_camlight(self.model, self.data)

    def proprio(self) -> Float[np.ndarray, "8"]:
        """End-effector position (metres, world), axis-angle and the two finger positions, as LIBERO policies expect."""
        robot = self.sim_env.robots[0]
        position = self.data.site_xpos[robot.eef_site_id]
        w, x, y, z = self.data.body(robot.robot_model.eef_name).xquat
        fingers = self.data.qpos[robot._ref_gripper_joint_pos_indexes]
        return np.concatenate([position, _axis_angle(np.array([x, y, z, w])), fingers]).astype(np.float32)

    def sim_state(self) -> Float[np.ndarray, "d"]:
        """Time, joint positions and joint velocities: what a recording stores."""
        return self.sim_env.sim.get_state().flatten()

    def set_sim_state(self, state: Float[np.ndarray, "d"]) -> None:
        """Puts the simulator into ``state`` for looking at it; the controller's memory is not part of a state."""
        expected = 1 + self.model.nq + self.model.nv
        if len(state) != expected:
            raise SimulationError(f"A state of {self.task.name} has {expected} numbers, not {len(state)}")
        self.sim_env.sim.set_state_from_flattened(np.asarray(state, np.float64))
        self.sim_env.sim.forward()

    def object_position(self, name: str) -> Float[np.ndarray, "3"]:
        """Position in the world of an object's body or of a region's centre (a drawer, a stove's plate), metres."""
        if name in self.sim_env.object_sites_dict:
            return self.data.site(name).xpos.copy()
        self._require(name)
        return self.data.xpos[self.sim_env.obj_body_id[name]].copy()

    def base_from_world(self) -> Float[np.ndarray, "4 4"]:
        """The rigid transform from world to robot base coordinates."""
        base = self.data.body(self.sim_env.robots[0].robot_model.root_body)
        rotation = base.xmat.reshape(3, 3)
        transform = np.eye(4)
        transform[:3, :3] = rotation.T
        transform[:3, 3] = -rotation.T @ base.xpos
        return transform

    def render(
        self,
        view: str,
        *,
        rgb: bool = True,
        mask: bool = False,
        depth: bool = False,
        labels: GeomLabels | None = None,
    ) -> ViewFrame:
        """What one camera sees now; see ``rendering`` for the orientation.

        Args:
            view: one of ``VIEWS``.
            rgb: draw colours.
            mask: draw the task's objects of interest.
            depth: draw metres.
            labels: of geoms, drawn as the mask instead of the objects of interest.
        """
        if mask and labels is None:
            labels = self._interesting_geoms()
        if view not in CAMERAS:
            raise SimulationError(f"Unknown view {view!r}; known: {', '.join(CAMERAS)}")
        if self._renderer is None:
            if self.renderer_name == "fast":
                self._renderer = FastRenderer(self.model, self.image_size)
            else:
                self._renderer = RobosuiteRenderer(self.sim_env.sim, self.image_size)
            _close_at_exit(self)
        frame = self._renderer.render(self.data, CAMERAS[view], rgb=rgb, labels=labels, depth=depth)
        if self.sensor_noise is None or frame.rgb is None:
            return frame
        # From the simulator's clock, so that the picture of a stored state is the one taken live.
        step = round((self.data.time - self._start_time) * CONTROL_HZ)
        return dataclasses.replace(frame, rgb=self.sensor_noise(view, step, frame.rgb))

    def camera(self, view: str) -> Camera:
        """The geometry of ``view`` now."""
        return camera_geometry(self.model, self.data, CAMERAS[view], self.image_size, self.base_from_world())

    def observe(self) -> dict[str, Any]:
        """What a policy sees: ``images`` uint8 ``v h w 3``, ``state`` float32 ``8``, ``prompt``."""
        images = [self.render(view).rgb for view in VIEWS]
        return {"images": np.array(images), "state": self.proprio(), "prompt": self.task.language}

    def _require(self, name: str) -> None:
        if name not in self.sim_env.obj_body_id:
            raise SimulationError(f"No object {name!r} in this scene; it has {', '.join(self.sim_env.obj_body_id)}")

    def _interesting_geoms(self) -> GeomLabels:
        """1 for all geoms that belong to the task's objects of interest, 0 for the others."""
        roots = set()
        for name in self.task.objects_of_interest:
            site = self.sim_env.object_sites_dict.get(name)
            if name in self.sim_env.obj_body_id:
                roots.add(self.sim_env.obj_body_id[name])
            elif site is not None and getattr(site, "parent_name", None) in self.sim_env.obj_body_id:
                # A region of an object (a drawer, a shelf): the moving part it is fixed to. Regions of the table or the
                # floor have nothing of their own to see.
                roots.add(self.model.site(name).bodyid[0])
        return np.isin(self.model.geom_bodyid, list(descendants(self.model, roots))).astype(np.uint8)

    def close(self) -> None:
        """Frees the simulator and its OpenGL context; may be called twice, and is called at exit."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self.sim_env.close()
        _open_environments.discard(self)


_open_environments: weakref.WeakSet[LiberoEnvironment] = weakref.WeakSet()


def _close_at_exit(environment: LiberoEnvironment) -> None:
    """Has the environment closed while OpenGL still works; afterwards EGL prints a traceback for each context.

    MuJoCo and robosuite end OpenGL in exit hooks that the first context registers. Hooks run last to first, so ours is
    moved behind them whenever a context may have been made.
    """
    _open_environments.add(environment)
    atexit.unregister(_close_environments)
    atexit.register(_close_environments)


def _close_environments() -> None:
    for environment in list(_open_environments):
        environment.close()


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds numpy's global generator, which robosuite draws from, and puts it back afterwards."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def _with_scene_filter(scene_class: Any, scene_filter: Callable[[str], str]) -> Any:
    """``scene_class`` whose scene XML passes through ``scene_filter`` before MuJoCo compiles it.

    robosuite has a hook for that, but its constructor clears the hook before it compiles the first time. The subclass
    keeps the name, because LIBERO compares it with the problem's.
    """

    def _initialize_sim(self: Any, xml_string: str | None = None) -> None:
        self.set_xml_processor(scene_filter)
        scene_class._initialize_sim(self, xml_string)

    return type(scene_class)(scene_class.__name__, (scene_class,), {"_initialize_sim": _initialize_sim})


def _axis_angle(quaternion: Float[np.ndarray, "4"]) -> Float[np.ndarray, "3"]:
    """Rotation vector of an xyzw quaternion; the angle is in [0, 2 pi], as LIBERO's data sets have it (robosuite)."""
    w = np.clip(quaternion[3], -1.0, 1.0)
    sine = np.sqrt(1.0 - w * w)
    return np.zeros(3) if np.isclose(sine, 0.0) else quaternion[:3] * 2.0 * np.arccos(w) / sine
