"""Short experiments that tell whether a simulator behaves as LIBERO's published results assume.

They measure and judge nothing: what a number should be, and what to do about another one, is ``eval doctor``'s to say.
"""

import time
from dataclasses import dataclass

import mujoco
import numpy as np

from pokevla_jax.sim.environment import LiberoEnvironment
from pokevla_jax.sim.errors import SimulationError
from pokevla_jax.sim.experts.expert import ScriptedExpert
from pokevla_jax.sim.plus.robot_pose import joint_positions
from pokevla_jax.sim.rendering import CAMERAS
from pokevla_jax.sim.tasks import TaskSpec
from pokevla_jax.sim.tasks import load_init_states
from pokevla_jax.typing import Float

# LIBERO-Plus's start posture in which the arm is built: one of the farthest, half a radian from the usual one.
POSTURE = 450


@dataclass(frozen=True)
class Playback:
    """An expert's episode and what came of its actions when they were played again.

    Attributes:
        steps: actions of the expert's episode.
        solved: the expert reached the goal.
        repeated: so did its actions, played from the same state after a reset (not tried where the expert failed).
        same_end: both episodes ended in the same simulator state, bit by bit.
    """

    steps: int
    solved: bool
    repeated: bool
    same_end: bool


def settle_tilt(environment: LiberoEnvironment, states: Float[np.ndarray, "n d"], body: str) -> Float[np.ndarray, " n"]:
    """Degrees by which ``body`` leans once it has come to rest (ten control steps) from each of the stored states."""
    tilts = []
    for state in states:
        environment.reset(state, settle_steps=10)
        upright = environment.data.xmat[environment.sim_env.obj_body_id[body]].reshape(3, 3)[2, 2]
        tilts.append(np.degrees(np.arccos(np.clip(upright, -1.0, 1.0))))
    return np.array(tilts)


def seen_at(environment: LiberoEnvironment, view: str, name: str, *, right: float, up: float) -> tuple[float, float]:
    """Where a view shows an object that is held 25 cm before the camera, ``right`` and ``up`` of its axis (metres).

    What the camera sees with the object there is compared with what it sees without.

    Returns:
        Row and column of the middle of what changed, from 0 (top, left) to 1.

    Raises:
        SimulationError: when the picture does not change.
    """
    model, data = environment.model, environment.data
    state = environment.sim_state()
    camera = model.camera(CAMERAS[view]).id
    axes = data.cam_xmat[camera].reshape(3, 3)
    # MuJoCo's cameras look along -z, with x to the right and y up.
    place = data.cam_xpos[camera] + axes @ [right, up, -0.25]
    address = 1 + model.jnt_qposadr[model.body_jntadr[environment.sim_env.obj_body_id[name]]]
    images = []
    for position in (place, [0.0, 0.0, -5.0]):
        moved = state.copy()
        moved[address : address + 3] = position
        environment.set_sim_state(moved)
        rgb = environment.render(view).rgb
        assert rgb is not None
        images.append(rgb.astype(np.int16))
    environment.set_sim_state(state)
    changed = np.abs(images[0] - images[1]).max(-1) > 24
    if not changed.any():
        raise SimulationError(f"The {view} picture stays the same whether or not {name} is before the camera")
    rows, columns = np.nonzero(changed)
    return float((rows.mean() + 0.5) / changed.shape[0]), float((columns.mean() + 0.5) / changed.shape[1])


def arm_drift(environment: LiberoEnvironment, state: Float[np.ndarray, " d"]) -> tuple[float, float]:
    """How far the hand moves in the ten waiting steps, and how far from there it ends in a perturbed robot (metres).

    LIBERO-Plus builds its robots in a perturbed posture, but the stored state puts the usual joint angles back. What is
    left of the perturbation is the controller's memory of the posture it was built in, to which the arm drifts.
    """
    environment.reset(state, settle_steps=0)
    start = environment.proprio()[:3]
    ends = []
    for number in (0, POSTURE):
        environment.reset(state, settle_steps=10, posture=joint_positions(number))
        ends.append(environment.proprio()[:3])
    return float(np.linalg.norm(ends[0] - start)), float(np.linalg.norm(ends[1] - ends[0]))


def play_back(environment: LiberoEnvironment, task: TaskSpec, index: int) -> Playback:
    """Has the expert solve ``task`` from a stored state, then repeats its actions from the same state."""
    state = load_init_states(task)[index]
    environment.reset(state)
    expert = ScriptedExpert(environment)
    actions: list[np.ndarray] = []
    solved = False
    while len(actions) < task.max_steps and not solved:
        actions.append(expert.act())
        solved = environment.step(actions[-1])
    if not solved:
        return Playback(len(actions), solved=False, repeated=False, same_end=False)
    end = environment.sim_state().tobytes()
    environment.reset(state)
    repeated = [environment.step(action) for action in actions][-1]
    return Playback(len(actions), solved=True, repeated=repeated, same_end=environment.sim_state().tobytes() == end)


def frames_per_second(environment: LiberoEnvironment, frames: int = 12) -> float:
    """Rendered pictures of the third-person view per second, after a first one that loads textures."""
    environment.render("agentview")
    start = time.perf_counter()
    for _ in range(frames):
        environment.render("agentview")
    return frames / (time.perf_counter() - start)


def gl_renderer() -> str:
    """What OpenGL calls the device that draws, such as "NVIDIA H100" or "llvmpipe"; in a context of its own."""
    context = mujoco.gl_context.GLContext(16, 16)
    try:
        context.make_current()
        from OpenGL import GL  # its platform is chosen by MuJoCo's import of the same library

        return GL.glGetString(GL.GL_RENDERER).decode()
    finally:
        context.free()
