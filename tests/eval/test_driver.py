"""Episodes over Ray processes: every one exactly once, whatever dies."""

import itertools
import os

import pytest

from eval import driver
from eval.driver import Driver
from eval.driver import Limits
from eval.driver import Queue
from eval.driver import Setup
from eval.errors import EvaluationError
from eval.policy_actors import Place
from eval.policy_actors import places
from eval.videos import VideoOptions
from tests.eval import toy
from tests.eval.runs import ends


def run(ray, specs, **kwargs):
    records = []
    setup = {"scenes": toy.ToyScenes(), "agent": toy.SpeedAgent()} | kwargs.pop("setup", {})
    save_video, workers = kwargs.pop("save_video", None), kwargs.pop("workers", 2)
    one = Driver(ray=ray, setup=Setup(**setup), workers=workers, limits=Limits(**kwargs), save_video=save_video)
    one.run(specs, records.append)
    return records


@pytest.fixture(scope="module")
def calm(ray_session):
    """How the first eight episodes of task 0 end when nothing goes wrong."""
    return ends(run(ray_session, [toy.toy_spec(0, index) for index in range(8)]))


@pytest.fixture
def quick(monkeypatch):
    """Looks for what hangs twice a second."""
    monkeypatch.setattr(driver, "TICK", 0.5)


def test_queue_keeps_a_worker_on_its_scene_and_spreads_the_others():
    specs = [toy.toy_spec(task, index) for task in (0, 1) for index in range(3)]
    queue = Queue(specs)
    first = queue.take("")
    assert first.scene == "toy/0"
    assert queue.take("", ["toy/0"]).scene == "toy/1"
    assert queue.take("toy/1").scene == "toy/1"
    queue.put_back(first)
    assert queue.take("toy/0") == first
    rest = [queue.take("toy/0") for _ in range(4)]
    assert {s.scene for s in rest[:2]} == {"toy/0"}
    assert rest[2].scene == "toy/1"
    assert rest[3] is None


@pytest.mark.multiprocess
def test_outcomes_are_kept_apart_and_every_episode_is_reported_once(ray_session):
    specs = [toy.toy_spec(task, index) for task in range(3) for index in range(4)]
    records = run(ray_session, specs, retries=1)
    assert sorted(r["id"] for r in records) == sorted(s.id for s in specs)
    by_task = {task: [r for r in records if r["task"] == task] for task in range(3)}
    assert {r["outcome"] for r in by_task[0]} == {"success"}
    assert {r["outcome"] for r in by_task[1]} == {"failure"}
    assert all(r["steps"] == 40 and r["looks"] == 5 for r in by_task[1])
    assert {r["outcome"] for r in by_task[2]} == {"error"}
    assert all(r["attempts"] == 2 and "the arm broke" in r["error"] for r in by_task[2])
    assert by_task[2][0]["reason"] == "RuntimeError: the arm broke"


@pytest.mark.multiprocess
def test_the_episode_of_a_killed_worker_is_run_by_another(ray_session, tmp_path, calm):
    specs = [toy.toy_spec(0, index) for index in range(6)]
    scenes = toy.ToyScenes(die_at=2, die_file=str(tmp_path / "died"))
    records = run(ray_session, specs, setup={"scenes": scenes})
    assert (tmp_path / "died").exists()
    assert ends(records).items() <= calm.items()
    assert sorted(r["attempts"] for r in records) == [1, 1, 1, 1, 1, 2]


@pytest.mark.multiprocess
def test_an_episode_that_always_kills_its_worker_ends_as_an_error(ray_session):
    specs = [toy.toy_spec(0, index) for index in range(3)]
    records = run(ray_session, specs, setup={"scenes": toy.ToyScenes(die_at=1, always_die=True)}, retries=1)
    outcomes = {r["layout"]["index"]: r["outcome"] for r in records}
    assert outcomes == {0: "success", 1: "error", 2: "success"}


@pytest.mark.multiprocess
def test_a_batching_policy_gives_the_same_as_in_process(ray_session, calm):
    specs = [toy.toy_spec(0, index) for index in range(6)]
    remote = run(ray_session, specs, setup={"agent": None, "load_policy": toy.ToyPolicy})
    assert len(remote) == 6
    assert ends(remote).items() <= calm.items()


@pytest.mark.multiprocess
def test_hung_simulators_are_killed_and_their_episodes_run_again(ray_session, tmp_path, quick):
    """Asleep, or stopped so that it cannot even hear that it shall end."""
    specs = [toy.toy_spec(0, index) for index in range(5)]
    scenes = toy.ToyScenes(hang=((1, "sleep"), (3, "stop")), hang_file=str(tmp_path / "hung"))
    records = run(ray_session, specs, setup={"scenes": scenes}, episode_seconds=3, step_seconds=0)
    assert len(list(tmp_path.iterdir())) == 2
    assert {r["layout"]["index"]: r["attempts"] for r in records} == {0: 1, 1: 2, 2: 1, 3: 2, 4: 1}
    assert {r["outcome"] for r in records} == {"success"}


