"""The quickstart: finished phases are reused, failures stop it in one sentence, and the whole loop runs."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from launch import quickstart
from launch.quickstart import Phase
from pokevla_jax.sim.assets import resolve_assets

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def out(tmp_path):
    for name in ("phases", "logs"):
        (tmp_path / name).mkdir()
    return tmp_path


def appending(path: Path, text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", f"open({str(path)!r}, 'a').write({text!r})")


def test_a_finished_phase_is_reused_until_its_command_changes(out):
    trace = out / "trace"
    first = Phase("a", "first", (appending(trace, "x"),))
    minutes = quickstart.run_phase(first, out)
    assert quickstart.run_phase(first, out) == minutes
    assert trace.read_text() == "x"
    quickstart.run_phase(Phase("a", "first", (appending(trace, "y"),)), out)
    assert trace.read_text() == "xy"


def test_commands_of_one_phase_run_at_the_same_time_on_shares_of_the_cores(out):
    # Each waits for the other's file, so one after the other they would never end.
    def meet(mine: str, other: str) -> tuple[str, ...]:
        code = f"""
import os, pathlib, time
pathlib.Path({str(out)!r}, {mine!r}).write_text(str(len(os.sched_getaffinity(0))))
while not pathlib.Path({str(out)!r}, {other!r}).exists(): time.sleep(0.01)
"""
        return (sys.executable, "-c", code)

    quickstart.run_phase(Phase("both", "both", (meet("1", "2"), meet("2", "1"))), out)
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert [(out / name).read_text() for name in "12"] == [str(share)] * 2


def test_a_failing_command_stops_in_one_sentence_and_is_not_taken_for_finished(out):
    good = (sys.executable, "-c", "")
    bad = (sys.executable, "-c", "raise SystemExit(3)")
    with pytest.raises(SystemExit, match=r"'both' failed with exit status 3; its output is in .*both-1\.log"):
        quickstart.run_phase(Phase("both", "both", (good, bad)), out)
    assert not list((out / "phases").iterdir())


def arguments(**changed) -> Namespace:
    values = {"tasks": "0", "layout_kind": "moved", "layouts": 20, "seed": 0, "episodes": 5, "steps": None}
    return Namespace(**values | {"assets": None, "config": "configs/x.py"} | changed)


def test_shared_scenes_have_a_control_that_never_reads_the_instruction(out):
    def trained(kind: str) -> list[str]:
        phases = {phase.name: phase for phase in quickstart.phases(out, arguments(layout_kind=kind, tasks="all"))}
        policies = [name.removeprefix("evaluate-") for name in phases if name.startswith("evaluate-")]
        assert all(command[command.index("--layout-kind") + 1] == kind for command in phases["record"].commands)
        networks = [Path(command[-1]).name for command in phases["train"].commands]
        assert policies == [*networks, "replay", "random", "expert"]
        assert ("--config.data.zero_language=True" in phases["train"].commands[-1]) == (kind == "shared")
        return networks

    assert trained("moved") == ["policy", "blind"]
    assert trained("shared") == ["policy", "blind", "no-language"]


def test_training_and_test_layouts_never_meet(out):
    def seeds(seed: int) -> tuple[str, str]:
        commands = {phase.name: phase.commands[0] for phase in quickstart.phases(out, arguments(seed=seed))}
        option = lambda command: command[command.index("--layout-seed") + 1]  # noqa: E731
        return option(commands["record"]), option(commands["evaluate-policy"])

    train, test = zip(*(seeds(seed) for seed in range(10)), strict=True)
    assert len({*train, *test}) == 20


def test_an_unwritable_folder_is_one_sentence():
    command = [sys.executable, "launch/quickstart.py", "--out", "/proc/nowhere"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode
    assert result.stderr.startswith("quickstart: cannot write to --out /proc/nowhere")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.sim
def test_the_whole_loop(tmp_path):
    assets = resolve_assets()
    command = [sys.executable, "launch/quickstart.py", "--out", str(tmp_path), "--episodes", "6"]
    command += ["--steps", "2", "--layouts", "2", "--assets", str(assets.root)]
    subprocess.run(command, cwd=ROOT, check=True)
    summary = json.loads((tmp_path / "summary.json").read_text())
    for figures in (summary, summary["blind"]):
        assert figures["episodes"] == 2
        assert 0 <= figures["interval95"][0] <= figures["success_rate"] <= figures["interval95"][1] <= 1
    assert summary["expert"]["success"] == 2
    assert summary["assets"] == assets.kind
    assert {"record", "train", "report", "total"} <= set(summary["minutes"])
    assert "mujoco" in summary["versions"]
    page = (tmp_path / "report.html").read_text()
    assert "data:video/mp4" in page
    assert "blind" in page
