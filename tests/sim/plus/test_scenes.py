"""Perturbations in the compiled scene: camera, arm, picture, layout - and nothing left behind for the next episode."""

import numpy as np
import pytest

from pokevla_jax.sim.environment import LiberoEnvironment
from pokevla_jax.sim.errors import AssetError
from pokevla_jax.sim.errors import SimulationError
from pokevla_jax.sim.plus import noise
from pokevla_jax.sim.plus import scenes
from pokevla_jax.sim.plus.camera import agentview_pose
from pokevla_jax.sim.plus.metadata import open_metadata
from pokevla_jax.sim.plus.robot_pose import joint_positions
from pokevla_jax.sim.rendering import rotated
from tests import plus_metadata

pytestmark = pytest.mark.sim
PROBLEM = "libero_floor_manipulation"


@pytest.fixture(scope="module")
def metadata(tmp_path_factory):
    return open_metadata(plus_metadata.write_metadata(tmp_path_factory.mktemp("plus") / "plus"))


@pytest.fixture(scope="module")
def tasks(metadata):
    """Those of the soup's scene, by perturbation."""
    return {task.perturbation.text: task for task in metadata.tasks("libero_object") if task.base == plus_metadata.SOUP}


@pytest.fixture
def start(soup_environment, metadata, tasks):
    """Starts the named task in the shared environment and returns that."""

    def begin(text, **options):
        scenes.start_episode(soup_environment, metadata, tasks[text], **options)
        return soup_environment

    camera = soup_environment.model.camera("agentview")
    position, quaternion = camera.pos.copy(), camera.quat.copy()
    yield begin
    # Other tests share the environment, and LIBERO's camera is not LIBERO-Plus's rounded one.
    soup_environment.reset()
    soup_environment.move_camera("agentview", position, quaternion)


def arm(environment):
    return environment.data.qpos[environment.sim_env.robots[0]._ref_joint_pos_indexes].copy()


NOISY = f"{plus_metadata.NEUTRAL}_noise_33"
CAMERA = "view_30_15_120_4_356_initstate_0"
ROBOT = "view_0_0_100_0_0_initstate_450"
REWRITTEN = f"language_2_{plus_metadata.NEUTRAL}"


def test_the_camera_stands_where_the_metadata_says_and_physics_does_not_notice(start, tasks):
    environment = start(REWRITTEN)
    state, wrist = environment.sim_state(), environment.render("wrist").rgb
    stock = environment.render("agentview").rgb
    neutral = agentview_pose(PROBLEM, tasks[REWRITTEN].perturbation.view)
    np.testing.assert_array_equal(environment.model.camera("agentview").pos, neutral[0])
    field_of_view = environment.model.camera("agentview").fovy.copy()

    start(CAMERA)
    position, quaternion = agentview_pose(PROBLEM, tasks[CAMERA].perturbation.view)
    camera = environment.model.camera("agentview")
    np.testing.assert_array_equal(camera.pos, position)
    np.testing.assert_allclose(camera.quat, quaternion / np.linalg.norm(quaternion), atol=1e-15)
    np.testing.assert_array_equal(camera.fovy, field_of_view)
    np.testing.assert_array_equal(environment.data.camera("agentview").xpos, position)
    np.testing.assert_array_equal(environment.sim_state(), state)
    np.testing.assert_array_equal(environment.render("wrist").rgb, wrist)
    assert np.abs(environment.render("agentview").rgb.astype(int) - stock).mean() > 10
    start(REWRITTEN)
    np.testing.assert_array_equal(environment.render("agentview").rgb, stock)


def test_official_robot_poses_drift_and_strict_ones_stand(start, soup_states):
    """The drift was measured with the benchmark's own code: joint 7 and hand after ten settling steps."""
    environment = start(ROBOT, settle_steps=0)
    np.testing.assert_array_equal(arm(environment), soup_states[0][1:8])
    start(ROBOT)
    assert arm(environment)[6] == pytest.approx(0.54, abs=0.006)
    hand = environment.proprio()[:3]
    np.testing.assert_allclose(hand, [-0.207, -0.010, 0.199], atol=1.5e-3)

    start(ROBOT, robot="strict", settle_steps=0)
    np.testing.assert_array_equal(arm(environment), joint_positions(450))
    start(ROBOT, robot="strict")
    np.testing.assert_allclose(arm(environment), joint_positions(450), atol=0.02)

    # The next episode's arm holds still where LIBERO's does.
    start(REWRITTEN)
    np.testing.assert_allclose(arm(environment), soup_states[0][1:8], atol=0.05)
    np.testing.assert_allclose(environment.proprio()[:3], [-0.153, -0.006, 0.248], atol=1.5e-3)


