"""The environment: physics that no option changes, pictures of stored states, camera geometry, goals."""

import dataclasses

import mujoco
import numpy as np
import pytest

from pokevla_jax.sim import tasks
from pokevla_jax.sim.environment import VIEWS
from pokevla_jax.sim.environment import LiberoEnvironment
from pokevla_jax.sim.errors import AssetError
from pokevla_jax.sim.errors import SimulationError
from pokevla_jax.sim.rendering import CAMERAS
from pokevla_jax.sim.versions import protocol_facts

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def published(libero_assets):
    """The same task as published protocols run it: robosuite's renderer, hard resets, 256 pixels."""
    task = tasks.load_task("libero_object", 0)
    environment = LiberoEnvironment(
        task, assets=libero_assets, renderer="robosuite", image_size=256, hard_reset=True, seed=7
    )
    yield environment
    environment.close()


def _rollout(environment, state, *, look=False):
    """States after ten random actions that push, turn and close the gripper."""
    environment.reset(state, settle_steps=2)
    actions = np.random.default_rng(3).uniform(-1, 1, (10, 7))
    states = []
    for action in actions:
        environment.step(action)
        if look:
            environment.render("wrist", mask=True, depth=True)
            environment.proprio()
        states.append(environment.sim_state())
    return np.array(states)


def test_renderer_resets_seed_looking_and_the_past_leave_physics_alone(published, soup_environment, soup_states):
    expected = _rollout(published, soup_states[4])
    np.testing.assert_array_equal(_rollout(soup_environment, soup_states[4]), expected)
    # A soft reset after another episode, which left the gripper half closed and the solver warm.
    soup_environment.reset(soup_states[9], settle_steps=0)
    for _ in range(5):
        soup_environment.step(np.array([1, 1, -1, 1, 1, 1, 1.0]))
    np.testing.assert_array_equal(_rollout(soup_environment, soup_states[4], look=True), expected)


def test_published_observations_are_robosuites(published, soup_states):
    published.reset(soup_states[0], settle_steps=1)
    sim = published.sim_env.sim
    for view in VIEWS:
        frame = published.render(view, mask=True, depth=True)
        sim._render_context_offscreen.gl_ctx.make_current()
        raw, buffer = sim.render(camera_name=CAMERAS[view], width=256, height=256, depth=True)
        np.testing.assert_array_equal(frame.rgb, raw[::-1, ::-1])
        nearest = np.unravel_index(buffer[::-1, ::-1].argmin(), buffer.shape)
        assert frame.depth[nearest] == frame.depth.min()
    sensors = published._observables
    np.testing.assert_array_equal(published.proprio()[:3], sensors["robot0_eef_pos"]._sensor({}).astype(np.float32))
    np.testing.assert_array_equal(
        published.proprio()[6:], sensors["robot0_gripper_qpos"]._sensor({}).astype(np.float32)
    )
    # The hand points down: half a turn about the world's x axis.
    np.testing.assert_allclose(np.abs(published.proprio()[3:6]), [np.pi, 0, 0], atol=0.15)


def test_the_fast_picture_shows_the_published_one(published, soup_environment, soup_states):
    for environment in (published, soup_environment):
        environment.reset(soup_states[0], settle_steps=2)
    for view in VIEWS:
        slow, fast = (e.render(view, mask=True) for e in (published, soup_environment))
        shrunk = slow.rgb.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
        assert np.abs(shrunk - fast.rgb).mean() < 5
        coverage = slow.mask.reshape(128, 2, 128, 2).mean(axis=(1, 3))
        assert abs(coverage.sum() - fast.mask.sum()) < 0.1 * coverage.sum() + 5


