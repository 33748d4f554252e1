"""``python -m eval run`` in the real simulator."""

import dataclasses
import os
import signal
import threading

import pytest

from eval import __main__ as cli
from eval import run
from eval.compare import compare
from eval.control_data import read_controls
from eval.driver import Driver
from eval.results import RunFolder
from tests.eval import drill

pytestmark = [pytest.mark.sim, pytest.mark.multiprocess]
LAYOUTS = {"tasks": "0", "layouts": 2, "layout_seed": 90000, "workers": 1}


@pytest.fixture(scope="module")
def libero_assets():
    from pokevla_jax.sim.assets import resolve_assets

    return resolve_assets()


def test_the_expert_solves_layouts_and_the_same_command_runs_nothing_twice(tmp_path, ray_session, libero_assets):
    options = run.Options(policy="expert", run_dir=tmp_path, assets=str(libero_assets.root), **LAYOUTS)
    summary = run.run(options, "the command", progress=False)
    assert (summary["success"], summary["failure"], summary["error"]) == (2, 0, 0)
    assert summary["protocol"]["settle_steps"] == 10
    records = RunFolder(tmp_path).attempts()
    assert all(r["seconds"]["rendering"] == 0 and 0 < r["steps"] < 280 for r in records)
    # A record is lost (the crash came before it was written): only its episode is run again, with the same end.
    before = drill.ends(tmp_path)
    path = tmp_path / "episodes.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:40])
    again = run.run(options, "the command", progress=False)
    assert again["success"] == 2
    assert len(RunFolder(tmp_path).attempts()) == 2
    assert drill.ends(tmp_path) == before


@pytest.mark.slow
def test_a_checkpoint_is_evaluated_filmed_and_reported(tmp_path, libero_assets):
    """A network that was never trained, through every command; its success rate is nought."""
    from tests import policy_checkpoint as fake

    checkpoint = fake.write_checkpoint(tmp_path / "train", fake.make_config())
    config = fake.make_config(zero_images=True)
    blind = fake.write_checkpoint(tmp_path / "blind", config, params=fake.make_params(config, seed=4))
    command = ["run", "--policy", str(checkpoint), "--assets", str(libero_assets.root), "--max-steps", "40"]
    command += ["--tasks", "0,1", "--layouts", "2", "--layout-kind", "shared", "--workers", "2"]
    command += ["--run-dir", str(tmp_path / "run"), "--videos", "failures", "--ablate", "instruction"]
    command += ["--control", f"blind={blind}"]
    assert cli.main(command) == 0
    folder = RunFolder(tmp_path / "run")
    records = folder.records().values()
    assert [(r["outcome"], r["steps"], r["looks"]) for r in records] == [("failure", 40, 5)] * 4
    assert all(folder.video(r["id"]).stat().st_size > 10_000 for r in records)
    told = read_controls(folder.path)[0].folder.specs()
    assert [spec.base_id for spec in told] == [spec.id for spec in folder.specs()]
    assert all(spec.told != spec.prompt for spec in told)
    assert [task["pairs"] for task in compare([folder.path], [folder.path / "controls" / "blind"])["tasks"]] == [2, 2]
    page = tmp_path / "report.html"
    assert cli.main(["report", "--run-dir", str(tmp_path / "run"), "--out", str(page)]) == 0
    assert page.read_text().count("data:image/png") == 8  # two looks of each of four episodes


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["openvla-oft", "openpi", "lerobot"])
def test_an_untrained_checkpoint_runs_under_published_protocols(protocol, tmp_path, libero_assets, monkeypatch):
    from eval import presets
    from tests import policy_checkpoint as fake

    short = dataclasses.replace(presets.PRESETS[protocol], max_steps={"libero_object": 24})
    monkeypatch.setattr(presets, "PRESETS", {**presets.PRESETS, protocol: short})
    checkpoint = fake.write_checkpoint(tmp_path / "train", fake.make_config())
    command = ["run", "--policy", str(checkpoint), "--protocol", protocol, "--assets", str(libero_assets.root)]
    command += ["--tasks", "0", "--init-states", "1", "--workers", "1", "--run-dir", str(tmp_path / "run")]
    assert cli.main(command) == 0
    folder = RunFolder(tmp_path / "run")
    (record,) = folder.records().values()
    assert (record["outcome"], record["steps"]) == ("failure", 24)
    assert record["looks"] == {"openvla-oft": 3, "openpi": 5, "lerobot": 3}[protocol]
    facts = folder.protocol()
    assert (facts.simulation["protocol"], facts.simulation["renderer"]) == (protocol, "robosuite")
    assert facts.policy["images"] == {"openvla-oft": "openvla", "openpi": "openpi", "lerobot": "native"}[protocol]


