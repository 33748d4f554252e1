"""The run folder: append-only, resumable, one protocol."""

import errno
import fcntl
import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import time

import pytest

from eval import __main__ as cli
from eval.errors import EvaluationError
from eval.results import RunFolder
from eval.summary import lines
from eval.summary import summarize
from tests.eval import runs


def opened(path, count=4, **facts):
    folder = RunFolder(path)
    folder.open(runs.specs(count), runs.protocol(**facts), {"command": "c"})
    return folder


def test_what_is_missing_shrinks_and_errors_are_tried_again(tmp_path):
    specs = runs.specs(4)
    folder = opened(tmp_path)
    assert folder.missing() == specs
    for spec, outcome in zip(specs, ("success", "error", "failure"), strict=False):
        folder.append(runs.record(spec, outcome))
    assert folder.missing() == [specs[1], specs[3]]
    folder.append(runs.record(specs[1], "success"))
    folder.close()
    again = opened(tmp_path)
    assert again.missing() == [specs[3]]
    assert again.records()[specs[1].id]["outcome"] == "success"
    assert len(again.attempts()) == 4


def test_a_decided_episode_is_never_overturned(tmp_path):
    (spec,) = runs.specs(1)
    folder = opened(tmp_path, 1)
    for outcome in ("failure", "success", "error"):
        folder.append(runs.record(spec, outcome))
    assert folder.records()[spec.id]["outcome"] == "failure"


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_a_line_cut_short_is_forgotten_and_written_again(tmp_path, cut):
    specs = runs.specs(2)
    folder = opened(tmp_path, 2)
    for spec in specs:
        folder.append(runs.record(spec, "success"))
    folder.close()
    path = tmp_path / "episodes.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert [r["id"] for r in RunFolder(tmp_path).attempts()] == [specs[0].id]
    folder = opened(tmp_path, 2)
    assert folder.missing() == [specs[1]]
    folder.append(runs.record(specs[1], "failure"))
    assert [r["outcome"] for r in folder.attempts()] == ["success", "failure"]


def test_any_other_broken_line_is_named(tmp_path):
    runs.make_run(tmp_path, "SSS")
    path = tmp_path / "episodes.jsonl"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([rows[0], rows[1][:50], rows[2]]) + "\n")
    with pytest.raises(EvaluationError, match=r"episodes.jsonl, line 2, is no episode record"):
        RunFolder(tmp_path).records()


def test_a_record_survives_the_death_of_its_writer(tmp_path):
    """The writer is killed right after ``append`` returned."""
    code = (
        "import os, signal, sys; from eval.results import RunFolder; from tests.eval import runs\n"
        f"folder = RunFolder({str(tmp_path)!r}); folder.open(runs.specs(2), runs.protocol(), dict())\n"
        "folder.append(runs.record(runs.specs(2)[0], 'success')); os.kill(os.getpid(), signal.SIGKILL)"
    )
    result = subprocess.run([sys.executable, "-c", code], check=False, cwd=os.getcwd())
    assert result.returncode == -signal.SIGKILL
    folder = opened(tmp_path, 2)
    assert folder.missing() == [runs.specs(2)[1]]


def test_other_protocols_and_other_episodes_are_refused(tmp_path):
    opened(tmp_path).close()
    with pytest.raises(EvaluationError, match=r"another protocol \(policy fingerprint: f1, not f0\); .* --run-dir"):
        opened(tmp_path, fingerprint="f1")
    with pytest.raises(EvaluationError, match=r"simulation versions.mujoco: 3.4.0, not 3.3.2"):
        opened(tmp_path, simulation={"versions": {"mujoco": "3.4.0", "robosuite": "1.4.0"}})
    with pytest.raises(EvaluationError, match="another list of episodes"):
        opened(tmp_path, 5)
    opened(tmp_path).close()


def test_two_writers_are_refused(tmp_path):
    folder = opened(tmp_path)
    with pytest.raises(EvaluationError, match="being written by another evaluation"):
        opened(tmp_path)
    folder.close()
    opened(tmp_path).close()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match=r"cannot be written .* choose another folder"):
        opened(tmp_path / "file" / "run")
    with pytest.raises(EvaluationError, match=r"no evaluation run: it has no manifest.json"):
        RunFolder(tmp_path).specs()


