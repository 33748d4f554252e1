"""Named protocols: the numbers of their sources, and what reaches the simulator and the policy because of them."""

import dataclasses

import numpy as np
import pytest

from eval.agents import CheckpointAgent
from eval.benchmarks import build_manifest
from eval.episode import Interface
from eval.episode import run_episode
from eval.errors import EvaluationError
from eval.policies import PolicyChoice
from eval.policies import under_protocol
from eval.presets import PRESETS
from eval.presets import resolve
from eval.protocol import Protocol
from eval.protocol import simulation_half
from eval.run import Options
from eval.scenes import LiberoScenes
from pokevla_jax.sim import tasks
from tests.eval import toy

# As read in the evaluators' own files; eval/presets.py says which.
UPSTREAM = {
    "openvla-oft": {"num_steps_wait": 10, "env_img_res": 256, "num_open_loop_steps": 8, "seed": 0, "trials": 50},
    "openpi": {"num_steps_wait": 10, "env_img_res": 256, "num_open_loop_steps": 5, "seed": 7, "trials": 50},
    "lerobot": {"num_steps_wait": 10, "env_img_res": 360, "num_open_loop_steps": None, "seed": 1000, "trials": 10},
}
BUDGETS = {
    "openvla-oft": [220, 280, 300, 520, 400],
    "openpi": [220, 280, 300, 520, 400],
    "lerobot": [280, 280, 300, 520, 400],
}
SUITES = ["libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90"]


@pytest.mark.parametrize("name", UPSTREAM)
def test_published_protocols_have_their_sources_numbers(name):
    preset, source = PRESETS[name], UPSTREAM[name]
    assert [preset.max_steps[suite] for suite in SUITES] == BUDGETS[name]
    assert {
        "num_steps_wait": preset.settle_steps,
        "env_img_res": preset.image_size,
        "num_open_loop_steps": preset.execute,
        "seed": preset.seed,
        "trials": preset.trials,
    } == source
    assert (preset.renderer, preset.hard_reset) == ("robosuite", True)


def test_the_projects_own_budgets_are_the_tasks():
    for suite in SUITES:
        assert PRESETS["pokevla"].max_steps[suite] == tasks.MAX_STEPS[suite]


def options(**given):
    return Options(policy="random", run_dir=None, **given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"renderer": "fast"}, "--renderer fast contradicts --protocol openvla-oft, which has robosuite"),
        ({"image_size": 128}, "--image-size 128 contradicts --protocol openvla-oft, which has 256"),
        ({"execute": 5}, "--execute 5 contradicts --protocol openvla-oft, which has 8"),
        ({"max_steps": 220}, "--max-steps 220 contradicts --protocol openvla-oft, which has libero_spatial 220, lib"),
        ({"images": "native"}, "--images native contradicts --protocol openvla-oft, which has openvla"),
        ({"seed": 7}, "--seed 7 contradicts --protocol openvla-oft, which has 0"),
    ],
)
def test_a_published_protocol_takes_no_others_conditions(given, words):
    with pytest.raises(EvaluationError, match=words) as error:
        _ = options(protocol="openvla-oft", **given).preset
    assert "--protocol pokevla" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_agrees_or_is_left_to_the_user_is_taken():
    assert options(protocol="openpi", image_size=256, hard_reset=True, execute=5).preset == PRESETS["openpi"]
    assert options(protocol="openpi", seed=8).preset == dataclasses.replace(PRESETS["openpi"], seed=8)
    assert options(protocol="lerobot", execute=10).preset.execute == 10
    with pytest.raises(EvaluationError, match="--protocol 'openvla' is unknown; known: pokevla, openvla-oft"):
        _ = options(protocol="openvla").preset


def test_the_own_protocol_takes_everything_and_robosuite_brings_published_pixels():
    assert options().preset == PRESETS["pokevla"]
    given = {"renderer": "fast", "image_size": 64, "images": "openpi", "execute": 3, "seed": 5, "hard_reset": True}
    preset = options(**given).preset
    assert {key: getattr(preset, key) for key in given} == given
    robosuite = options(renderer="robosuite").preset
    assert (robosuite.image_size, robosuite.hard_reset) == (256, True)
    assert options(renderer="robosuite", image_size=128).preset.image_size == 128
    assert set(options(max_steps=40).preset.max_steps.values()) == {40}


def test_episodes_get_the_protocols_budget_seed_and_trials():
    episodes = build_manifest(options(protocol="lerobot", benchmark="libero", suite="libero_spatial", tasks="0,1"))
    assert [(e.task, e.init_state) for e in episodes] == [(task, state) for task in (0, 1) for state in range(10)]
    assert {(e.max_steps, e.seed) for e in episodes} == {(280, 1000)}
    episodes = build_manifest(options(protocol="openpi", suite="libero_spatial", tasks="0", init_states="3"))
    assert [(e.init_state, e.max_steps, e.seed) for e in episodes] == [(3, 220, 7)]
    assert len(build_manifest(options(protocol="openvla-oft", benchmark="libero", tasks="0"))) == 50


class _Resets:
    def reset(self, state, **arguments):
        self.state, self.arguments = state, arguments


