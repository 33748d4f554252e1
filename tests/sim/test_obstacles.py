"""Boxes around the hand: heights against MuJoCo's ray caster, gaps against balls of known distance."""

from types import SimpleNamespace

import mujoco
import numpy as np
import pytest

from pokevla_jax.sim.experts.grasps import Grasp
from pokevla_jax.sim.experts.grasps import Rim
from pokevla_jax.sim.experts.grasps import choose_grasp
from pokevla_jax.sim.experts.grasps import rim_grasps
from pokevla_jax.sim.experts.hand import Hand
from pokevla_jax.sim.experts.hand import downward
from pokevla_jax.sim.experts.hand import rotation_vector
from pokevla_jax.sim.experts.obstacles import Obstacles

SCENE = """<mujoco><worldbody>
  <geom type="plane" size="2 2 0.1"/>
  <body name="base"><geom type="box" size="0.1 0.1 1.5" pos="-0.6 0 0"/></body>
  <body name="table"><geom type="box" size="0.5 0.5 0.02" pos="0 0 0.88"/></body>
  <body name="shelf" pos="0.2 0.1 1.0" euler="25 -15 40">
    <geom type="box" size="0.1 0.05 0.01" pos="0.01 0.02 0.03"/>
  </body>
  <body name="wall" pos="-0.2 -0.2 1.0"><geom type="box" size="0.003 0.1 0.1"/></body>
  <body name="ghost" pos="0.1 -0.2 1.2"><geom type="box" size="0.1 0.1 0.1" contype="0" conaffinity="0"/></body>
  <body name="bowl" pos="-0.1 0.2 0.9"><freejoint/><geom type="box" size="0.05 0.05 0.05"/></body>
</worldbody></mujoco>"""


@pytest.fixture(scope="module")
def scene():
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    robot = SimpleNamespace(robot_model=SimpleNamespace(root_body="base"))
    return SimpleNamespace(model=model, data=data, sim_env=SimpleNamespace(robots=[robot]))


def hand_at(position):
    return Hand(np.array(position), downward(0.0), opening=1.0, holding=False, pinching=False, closing=False)


def test_heights_are_where_rays_from_above_end(scene):
    bowl = scene.model.body("bowl").id
    obstacles = Obstacles(scene, [bowl])
    rng = np.random.default_rng(0)
    places = rng.uniform(-0.45, 0.45, (300, 2))
    heights = obstacles.height_at(places)
    geom = np.zeros(1, np.int32)
    # The ray caster sees the ghost and the bowl too; they are hidden from it by their group.
    scene.model.geom_group[scene.model.geom_bodyid == scene.model.body("ghost").id] = 3
    scene.model.geom_group[scene.model.geom_bodyid == bowl] = 3
    try:
        groups = np.array([1, 0, 0, 0, 0, 0], np.uint8)
        for place, height in zip(places, heights, strict=True):
            start = np.array([*place, 10.0])
            distance = mujoco.mj_ray(scene.model, scene.data, start, np.array([0, 0, -1.0]), groups, 1, -1, geom)
            assert height == pytest.approx(10.0 - distance, abs=1e-9)
    finally:
        scene.model.geom_group[:] = 0
    assert obstacles.height_at(np.array([[3.0, 3.0]])) == [0.0]
    assert len(set(heights.round(3))) > 5  # the tilted shelf was met


def test_room_is_the_gap_between_balls_and_boxes(scene):
    obstacles = Obstacles(scene, [])
    radii = np.array([0.01, 0.02])
    # Above the table, beside the thin wall, and inside it.
    balls = np.array(
        [
            [[0.0, 0.0, 1.0], [0.0, 0.0, 0.95]],
            [[-0.2 + 0.003 + 0.05, -0.2, 1.0], [0.3, -0.3, 1.2]],
            [[-0.2, -0.2, 1.0], [0.3, -0.3, 1.2]],
        ]
    )
    np.testing.assert_allclose(obstacles.room(balls, radii), [0.03, 0.04, -0.013], atol=1e-9)
    far = np.full((1, 2, 3), 5.0)
    assert obstacles.room(far, radii) == [np.inf]


def test_neither_robot_nor_what_is_ignored_nor_what_cannot_collide_counts(scene):
    bowl = scene.model.body("bowl").id
    assert len(Obstacles(scene, []).center) == 4
    assert len(Obstacles(scene, [bowl]).center) == 3


def test_the_way_passes_over_the_highest_thing_near_it(scene):
    obstacles = Obstacles(scene, [])
    start, end = np.array([-0.4, -0.2]), np.array([0.0, -0.2])
    assert obstacles.top_along(start, end, 0.02) == pytest.approx(1.1)
    assert obstacles.top_along(start, np.array([-0.3, -0.2]), 0.02) == pytest.approx(0.9)
    assert obstacles.top_along(np.array([3.0, 3.0]), np.array([4.0, 3.0]), 0.1) == 0.0


def test_what_hangs_over_is_left_the_shortest_way(scene):
    obstacles = Obstacles(scene, [scene.model.body("bowl").id])
    shelf = scene.data.body("shelf").xpos
    low, high = shelf - [0.15, 0.02, 0.1], shelf + [-0.04, 0.02, -0.06]
    way = obstacles.way_out(low, high)
    assert way is not None and way[2] == 0
    assert obstacles.way_out(low + way * 1.01, high + way * 1.01) is None
    assert obstacles.way_out(low - [0, 0.5, 0], high - [0, 0.5, 0]) is None


def test_a_rim_is_taken_where_there_is_room(scene):
    """Beside the wall, the fingers go to the other sides of the rim; the palm never crosses the wall."""
    rim = Rim(0.05, 0.05)
    position = np.array([-0.2 + 0.003 + 0.06, -0.2, 0.9])
    grasps = rim_grasps(rim, position, np.eye(3))
    obstacles = Obstacles(scene, [])
    hand = hand_at([-0.1, -0.2, 1.2])
    chosen = choose_grasp(grasps, hand, obstacles, np.array([-0.6, 0.0]), np.array([0.3, 0.0, 0.0]))
    assert abs(chosen.along[1]) > 0.8
    # The same bowl in the open is taken without turning the hand.
    free = rim_grasps(rim, np.array([-0.05, -0.4, 0.9]), np.eye(3))
    chosen = choose_grasp(free, hand_at([-0.05, -0.3, 1.2]), obstacles, np.array([-0.6, 0.0]), np.zeros(3))
    assert abs(chosen.yaw) < 0.01
    for grasp in grasps:
        reach = np.linalg.norm((grasp.position - position)[:2])
        assert reach == pytest.approx(rim.radius - grasp.offset)
        assert grasp.position[2] < position[2] + rim.height


def test_half_a_turn_is_the_same_grasp():
    for angle in np.linspace(-3, 3, 13):
        axis = np.array([np.cos(angle), np.sin(angle), 0.0])
        one, other = Grasp.at(np.zeros(3), axis, 0.01), Grasp.at(np.zeros(3), -axis, 0.01)
        assert one.yaw == pytest.approx(other.yaw)
        assert abs(one.along @ axis) == pytest.approx(1)
        np.testing.assert_allclose(downward(one.yaw)[:, 0], one.along, atol=1e-12)
        turned = rotation_vector(downward(one.yaw + 0.3) @ downward(one.yaw).T)
        np.testing.assert_allclose(turned, [0, 0, 0.3], atol=1e-12)
