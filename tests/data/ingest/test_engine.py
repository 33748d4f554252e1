"""Any number of workers, a kill or a second start: the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pokevla_jax.cli import ingest as cli
from pokevla_jax.data.codec import DataError
from pokevla_jax.data.corpus import open_corpus
from pokevla_jax.data.ingest import engine
from pokevla_jax.data.ingest.base import Reference
from pokevla_jax.data.ingest.base import Rejection
from pokevla_jax.data.ingest.sources import Options
from pokevla_jax.data.ingest.sources import make
from tests.data import corpora
from tests.data.ingest import foreign

ROOT = Path(__file__).resolve().parents[3]


class Listed:
    """A reader of numbers; even ones are samples."""

    source, pillar, licence = "listed", "general", "CC0"

    def __init__(self, items):
        self.items = items

    def settings(self):
        return {"adapter": "listed"}

    def inputs(self, data):
        return []

    def references(self, data):
        yield from self.items

    def load(self, data, reference):
        return corpora.sample(reference.payload, id=reference.id, source="listed", pillar="general")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def arguments(kind, data, out, *more):
    return ["--source", kind, "--data", str(data), "--out", str(out), "--shard-size", "2", "--json", *more]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    foreign.damaged_llava(folder)
    return folder


@pytest.fixture(scope="module")
def serial(damaged, tmp_path_factory):
    out = tmp_path_factory.mktemp("serial")
    assert cli.main(arguments("robopoint", damaged, out)) == 0
    return contents(out)


@pytest.mark.multiprocess
def test_processes_give_the_bytes_of_one(damaged, serial, tmp_path):
    assert cli.main(arguments("robopoint", damaged, tmp_path / "out", "--workers", "2")) == 0
    assert contents(tmp_path / "out") == serial


@pytest.mark.multiprocess
@pytest.mark.slow
def test_a_ray_cluster_gives_the_bytes_of_one(damaged, serial, tmp_path, monkeypatch):
    import ray

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert cli.main(arguments("robopoint", damaged, tmp_path / "out", "--address", "auto", "--workers", "2")) == 0
    finally:
        ray.shutdown()
    assert contents(tmp_path / "out") == serial


@pytest.mark.multiprocess
def test_a_kill_in_the_middle_and_a_new_start_give_the_same_bytes(damaged, serial, tmp_path):
    out = tmp_path / "out"
    # Slowed down, so that there is a middle; the shards themselves are written at full speed.
    code = (
        "import sys, time\n"
        "from pokevla_jax.data.ingest import engine\n"
        "from pokevla_jax.cli import ingest\n"
        "load = engine._load_sample\n"
        "engine._load_sample = lambda job, reference: (time.sleep(0.2), load(job, reference))[1]\n"
        "sys.exit(ingest.main(sys.argv[1:]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments("robopoint", damaged, out)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not list(out.glob("*-00002.rejected.jsonl")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = contents(out)
    assert "robopoint-00000.parquet" in before
    assert "ingest-robopoint.json" not in before
    # What a writer leaves behind, and a list without its shard.
    (out / ".robopoint-00003.parquet.77.tmp").write_bytes(b"half")
    (out / "robopoint-00003.parquet").unlink(missing_ok=True)
    stamps = {name: (out / name).stat().st_mtime_ns for name in before if name.startswith("robopoint-00000")}
    assert cli.main(arguments("robopoint", damaged, out)) == 0
    assert contents(out) == serial
    assert stamps == {name: (out / name).stat().st_mtime_ns for name in stamps}


def test_finished_work_of_other_input_is_not_mixed_in(damaged, serial, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(arguments("robopoint", damaged, out)) == 0
    assert cli.main(arguments("robopoint", damaged, out)) == 0
    assert contents(out) == serial
    for more in (("--image-size", "16"), ("--shard-size", "3")):
        assert cli.main(arguments("robopoint", damaged, out, *more)) == 2
        assert "made from other input, settings or --shard-size" in capsys.readouterr().err
    shorter = tmp_path / "shorter"
    foreign.damaged_llava(shorter)
    path = shorter / "robopoint_1432k.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:4]))
    assert cli.main(arguments("robopoint", shorter, out)) == 2
    assert "which this input does not have" in capsys.readouterr().err


def test_ids_that_come_twice_and_files_that_break_are_listed(tmp_path):
    items = [
        Reference("a", 0),
        Reference("b", 2),
        Reference("a", 4),
        Rejection("file/3...", "truncated shard", "ends at byte 7"),
        Reference("c", 6),
    ]
    job = engine.Job(Listed(items), "corpus", tmp_path, tmp_path / "out")
    summary = engine.ingest(job, shard_size=2)
    assert summary["ingested"] == 3
    assert [(entry["id"], entry["reason"]) for entry in summary["rejected_samples"]] == [
        ("a", "duplicate id"),
        ("file/3...", "truncated shard"),
    ]
    corpus = open_corpus(tmp_path / "out")
    assert [(corpus[i].id, corpus[i].turns[0].split()[1]) for i in range(3)] == [("a", "0"), ("b", "2"), ("c", "6")]


def test_nothing_usable_is_an_error_that_says_why(tmp_path):
    job = engine.Job(Listed([Rejection("x", "missing image", "gone")]), "corpus", tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match=r"Nothing of .* could be used as listed: 1 missing image"):
        engine.ingest(job, shard_size=2)


def test_a_defect_of_a_reader_is_not_hidden(tmp_path):
    class Broken(Listed):
        def load(self, data, reference):
            raise ZeroDivisionError

    job = engine.Job(Broken([Reference("a", 0)]), "corpus", tmp_path, tmp_path / "out")
    with pytest.raises(ZeroDivisionError):
        engine.ingest(job, shard_size=2)


def test_every_kind_travels_to_workers(tmp_path):
    import pickle

    foreign.lerobot(tmp_path, "v2.1", count=1)
    options = Options(name="mine", annotation="a", pillar="general", licence="CC0")
    for kind in ("llava_instruct", "cosmos_reason1", "llava", "rlds", "lerobot", "libero_hdf5"):
        _, adapter = make(kind, tmp_path, options)
        again = pickle.loads(pickle.dumps(adapter))
        assert json.dumps(again.settings()) == json.dumps(adapter.settings())
