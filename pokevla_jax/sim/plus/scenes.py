"""Bringing an environment to the start of a LIBERO-Plus episode.

Camera, robot, language and noise tasks are played in LIBERO's own scene of their base task, which is compiled once for
all of them; light, background and layout tasks have a scene each.
"""

import dataclasses
from typing import Any

import numpy as np

from pokevla_jax.sim import bddl
from pokevla_jax.sim.assets import Assets
from pokevla_jax.sim.environment import LiberoEnvironment
from pokevla_jax.sim.environment import SensorNoise
from pokevla_jax.sim.errors import SimulationError
from pokevla_jax.sim.plus import asset_archive
from pokevla_jax.sim.plus import noise
from pokevla_jax.sim.plus.camera import agentview_pose
from pokevla_jax.sim.plus.metadata import Metadata
from pokevla_jax.sim.plus.metadata import PlusTask
from pokevla_jax.sim.plus.robot_pose import RobotMode
from pokevla_jax.sim.plus.robot_pose import joint_positions
from pokevla_jax.sim.rendering import rotated
from pokevla_jax.sim.tasks import TaskSpec
from pokevla_jax.sim.tasks import load_init_states
from pokevla_jax.typing import Float
from pokevla_jax.typing import UInt8

NOISY_VIEW = "agentview"


def scene_task(metadata: Metadata, task: PlusTask) -> TaskSpec:
    """The task as the simulator plays it: LIBERO's own, with its own scene and initial state where it has them."""
    base = task.base_task
    if not task.perturbation.own_scene:
        return base
    path = metadata.bddl_file(task)
    return dataclasses.replace(
        base,
        bddl_file=path,
        init_states_file=metadata.init_states_file(task),
        objects_of_interest=bddl.objects_of_interest(path),
    )


def make_environment(metadata: Metadata, task: PlusTask, *, assets: Assets, **options: Any) -> LiberoEnvironment:
    """The environment for ``task`` and all tasks that share its scene; ``options`` are ``LiberoEnvironment``'s.

    Raises:
        AssetError: if the scene needs a file of LIBERO-Plus's asset archive that ``assets`` lacks.
    """
    spec = scene_task(metadata, task)
    if task.perturbation.needs_assets:
        asset_archive.register(spec.bddl_file, assets)
    return LiberoEnvironment(spec, assets=assets, **options)


def start_episode(
    environment: LiberoEnvironment,
    metadata: Metadata,
    task: PlusTask,
    *,
    robot: RobotMode = "official",
    noise_seed: int = 0,
    settle_steps: int = 10,
    **draws: int,
) -> None:
    """Resets the environment to the task's start: state, camera, posture and noise, settled.

    Args:
        environment: of ``make_environment`` for this task or one with the same scene.
        metadata: where layouts have their initial states.
        task: the task.
        robot: what a perturbed start posture does; see ``robot_pose``.
        noise_seed: the noise of each control step is a function of this and of the step's number.
        settle_steps: control steps before the first policy step.
        draws: ``seed``, ``draw`` and ``compiled`` of the environment's reset.

    Raises:
        SimulationError: for an environment of another scene.
    """
    spec = scene_task(metadata, task)
    if environment.task.bddl_file != spec.bddl_file:
        raise SimulationError(f"The environment is compiled for {environment.task.name!r}, not for {task.name!r}")
    state, perturbation = load_init_states(spec)[0], task.perturbation
    posture = joint_positions(perturbation.robot)
    if perturbation.robot and robot == "strict":
        state = _with_arm_at(environment, state, posture)
    environment.reset(state, settle_steps=settle_steps, posture=posture, **draws)
    environment.move_camera("agentview", *agentview_pose(bddl.problem_name(spec.bddl_file), perturbation.view))
    if perturbation.noise:
        environment.sensor_noise = sensor_noise(perturbation.noise, noise_seed)


def sensor_noise(number: int, seed: int) -> SensorNoise:
    """Noise ``number`` on the agent view, drawn anew for each control step from ``seed`` and the step.

    As in the benchmark, the wrist view stays clean, and so does the picture of the initial state before any step: only
    pictures that a step returns are disturbed. With settling steps no policy sees that one.
    """
    noise.describe(number)  # a number that does not exist is answered now

    def disturb(view: str, step: int, picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        if view != NOISY_VIEW or step == 0:
            return picture
        # The policy's picture is the simulator's, which is what the benchmark disturbs, turned by 180 degrees.
        return rotated(noise.corrupt(rotated(picture), number, noise.draws_of(seed, step)))

    return disturb


def _with_arm_at(
    environment: LiberoEnvironment, state: Float[np.ndarray, "d"], posture: Float[np.ndarray, "7"]
) -> Float[np.ndarray, "d"]:
    """``state`` with the arm at rest in ``posture``."""
    arm, num_positions = environment.sim_env.robots[0], environment.model.nq
    state = state.copy()
    state[1 + np.array(arm._ref_joint_pos_indexes)] = posture
    state[1 + num_positions + np.array(arm._ref_joint_vel_indexes)] = 0.0
    return state
