"""The loop of one episode, and the agents that need no simulator."""

import asyncio
import dataclasses

import numpy as np
import pytest

from eval.agents import RandomAgent
from eval.agents import ReplayAgent
from eval.agents import check_chunk
from eval.episode import run_episode
from eval.errors import EvaluationError
from eval.policies import control_label
from eval.policies import dataset_demonstrations
from eval.policies import resolve_policy
from eval.videos import VideoOptions
from eval.videos import caption_banner
from eval.workers import PolicyServer
from eval.workers import Simulator
from pokevla_jax import checkpoints
from tests.eval import toy


def started(index=0):
    environment = toy.ToyEnvironment()
    environment.position = index / 100
    return environment


def test_success_ends_the_episode_within_a_chunk():
    environment = started()
    rollout = run_episode(environment, toy.toy_spec(0), toy.SpeedAgent(), keep_states=True)
    assert (rollout.success, rollout.steps, rollout.looks) == (True, 20, 3)
    assert len(rollout.states) == 21
    assert environment.renders == rollout.looks  # on demand


@pytest.mark.parametrize(("execute", "looks"), [(None, 5), (8, 5), (5, 8), (1, 40)])
def test_the_budget_ends_the_episode_and_chunks_may_be_cut(execute, looks):
    environment = started()
    rollout = run_episode(environment, toy.toy_spec(1), toy.SpeedAgent(), execute=execute)
    assert (rollout.success, rollout.steps, rollout.looks) == (False, 40, looks)
    assert environment.renders == looks


def test_a_budget_that_is_no_multiple_of_the_chunk_is_kept():
    rollout = run_episode(started(), toy.toy_spec(1, max_steps=13), toy.SpeedAgent())
    assert (rollout.steps, rollout.looks) == (13, 2)


def test_rendering_every_step_changes_nothing_but_the_time():
    lazy, eager = started(), started()
    first = run_episode(lazy, toy.toy_spec(1), toy.SpeedAgent())
    second = run_episode(eager, toy.toy_spec(1), toy.SpeedAgent(), render_every_step=True)
    assert eager.renders == 45
    assert first.final_state == second.final_state


def test_the_prompt_is_the_specifications():
    seen = []

    class Reader(toy.SpeedAgent):
        def act(self, observation):
            seen.append(observation["prompt"])
            return super().act(observation)

    run_episode(started(), toy.toy_spec(0), Reader())
    assert set(seen) == {"go right"}


def test_random_actions_depend_on_the_episode_alone():
    def actions(index):
        agent = RandomAgent()
        agent.begin(None, toy.toy_spec(0, index))
        return np.concatenate([agent.act(None) for _ in range(200)])

    np.testing.assert_array_equal(actions(0), actions(0))
    assert not np.array_equal(actions(0), actions(1))
    drawn = actions(0)
    assert set(np.unique(drawn[:, -1])) == {-1.0, 1.0}
    assert np.abs(drawn[:, :-1]).max() <= 1
    np.testing.assert_allclose(drawn[:, :-1].std(axis=0), 3**-0.5, atol=0.03)


def test_replay_repeats_and_then_holds_still():
    demonstration = np.arange(14, dtype=np.float32).reshape(2, 7)
    agent = ReplayAgent({("toy", 0): demonstration})
    agent.begin(None, toy.toy_spec(0))
    np.testing.assert_array_equal(agent.act(None), demonstration)
    rest = agent.act(None)
    assert not rest[:, :-1].any()
    assert set(rest[:, -1]) == {13.0}


def test_replay_takes_the_datasets_first_success_of_the_task(tmp_path):
    from pokevla_jax.data.records import write_shard
    from tests.data import synthetic

    episodes = [synthetic.episode(n, length=6) for n in range(3)]
    episodes = [(dataclasses.replace(e, suite="toy", task=0, success=n > 0), f) for n, (e, f) in enumerate(episodes)]
    write_shard(tmp_path, "a", episodes)
    found = dataset_demonstrations(tmp_path, [toy.toy_spec(0)])
    np.testing.assert_array_equal(found["toy", 0], episodes[1][0].executed)
    with pytest.raises(EvaluationError, match=r"no successful episode of toy task 1 \(go_right_1\)"):
        dataset_demonstrations(tmp_path, [toy.toy_spec(1)])


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (np.zeros((8, 6)), "shape"),
        (np.zeros(7), "shape"),
        (np.zeros((0, 7)), "shape"),
        (np.full((1, 7), np.nan), "finite"),
    ],
)
def test_what_a_policy_returns_is_checked(chunk, message):
    with pytest.raises(ValueError, match=message):
        check_chunk(chunk)


