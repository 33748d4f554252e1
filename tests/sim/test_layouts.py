"""Layouts: deterministic, free of collisions, visible, at rest, and without a hint of the target in its place."""

import dataclasses
import json

import numpy as np
import pytest

from pokevla_jax.sim import layouts
from pokevla_jax.sim import scenes
from pokevla_jax.sim.environment import SETTLE_ACTION
from pokevla_jax.sim.errors import SimulationError
from pokevla_jax.sim.layouts import Layout
from pokevla_jax.sim.layouts import apply_layout
from pokevla_jax.sim.layouts import sample_layout
from pokevla_jax.sim.tasks import load_init_states

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def moved(libero_assets):
    """The scene of task 1 (cream cheese)."""
    environment = scenes.make_environment("libero_object", 1, "moved", assets=libero_assets)
    yield environment
    environment.close()


@pytest.fixture(scope="module")
def shared(libero_assets):
    environment = scenes.make_environment("libero_object", 7, "shared", assets=libero_assets)
    yield environment
    environment.close()


def positions(layout):
    return {name: np.array(pose[:2]) for name, pose in layout.objects.items()}


def contacts(environment):
    """Pairs of objects of the scene that touch each other."""
    names = {body: name for name, body in environment.sim_env.obj_body_id.items()}
    pairs = environment.model.geom_bodyid[environment.data.contact.geom[: environment.data.ncon]]
    return {tuple(sorted((names[a], names[b]))) for a, b in pairs if a in names and b in names and a != b}


def test_a_layout_depends_on_kind_task_seed_and_index_alone(moved, shared):
    for environment, kind in ((moved, "moved"), (shared, "shared")):
        first = sample_layout(environment, kind, 3, 5)
        apply_layout(environment, sample_layout(environment, kind, 9, 1))
        assert sample_layout(environment, kind, 3, 5) == first
        assert len({str(sample_layout(environment, kind, s, i).objects) for s in (3, 4) for i in (5, 6)}) == 4
    assert sample_layout(shared, "shared", 3, 5, task=0) != sample_layout(shared, "shared", 3, 5, task=1)


def test_layouts_survive_json(moved, shared):
    for layout in (
        sample_layout(moved, "moved", 0, 0),
        sample_layout(moved, "stored", 0, 7),
        sample_layout(shared, "shared", 0, 0),
    ):
        assert Layout.from_json(json.loads(json.dumps(layout.to_json()))) == layout
    with pytest.raises(SimulationError, match=r"Not a layout.*objects"):
        Layout.from_json({"kind": "moved"})


def test_moved_layouts_move_everything_by_no_more_than_they_say(moved):
    stored, model = load_init_states(moved.task), moved.model
    shifts = {name: [] for name in moved.sim_env.obj_body_id}
    for index in range(60):
        layout = sample_layout(moved, "moved", 1, index)
        for name, body in moved.sim_env.obj_body_id.items():
            address = 1 + model.jnt_qposadr[model.body_jntadr[body]]
            shifts[name].append(positions(layout)[name] - stored[layout.init_state, address : address + 2])
    for name, values in shifts.items():
        limit = layouts.MOVED[{moved.task.target: "target", "basket_1": "basket"}.get(name, "distractor")]
        largest = np.abs(values).max(0)
        assert (largest <= limit + 1e-6).all(), name
        # The whole range is used: rejection does not shrink it.
        assert (largest > 0.8 * limit).all(), name


def test_shared_layouts_hide_the_target_among_equals(shared):
    """Over many layouts every object stands where the target stands, and stands there as often."""
    target, others, present, counts_of_scene = [], [], [], []
    for index in range(400):
        layout = sample_layout(shared, "shared", 2, index, task=index % 10)
        places = positions(layout)
        places.pop("basket_1")
        assert layout.target in places
        assert layouts.NUM_SHARED[0] <= len(places) <= layouts.NUM_SHARED[1]
        counts_of_scene.append(len(places))
        present += list(places)
        target.append(places.pop(layout.target))
        others += list(places.values())
    target, others = np.array(target), np.array(others)
    # The number of objects is drawn evenly, too.
    sizes = np.bincount(counts_of_scene)[layouts.NUM_SHARED[0] :]
    assert (np.abs(sizes / sizes.mean() - 1) < 0.25).all()
    error = np.sqrt(target.var(0) / len(target) + others.var(0) / len(others))
    assert (np.abs(target.mean(0) - others.mean(0)) < 4 * error).all()
    assert (np.abs(target.std(0) / others.std(0) - 1) < 0.15).all()
    counts = np.array([present.count(name) for name in scenes.shared_objects()])
    assert (np.abs(counts / counts.mean() - 1) < 0.25).all()


@pytest.mark.parametrize("kind", ["moved", "shared"])
def test_applied_layouts_rest_where_they_were_put(kind, request):
    environment = request.getfixturevalue(kind)
    for index in range(4):
        layout = sample_layout(environment, kind, 11, index)
        apply_layout(environment, layout)
        assert contacts(environment) == set()
        for name, place in positions(layout).items():
            assert np.abs(environment.object_position(name)[:2] - place).max() < 0.008, name
        before = environment.sim_state()
        for _ in range(10):
            environment.step(SETTLE_ACTION)
        model = environment.model
        objects = 1 + model.jnt_qposadr[model.body_jntadr[list(environment.sim_env.obj_body_id.values())]]
        drift = np.abs(environment.sim_state() - before)[objects[:, None] + np.arange(3)]
        assert drift.max() < 1e-3


