"""Episodes over Ray processes: every one exactly once, whatever dies."""

import itertools

import pytest

from eval.driver import Driver
from eval.driver import Queue
from eval.driver import Setup
from eval.errors import EvaluationError
from eval.videos import VideoOptions
from tests.eval import toy


def run(ray, specs, **kwargs):
    records = []
    setup = {"scenes": toy.ToyScenes(), "agent": toy.SpeedAgent()} | kwargs.pop("setup", {})
    Driver(ray=ray, setup=Setup(**setup), workers=2, **kwargs).run(specs, records.append)
    return records


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
def test_the_episode_of_a_killed_worker_is_run_by_another(ray_session, tmp_path):
    specs = [toy.toy_spec(0, index) for index in range(6)]
    scenes = toy.ToyScenes(die_at=2, die_file=str(tmp_path / "died"))
    undisturbed = run(ray_session, specs)
    records = run(ray_session, specs, setup={"scenes": scenes})
    assert (tmp_path / "died").exists()
    facts = [
        {r["id"]: (r["outcome"], r["steps"], r["final_state"]) for r in result} for result in (undisturbed, records)
    ]
    assert facts[0] == facts[1]
    assert sorted(r["attempts"] for r in records) == [1, 1, 1, 1, 1, 2]


@pytest.mark.multiprocess
def test_an_episode_that_always_kills_its_worker_ends_as_an_error(ray_session):
    specs = [toy.toy_spec(0, index) for index in range(3)]
    records = run(ray_session, specs, setup={"scenes": toy.ToyScenes(die_at=1, always_die=True)}, retries=1)
    outcomes = {r["layout"]["index"]: r["outcome"] for r in records}
    assert outcomes == {0: "success", 1: "error", 2: "success"}


@pytest.mark.multiprocess
def test_a_batching_policy_gives_the_same_as_in_process(ray_session):
    specs = [toy.toy_spec(0, index) for index in range(6)]
    remote = run(ray_session, specs, setup={"agent": None, "load_policy": toy.ToyPolicy})
    local = run(ray_session, specs)
    key = lambda records: sorted((r["id"], r["outcome"], r["steps"], r["final_state"]) for r in records)  # noqa: E731
    assert key(remote) == key(local)


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
    run(ray_session, specs, setup={"videos": VideoOptions("failures", tmp_path)})
    assert [path.stem for path in tmp_path.iterdir()] == [specs[1].id]
    with av.open(str(tmp_path / f"{specs[1].id}.mp4")) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, int(stream.average_rate)) == ("h264", 20)
        assert (stream.width, stream.height) == (128, 96)
        assert sum(1 for _ in video.decode(video=0)) == 40 + 1 + 1 + 20
