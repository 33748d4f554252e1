"""The scripted expert: solves its tasks, from disturbed states too, with smooth actions and no memory."""

import mujoco
import numpy as np
import pytest

from pokevla_jax.sim.demonstrate import Noise
from pokevla_jax.sim.demonstrate import demonstrate
from pokevla_jax.sim.environment import LiberoEnvironment
from pokevla_jax.sim.errors import SimulationError
from pokevla_jax.sim.experts.expert import ScriptedExpert
from pokevla_jax.sim.experts.goals import solvable_tasks
from pokevla_jax.sim.layouts import apply_layout
from pokevla_jax.sim.layouts import sample_layout
from pokevla_jax.sim.scenes import make_environment
from pokevla_jax.sim.tasks import load_task

pytestmark = pytest.mark.sim

SILENT = Noise(action=0.0, start_steps=0, burst=0.0)


@pytest.fixture(scope="module")
def shared(libero_assets):
    """One scene in which all ten tasks can be played."""
    environment = make_environment("libero_object", 0, "shared", assets=libero_assets)
    yield environment
    environment.close()


@pytest.mark.parametrize("task", [1, 7])
def test_solves_a_flat_box_and_a_carton(shared, task):
    """The two hardest grasps: a box as low as the fingers' tips, a carton whose roof catches on them."""
    trajectory = demonstrate(shared, sample_layout(shared, "shared", 7, 2, task=task), SILENT)
    assert trajectory.success
    assert len(trajectory.label) < 130


def test_actions_are_in_range_smooth_and_visible(shared):
    trajectory = demonstrate(shared, sample_layout(shared, "shared", 3, 0, task=0), SILENT)
    label = trajectory.label
    assert trajectory.success
    assert label.dtype == np.float32
    assert np.abs(label).max() <= 1.0
    np.testing.assert_array_equal(trajectory.executed, label)
    # Open, closed, open again: nothing flickers.
    assert set(label[:, 6]) == {-1.0, 1.0}
    assert np.abs(np.diff(label[:, 6])).astype(bool).sum() == 2
    # Motion changes direction at a handful of places only.
    jumps = np.abs(np.diff(label[:, :6], axis=0)).max(1)
    assert (jumps > 0.4).sum() <= 5


def test_has_no_memory(shared):
    """An expert that saw the whole episode and one that wakes up in its middle say the same."""
    apply_layout(shared, sample_layout(shared, "shared", 3, 1, task=5))
    old = ScriptedExpert(shared)
    for step in range(45):
        action = old.act()
        if step % 15 == 14:
            np.testing.assert_array_equal(ScriptedExpert(shared).act(), action)
            np.testing.assert_array_equal(old.act(), action)
        shared.step(action)


def test_follows_a_change_of_target(shared):
    apply_layout(shared, sample_layout(shared, "shared", 3, 2, task=4))
    expert = ScriptedExpert(shared)
    first = expert.act()
    apply_layout(shared, sample_layout(shared, "shared", 3, 2, task=9))
    second = expert.act()
    assert shared.task.target == "orange_juice_1"
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(second, ScriptedExpert(shared).act())


def test_recovers_after_dropping_the_object(shared):
    apply_layout(shared, sample_layout(shared, "shared", 3, 3, task=6))
    expert = ScriptedExpert(shared)
    target = shared.task.target
    while shared.object_position(target)[2] < 0.1:
        shared.step(expert.act())
    for _ in range(12):
        shared.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
    assert shared.object_position(target)[2] < 0.05
    assert any(shared.step(expert.act()) for _ in range(200))


def test_opens_half_closed_fingers_before_it_descends(shared):
    apply_layout(shared, sample_layout(shared, "shared", 3, 4, task=0))
    expert = ScriptedExpert(shared)
    for _ in range(30):
        action = expert.act()
        action[6] = 1.0
        shared.step(action)
    height = shared.proprio()[2]
    assert shared.proprio()[6] < 0.01
    assert height > 0.08
    lowest = height
    while shared.proprio()[6] < 0.036:
        action = expert.act()
        assert action[6] == -1.0
        shared.step(action)
        lowest = min(lowest, shared.proprio()[2])
    assert lowest > 0.08


