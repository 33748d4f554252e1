"""Controls: what is taken from a policy, where it is kept, and how it is paired with the policy itself."""

import dataclasses
from collections import Counter

import pytest

from eval import __main__ as cli
from eval.compare import compare
from eval.control_data import read_controls
from eval.controls import ABLATIONS
from eval.controls import Control
from eval.controls import ablate
from eval.controls import check_control
from eval.controls import control_specs
from eval.controls import parse_controls
from eval.controls import playable
from eval.episode import run_episode
from eval.errors import EvaluationError
from eval.policies import PolicyChoice
from eval.results import RunFolder
from pokevla_jax.sim.tasks import list_tasks
from tests.eval import runs
from tests.eval import toy


def test_an_ablation_changes_what_is_perceived_and_nothing_else():
    (spec,) = runs.specs(1)
    ablated = {name: ablate(spec, name) for name in ABLATIONS}
    assert {other.base_id for other in ablated.values()} == {spec.id}
    assert len({spec.id, *(other.id for other in ablated.values())}) == 4
    for name, other in ablated.items():
        changed = {key for key, value in other.to_dict().items() if spec.to_dict().get(key) != value}
        assert changed - {"told"} == {"control"}
        assert other.control == name
    assert [other.instruction == spec.prompt for other in ablated.values()] == [True, False, False]
    assert ablated["ablate-language"].instruction == ""


def test_another_tasks_instruction_is_any_of_the_others_alike():
    specs = control_specs(Control("ablate-instruction", "ablated"), runs.specs(900, tasks=1))
    told = Counter(spec.told for spec in specs)
    own, *others = (task.language for task in list_tasks("libero_object"))
    assert set(told) == set(others)
    # 100 of each are expected, with a standard deviation of 9.4.
    assert all(60 < count < 140 for count in told.values())
    assert specs == control_specs(Control("ablate-instruction", "ablated"), runs.specs(900, tasks=1))
    assert own not in told


@pytest.mark.parametrize(
    ("name", "success", "black", "prompt"),
    [("", True, False, "go right"), ("ablate-images", False, True, "go right"), ("ablate-language", False, False, "")],
)
def test_what_an_ablated_policy_sees_and_is_told(name, success, black, prompt):
    spec = toy.toy_spec(0, 10)
    environment = toy.ToyEnvironment()
    toy.ToyScenes().place(environment, spec)
    toy.SeeingAgent.seen.clear()
    rollout = run_episode(environment, ablate(spec, name) if name else spec, toy.SeeingAgent())
    assert rollout.success is success
    for observation in toy.SeeingAgent.seen:
        assert (not observation["images"].any()) is black
        assert observation["prompt"] == prompt
        assert observation["images"].shape == (2, 8, 8, 3)


def test_an_expert_plays_the_tasks_that_it_can():
    tasks = [(suite, task.index) for suite in ("libero_object", "libero_10") for task in list_tasks(suite)]
    specs = [dataclasses.replace(runs.specs(1)[0], suite=suite, task=task) for suite, task in tasks]
    for policy in ("expert", "replay"):
        played = playable(Control(policy, "baseline", policy), specs)
        assert [spec for spec in specs if spec in played] == played
        assert {spec.suite: 0 for spec in played} == {"libero_object": 0, "libero_10": 0}
        assert specs[:10] == played[:10]
        assert len(played) < len(specs)
    for control in (Control("random", "baseline", "random"), Control("replay", "baseline", "replay:demos")):
        assert playable(control, specs) == specs


def test_controls_are_named_in_their_order():
    assert parse_controls(["language", "images"], ["replay:demos", "blind=runs/a=b", "chance=random"]) == [
        Control("ablate-language", "ablated"),
        Control("ablate-images", "ablated"),
        Control("replay", "baseline", "replay:demos"),
        Control("blind", "trained", "runs/a=b"),
        Control("chance", "baseline", "random"),
    ]


