"""What a run writes besides its metrics: banner, first batch, event files, profile, Weights & Biases."""

import dataclasses
import io
import sys
import types

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image
from rich.console import Console

from pokevla_jax import flops
from pokevla_jax import sharding
from pokevla_jax.config import Config
from pokevla_jax.models import presets
from pokevla_jax.training import banner
from pokevla_jax.training import loop
from pokevla_jax.training import metrics
from pokevla_jax.training import profiling
from pokevla_jax.training import speed
from pokevla_jax.training import stage2
from pokevla_jax.training import writers
from pokevla_jax.training.optimizer import make_optimizer
from pokevla_jax.training.state import StateFactory
from tests.training import toy

MESH = {"mesh__data": 1, "mesh__replica": 8}  # the test process has eight devices


def train(workdir, monkeypatch, options=None, **changes):
    text = io.StringIO()
    monkeypatch.setattr(metrics, "Console", lambda **arguments: Console(file=text, width=200, **arguments))
    data = dataclasses.replace(toy.data(), description="a toy problem")
    loop.train(toy.config(**MESH, **changes), workdir, toy.objective(0.1), data, options=options or loop.Options())
    return text.getvalue()


def events(folder):
    """Scalars of TensorBoard's event files as {(tag, step): number of times}, purged as TensorBoard purges them."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.event_pb2 import SessionLog

    found = []
    for path in sorted(folder.glob("events*")):
        content = path.read_bytes()
        place = 0
        while place < len(content):
            # A TFRecord: length, its checksum, the event, its checksum.
            size = int.from_bytes(content[place : place + 8], "little")
            event = Event.FromString(content[place + 12 : place + 12 + size])
            place += 16 + size
            if event.session_log.status == SessionLog.START:
                found = [entry for entry in found if entry[1] < event.step]
            found += [(value.tag, event.step) for value in event.summary.value]
    return found


def test_a_run_writes_banner_events_and_profile(tmp_path, monkeypatch):
    options = loop.Options(tensorboard=True, profile_steps=(2, 3))
    printed = train(tmp_path, monkeypatch, options, num_steps=6)
    for expected in (
        "1 process of 8 devices",
        "8 cpu devices: replica 8 x data 1",
        "16 = 2 rows x 8 parts x 1 accumulation steps",
        "0.00 M trained and 0.00 M frozen: blocks 0.00, embed 0.00, head 0.00",
        "a toy problem",
        "MiB per device: trained",
        "GFLOP",
    ):
        assert expected in printed
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    tags = events(tmp_path / "tensorboard")
    assert {("train/loss", 2), ("train/loss/fit", 6), ("holdout/action_error", 4)} < set(tags)
    # Continued from step 4, TensorBoard shows every step once.
    epath.Path(tmp_path / "checkpoints" / "6").rmtree()
    (tmp_path / "best.json").unlink(missing_ok=True)
    train(tmp_path, monkeypatch, options, num_steps=6)
    tags = events(tmp_path / "tensorboard")
    assert len(tags) == len(set(tags))
    assert ("train/loss", 6) in tags


def test_figures_of_a_log_line_agree_with_each_other(tmp_path, monkeypatch):
    monkeypatch.setitem(flops.PEAK_FLOPS, jax.devices()[0].device_kind, 1e9)
    printed = train(tmp_path, monkeypatch, num_steps=2)
    line = metrics.read_metrics(tmp_path)[0]
    tokens = 2 * 64 + 24 + 1 + 8  # patches of two views, prompt, <SEG>, queries
    assert np.isclose(line["tokens_per_second"], tokens * line["samples_per_second"], rtol=1e-5)
    per_device = line["tflops_per_second_per_device"]
    assert np.isclose(line["mfu"], per_device * 1e12 / 1e9, rtol=1e-5)
    assert 0 < line["goodput"] < 1
    assert "peak 0 TFLOP/s" in printed
    assert "waiting for data, MFU" in printed


def test_flops_of_a_run_follow_what_it_freezes():
    model = presets.tiny()
    objective = stage2.make_objective(Config(model=model))
    config = toy.config(optimizer__freeze=["vision/.*", "language/.*"])
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])

    def student(config):
        optimizer = make_optimizer(config.optimizer, 10)
        return speed.count_flops(config, StateFactory(objective, config.optimizer, optimizer, mesh).abstract).student

    assert student(config) < 0.65 * student(toy.config())


def test_the_first_batch_is_drawn_row_by_row(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (20, 2, 6, 5, 3), dtype=np.uint8)
    assert banner.write_first_batch(epath.Path(tmp_path), {"x": images}) is None
    banner.write_first_batch(epath.Path(tmp_path), {"images": images})
    drawn = np.asarray(Image.open(tmp_path / banner.FIRST_BATCH))
    assert drawn.shape == (16 * 10 - 4, 2 * 9 - 4, 3)
    np.testing.assert_array_equal(drawn[30:36, 9:14], images[3, 1])
    assert (drawn[6:10] == 255).all()


@pytest.mark.parametrize("text", ["10", "0:3", "5:4", "a:b", "3:"])
def test_profile_steps_are_a_range(text):
    assert profiling.parse_steps("10:15") == (10, 15)
    with pytest.raises(ValueError, match="FIRST:LAST"):
        profiling.parse_steps(text)


def test_weights_and_biases_continues_one_run_and_sends_no_step_twice(tmp_path, monkeypatch):
    sent, opened = [], []

    class Run:
        starting_step = 5

        def log(self, values, step):
            sent.append((step, values))

        def finish(self):
            sent.append("finished")

    def init(**arguments):
        opened.append(arguments)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    (writer,) = writers.open_writers(
        epath.Path(tmp_path / "my run"), 4, {"seed": 0}, tensorboard=False, wandb="project"
    )
    writer.write(4, "train", {"loss": 1.0})
    writer.write(5, "train", {"loss": 0.5})
    writer.close()
    assert sent == [(5, {"train/loss": 0.5}), "finished"]
    assert (opened[0]["id"], opened[0]["resume"], opened[0]["project"]) == ("my-run", "allow", "project")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        writers.open_writers(epath.Path(tmp_path), 0, {}, tensorboard=False, wandb="project")