def test_pictures_of_a_stored_state_are_those_taken_live(soup_environment, soup_states):
    environment = soup_environment
    environment.reset(soup_states[1])
    for _ in range(3):
        environment.step(np.array([0.5, 0.5, -1, 0, 0, 0.3, 1.0]))
    state, live = environment.sim_state(), [environment.render(v, mask=True, depth=True) for v in VIEWS]
    proprio, cameras = environment.proprio(), [environment.camera(v) for v in VIEWS]
    environment.reset(soup_states[2])
    environment.set_sim_state(state)
    for view, frame, camera in zip(VIEWS, live, cameras, strict=True):
        again = environment.render(view, mask=True, depth=True)
        for name in ("rgb", "mask", "depth"):
            np.testing.assert_array_equal(getattr(again, name), getattr(frame, name))
        np.testing.assert_array_equal(environment.camera(view).base_from_camera, camera.base_from_camera)
    np.testing.assert_array_equal(environment.proprio(), proprio)


@pytest.mark.parametrize("view", VIEWS)
def test_depth_and_mask_agree_with_rays_through_the_pixels(soup_environment, soup_states, view):
    """MuJoCo's ray caster, given rays from ``camera``, meets what the picture shows, where the depth says."""
    environment = soup_environment
    environment.reset(soup_states[0])
    for _ in range(12):
        environment.step(np.array([0.3, -0.6, -0.3, 0, 0, 0, -1.0]))
    frame, camera = environment.render(view, rgb=False, mask=True, depth=True), environment.camera(view)
    world_from_base = np.linalg.inv(environment.base_from_world())
    wanted = {environment.sim_env.obj_body_id[n] for n in environment.task.objects_of_interest}
    model, data = environment.model, environment.data
    assert 100 < frame.mask.sum() < 0.5 * frame.mask.size
    rng = np.random.default_rng(0)
    inside = np.argwhere(frame.mask == 1)
    pixels = np.concatenate([inside[rng.choice(len(inside), 60)], rng.integers(0, 128, (60, 2))])
    mask_right = depth_right = 0
    for row, column in pixels:
        ray = np.linalg.inv(camera.intrinsics) @ [column + 0.5, row + 0.5, 1.0]
        point = camera.base_from_camera @ np.append(frame.depth[row, column] * ray, 1.0)
        start = (world_from_base @ camera.base_from_camera)[:3, 3]
        direction = (world_from_base @ point)[:3] - start
        geom = np.zeros(1, np.int32)
        groups = np.array([0, 1, 0, 0, 0, 0], np.uint8)
        hit = mujoco.mj_ray(model, data, start, direction / np.linalg.norm(direction), groups, 1, -1, geom)
        mask_right += (model.body_rootid[model.geom_bodyid[geom[0]]] in wanted) == bool(frame.mask[row, column])
        depth_right += abs(hit - np.linalg.norm(direction)) < 0.005
    # Pixels on an outline may fall to either side.
    assert mask_right >= 0.95 * len(pixels) and depth_right >= 0.9 * len(pixels)


def test_a_known_position_projects_into_its_mask(soup_environment, soup_states):
    environment = soup_environment
    only_target = dataclasses.replace(environment.task, objects_of_interest=(environment.task.target,))
    stock = environment.task
    environment.reset(soup_states[0])
    environment.set_task(only_target)
    try:
        mask, camera = environment.render("agentview", rgb=False, mask=True).mask, environment.camera("agentview")
    finally:
        environment.set_task(stock)
    in_base = environment.base_from_world() @ np.append(environment.object_position(stock.target), 1.0)
    x, y, z = (np.linalg.inv(camera.base_from_camera) @ in_base)[:3]
    u, v, _ = camera.intrinsics @ [x / z, y / z, 1.0]
    assert mask[int(v), int(u)] == 1 and z > 0
    np.testing.assert_allclose(np.argwhere(mask).mean(axis=0) + 0.5, [v, u], atol=2.5)
    assert np.linalg.det(camera.base_from_camera[:3, :3]) == pytest.approx(1)


def _put_into_basket(environment, name):
    """Moves an object over the basket's floor and lets it come to rest."""
    body = environment.model.body(environment.sim_env.obj_body_id[name])
    address = environment.model.jnt_qposadr[body.jntadr[0]]
    state = environment.sim_state()
    state[1 + address : 4 + address] = environment.object_position("basket_1") + [0, 0, 0.07]
    environment.reset(state, settle_steps=0)
    return [environment.step(np.array([0, 0, 0, 0, 0, 0, -1.0])) for _ in range(4)][-1]