@pytest.mark.slow
def test_killed_simulators_change_no_result(tmp_path, monkeypatch, libero_assets):
    options = {"policy": "expert", "assets": str(libero_assets.root), **LAYOUTS, "layouts": 6, "workers": 2}
    run.run(run.Options(run_dir=tmp_path / "calm", **options), "c", progress=False)

    killed = []
    original = Driver.run

    def run_and_kill(self, specs, on_record):
        def kill_soon(record):
            on_record(record)
            if len(killed) < 2 and record["process"] not in killed:
                killed.append(record["process"])
                # By then it is in the middle of its next episode.
                threading.Timer(0.5, os.kill, (record["process"], signal.SIGKILL)).start()

        original(self, specs, kill_soon)

    monkeypatch.setattr(Driver, "run", run_and_kill)
    summary = run.run(run.Options(run_dir=tmp_path / "killed", **options), "c", progress=False)
    assert len(killed) == 2
    assert (summary["episodes"], summary["error"]) == (6, 0)
    assert sorted(r["attempts"] for r in RunFolder(tmp_path / "killed").attempts()) == [1, 1, 1, 1, 2, 2]
    assert drill.ends(tmp_path / "killed") == drill.ends(tmp_path / "calm")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "libero_objct", "--layouts", "1"], "did you mean libero_object?"),
        (["--tasks", "pick_up_the_mlik", "--layouts", "1"], "the nearest is pick_up_the_milk"),
        (["--benchmark", "libero_minus"], "no benchmark 'libero_minus'"),
        (["--suite", "libero_goal", "--layouts", "1"], "libero_goal has no moved layouts, libero_object has"),
        (["--layouts", "1", "--ablate", "sound"], "take one of images, language, instruction"),
        (["--layouts", "1", "--ablate", "images"], "--policy random neither looks nor reads"),
        (["--layouts", "1", "--control", "runs/blind"], "write NAME=DIR"),
        (["--layouts", "1", "--control", "blind=nowhere"], "no folder"),
        (["--init-states", "40..49"], "write for example 40-49"),
        (["--init-states", "49-50"], "the last one is 49"),
        (["--layouts", "0"], "--layouts must be at least 1"),
        (["--layouts", "1", "--assets", "/nowhere"], "does not exist"),
        (["--layouts", "1", "--protocol", "openvla"], "'openvla' is unknown; known: pokevla, openvla-oft, openpi, ler"),
        (["--layouts", "1", "--protocol", "openpi", "--renderer", "fast"], "contradicts --protocol openpi, which has"),
        (["--layouts", "1", "--policy", "nowhere"], "no folder"),
        (["--layouts", "1", "--policy", "random", "--step", "3"], "go with a checkpoint"),
        (["--layouts", "1", "--exact", "0"], "--exact must be at least 1, got 0"),
        (["--layouts", "1", "--episode-timeout", "nan"], "--episode-timeout must be at least 1, got nan"),
        (["--layouts", "1", "--run-dir", "/proc/nowhere"], "cannot be written"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(arguments, message, tmp_path, capsys, libero_assets):
    defaults = {"--policy": "random", "--run-dir": str(tmp_path / "run"), "--assets": str(libero_assets.root)}
    for name, value in defaults.items():
        if name not in arguments:
            arguments = [*arguments, name, value]
    assert cli.main(["run", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", [["run", "--policy", "random"], ["vlm", "--checkpoint", "c", "--data", "d"]])
def test_a_step_that_is_none_is_one_sentence(command, tmp_path, capsys):
    folder = ["--run-dir" if command[0] == "run" else "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="2"):
        cli.main([*command, *folder, "--step", "last"])
    error = capsys.readouterr().err
    assert "argument --step: 'last' is neither a number nor best" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