@pytest.mark.parametrize(
    ("name", "seed", "draw", "compiled"),
    [("pokevla", 0, 0, 0), ("openvla-oft", 0, 4, 1), ("openpi", 7, 4, 1), ("lerobot", 1004, 0, 6)],
)
def test_resets_draw_as_the_evaluators_do(name, seed, draw, compiled):
    (spec,) = build_manifest(options(protocol=name, tasks="0", init_states="4"))
    environment = _Resets()
    LiberoScenes(None, PRESETS[name]).place(environment, spec)
    assert environment.arguments == {"settle_steps": 10, "seed": seed, "draw": draw, "compiled": compiled}
    states = tasks.load_init_states(tasks.load_task("libero_object", 0))
    np.testing.assert_array_equal(environment.state, states[4])


def seen_and_sent(interface, gripper=(0.4, -0.2, 0.0, 1.0)):
    """What a policy sees of a toy environment, and the actions that reach it."""
    looks, steps = [], []

    def infer(observation):
        looks.append(observation)
        chunk = np.full((4, 7), 0.1, np.float32)
        chunk[:, -1] = gripper
        return chunk

    class Watched(toy.ToyEnvironment):
        def step(self, action):
            steps.append(action)
            return super().step(action)

    run_episode(Watched(), toy.toy_spec(max_steps=4), CheckpointAgent(infer), interface=interface)
    return looks, np.array(steps)


def test_the_policy_sees_the_protocols_images():
    sizes = {name: preset.interface for name, preset in PRESETS.items()}
    shapes = {name: seen_and_sent(interface)[0][0]["images"].shape for name, interface in sizes.items()}
    assert shapes == {
        "pokevla": (2, 8, 8, 3),
        "openvla-oft": (2, 224, 224, 3),
        "openpi": (2, 224, 224, 3),
        "lerobot": (2, 8, 8, 3),
    }


def test_the_gripper_is_binary_where_the_protocol_makes_it_so():
    _, given = seen_and_sent(Interface())
    np.testing.assert_array_equal(given[:, -1], np.array([0.4, -0.2, 0.0, 1.0], np.float32))
    _, signs = seen_and_sent(PRESETS["openvla-oft"].interface)
    np.testing.assert_array_equal(signs[:, -1], [1, -1, 0, 1])
    np.testing.assert_array_equal(signs[:, :-1], given[:, :-1])


def test_the_sign_is_openvlas_mapping_of_a_policy_in_its_convention():
    """OpenVLA-OFT: g in 0..1, 1 = open -> -sign(2 g - 1). A policy of LIBERO's convention says 1 - 2 g instead."""
    opening = np.linspace(0, 1, 9, dtype=np.float32)
    chunk = np.zeros((9, 7), np.float32)
    chunk[:, -1] = 1 - 2 * opening
    sent = PRESETS["openvla-oft"].interface.sent(chunk)[:, -1]
    np.testing.assert_array_equal(sent, -np.sign(2 * opening - 1))
    assert sent[-1] == -1  # fully open


def test_the_policys_facts_carry_how_it_is_asked():
    checkpoint = PolicyChoice({"kind": "checkpoint", "chunk": 8, "execute": 8})
    asked = under_protocol(checkpoint, PRESETS["openpi"])
    assert asked.execute == 5
    assert asked.facts == checkpoint.facts | {"execute": 5, "images": "openpi", "gripper": "given"}
    assert under_protocol(checkpoint, PRESETS["lerobot"]).execute == 8
    short = PolicyChoice({"kind": "checkpoint", "chunk": 4, "execute": 4})
    with pytest.raises(EvaluationError, match="openvla-oft executes 8 actions of each chunk, the policy's have 4"):
        under_protocol(short, PRESETS["openvla-oft"])
    expert = PolicyChoice({"kind": "expert"})
    assert under_protocol(expert, PRESETS["openvla-oft"]) is expert


@pytest.mark.sim
def test_every_condition_is_in_the_hash():
    from pokevla_jax.sim.assets import resolve_assets

    assets = resolve_assets()
    own = PRESETS["pokevla"]
    changes = [
        {"max_steps": {**own.max_steps, "libero_goal": 301}},
        {"settle_steps": 11},
        {"renderer": "robosuite"},
        {"image_size": 64},
        {"hard_reset": True},
        {"seeding": "task"},
        {"images": "openpi"},
        {"gripper": "sign"},
        {"execute": 5},
        {"name": "openpi"},
    ]
    fake = PolicyChoice({"kind": "checkpoint", "chunk": 8, "execute": 8})

    def hashed(preset):
        return Protocol(simulation_half(assets, preset), under_protocol(fake, preset).facts).hash

    hashes = {hashed(dataclasses.replace(own, **change)) for change in changes}
    assert len(hashes | {hashed(own)}) == len(changes) + 1
    real = assets.kind == "real"
    assert [simulation_half(assets, preset)["published"] for preset in PRESETS.values()] == [False, real, real, real]


def test_a_preset_knows_no_field_twice():
    """Every option that may be given is a field, and every published protocol resolves to itself."""
    for name, preset in PRESETS.items():
        assert resolve(name, {}) == preset
        assert preset.free <= {field.name for field in dataclasses.fields(preset)}
