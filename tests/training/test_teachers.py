"""``pokevla-features``: training on its features computes what training with the teachers inside does."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from pokevla_jax import checkpoints
from pokevla_jax import sharding
from pokevla_jax.cli import features as cli
from pokevla_jax.cli import train
from pokevla_jax.cli.flags import load_config
from pokevla_jax.data.features import FeatureStore
from pokevla_jax.data.records import write_shard
from pokevla_jax.models import image_encoders
from pokevla_jax.models import stacking
from pokevla_jax.training import init_from
from pokevla_jax.training import stage2
from pokevla_jax.training.metrics import read_metrics
from tests import policy_checkpoint
from tests.data import synthetic
from tests.training.test_stage2 import MICRO

CONFIG = "configs/libero_object_quickstart.py"
VGGT = {"image_size": 16, "patch_size": 4, "width": 8, "num_heads": 2, "mlp_dim": 12, "num_registers": 1}
TEACHERS = {
    "model.segmentation.image_encoder": "sam",
    "model.segmentation.decoder_dim": 16,
    "model.geometry.teacher": "vggt",
    "model.geometry.feature_dim": 16,
    **{f"model.geometry.vggt.{key}": value for key, value in VGGT.items()},
    "model.geometry.vggt.embed_depth": 1,
    "model.geometry.vggt.depth": 1,
    "model.geometry.position_embedding": False,
}
PLAIN = {f"data.augment.{key}": 0 for key in ("shift", "brightness", "contrast", "saturation", "hue")}
PRECOMPUTED = {"model.segmentation.source": "precomputed", "model.geometry.source": "precomputed"}
SELF_MADE = {"segmentation.image_encoder": "small", "geometry.teacher": "depth"}
NAMES = ("segmentation_features", "geometry_targets")
RUN = MICRO | TEACHERS | PLAIN | {"data.augment.crop_area": 1, "data.proprio_noise": 0, "batch_size": 8}
BATCH = ("--batch-size=1",)
# Geometry alone, which compiles in seconds; the slow test has both.
GEOMETRY = {"model.segmentation.weight": 0, "model.keypoint.weight": 0}


@pytest.fixture(scope="module", autouse=True)
def _small_sam():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(image_encoders.SAM_SIZES, "vit_b", image_encoders.SamSize(8, 2, 1, 1, window=2))
        yield


def options(data, changes):
    values = RUN | {"data.path": data} | changes
    return [f"--config={CONFIG}", *(f"--config.{key}={value}" for key, value in values.items())]


def load(data, changes):
    return load_config(CONFIG, [argument.removeprefix("--config.") for argument in options(data, changes)[1:]])


def command(data, checkpoint, *more, **changes):
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return cli.main([*options(data, GEOMETRY | PRECOMPUTED | changes), f"--init-from={checkpoint}", *BATCH, *more])


def write_checkpoint(folder, config, seed=3, **more):
    """Random parameters; of the teachers', the matrices are large and what says the same of every image is 0."""
    params = policy_checkpoint.make_params(config, seed)
    for tree in (params.get("vggt", {}), params.get("segmentation", {}).get("image_encoder", {})):
        leaves = sharding.flatten(tree)
        scales = {name: 5.0 * name.endswith("kernel") + name.endswith(("scale", "ls1", "ls2")) for name in leaves}
        tree.update(sharding.unflatten({name: leaf * scales[name] for name, leaf in leaves.items()}))
    return policy_checkpoint.write_checkpoint(folder, config, params=params, **more)


def episode(number):
    """Every step's picture unlike the others, so that features of another step are other features."""
    info, frames = synthetic.episode(number, every=2)
    rng = np.random.default_rng([1, number])
    return info, {
        step: dataclasses.replace(
            frame,
            images={
                view: rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(32, 0).repeat(32, 1)
                for view in synthetic.VIEWS
            },
        )
        for step, frame in frames.items()
    }


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Episodes of other lengths than the eight devices' batches."""
    folder = tmp_path_factory.mktemp("data") / "blocks"
    for shard in range(2):
        write_shard(folder, f"shard-{shard}", (episode(number) for number in (shard, shard + 2)))
    return folder


@pytest.fixture
def data(original, tmp_path):
    return shutil.copytree(original, tmp_path / "balls")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, original):
    return write_checkpoint(tmp_path_factory.mktemp("teachers"), load(original, GEOMETRY))