def test_an_unperturbed_task_is_liberos_own_episode(start, soup_states):
    """The posture that is handed to the reset is the robot's own: the same physics, bit by bit."""
    environment = start(REWRITTEN)
    perturbed = environment.sim_state()
    environment.reset(soup_states[0])
    np.testing.assert_array_equal(environment.sim_state(), perturbed)


def test_noise_is_seen_by_the_agent_view_after_every_step_and_nowhere_else(start):
    environment = start(REWRITTEN, settle_steps=0)
    first = [environment.render(view).rgb for view in ("agentview", "wrist")]
    action = np.array([0.3, 0, -0.3, 0, 0, 0, -1.0])
    environment.step(action)
    clean, wrist = (environment.render(view).rgb for view in ("agentview", "wrist"))

    start(NOISY, settle_steps=0, noise_seed=9)
    for view, picture in zip(("agentview", "wrist"), first, strict=True):
        np.testing.assert_array_equal(environment.render(view).rgb, picture)
    environment.step(action)
    np.testing.assert_array_equal(environment.render("wrist").rgb, wrist)
    seen = environment.observe()["images"][0]
    np.testing.assert_array_equal(seen, rotated(noise.corrupt(rotated(clean), 33, noise.draws_of(9, 1))))
    # Depth and mask stay what they are.
    assert environment.render("agentview", rgb=False, mask=True).rgb is None
    # The picture of the stored state, drawn later, is the one that the policy saw.
    state = environment.sim_state()
    environment.step(action)
    assert (environment.render("agentview").rgb != seen).any()
    environment.set_sim_state(state)
    np.testing.assert_array_equal(environment.render("agentview").rgb, seen)
    start(NOISY, settle_steps=0, noise_seed=10)
    environment.step(action)
    assert (environment.render("agentview").rgb != seen).any()
    start(REWRITTEN, settle_steps=0)
    environment.step(action)
    np.testing.assert_array_equal(environment.render("agentview").rgb, clean)


def test_an_environment_of_another_scene_is_refused(soup_environment, metadata, tasks):
    cheese = next(task for task in metadata.tasks("libero_object") if task.base == plus_metadata.CHEESE)
    for task in (cheese, tasks["level1_sample2"]):
        with pytest.raises(SimulationError, match="is compiled for 'pick_up_the_alphabet_soup"):
            scenes.start_episode(soup_environment, metadata, task)


def test_tasks_without_a_scene_of_their_own_share_liberos(metadata, tasks):
    shared = {scenes.scene_task(metadata, tasks[text]) for text in (NOISY, CAMERA, ROBOT, REWRITTEN)}
    assert shared == {tasks[NOISY].base_task}
    layout = scenes.scene_task(metadata, tasks["level1_sample2"])
    assert layout.bddl_file.stem.endswith("level1_sample2") and layout.init_states_file.stem.endswith("level1_sample2")
    assert layout.language == tasks[NOISY].base_task.language


@pytest.mark.slow
def test_hard_resets_change_nothing(libero_assets, start, metadata, tasks):
    """They make a new robot and a new model each time."""
    task = tasks[ROBOT]
    soft = start(ROBOT)
    environment = LiberoEnvironment(task.base_task, assets=libero_assets, hard_reset=True)
    try:
        for text in (CAMERA, ROBOT):
            scenes.start_episode(environment, metadata, tasks[text])
            start(text)
            np.testing.assert_array_equal(environment.sim_state(), soft.sim_state())
            np.testing.assert_array_equal(environment.render("agentview").rgb, soft.render("agentview").rgb)
    finally:
        environment.close()


@pytest.mark.slow
def test_a_layout_starts_where_its_own_state_says(libero_assets):
    metadata = plus_metadata.real_metadata()
    base = metadata.tasks("libero_object")[0].base
    task = next(
        task
        for task in metadata.tasks("libero_object")
        if task.perturbation.text.startswith("level") and task.base == base
    )
    environment = scenes.make_environment(metadata, task, assets=libero_assets)
    try:
        scenes.start_episode(environment, metadata, task, settle_steps=0)
        (state,) = scenes.load_init_states(environment.task)
        np.testing.assert_array_equal(environment.sim_state()[1:], state[1:])
        stock = scenes.load_init_states(task.base_task)[0]
        assert stock.shape != state.shape or np.abs(stock[1:] - state[1:]).max() > 0.02
    finally:
        environment.close()


def test_scenes_of_the_archive_are_asked_for(libero_assets, metadata, tasks, tmp_path):
    """LIBERO's own assets do not have them."""
    light = tasks["light_9"]
    text = metadata.bddl_file(light).read_text()
    named = text.replace("LIBERO_Floor_Manipulation", "Libero_Floor_Manipulation_floor_light_sync_modified_9")
    metadata.bddl_file(light).write_text(named)
    with pytest.raises(AssetError, match=r"needs the scene floor_light_sync_modified_9\.xml"):
        scenes.make_environment(metadata, light, assets=libero_assets)