def test_an_edited_manifest_is_noticed(tmp_path):
    runs.make_run(tmp_path, "S")
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"max_steps": 280', '"max_steps": 500'))
    with pytest.raises(EvaluationError, match="was edited"):
        RunFolder(tmp_path).specs()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("manifest.json", b"{}", "manifest.json has no 'episodes'; restore it from a copy"),
        ("manifest.json", b'{"episodes": [{}]}', "manifest.json: episode 0 was edited; restore the file"),
        ("manifest.json", b'{"episodes": [7]}', "manifest.json: episode 0 was edited; restore the file"),
        ("protocol.json", b"[]", "protocol.json has no 'simulation'; restore it from a copy"),
        ("protocol.json", b'{\n"a"', r"protocol.json is not valid JSON \(line 2\); restore it from a copy"),
        ("protocol.json", b"\xff\xfe\x00", "protocol.json is not text; restore it from a copy"),
        ("episodes.jsonl", b"\xff\xfe\n", "episodes.jsonl, line 1, is no episode record; remove it to go on"),
    ],
)
def test_damaged_files_are_named_in_one_sentence(tmp_path, capsys, name, content, message):
    runs.make_run(tmp_path / "a", "S")
    (tmp_path / "a" / name).write_bytes(content)
    for command in (
        ["merge", str(tmp_path / "a"), "--out", str(tmp_path / "b")],
        ["compare", *[str(tmp_path / "a")] * 2],
    ):
        assert cli.main(command) == 2
        error = capsys.readouterr().err
        assert re.search(message, error)
        assert error.count("\n") == 1


def test_the_summary_keeps_errors_out_of_the_rate(tmp_path):
    folder = runs.make_run(tmp_path, "SSSF" + "FE..", tasks=2)
    summary = summarize(folder)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    counts = {key: summary[key] for key in ("success", "failure", "error", "episodes", "missing", "success_rate")}
    assert counts == {"success": 3, "failure": 2, "error": 1, "episodes": 6, "missing": 2, "success_rate": 0.6}
    assert summary["interval95"] == pytest.approx([0.2307, 0.8824], abs=1e-4)
    assert [task["success_rate"] for task in summary["tasks"]] == [0.75, 0.0]
    assert summary["timing"]["steps"] == 500
    assert summary["timing"]["steps_per_second"] == pytest.approx(50)
    assert summary["protocol"]["assets"] == "real+standins"
    text = "\n".join(lines(summary))
    assert "60% (3/5" in text
    assert "ERRORS: 1" in text
    assert "INCOMPLETE: 2" in text
    assert "not comparable with published numbers" in text


def test_a_run_without_a_decision_has_no_rate(tmp_path):
    summary = summarize(runs.make_run(tmp_path, "EE"))
    assert summary["success_rate"] is None
    assert summary["interval95"] == [0, 1]
    assert "no episode decided" in lines(summary)[0]


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path):
    """The kernel takes a part of the line and no more; the file then ends with the record before."""
    first, second = runs.specs(2)
    folder = opened(tmp_path, 2)
    folder.append(runs.record(first, "success"))
    path = tmp_path / "episodes.jsonl"
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, hard))
    try:
        with pytest.raises(EvaluationError, match=r"cannot be written \(File too large\); every .* is safe: make room"):
            folder.append(runs.record(second, "success"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    folder.append(runs.record(second, "failure"))
    assert [r["outcome"] for r in folder.attempts()] == ["success", "failure"]


def test_space_that_ends_while_the_disk_is_flushed_takes_the_record_back(tmp_path, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = opened(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(EvaluationError, match="No space left on device"):
            folder.append(runs.record(runs.specs(1)[0], "success"))
        with pytest.raises(EvaluationError, match="No space left on device"):
            folder.write_summary({"success": 1})
    assert folder.attempts() == []
    assert not list(tmp_path.glob("*summary*"))
    folder.append(runs.record(runs.specs(1)[0], "success"))
    assert len(folder.attempts()) == 1


def owned_by(path, host, pid, age=0.0):
    """A lock file as another process left it, ``age`` seconds ago."""
    path.mkdir(exist_ok=True)
    lock = path / ".lock"
    lock.write_text(json.dumps({"host": host, "pid": pid}))
    os.utime(lock, (lock.stat().st_atime - age, lock.stat().st_mtime - age))


def test_another_host_holds_the_folder_while_it_gives_signs_of_life(tmp_path):
    owned_by(tmp_path, "elsewhere", 17)
    with pytest.raises(EvaluationError, match=r"\(process 17 on elsewhere\); wait .*; if it died, wait 90 s"):
        opened(tmp_path)
    owned_by(tmp_path, "elsewhere", 17, age=100)
    opened(tmp_path).close()
    opened(tmp_path).close()  # whoever ends gives it back at once


def test_the_folder_is_kept_by_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr("eval.lock.BEAT", 0.05)
    folder = opened(tmp_path)
    lock = tmp_path / ".lock"
    os.utime(lock, (0, 0))
    deadline = time.monotonic() + 20
    while lock.stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert lock.stat().st_mtime > 0
    folder.close()


def test_who_lost_the_folder_writes_no_more(tmp_path):
    folder = opened(tmp_path)
    owned_by(tmp_path, "elsewhere", 17)
    with pytest.raises(EvaluationError, match="was taken over by process 17 on elsewhere"):
        folder.append(runs.record(runs.specs(1)[0], "success"))
    assert folder.attempts() == []


def test_without_locks_of_the_file_system_the_owner_is_looked_for(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    child = subprocess.Popen(["sleep", "60"])
    owned_by(tmp_path, platform.node(), child.pid)
    with pytest.raises(EvaluationError, match=f"process {child.pid} on "):
        opened(tmp_path)
    child.kill()
    child.wait()
    opened(tmp_path).close()
