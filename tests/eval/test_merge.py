"""Merging runs: each episode once, and everything else said."""

import json
import re

import pytest

from eval import __main__ as cli
from eval.compare import compare
from eval.control_data import read_controls
from eval.controls import Control
from eval.errors import EvaluationError
from eval.merge import merge
from eval.results import RunFolder
from tests.eval import runs


def rewrite(folder, **changes):
    """Changes the first record of a finished run."""
    path = folder.path / "episodes.jsonl"
    first, *rest = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(record) + "\n" for record in [first | changes, *rest]))


def run_merge(out, *folders):
    return cli.main(["merge", *(str(folder.path) for folder in folders), "--out", str(out)])


def test_two_halves_make_one_run(tmp_path, capsys):
    halves = [runs.make_run(tmp_path / name, outcomes) for name, outcomes in (("a", "SF.."), ("b", "..SS"))]
    halves[0].video(halves[0].specs()[1].id).parent.mkdir()
    halves[0].video(halves[0].specs()[1].id).write_bytes(b"film")
    assert run_merge(tmp_path / "all", *halves) == 0
    together = RunFolder(tmp_path / "all")
    assert [r["outcome"] for r in together.attempts()] == ["success", "failure", "success", "success"]
    assert together.specs() == halves[0].specs()
    assert together.protocol() == halves[0].protocol()
    assert (together.summary()["episodes"], together.summary()["missing"]) == (4, 0)
    assert together.video(together.specs()[1].id).read_bytes() == b"film"
    assert "4 of 4 episodes have a record" in capsys.readouterr().out
    # The merged folder is a run like any other, and can be merged again.
    assert run_merge(tmp_path / "again", together) == 0


def test_controls_are_merged_with_their_runs(tmp_path, capsys):
    images, blind = Control("ablate-images", "ablated"), Control("blind", "trained", "x")
    halves = [tmp_path / "a", tmp_path / "b"]
    for path, outcomes in zip(halves, ("SS..", "..SS"), strict=True):
        runs.make_run(path, outcomes)
        runs.make_run(path, outcomes.replace("S", "F"), control=images, label="ablate-images")
    runs.make_run(halves[0], "F...", control=blind, label="blind-trained")
    assert cli.main(["merge", *map(str, halves), "--out", str(tmp_path / "all")]) == 1
    together = read_controls(tmp_path / "all")
    assert [(control.name, control.kind) for control in together] == [
        ("ablate-images", "ablated"),
        ("blind", "trained"),
    ]
    assert [compare([tmp_path / "all"], [control.folder.path])["only_a"] for control in together] == [4, 1]
    assert "blind: missing: 3" in capsys.readouterr().out


def test_missing_errors_and_equal_duplicates_are_listed(tmp_path, capsys):
    one, two = runs.make_run(tmp_path / "a", "SFE..S"), runs.make_run(tmp_path / "b", "S.E.SE")
    ids = [spec.id for spec in one.specs()]
    assert run_merge(tmp_path / "all", one, two) == 1
    found = json.loads((tmp_path / "all" / "merge.json").read_text())
    expected = {"missing": [ids[3]], "errors": [ids[2]], "duplicates": [ids[0]], "conflicts": [], "complete": False}
    assert {key: found[key] for key in expected} == expected
    records = RunFolder(tmp_path / "all").attempts()
    assert [(r["id"], r["outcome"]) for r in records] == [
        (ids[0], "success"),
        (ids[1], "failure"),
        (ids[2], "error"),
        (ids[4], "success"),
        (ids[5], "success"),
    ]
    said = capsys.readouterr().out
    assert "missing: 1" in said and "equally: 1" in said and "errors alone: 1" in said


@pytest.mark.parametrize("change", [{"outcome": "failure"}, {"steps": 99}, {"final_state": "01"}])
def test_two_ends_of_one_episode_are_a_conflict(tmp_path, change, capsys):
    one, two = runs.make_run(tmp_path / "a", "SS"), runs.make_run(tmp_path / "b", "SS")
    rewrite(two, **change)
    assert run_merge(tmp_path / "all", one, two) == 1
    (conflict,) = json.loads((tmp_path / "all" / "merge.json").read_text())["conflicts"]
    assert conflict["id"] == one.specs()[0].id
    key, value = change.popitem()
    assert [record[key] for record in conflict["records"]] == [one.attempts()[0][key], value]
    assert [r["id"] for r in RunFolder(tmp_path / "all").attempts()] == [spec.id for spec in one.specs()]
    assert RunFolder(tmp_path / "all").attempts()[0] == one.attempts()[0]
    assert "CONFLICTING" in capsys.readouterr().out


def test_times_and_hosts_are_no_conflict(tmp_path):
    one, two = runs.make_run(tmp_path / "a", "S"), runs.make_run(tmp_path / "b", "S")
    rewrite(two, attempts=3, host="other", process=1, seconds={"reset": 9.0})
    assert run_merge(tmp_path / "all", one, two) == 0


def test_a_run_that_holds_an_episode_twice_is_noticed(tmp_path):
    folder = runs.make_run(tmp_path / "a", "SS")
    path = folder.path / "episodes.jsonl"
    first = json.loads(path.read_text().splitlines()[0])
    path.write_text(path.read_text() + json.dumps(first) + "\n" + json.dumps(first | {"steps": 1}) + "\n")
    assert len(merge([folder]).conflicts) == 1


def test_runs_of_other_episodes_are_put_together(tmp_path):
    one, two = runs.make_run(tmp_path / "a", "SS"), runs.make_run(tmp_path / "b", "FF", layout_seed=1)
    result = merge([one, two])
    assert result.complete
    assert len(result.records) == 4


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a, b, out: runs.make_run(b, "S", fingerprint="f1"), r"another protocol than .*fingerprint: f1, not f0"),
        (lambda a, b, out: b.symlink_to(a), "is given twice"),
        (lambda a, b, out: b.mkdir(), "is no evaluation run"),
        (lambda a, b, out: (runs.make_run(b, "S"), out.mkdir()), "choose a new folder"),
        (lambda a, b, out: rewrite(runs.make_run(b, "S"), id="0" * 16), "is not in its manifest"),
    ],
)
def test_refusals_are_one_sentence_and_leave_nothing(tmp_path, capsys, spoil, message):
    a, b, out = (tmp_path / name for name in ("a", "b", "out"))
    folder = runs.make_run(a, "S")
    spoil(a, b, out)
    before = sorted(tmp_path.iterdir())
    assert run_merge(out, folder, RunFolder(b)) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    folder = runs.make_run(tmp_path / "a", "S")
    (tmp_path / "file").write_text("")
    assert run_merge(tmp_path / "file" / "out", folder) == 2
    assert capsys.readouterr().err.endswith("file/out cannot be written (Not a directory); choose another folder\n")


def test_a_merge_that_fails_half_way_leaves_nothing(tmp_path, monkeypatch):
    folder = runs.make_run(tmp_path / "a", "SS")

    def full_disk(self, record):
        raise EvaluationError("No space left on device")

    monkeypatch.setattr(RunFolder, "append", full_disk)
    assert run_merge(tmp_path / "out", folder) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
