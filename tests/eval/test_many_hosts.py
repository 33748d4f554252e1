"""An evaluation on a cluster of two Ray nodes whose parts are killed: the same results as undisturbed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from eval.agents import CheckpointAgent
from eval.workers import Simulator
from tests.eval import drill
from tests.eval import runs
from tests.eval import toy

pytestmark = pytest.mark.multiprocess
# A lost node is noticed within two seconds; Ray's own default is about twenty.
QUICK = {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "3"}
QUICK |= {"RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_timeout_ms": "1000"}


def start(nodes, run_dir, episodes):
    """The driver, in a folder that is not the project's; only it knows where the project is."""
    command = [sys.executable, str(Path(drill.ROOT, "tests", "eval", "toy_run.py")), "--run-dir", str(run_dir)]
    command += ["--episodes", str(episodes), "--seconds", "0.3", "--address", nodes.address]
    return subprocess.Popen(command, cwd=run_dir, env=nodes.environment | {"PYTHONPATH": str(drill.ROOT)})


def undisturbed(episodes):
    """How the episodes end in one process, one after the other, without Ray."""
    simulator = Simulator(toy.ToyScenes(), CheckpointAgent(lambda seen: toy.PolicyThatLooks().infer([seen])[0]))
    return runs.ends([simulator.run(spec) for spec in toy.episodes(episodes)])


def under_fire(run_dir, kills, episodes):
    with drill.two_nodes(**QUICK) as nodes:
        fight = drill.Drill(nodes, lambda: start(nodes, run_dir, episodes), run_dir)
        fight.run(kills, timeout=300)
    expected = undisturbed(episodes)
    assert len(expected) == episodes
    assert {end[0] for end in expected.values()} == {"success", "failure"}
    assert drill.ends(run_dir) == expected
    return fight


def test_a_node_is_lost_and_the_driver_started_again(tmp_path):
    """The code comes from Ray's copy of it, whatever the folder; each episode is recorded once, and as it should be."""
    kills = [drill.Kill("node", 4, 0.1), drill.Kill("driver", 8, 0.1)]
    fight = under_fire(tmp_path, kills, episodes=24)
    assert [victim for victim, _ in fight.done] == ["node", "driver"]
    sources = {path.read_text() for path in tmp_path.glob("code-*")}
    assert sources
    assert all("runtime_resources" in source for source in sources)
    assert not any(source.startswith(str(drill.ROOT)) for source in sources)


@pytest.mark.slow  # It looks for Rays of everyone on this machine, and waits long for one that does not answer.
def test_without_a_cluster_to_join_there_is_one_sentence(tmp_path):
    code = "from eval.cluster import connect\nwith connect('auto', None): pass"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"PYTHONPATH": str(drill.ROOT), "RAY_TMPDIR": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    error = ended.stderr.strip().splitlines()[-1]
    assert re.search(
        r"EvaluationError: --address auto: no Ray cluster could be joined \(.+\); run this on one of", error
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_ten_kills_change_nothing(tmp_path, seed):
    kills = drill.schedule(10, 150, drill.VICTIMS, seed)
    assert {kill.victim for kill in kills} == set(drill.VICTIMS)
    assert len(under_fire(tmp_path, kills, episodes=150).done) == 10