def test_parked_objects_are_neither_seen_nor_simulated(shared):
    layout = sample_layout(shared, "shared", 4, 0)
    apply_layout(shared, layout)
    absent = [name for name in scenes.shared_objects() if name not in layout.objects]
    before = {name: shared.object_position(name) for name in absent}
    few_contacts = shared.data.ncon
    for _ in range(20):
        shared.step(SETTLE_ACTION)
    for name in absent:
        np.testing.assert_allclose(shared.object_position(name), before[name], atol=1e-6)
    touched = shared.model.geom_bodyid[shared.data.contact.geom[: shared.data.ncon]]
    assert not np.isin(touched, [shared.sim_env.obj_body_id[name] for name in absent]).any()
    assert abs(shared.data.ncon - few_contacts) <= 8
    # The picture is the one of a scene in which they do not exist: moving them changes no pixel.
    picture = shared.render("agentview").rgb
    state = shared.sim_state()
    model = shared.model
    for name in absent:
        address = 1 + model.jnt_qposadr[model.body_jntadr[shared.sim_env.obj_body_id[name]]]
        state[address : address + 3] = (0.0, 0.0, 0.3)
    shared.set_sim_state(state)
    np.testing.assert_array_equal(shared.render("agentview").rgb, picture)


def test_the_target_is_visible_and_the_whole_scene_is_in_the_picture(shared, moved):
    for environment, kind in ((moved, "moved"), (shared, "shared")):
        for index in range(3):
            layout = sample_layout(environment, kind, 6, index)
            apply_layout(environment, layout)
            task = environment.task
            for name in layout.objects:
                # The mask shows objects of interest; asked for one at a time, it shows each.
                environment.task = dataclasses.replace(task, objects_of_interest=(name,))
                mask = environment.render("agentview", rgb=False, mask=True).mask
                assert mask.sum() > (30 if name == task.target else 5), (kind, index, name)
                assert not mask[[0, -1]].any()
                assert not mask[:, [0, -1]].any()
            environment.task = task


def test_the_goal_follows_the_target_of_a_shared_layout(shared):
    for task in (0, 1):
        layout = sample_layout(shared, "shared", 5, 0, task=task)
        apply_layout(shared, layout)
        assert (
            shared.task.language == f"pick up the {['alphabet soup', 'cream cheese'][task]} and place it in the basket"
        )
        state, model = shared.sim_state(), shared.model
        basket = shared.object_position("basket_1")
        for name in layout.objects:
            if name == "basket_1":
                continue
            inside = state.copy()
            address = 1 + model.jnt_qposadr[model.body_jntadr[shared.sim_env.obj_body_id[name]]]
            inside[address : address + 3] = basket + [0, 0, 0.08]
            shared.set_sim_state(inside)
            assert bool(shared.sim_env._check_success()) == (name == layout.target)


def test_a_stored_layout_is_the_published_start(moved):
    apply_layout(moved, sample_layout(moved, "stored", 0, 45))
    ours = moved.sim_state()
    moved.reset(load_init_states(moved.task)[45])
    np.testing.assert_array_equal(ours, moved.sim_state())


def test_what_cannot_be_sampled_is_refused_in_one_sentence(moved, shared, libero_assets):
    with pytest.raises(SimulationError, match="Unknown layout kind 'mixed'; known kinds: stored, moved, shared"):
        sample_layout(moved, "mixed", 0, 0)
    with pytest.raises(SimulationError, match="need their own scene"):
        sample_layout(moved, "shared", 0, 0)
    with pytest.raises(SimulationError, match="need their own scene"):
        sample_layout(shared, "moved", 0, 0)
    with pytest.raises(SimulationError, match="stored states 0 to 49, not 50"):
        sample_layout(moved, "stored", 0, 50)
    with pytest.raises(SimulationError, match="exist for libero_object only"):
        scenes.make_environment("libero_goal", 0, "moved", assets=libero_assets)
    with pytest.raises(SimulationError, match="which is not the scene of"):
        apply_layout(moved, sample_layout(shared, "shared", 0, 0, task=3))


def test_a_scene_without_room_gives_up_with_advice(shared, monkeypatch):
    monkeypatch.setattr(layouts, "SHARED_SPACING", (1.0, 1.0))
    monkeypatch.setattr(layouts, "MAX_TRIES", 20)
    with pytest.raises(SimulationError, match="in 20 tries; take another index"):
        sample_layout(shared, "shared", 0, 0)


def test_a_drawer_is_a_target_and_moves_as_it_is_opened(whole_assets):
    """libero_goal's first task is about a region; what it points to is fixed to the drawer, not to the cabinet."""
    environment = scenes.make_environment("libero_goal", 0, "stored", assets=whole_assets)
    apply_layout(environment, sample_layout(environment, "stored", 0, 3, task=0))
    drawer = environment.task.target
    assert drawer == environment.task.goal_object == "wooden_cabinet_1_middle_region"
    heights = [
        environment.object_position(f"wooden_cabinet_1_{name}_region")[2] for name in ("bottom", "middle", "top")
    ]
    assert heights == sorted(heights)
    closed = environment.object_position(drawer)
    assert np.abs(closed - environment.object_position("wooden_cabinet_1"))[:2].max() < 0.1
    environment.data.joint("wooden_cabinet_1_middle_level").qpos[0] = -0.1
    environment.sim_env.sim.forward()
    assert np.linalg.norm(environment.object_position(drawer) - closed) == pytest.approx(0.1, abs=1e-6)
    environment.close()