def test_an_exception_is_an_error_and_the_simulator_is_rebuilt():
    simulator = Simulator(toy.ToyScenes(), toy.SpeedAgent())
    assert simulator.run(toy.toy_spec(0))["outcome"] == "success"
    kept = simulator._environment
    assert simulator.run(toy.toy_spec(0, 1))["outcome"] == "success"
    assert simulator._environment is kept
    record = simulator.run(toy.toy_spec(2))
    assert record["outcome"] == "error"
    assert "RuntimeError: the arm broke" in record["error"]
    assert kept.closed
    assert simulator.run(toy.toy_spec(1))["outcome"] == "failure"


def test_the_policy_server_batches_what_waits_and_survives_an_error():
    async def scenario():
        server = PolicyServer(toy.ToyPolicy)
        images = np.zeros((2, 8, 8, 3), np.uint8)
        answers = await asyncio.gather(*(server.infer({"images": images}) for _ in range(7)))
        broken = images.copy()
        broken[0, 0, 0, 0] = 77
        with pytest.raises(ValueError, match="cannot look at 77"):
            await server.infer({"images": broken})
        after = await server.infer({"images": images})
        return [*answers, after], server._policy.batches

    answers, batches = asyncio.run(scenario())
    assert all(answer.shape == (8, 7) for answer in answers)
    assert sum(batches[:-2]) == 7
    assert max(batches) == 4


def test_policy_names(tmp_path):
    kwargs = {"specs": [toy.toy_spec()], "scenes": toy.ToyScenes()}
    assert resolve_policy("random", **kwargs).facts == {"kind": "random", "label": "random"}
    with pytest.raises(EvaluationError, match="no folder, nor ws://HOST:PORT, torch:DIR, expert, random or replay"):
        resolve_policy("expret", **kwargs)
    with pytest.raises(EvaluationError, match="go with a checkpoint"):
        resolve_policy("random", execute=4, **kwargs)
    with pytest.raises(EvaluationError, match="nothing after a colon"):
        resolve_policy("expert:x", **kwargs)
    with pytest.raises(ValueError, match="holds no checkpoint"):
        resolve_policy(str(tmp_path), **kwargs)
    with pytest.raises(EvaluationError, match="no folder that pokevla-convert to-torch wrote"):
        resolve_policy(f"torch:{tmp_path}", **kwargs)
    with pytest.raises(EvaluationError, match="--step goes with a training run's folder"):
        resolve_policy(f"torch:{tmp_path}", step=3, **kwargs)
    assert [control_label(*z) for z in ((0, 0), (1, 0), (0, 1), (1, 1))] == [
        "policy",
        "blind-trained",
        "no-language-trained",
        "blind-no-language-trained",
    ]


def test_a_checkpoint_is_known_by_its_weights(tmp_path):
    from tests import policy_checkpoint as fake

    config = fake.make_config(zero_images=True)
    first = fake.write_checkpoint(tmp_path / "a", config)
    other = fake.write_checkpoint(tmp_path / "b", config, params=fake.make_params(config, seed=4))
    kwargs = {"specs": [toy.toy_spec()], "scenes": toy.ToyScenes()}
    facts = [resolve_policy(str(path), **kwargs).facts for path in (first, other)]
    assert facts[0]["label"] == "blind-trained"
    assert (facts[0]["step"], facts[0]["chunk"], facts[0]["execute"]) == (10, 8, 8)
    assert facts[0]["fingerprint"] != facts[1]["fingerprint"]
    assert facts[0] == resolve_policy(str(first), **kwargs).facts
    assert resolve_policy(str(first), execute=4, **kwargs).facts["execute"] == 4
    exact = resolve_policy(str(first), exact=8, **kwargs)
    assert exact.facts == facts[0] | {"exact_batch": 8}
    # Another host must have the same weights at that path.
    elsewhere = dataclasses.replace(exact.load, host="elsewhere", fingerprint="other")
    with pytest.raises(EvaluationError, match=r"holds weights \w+ on .*, not other as on elsewhere; give every host"):
        elsewhere()
    with pytest.raises(EvaluationError, match="give 1 to 8"):
        resolve_policy(str(first), execute=9, **kwargs)


def test_folder_hash_sees_names_and_bytes(tmp_path):
    (tmp_path / "x").write_text("1")
    before = checkpoints.folder_hash(tmp_path)
    (tmp_path / "x").write_text("2")
    changed = checkpoints.folder_hash(tmp_path)
    (tmp_path / "x").rename(tmp_path / "y")
    assert len({before, changed, checkpoints.folder_hash(tmp_path)}) == 3


def test_videos_are_wanted_by_outcome(tmp_path):
    failures, everything = VideoOptions("failures", tmp_path), VideoOptions("all", tmp_path)
    assert [failures.wants(o) for o in ("success", "failure")] == [False, True]
    assert [everything.wants(o) for o in ("success", "failure")] == [True, True]
    banner = caption_banner("failure: " + "pick up the alphabet soup " * 5, 512)
    assert banner.shape == (32, 512, 3)
    assert tuple(banner[5, 2]) == (207, 34, 46)