def test_tasks_without_an_expert_are_refused_and_the_others_named():
    class Elsewhere:
        task = load_task("libero_10", 5)

    with pytest.raises(
        SimulationError, match=r"can do 'STUDY_SCENE1_.*'; of libero_10 it can do tasks 0 \(LIVING_ROOM"
    ):
        ScriptedExpert(Elsewhere())
    for suite in ("libero_spatial", "libero_object", "libero_goal"):
        assert len(solvable_tasks(suite)) == 10
    assert solvable_tasks("libero_90") == ()


def test_takes_a_tilted_bowl_by_its_rim(whole_assets):
    """The bowl on the ramekin leans, and is wider than the gripper."""
    environment = make_environment("libero_spatial", 5, assets=whole_assets)
    try:
        trajectory = demonstrate(environment, sample_layout(environment, "stored", 0, 3), SILENT)
        assert trajectory.success
        assert np.abs(trajectory.label).max() <= 1.0
        # Has no memory either: woken up in the middle, it goes on as it did.
        middle = len(trajectory.label) // 2
        environment.set_sim_state(trajectory.sim_state[middle])
        np.testing.assert_allclose(ScriptedExpert(environment).act(), trajectory.label[middle], atol=0.05)
    finally:
        environment.close()


def test_waits_where_nothing_can_be_grasped(whole_assets):
    """A bottle on its side, rolled so that both its narrow sides slope: the fingers fit around neither."""
    environment = make_environment("libero_goal", 2, "stored", assets=whole_assets)
    try:
        apply_layout(environment, sample_layout(environment, "stored", 0, 0))
        expert = ScriptedExpert(environment)
        body = environment.sim_env.obj_body_id["wine_bottle_1"]
        orientation = environment.model.jnt_qposadr[environment.model.body_jntadr[body]] + np.arange(3, 7)
        upright = environment.data.qpos[orientation].copy()
        for roll in (0.0, np.pi / 4):
            lying, rolled = np.zeros(4), np.zeros(4)
            mujoco.mju_mulQuat(rolled, [np.cos(roll / 2), 0.0, 0.0, np.sin(roll / 2)], upright)
            mujoco.mju_mulQuat(lying, [np.sqrt(0.5), np.sqrt(0.5), 0.0, 0.0], rolled)
            environment.data.qpos[orientation] = lying
            environment.sim_env.sim.forward()
            action = expert.act()
            assert action[6] == -1.0
            assert action[2] > 0.2
            # It turns to what it could take, and only rises from what it could not.
            assert abs(action[5]) == pytest.approx(1.0 if roll == 0.0 else 0.0, abs=0.01)
    finally:
        environment.close()


@pytest.mark.slow
@pytest.mark.parametrize("task", range(10))
@pytest.mark.parametrize("suite", ["libero_spatial", "libero_goal"])
def test_other_suites(libero_assets, suite, task):
    """At least four of five stored states."""
    environment = make_environment(suite, task, assets=libero_assets)
    try:
        layouts = [sample_layout(environment, "stored", 0, index) for index in range(0, 50, 10)]
        assert _successes(environment, layouts, SILENT) >= 4
    finally:
        environment.close()


@pytest.mark.slow
@pytest.mark.parametrize("task", range(10))
def test_stored_states(libero_assets, task):
    """At least 95 % of the 50 stored states, without noise."""
    environment = make_environment("libero_object", task, "stored", assets=libero_assets)
    try:
        layouts = [sample_layout(environment, "stored", 0, index) for index in range(50)]
        assert _successes(environment, layouts, SILENT) >= 48
    finally:
        environment.close()


@pytest.mark.slow
@pytest.mark.parametrize("noise", [SILENT, Noise()], ids=["clean", "noisy"])
@pytest.mark.parametrize("kind", ["moved", "shared"])
def test_sampled_layouts(libero_assets, kind, noise):
    """At least 95 % of 100 layouts, ten of each task."""
    solved = 0
    for task in range(10):
        environment = make_environment("libero_object", task, kind, assets=libero_assets)
        layouts = [sample_layout(environment, kind, 77, index) for index in range(10)]
        solved += _successes(environment, layouts, noise)
        environment.close()
    assert solved >= 95


def _successes(environment: LiberoEnvironment, layouts, noise: Noise) -> int:
    return sum(demonstrate(environment, layout, noise).success for layout in layouts)
