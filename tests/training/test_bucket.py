"""A run whose folder is a bucket: a file system in memory takes Google Cloud Storage's place and refuses to append.

Orbax writes checkpoints through its own library, which needs a real bucket: here a double keeps them in memory.
"""

import ast
import dataclasses
import json
from pathlib import Path
from pathlib import PurePosixPath

import pytest
from etils import epath
from etils.epath import backend
from etils.epath import gpath
from fsspec.implementations.memory import MemoryFileSystem

from pokevla_jax import checkpoints
from pokevla_jax.training import banner
from pokevla_jax.training import goodput
from pokevla_jax.training import loop
from pokevla_jax.training import metrics
from pokevla_jax.training import workdir as workdir_lib
from pokevla_jax.training.checkpoint import Restored
from tests.training import toy

MESH = {"mesh__data": 1, "mesh__replica": 8}  # the test process has eight devices
ROOT = Path(__file__).resolve().parents[2]


class Bucket(MemoryFileSystem):
    """Objects in memory, which can be written as a whole and not appended to."""

    protocol = "gs"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("gs://"))

    def _open(self, path, mode="rb", **arguments):
        if "a" in mode:
            raise OSError("objects cannot be appended to")
        return super()._open(path, mode, **arguments)


class BucketBackend(backend._FileSystemSpecBackend):
    def __init__(self):
        self.bucket = Bucket()
        self.bucket.store, self.bucket.pseudo_dirs = {}, [""]

    def fs(self, path):
        assert str(path).startswith("gs://"), path
        return self.bucket


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """``gs://`` in memory; the working folder is empty and must stay so."""
    fake = BucketBackend()
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", fake)
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    monkeypatch.chdir(tmp_path)
    yield fake.bucket
    assert list(tmp_path.iterdir()) == []


class KeptInMemory:
    """In place of the checkpointer: what was saved last, by folder."""

    saved: dict = {}

    def __init__(self, workdir, config, assets):
        self.key = str(workdir)

    def restore(self, abstract):
        return self.saved.get(self.key)

    def save(self, step, state, position, best):
        import jax

        copy = jax.tree.map(lambda x: x.copy(), state)
        self.saved[self.key] = Restored(step, copy, dict(position), best)

    def publish_best(self):
        pass

    def close(self):
        pass


class Killed(toy.Batches):
    def __next__(self):
        if self.step == 7:
            raise KeyboardInterrupt
        return super().__next__()


def test_a_run_keeps_everything_in_its_bucket(bucket, monkeypatch):
    monkeypatch.setattr(loop, "Checkpointer", KeptInMemory)
    folder = "gs://bucket/runs/a"
    options = loop.Options(tensorboard=True, profile_steps=(2, 2))
    config = toy.config(**MESH)
    with pytest.raises(KeyboardInterrupt):
        loop.train(config, folder, toy.objective(0.1), toy.data(Killed), options=options)
    loop.train(config, folder, toy.objective(0.1), toy.data(), options=options)
    found = {PurePosixPath(path).relative_to("/bucket/runs/a").parts[0] for path in bucket.store}
    assert found == {"config.json", "metrics.jsonl", "goodput.json", "tensorboard", "profile"}
    lines = [(line["step"], line["split"]) for line in metrics.read_metrics(folder)]
    assert sorted(lines) == sorted([(s, "train") for s in range(2, 13, 2)] + [(s, "holdout") for s in (4, 8, 12)])
    assert [a["steps"] for a in goodput.read_attempts(epath.Path(folder))] == [7, 6]
    bucket.pipe("/bucket/runs/a/checkpoints/12/commit_success.txt", b"")
    with pytest.raises(ValueError, match=r"holds a run with config\.seed = 0, not 1"):
        loop.train(dataclasses.replace(config, seed=1), folder, toy.objective(0.1), toy.data())


def test_lines_are_in_the_bucket_before_a_save_and_after_a_while(bucket, monkeypatch):
    log = metrics.MetricsLog("gs://bucket/run", 0)
    log.write(2, "train", {"loss": 1.0})
    assert metrics.read_metrics("gs://bucket/run") == []
    log.flush()
    assert len(metrics.read_metrics("gs://bucket/run")) == 1
    monkeypatch.setattr(metrics, "REMOTE_SECONDS", 0.0)
    log.write(4, "train", {"loss": 1.0})
    assert len(metrics.read_metrics("gs://bucket/run")) == 2


def test_a_save_in_a_bucket_counts_when_it_is_marked_finished(bucket):
    for step, name in ((3, "commit_success.txt"), (6, "params")):
        bucket.pipe(f"/bucket/run/checkpoints/{step}/{name}", b"")
    assert checkpoints.all_steps("gs://bucket/run/checkpoints") == [3]


def test_pictures_and_small_files_go_to_the_bucket(bucket):
    import numpy as np

    folder = workdir_lib.create("gs://bucket/run")
    banner.write_first_batch(folder, {"images": np.zeros((1, 1, 4, 4, 3), np.uint8)})
    workdir_lib.write_atomically(folder / "best.json", json.dumps({"step": 3}))
    workdir_lib.check_space(folder, 2**60, toy.config().checkpoint, 10)
    assert checkpoints.read_best(folder) == {"step": 3}
    assert bucket.cat("/bucket/run/first_batch.png").startswith(b"\x89PNG")


# Modules that read the package's own files or a temporary folder, never the run's.
LOCAL = {"distributed.py", "profiling.py", "writers.py"}


def test_training_opens_no_file_but_through_epath():
    """A path of the run given to ``open`` or ``pathlib`` would work on every disk, and fail in a bucket."""
    found = []
    for path in [*sorted((ROOT / "pokevla_jax" / "training").glob("*.py")), ROOT / "pokevla_jax" / "checkpoints.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "open":
                found.append(f"{path.name}:{node.lineno}")
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            if "pathlib" in names and path.name not in LOCAL:
                found.append(f"{path.name}:{node.lineno}")
    assert found == []