def stored(data):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in data.glob("features/*/*.npy")}


def test_the_loss_is_the_one_with_the_teacher_inside(data, checkpoint, capsys):
    assert command(data, checkpoint, "--json") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"episodes": 4, "written": {"geometry_targets": 4}}
    assert "its teachers are random" in shown.err
    inside, given = load(data, GEOMETRY), load(data, GEOMETRY | PRECOMPUTED)
    iterators = [stage2.make_data(config).iterate(0) for config in (inside, given)]
    plain, batch = (next(iterator) for iterator in iterators)
    for iterator in iterators:
        iterator.close()
    assert batch.keys() - plain.keys() == {"geometry_targets"}
    assert all((batch[name] == plain[name]).all() for name in plain)

    def compiled(config):
        objective = stage2.make_objective(config)
        return jax.jit(lambda params, batch: objective.loss(params, batch, jax.random.key(0), objective.count(batch)))

    _, params, _ = checkpoints.load_policy_checkpoint(checkpoint)
    lean = {name: part for name, part in params.items() if name != "vggt"}
    (expected, parts), loss = compiled(inside)(params, plain), compiled(given)
    found, given_parts = loss(lean, batch)
    assert parts.keys() == given_parts.keys() == {"action", "geometry"}
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for axis in (0, 1):  # those of other samples, or of other patches of the same
        shuffled, _ = loss(lean, {**batch, "geometry_targets": np.roll(batch["geometry_targets"], 1, axis)})
        assert abs(shuffled - expected) > 5e-3


def test_an_interrupted_command_goes_on(data, checkpoint, original, capsys, monkeypatch):
    assert command(data, checkpoint) == 0
    whole = stored(data)
    for path in data.glob("features/*/*.npy"):
        path.unlink()
    capsys.readouterr()
    write, written = FeatureStore.write, []

    def interrupted(store, episode, rows):
        def half():
            yield next(rows)
            raise KeyboardInterrupt

        written.append(episode)
        write(store, episode, rows if len(written) < 3 else half())

    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, "write", interrupted)
        assert command(data, checkpoint) == 130
    assert "interrupted; the same command goes on with what is in" in capsys.readouterr().err
    begun = stored(data)
    assert len(begun) == 2
    assert command(data, checkpoint, "--json") == 0
    assert json.loads(capsys.readouterr().out)["written"] == {"geometry_targets": 2}
    ended = stored(data)
    assert {name: content for name, (content, _) in ended.items()} == {name: x for name, (x, _) in whole.items()}
    assert {name: ended[name] for name in begun} == begun  # not written again


@pytest.mark.slow
def test_parts_make_each_episode_once(data, checkpoint, capsys):
    made = []
    for part in ("1/2", "2/2"):
        assert command(data, checkpoint, f"--part={part}", "--json") == 0
        made.append(json.loads(capsys.readouterr().out)["written"]["geometry_targets"])
    assert made == [2, 2]
    assert len(stored(data)) == 4
    for wrong in ("0/3", "4/3", "half"):
        with pytest.raises(SystemExit):
            command(data, checkpoint, f"--part={wrong}")
        assert "is no part; give 1/4 for the first of four" in capsys.readouterr().err


def test_a_mistake_is_answered_in_one_sentence(data, checkpoint, tmp_path, capsys):
    def refused(sentence, source=checkpoint, **changes):
        assert command(data, source, **changes) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert len(error.splitlines()) == 1

    refused("config.data.path is empty", data__path="")
    refused("has no features precomputed; set config.model.segmentation.source", model__geometry__source="inside")
    refused("config.stage is 'vlm', which has no teachers", stage="vlm")
    refused("config.data.augment.hue is 0.1, and geometry_targets belong to images", data__augment__hue=0.1)
    refused("vggt/camera_token is (2, 1, 8) there and (2, 1, 16) here; set config.model.geometry as the checkpoint",
            model__geometry__vggt__width=16, model__geometry__feature_dim=32)  # fmt: skip
    refused("feature_dim 12 does not fit the VGGT teacher", model__geometry__feature_dim=12)
    refused("holds no teacher that makes segmentation_features; give a checkpoint", model__segmentation__weight=1)
    lacking = write_checkpoint(tmp_path / "lacking", load(data, GEOMETRY), fresh=["vggt/camera_token"])
    refused("was imported without VGGT, which is random there and makes no geometry_targets", lacking)
    assert not (data / "features").exists()
    assert command(data, checkpoint) == 0
    capsys.readouterr()
    other = write_checkpoint(tmp_path / "other", load(data, GEOMETRY), seed=4)
    refused("holds features of a teacher with weights", other)
    deeper = {"model__geometry__vggt__depth": 2, "model__geometry__layer": 0}
    refused("geometry_targets was made with vggt.depth 1, this configuration has 2", **deeper)