@pytest.mark.parametrize(
    ("ablate", "control", "message"),
    [
        (["sight"], [], "no such ablation; take one of images, language, instruction"),
        (["images", "images"], [], "ablate-images is given twice"),
        ([], ["replay", "replay:demos"], "replay is given twice"),
        ([], ["runs/blind"], "write NAME=DIR"),
        ([], ["=runs/blind"], "write NAME=DIR"),
        ([], ["blind="], "write NAME=DIR"),
        ([], ["../blind=runs/blind"], "write NAME=DIR"),
        ([], ["ablate-images=runs/blind"], "belong to --ablate"),
    ],
)
def test_malformed_controls_are_one_sentence(ablate, control, message):
    with pytest.raises(EvaluationError, match=message):
        parse_controls(ablate, control)


def test_a_control_that_could_show_nothing_is_refused():
    policy, blind = {"label": "policy", "fingerprint": "a"}, {"label": "blind-trained", "fingerprint": "b"}
    ablated, trained = Control("ablate-images", "ablated"), Control("blind", "trained", "runs/x")
    check_control(ablated, policy, policy, looks=True)
    check_control(trained, blind, policy, looks=True)
    check_control(trained, blind, {"label": "expert"}, looks=False)
    with pytest.raises(EvaluationError, match="--policy expert neither looks nor reads"):
        check_control(ablated, {}, {"label": "expert"}, looks=False)
    with pytest.raises(EvaluationError, match="blind=runs/x was trained with images and language"):
        check_control(trained, policy | {"fingerprint": "c"}, policy, looks=True)
    with pytest.raises(EvaluationError, match="blind=runs/x is the policy itself"):
        check_control(trained, blind, blind, looks=True)


@pytest.mark.multiprocess
def test_controls_are_run_folders_below_the_run_and_are_resumed(tmp_path, ray_session, monkeypatch, capsys):
    specs = [toy.toy_spec(0, index) for index in (10, 20, 30)]
    agents = {"policy": toy.SeeingAgent(), "random": toy.SpeedAgent()}
    toy.stand_in(monkeypatch, specs, lambda name, **_: PolicyChoice({"kind": "toy", "label": name}, agents[name]))
    command = ["run", "--policy", "policy", "--benchmark", "libero", "--run-dir", str(tmp_path), "--workers", "2"]
    command += ["--ablate", "images", "--ablate", "language", "--control", "chance=random"]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    for line in ("policy: 100%", "ablate-images: 0%", "ablate-language: 0%", "chance (random): 100%"):
        assert line in printed
    controls = read_controls(tmp_path)
    assert [(control.name, control.kind) for control in controls] == [
        ("ablate-images", "ablated"),
        ("ablate-language", "ablated"),
        ("chance", "baseline"),
    ]
    assert [control.folder.summary()["success"] for control in controls] == [0, 0, 3]
    for control in controls:
        assert compare([tmp_path], [control.folder.path])["pairs"] == 3
    protocols = [RunFolder(tmp_path).protocol(), *(control.folder.protocol() for control in controls)]
    assert len({protocol.hash for protocol in protocols}) == 4
    assert len({protocol.simulation_hash for protocol in protocols}) == 1
    # A control whose results are lost is run again, alone.
    before = {control.name: len(control.folder.attempts()) for control in controls}
    (controls[1].folder.path / "episodes.jsonl").write_text("")
    assert cli.main(command) == 0
    assert {control.name: len(control.folder.attempts()) for control in controls} == before
    assert len(RunFolder(tmp_path).attempts()) == 3


def test_compare_pairs_a_policy_with_its_ablation(tmp_path):
    images = Control("ablate-images", "ablated")
    runs.make_run(tmp_path, "SSSF" + "SSFF", tasks=2)
    runs.make_run(tmp_path, "FSFF" + "S.EF", tasks=2, control=images, label="ablate-images")
    soup, milk = compare([tmp_path], [images.folder(tmp_path)])["tasks"]
    assert [soup[key] for key in ("pairs", "both", "only_a", "only_b", "neither")] == [4, 1, 2, 0, 1]
    assert [milk[key] for key in ("pairs", "both", "only_a", "only_b", "neither")] == [2, 1, 0, 0, 1]


def test_a_folder_that_is_no_control_is_named(tmp_path):
    blind = Control("blind", "trained", "x")
    runs.make_run(tmp_path, "SS")
    assert read_controls(tmp_path) == []
    runs.make_run(tmp_path, "FF", control=blind, label="blind-trained")
    blind.folder(tmp_path).rename(tmp_path / "controls" / "mute")
    with pytest.raises(EvaluationError, match="mute is no control of"):
        read_controls(tmp_path)