@pytest.mark.multiprocess
def test_an_episode_that_always_hangs_ends_as_an_error(ray_session, quick):
    scenes = toy.ToyScenes(seconds=100)
    limits = {"episode_seconds": 1, "step_seconds": 0, "retries": 0}
    (record,) = run(ray_session, [toy.toy_spec()], setup={"scenes": scenes}, **limits)
    assert (record["outcome"], record["attempts"]) == ("error", 1)
    assert record["reason"] == "not over after 1 s: the simulator or the policy hangs"


@pytest.mark.multiprocess
@pytest.mark.parametrize("way", ["die", "hang", pytest.param("stop", marks=pytest.mark.slow)])
def test_a_policy_that_dies_or_hangs_is_started_again_and_changes_nothing(ray_session, tmp_path, calm, quick, way):
    specs = [toy.toy_spec(0, index) for index in range(3)]
    load = toy.BadPolicy(way, str(tmp_path))
    records = run(ray_session, specs, setup={"agent": None, "load_policy": load}, policy_seconds=2)
    assert ends(records).items() <= calm.items()
    assert [r["attempts"] for r in records] == [1, 1, 1]
    assert len(list(tmp_path.glob("process-*"))) == 2


@pytest.mark.multiprocess
def test_simulators_share_several_policy_processes(ray_session, tmp_path, calm):
    specs = [toy.toy_spec(0, index) for index in range(8)]
    setup = {"agent": None, "load_policy": toy.BadPolicy("", str(tmp_path)), "policy_actors": 2}
    assert ends(run(ray_session, specs, setup=setup)) == calm
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.multiprocess
def test_simulators_are_replaced_after_some_episodes_or_much_memory(ray_session):
    specs = [toy.toy_spec(0, index) for index in range(4)]
    records = run(ray_session, specs, workers=1, episodes=2)
    processes = [r["process"] for r in records]
    assert processes[0] == processes[1] != processes[2] == processes[3]
    records = run(ray_session, specs[:2], workers=1, memory_bytes=1)
    assert len({r["process"] for r in records}) == 2
    assert all(10**7 < r["memory"] < 10**10 for r in records)
    assert [r["attempts"] for r in records] == [1, 1]


@pytest.mark.multiprocess
def test_a_host_that_would_give_other_results_is_refused(ray_session):
    with pytest.raises(EvaluationError, match=r"^Host \S+ has pid \d+, not \d+ as this one"):
        run(ray_session, [toy.toy_spec()], setup={"host_facts": lambda: {"pid": os.getpid()}})


def node(name, **resources):
    return {"NodeID": name, "Resources": resources}


@pytest.mark.parametrize(
    ("nodes", "count", "expected"),
    [
        ([node("a", CPU=4.0)], None, [Place("a")]),
        ([node("a"), node("b")], 3, [Place("a"), Place("b"), Place("a")]),
        ([node("a", TPU=2.0), node("b", CPU=8.0), node("c", TPU=1.0)], None, ["a", "c", "a"]),
        ([node("a", GPU=8.0), node("b", GPU=8.0)], 2, ["a", "b"]),
        ([node("a", GPU=1.0)], 3, ["a"]),
        ([], None, []),
    ],
)
def test_policies_go_to_accelerators_first_and_are_spread(nodes, count, expected):
    found = places(nodes, count)
    if expected and isinstance(expected[0], str):
        assert all(place.accelerator for place in found)
        found = [place.node for place in found]
    assert found == expected


@pytest.mark.multiprocess
def test_a_policy_that_cannot_be_loaded_is_one_sentence(ray_session):
    with pytest.raises(EvaluationError, match=r"^The policy could not be loaded: .*no such checkpoint$"):
        run(ray_session, [toy.toy_spec()], setup={"agent": None, "load_policy": _broken})


def _broken():
    raise FileNotFoundError("no such checkpoint")


@pytest.mark.multiprocess
def test_only_failures_are_filmed(ray_session, tmp_path):
    import av

    specs = list(itertools.chain(*([toy.toy_spec(task, 0)] for task in (0, 1))))
    save = lambda episode, film: (tmp_path / f"{episode}.mp4").write_bytes(film)  # noqa: E731
    records = run(ray_session, specs, setup={"videos": VideoOptions("failures", tmp_path)}, save_video=save)
    assert not any("video" in record for record in records)
    assert [path.stem for path in tmp_path.iterdir()] == [specs[1].id]
    with av.open(str(tmp_path / f"{specs[1].id}.mp4")) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, int(stream.average_rate)) == ("h264", 20)
        assert (stream.width, stream.height) == (128, 96)
        assert sum(1 for _ in video.decode(video=0)) == 40 + 1 + 1 + 20
