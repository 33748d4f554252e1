"""The doctor: every bad state that it is there for is made, and caught; a good one passes."""

import json
import shutil
from pathlib import Path

import pytest

from eval import __main__ as cli
from eval import checks
from eval import doctor
from eval.checks import Bench
from eval.checks import Finding
from eval.checks import Status
from eval.errors import EvaluationError
from pokevla_jax.sim import assets as asset_module
from pokevla_jax.sim import probes
from pokevla_jax.sim import rendering
from pokevla_jax.sim import standins
from pokevla_jax.sim.assets import Assets
from pokevla_jax.sim.assets import inspect_assets
from pokevla_jax.sim.probes import Playback

PINNED = {"mujoco": "3.3.2", "robosuite": "1.4.0", "hf-libero": "0.1.4", "bddl": "1.0.1", "numpy": "2.4.6"}


@pytest.fixture(scope="module")
def bench():
    """The assets that are there, and scenes that the tests of this file share."""
    bench = Bench()
    yield bench
    bench.close()


def test_descriptions_and_checks_agree_in_names_and_order():
    assert list(doctor.CHECKS) == list(checks.CHECKS)


def test_a_finding_says_what_to_do_exactly_if_something_is_to_be_done():
    with pytest.raises(ValueError, match="advice"):
        Finding(Status.FAIL, "broken")
    with pytest.raises(ValueError, match="advice"):
        Finding(Status.OK, "fine", "do this")


@pytest.mark.parametrize(
    ("other", "status", "words"),
    [
        ({}, "ok", "mujoco 3.3.2"),
        ({"mujoco": "3.4.0"}, "fail", "mujoco is 3.4.0, not 3.3.2 (from 3.3.3 on objects settle differently"),
        ({"mujoco": "3.3.3"}, "fail", "mujoco is 3.3.3"),
        ({"mujoco": "3.10.1"}, "fail", "mujoco is 3.10.1"),
        ({"mujoco": "3.1.6"}, "warn", "mujoco is 3.1.6"),
        ({"mujoco": "2.3.7"}, "fail", "mujoco is 2.3.7"),
        ({"numpy": "1.26.4"}, "warn", "numpy is 1.26.4"),
        ({"numpy": "1.26.4", "robosuite": "1.5.2"}, "fail", "robosuite is 1.5.2, not 1.4.0"),
        ({"bddl": "absent"}, "fail", "bddl is absent"),
    ],
)
def test_versions(other, status, words):
    finding = checks.judge_packages(PINNED | other, PINNED)
    assert (finding.status, words in finding.message) == (status, True)
    assert all(f"{name}=={PINNED[name]}" in finding.advice for name in other)


def test_the_pins_are_the_requirements(bench):
    assert checks.packages(bench).status == "ok"


def test_assets_that_someone_edited_are_told_from_declared_stand_ins(tmp_path, monkeypatch):
    root = tmp_path / "assets"
    for name in ("bowl.xml", "bowl.png"):
        root.mkdir(exist_ok=True)
        (root / name).write_text(name)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(asset_module.build_manifest(root)))
    monkeypatch.setattr(asset_module, "_MANIFEST", manifest)

    def examined():
        asset_module._inspect.cache_clear()
        return checks.run_check("assets", Bench(str(root)))

    assert examined().status == "ok"
    (root / "bowl.png").write_text("another picture")
    edited = examined()
    assert (edited.status, "1 file(s) differ" in edited.message, "bowl.png" in edited.message) == ("fail", True, True)
    (root / "STANDINS.txt").write_text("bowl.png\n")
    assert examined().status == "warn"
    (root / "bowl.xml").unlink()
    missing = examined()
    assert (missing.status, "lacks bowl.xml" in missing.message) == ("fail", True)
    generated = Assets(tmp_path, "standins", "ab")
    assert checks.judge_assets(generated).status == "warn"


def test_prompts_with_suffixes_or_another_number_of_tasks_are_caught(bench):
    assert checks.prompts(bench).status == "ok"
    suffixes = (
        "view 0 0 100 0 0 initstate 11",
        "view 0 0 100 0 0 initstate 0 noise 31",
        "light 1",
        "table 1",
        "tb 12",
        "add 3",
        "level1 sample1",
    )
    good = ["pick up the milk and place it in the basket"] * 9
    for suffix in suffixes:
        finding = checks.judge_prompts({"libero_object": [*good, f"{good[0]} {suffix}"]})
        assert finding.status == "fail" and suffix in finding.message
    assert "has 9 tasks" in checks.judge_prompts({"libero_object": good}).message