def test_the_goal_is_the_benchmarks_predicate_and_follows_the_task(soup_environment, soup_states):
    environment, stock = soup_environment, soup_environment.task
    environment.reset(soup_states[0])
    assert not environment.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
    assert _put_into_basket(environment, "alphabet_soup_1")
    other = dataclasses.replace(
        stock, target="butter_1", objects_of_interest=("butter_1", "basket_1"), language="pick up the butter"
    )
    before = environment.render("agentview", rgb=False, mask=True).mask
    environment.set_task(other)
    try:
        assert not environment.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
        assert environment.observe()["prompt"] == "pick up the butter"
        assert (environment.render("agentview", rgb=False, mask=True).mask != before).any()
        environment.reset(soup_states[0])
        assert _put_into_basket(environment, "butter_1")
        environment.reset(soup_states[0])
        assert not _put_into_basket(environment, "alphabet_soup_1")
    finally:
        environment.set_task(stock)


def test_an_observation_has_the_agreed_shape(soup_environment, soup_states):
    soup_environment.reset(soup_states[0], settle_steps=1)
    observation = soup_environment.observe()
    assert observation["images"].shape == (2, 128, 128, 3) and observation["images"].dtype == np.uint8
    assert observation["state"].shape == (8,) and observation["state"].dtype == np.float32
    # Upright: the arm hangs in from the top, and the floor's front edge is empty.
    agentview = observation["images"][0].astype(float)
    assert agentview[:20].std() > 2 * agentview[-20:].std()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda e: e.render("front"), "Unknown view 'front'; known: agentview, wrist"),
        (lambda e: e.object_position("milk"), "No object 'milk' in this scene; it has alphabet_soup_1"),
        (lambda e: e.set_sim_state(np.zeros(7)), "has 110 numbers, not 7"),
        (lambda e: e.set_task(dataclasses.replace(e.task, goal_object="milk_1")), "no contain_region"),
    ],
)
def test_bad_requests_are_answered_in_one_sentence(soup_environment, call, words):
    with pytest.raises(SimulationError, match=words):
        call(soup_environment)


def test_protocol_facts_name_what_decides_a_result(libero_assets):
    fast = protocol_facts(libero_assets, renderer="fast", image_size=128, hard_reset=False)
    assert fast["renderer"].startswith("fast-v1-") and not fast["published"]
    assert fast["assets"] == libero_assets.kind and fast["versions"]["mujoco"] == mujoco.__version__
    slow = protocol_facts(libero_assets, renderer="robosuite", image_size=256, hard_reset=True)
    assert slow["published"] == (libero_assets.kind == "real")


@pytest.fixture(scope="module")
def standin_assets(tmp_path_factory):
    from pokevla_jax.sim import assets
    from pokevla_jax.sim import standins

    return assets.inspect_assets(standins.generate(tmp_path_factory.mktemp("assets") / "standins"))


def _settles(assets, index):
    """The task builds from the stand-ins, and its stored states leave every object standing where it was."""
    task = tasks.load_task("libero_object", index)
    environment = LiberoEnvironment(task, assets=assets)
    try:
        state = tasks.load_init_states(task)[index]
        environment.reset(state)
        for order, name in enumerate(environment.sim_env.obj_body_id):
            start = state[10 + 7 * order : 12 + 7 * order]
            np.testing.assert_allclose(environment.object_position(name)[:2], start, atol=2e-3)
            assert -0.01 < environment.object_position(name)[2] < 0.1
        assert environment.render("agentview", rgb=False, mask=True).mask.sum() > 100
        assert _put_into_basket(environment, task.target)
    finally:
        environment.close()


def test_stand_ins_hold_a_stored_state_and_the_goal(standin_assets):
    _settles(standin_assets, 1)


@pytest.mark.slow
@pytest.mark.parametrize("index", range(10))
def test_stand_ins_serve_every_task(standin_assets, index):
    _settles(standin_assets, index)


def test_other_suites_say_that_they_need_real_assets(standin_assets):
    with pytest.raises(AssetError, match="the generated stand-ins cover libero_object only"):
        LiberoEnvironment(tasks.load_task("libero_goal", 0), assets=standin_assets)