def test_a_student_and_its_teacher_come_from_two_checkpoints(data, checkpoint, tmp_path):
    config = load(data, GEOMETRY)
    student = write_checkpoint(tmp_path / "student", load(data, GEOMETRY | PRECOMPUTED), seed=5)
    params, report = init_from.load([student, checkpoint], config, stage2.make_objective(config))
    found, expected = sharding.flatten(params), {}
    for path in (checkpoint, student):  # in reverse: the first overrides the second
        expected |= sharding.flatten(checkpoints.load_policy_checkpoint(path)[1])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    own, taught = report.splitlines()
    assert "vggt" not in own and "language" in own
    teachers = sum(name.startswith("vggt/") for name in expected)
    assert taught.endswith(f"{teachers} of {len(expected)} parameters loaded: vggt ({teachers})")


def test_a_teacher_that_would_be_random_is_refused(data, checkpoint, original, tmp_path, capsys):
    """Whether no checkpoint is given, one without it, or an import that drew it at random."""
    names = sharding.flatten(stacking.abstract_params(load(data, GEOMETRY).model))
    drawn = [name for name in names if name.startswith("vggt/")]
    imported = write_checkpoint(tmp_path / "imported", load(data, GEOMETRY), fresh=drawn)
    for changes, given, taught in (
        (GEOMETRY, (), "VGGT (config.model.geometry) would"),
        (GEOMETRY, (imported,), "VGGT (config.model.geometry) would"),
        ({}, (checkpoint,), "SAM's image encoder (config.model.segmentation) would"),
        ({}, (imported,), "SAM's image encoder (config.model.segmentation) and VGGT (config.model.geometry) would"),
    ):
        source = [f"--init-from={','.join(map(str, given))}"] if given else []
        run = options(data, changes | {"num_steps": 2, "optimizer.warmup_steps": 1})
        assert train.main([*run, f"--workdir={tmp_path / 'run'}", *source]) == 2
        error = capsys.readouterr().err
        assert f"The frozen {taught} stay random" in error
        assert f"(--init-from={','.join(map(str, (*given, 'TEACHERS')))})" in error
        assert len(error.splitlines()) == 1
    # What is no frozen network needs no weights.
    init_from.check_teachers(load(data, {f"model.{part}": kind for part, kind in SELF_MADE.items()}), names)
    with pytest.raises(SystemExit):
        train.main([*options(data, {}), f"--workdir={tmp_path / 'run'}", f"--init-from={checkpoint},"])
    assert "names an empty checkpoint" in capsys.readouterr().err


@pytest.mark.slow
def test_training_steps_are_those_with_both_teachers_inside(data, original, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "teachers", load(original, {}))
    assert cli.main([*options(data, PRECOMPUTED), f"--init-from={checkpoint}", *BATCH]) == 0
    mixed = shutil.copytree(data, tmp_path / "mixed")
    for name in NAMES:
        # The same rows of another episode.
        first, *others = sorted((mixed / "features" / name).glob("*.npy"))
        contents = [path.read_bytes() for path in (first, *others)]
        for path, content in zip((first, *others), contents[1:] + contents[:1], strict=True):
            path.write_bytes(content)

    def losses(folder, changes):
        workdir = tmp_path / f"run-{folder.name}-{len(changes)}"
        steps = {"num_steps": 2, "log_every": 1, "optimizer.warmup_steps": 1}
        assert train.main([*options(folder, changes | steps), f"--workdir={workdir}", f"--init-from={checkpoint}"]) == 0
        lines = [line for line in read_metrics(workdir) if line["split"] == "train"]
        return np.array([[line[f"loss/{part}"] for part in ("focal", "geometry")] for line in lines])

    expected = losses(data, {})
    np.testing.assert_allclose(losses(data, PRECOMPUTED), expected, rtol=1e-4)
    assert np.all(np.abs(losses(mixed, PRECOMPUTED) / expected - 1) > 2e-3)