@pytest.mark.parametrize(
    ("degrees", "status", "words"),
    [
        ([15.9, 15.8, 16.0], "ok", "as it should"),
        ([10.6, 10.6], "fail", "a MuJoCo with other box contacts"),
        ([15.9, 10.6], "fail", "changed assets or another simulator"),
        ([0.3], "fail", "changed assets or another simulator"),
    ],
)
def test_tilts(degrees, status, words):
    finding = checks.judge_tilt(degrees)
    assert (finding.status, words in finding.message) == (status, True)


@pytest.mark.parametrize(
    ("wrist", "status", "words"),
    [
        ((0.2, 0.3), "ok", "turned by 180 degrees"),
        ((0.8, 0.7), "fail", "wrist is not turned"),
        ((0.2, 0.7), "fail", "flipped top to bottom only"),
        ((0.8, 0.3), "fail", "flipped left to right only"),
    ],
)
def test_orientations(wrist, status, words):
    finding = checks.judge_pictures({"agentview": (0.3, 0.3), "wrist": wrist})
    assert (finding.status, words in finding.message) == (status, True)
    assert "agentview is" not in finding.message


@pytest.mark.parametrize(
    ("usual", "perturbed", "status"),
    [(0.001, 0.073, "ok"), (0.001, 0.002, "fail"), (0.05, 0.073, "fail"), (0.0, 0.2, "fail")],
)
def test_drifts(usual, perturbed, status):
    assert checks.judge_drift(usual, perturbed).status == status


@pytest.mark.parametrize(
    ("device", "frames", "gpu", "status", "words"),
    [
        ("NVIDIA H100", 400.0, True, "ok", "hardware"),
        ("llvmpipe (LLVM 15.0.6, 256 bits)", 40.0, False, "ok", "software"),
        ("llvmpipe (LLVM 15.0.6, 256 bits)", 40.0, True, "warn", "MUJOCO_GL=egl"),
        ("softpipe", 2.0, False, "warn", "expect long evaluations"),
    ],
)
def test_renderers(device, frames, gpu, status, words):
    finding = checks.judge_renderer("osmesa", device, frames, 128, gpu=gpu)
    assert (finding.status, words in finding.message + finding.advice) == (status, True)
    assert f"{frames * 128 * 128 / 1e6:.2f} million pixels" in finding.message


@pytest.mark.parametrize(
    ("solved", "repeated", "same_end", "words"),
    [
        (True, True, True, "solved a in 90 steps"),
        (False, False, True, "the expert fails on a"),
        (True, False, False, "its actions fail on a when repeated"),
        (True, True, False, "repeated actions end elsewhere on a"),
    ],
)
def test_playbacks(solved, repeated, same_end, words):
    finding = checks.judge_playback({"a": Playback(90, solved, repeated, same_end)})
    assert words in finding.message
    assert (finding.status == "ok") == (solved and repeated and same_end)


def test_folders_that_cannot_be_written_or_are_full(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**40))
    assert checks.files(Bench(run_dir=tmp_path / "not" / "there")).status == "ok"
    assert list(tmp_path.iterdir()) == []
    assert checks.files(Bench(run_dir=tmp_path / "file" / "x")).status == "ok"
    unwritable = checks.run_check("files", Bench(run_dir=Path("/proc/nowhere")))
    assert (unwritable.status, "/proc/nowhere" in unwritable.message) == ("fail", True)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    assert checks.files(Bench(run_dir=tmp_path)).status == "warn"


def test_ray_that_does_not_start_is_a_finding(monkeypatch):
    def broken(workers):
        raise EvaluationError("Ray could not be started on this machine: no room in /dev/shm")

    monkeypatch.setattr(checks, "local_cluster", broken)
    finding = checks.run_check("ray", Bench())
    assert (finding.status, "no room" in finding.message, bool(finding.advice)) == ("fail", True, True)


@pytest.mark.multiprocess
def test_ray_runs(ray_session):
    assert checks.run_check("ray", Bench()).status == "ok"


@pytest.mark.sim
def test_flipped_pictures_are_caught(bench, monkeypatch):
    assert checks.pictures(bench).status == "ok"
    flips = {
        "not turned": lambda image: image.copy(),
        "top to bottom only": lambda image: image[::-1].copy(),
        "left to right only": lambda image: image[:, ::-1].copy(),
    }
    for words, flip in flips.items():
        monkeypatch.setattr(rendering, "rotated", flip)
        finding = checks.pictures(bench)
        assert finding.status == "fail"
        assert f"agentview is {'flipped ' * ('only' in words)}{words}" in finding.message
        assert "wrist is" in finding.message


@pytest.mark.sim
def test_the_perturbed_arm_drifts_unless_the_controller_forgets(bench, monkeypatch):
    assert checks.robot(bench).status == "ok"
    environment = bench.environment("libero_object", 0)
    original = environment.reset
    # A controller that is made anew after the stored state was set remembers nothing of the posture it was built in.
    monkeypatch.setattr(environment, "reset", lambda state, *, posture=None, **options: original(state, **options))
    finding = checks.robot(bench)
    assert (finding.status, "robosuite" in finding.advice) == ("fail", True)


@pytest.mark.sim
def test_a_renderer_says_what_it_is(bench):
    finding = checks.run_check("renderer", bench)
    assert finding.status in ("ok", "warn")
    assert "MUJOCO_GL=" in finding.message and "million pixels" in finding.message


@pytest.mark.sim
def test_resets_that_are_not_exact_are_caught(bench, monkeypatch):
    environment = bench.environment("libero_object", 0)
    resets = []
    original = environment.reset

    def inexact(state, **options):
        original(state + 1e-9 * len(resets), **options)
        resets.append(1)

    monkeypatch.setattr(environment, "reset", inexact)
    played = probes.play_back(environment, environment.task, 0)
    assert (played.solved, played.same_end) == (True, False)


@pytest.mark.sim
@pytest.mark.slow
def test_slippery_things_are_caught(bench):
    """The expert cannot hold what has no friction."""
    environment = bench.environment("libero_object", 0)
    friction = environment.model.geom_friction.copy()
    environment.model.geom_friction[:] = 1e-3
    try:
        assert not probes.play_back(environment, environment.task, 0).solved
    finally:
        environment.model.geom_friction[:] = friction


@pytest.mark.sim
def test_the_bowl_on_the_ramekin_leans_as_it_should(bench):
    if bench.assets.kind == "standins":
        assert checks.settle(bench).status == "warn"
        return
    finding = checks.settle(bench)
    assert finding.status == "ok", finding.message
    model = bench.environment("libero_spatial", 5).model
    ramekin = bench.environment("libero_spatial", 5).sim_env.obj_body_id["glazed_rim_porcelain_ramekin_1"]
    geoms = model.geom_bodyid == ramekin
    kept = model.geom_contype[geoms].copy(), model.geom_conaffinity[geoms].copy()
    model.geom_contype[geoms] = model.geom_conaffinity[geoms] = 0
    try:
        assert checks.settle(bench).status == "fail"
    finally:
        model.geom_contype[geoms], model.geom_conaffinity[geoms] = kept


def test_generated_stand_ins_have_no_ramekin(tmp_path):
    root = standins.generate(tmp_path / "standins")
    assert inspect_assets(root).kind == "standins"
    finding = checks.settle(Bench(str(root)))
    assert (finding.status, "not run" in finding.message) == ("warn", True)


def test_the_command_prints_a_line_per_check_and_its_status_says_whether_any_failed(tmp_path, capsys, monkeypatch):
    findings = {
        "packages": Finding(Status.OK, "mujoco 3.3.2"),
        "prompts": Finding(Status.WARN, "odd [but] known", "know it"),
        "files": Finding(Status.FAIL, "nothing can be written", "free some space"),
    }
    for name, finding in findings.items():
        monkeypatch.setitem(checks.CHECKS, name, lambda bench, finding=finding: finding)
    assert cli.main(["doctor", "--only", "files, packages,prompts"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["OK", "packages"], ["WARN", "prompts"]]
    assert "odd [but] known" in lines[1] and "-> know it" in lines[2]
    assert lines[3].startswith("FAIL files") and "free some space" in lines[4]
    assert cli.main(["doctor", "--only", "packages,prompts", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] and answer["checks"]["prompts"] == {
        "status": "warn",
        "message": "odd [but] known",
        "advice": "know it",
    }


def test_an_exception_is_a_failure_in_its_own_words(monkeypatch):
    def broken(bench):
        raise RuntimeError("no display\nand more")

    monkeypatch.setitem(checks.CHECKS, "renderer", broken)
    finding = checks.run_check("renderer", Bench())
    assert finding.status == "fail"
    assert finding.message == "RuntimeError: no display" and "MUJOCO_GL" in finding.advice


def test_unknown_checks_are_one_sentence(capsys):
    assert cli.main(["doctor", "--only", "setle"]) == 2
    assert "did you mean settle?" in capsys.readouterr().err


def test_missing_assets_fail_where_they_are_needed(tmp_path):
    bench = Bench(str(tmp_path / "nowhere"))
    for name in ("assets", "pictures", "settle", "robot", "expert"):
        finding = checks.run_check(name, bench)
        assert finding.status == "fail" and "does not exist" in finding.message


def test_help_names_every_check(capsys):
    with pytest.raises(SystemExit):
        cli.main(["doctor", "--help"])
    text = capsys.readouterr().out
    assert all(f"  {name}" in text for name in doctor.CHECKS)
    assert "examples:" in text and "--json" in text


@pytest.mark.sim
@pytest.mark.slow
def test_everything_is_well_here(bench):
    for name in ("packages", "prompts", "pictures", "robot", "expert"):
        finding = checks.run_check(name, bench)
        assert finding.status == "ok", finding
