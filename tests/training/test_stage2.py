"""The real network through the console command: what a run leaves behind, its errors, and resuming it."""

import dataclasses
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from pokevla_jax import checkpoints
from pokevla_jax import sharding
from pokevla_jax.cli import train as cli
from pokevla_jax.cli.flags import load_config
from pokevla_jax.config import Config
from pokevla_jax.config import DataConfig
from pokevla_jax.config import MeshConfig
from pokevla_jax.config import SegmentationConfig
from pokevla_jax.data.codec import DataError
from pokevla_jax.data.schema import batch_spec
from pokevla_jax.data.schema import fake_batch
from pokevla_jax.models import presets
from pokevla_jax.models import stacking
from pokevla_jax.training import stage2
from pokevla_jax.training import state as state_lib
from pokevla_jax.training import step as step_lib
from pokevla_jax.training import workdir
from pokevla_jax.training.metrics import read_metrics
from pokevla_jax.training.optimizer import make_optimizer
from tests.data import synthetic

# The tiny preset with one layer of everything and 32-pixel views: it compiles in seconds.
MICRO = {
    "model.vision.image_size": 32,
    "model.vision.dinov2.depth": 1,
    "model.vision.siglip.depth": 1,
    "model.language.num_layers": 1,
    "model.action_head.num_layers": 1,
    "model.segmentation.decoder_depth": 1,
    "model.segmentation.feature_grid": 4,
}
RUN = {"batch_size": 8, "num_steps": 6, "log_every": 2, "eval_every": 4, "checkpoint.every_steps": 2}
CONFIG = "configs/libero_object_quickstart.py"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return synthetic.write(tmp_path_factory.mktemp("data") / "balls", num_episodes=4)


def arguments(workdir, dataset, *options, **changes):
    values = MICRO | RUN | {"data.path": dataset} | {key.replace("__", "."): v for key, v in changes.items()}
    overrides = [f"--config.{key}={value}" for key, value in values.items()]
    return [f"--config={CONFIG}", f"--workdir={workdir}", *overrides, *options]


def check_run(workdir, num_steps, parts):
    """Metrics of every kind, a best checkpoint, and assets that make it usable by itself."""
    lines = read_metrics(workdir)
    losses = [line[f"loss/{part}"] for line in lines if line["split"] == "train" for part in parts]
    assert np.all(np.isfinite(losses))
    assert np.all(np.array(losses) > 0)
    holdout = [line for line in lines if line["split"] == "holdout"]
    assert [line["step"] for line in holdout] == [4, num_steps]
    assert all(0.1 < line["action_error"] < 2 for line in holdout)
    config, params, assets = checkpoints.load_policy_checkpoint(workdir, "best")
    assert sharding.flatten(params).keys() == sharding.flatten(stacking.abstract_params(config.model)).keys()
    assert assets.tokenizer_json["kind"] == "compact"
    assert len(assets.statistics["action"]["q99"]) == 7
    return holdout


def test_a_run_trains_evaluates_and_leaves_a_complete_checkpoint(tmp_path, dataset, capsys, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    # Without the mask decoders, which take most of the compilation; the slow tests have them.
    assert cli.main(arguments(tmp_path, dataset, model__segmentation__weight=0)) == 0
    check_run(tmp_path, 6, ("action", "geometry", "keypoint"))
    # All eight devices of the test process are one run: the mesh fills itself.
    assert "8 cpu devices: replica 1 x data 8" in capsys.readouterr().out


@pytest.mark.parametrize("latents", ["learned", "projected"])
def test_only_training_with_projected_latents_draws_noise(latents):
    tiny = presets.tiny()
    head = dataclasses.replace(tiny.action_head, latents=latents)
    model = dataclasses.replace(tiny, action_head=head, segmentation=SegmentationConfig(weight=0.0))
    objective, batch = stage2.make_objective(Config(model=model)), fake_batch(Config(model=model), 2)
    counts = objective.count(batch)
    trained = jax.make_jaxpr(objective.loss)(objective.abstract_params, batch, jax.random.key(0), counts)
    assert ("random_bits" in str(trained)) == (latents == "projected")
    assert "random_bits" not in str(jax.make_jaxpr(objective.measure)(objective.abstract_params, batch))


def test_mask_iou_counts_views_that_show_the_target():
    masks = np.zeros((2, 2, 4, 4), np.uint8)
    masks[0, 0, :2] = masks[1, 0, :2] = 1
    logits = np.full(masks.shape, -1.0, np.float32)
    logits[0, 0, 1:3] = 1  # 4 of 12 pixels
    logits[0, 1] = 1  # no target: not counted
    total, count = stage2.mask_iou(logits, masks, np.array([[True, True], [False, True]]))
    np.testing.assert_allclose([total, count], [1 / 3, 1])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data__path": ""}, "config.data.path is empty"),
        ({"data__path": "/nowhere"}, "/nowhere"),
        ({"batch_size": 12}, "config.batch_size 12 is not divisible by replica x data x fsdp x accumulation_steps = 8"),
        ({"mesh__fsdp": 3}, "config.mesh replica 1 x data -1 x fsdp 3 x tensor 1 needs a multiple of 3 devices"),
        ({"optimizer__freeze": "nothing/.*"}, "matches no parameter"),
        ({"optimizer__learning_rate": -1}, "config.optimizer.learning_rate is -1.0; give a number of 0 or more"),
    ],
)
def test_a_mistake_is_answered_in_one_sentence(tmp_path, dataset, capsys, changes, sentence):
    assert cli.main(arguments(tmp_path / "run", dataset, **changes)) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", ["segmentation", "geometry"])
def test_features_that_recorded_episodes_lack_are_refused(dataset, part):
    model = presets.pokevla()
    model = dataclasses.replace(model, **{part: dataclasses.replace(getattr(model, part), source="precomputed")})
    config = Config(model=model, data=DataConfig(path=str(dataset), augment=synthetic.NO_AUGMENTATION))
    with pytest.raises(
        DataError, match=rf"model\.{part}\.source 'precomputed' reads .*, which holds no features; make"
    ):
        stage2.make_data(config)


@pytest.mark.multiprocess
def test_a_folder_in_which_another_process_trains_is_refused(tmp_path, dataset, capsys):
    hold = (
        "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); print('held', flush=True)"
    )
    command = [sys.executable, "-c", f"{hold}; sys.stdin.read()", tmp_path / workdir.LOCK]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        assert cli.main(arguments(tmp_path, dataset)) == 2
        error = capsys.readouterr().err
        assert f"--workdir {tmp_path} is being written by another training; wait for it to end" in error
        assert len(error.splitlines()) == 1
        assert [path.name for path in tmp_path.iterdir()] == [workdir.LOCK]
        # What died holds nothing, and one process may train twice.
        other.kill()
        other.wait()
    for _ in range(2):
        with workdir.held(tmp_path):
            pass


def test_explain_prints_the_table(tmp_path, dataset, capsys):
    assert cli.main(arguments(tmp_path, dataset, "--explain", mesh__fsdp=2)) == 0
    out = capsys.readouterr().out
    assert "language/layers/mlp/gate_proj/kernel" in out
    assert "fsdp" in out


@pytest.mark.parametrize("mesh", [MeshConfig(fsdp=8), MeshConfig(fsdp=4, tensor=2), MeshConfig(fsdp=2, tensor=4)])
def test_of_the_full_network_nothing_large_is_whole_on_a_device(mesh):
    model = presets.pokevla()
    abstract, axes = stacking.abstract_params(model), stacking.logical_axes(model)
    mesh = sharding.make_mesh(mesh)
    table = sharding.explain(abstract, sharding.param_shardings(abstract, axes, mesh))
    assert "whole on every device" not in table
    total, on_device = (float(table.splitlines()[-1].split()[i]) for i in (2, 4))
    assert on_device < 1.12 * total / 8  # 14 heads do not divide by 4


@pytest.mark.slow
def test_the_network_computes_the_same_on_a_2x2x2_mesh():
    config = load_config(CONFIG, [f"{key}={value}" for key, value in (MICRO | RUN).items()])
    results = []
    for mesh, devices in ((MeshConfig(), 1), (MeshConfig(data=2, fsdp=2, tensor=2), 8)):
        objective, tx = stage2.make_objective(config), make_optimizer(config.optimizer, config.num_steps)
        mesh = sharding.make_mesh(mesh, jax.devices()[:devices])
        factory = state_lib.StateFactory(objective, config.optimizer, tx, mesh)
        spec = step_lib.abstract_batch(batch_spec(config, config.batch_size), mesh)
        step = step_lib.make_train_step(objective, config, tx, mesh, factory.abstract, spec)
        state, history = factory.initialize(0), []
        for i in range(3):
            batch = fake_batch(config, config.batch_size, seed=i)
            state, scalars = step(state, jax.device_put(batch, sharding.batch_sharding(mesh)))
            history.append(jax.device_get(scalars))
        results.append((history, jax.device_get(state.params)))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_killed_command_started_again_ends_with_the_same_parameters(tmp_path, dataset, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))

    def start(workdir, **changes):
        command = [sys.executable, "-m", "pokevla_jax.cli.train", *arguments(workdir, dataset, **changes)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    assert start(tmp_path / "whole").wait() == 0
    holdout = check_run(tmp_path / "whole", 6, ("action", "focal", "kld", "geometry", "keypoint"))
    assert all(0 <= line["mask_iou"] <= 1 for line in holdout)
    killed = start(tmp_path / "killed")
    for line in killed.stdout:
        if line.startswith("step 4/6"):
            killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert start(tmp_path / "killed").wait() == 0
    _, whole, _ = checkpoints.load_policy_checkpoint(tmp_path / "whole")
    _, resumed, _ = checkpoints.load_policy_checkpoint(tmp_path / "killed")
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    steps = [(line["step"], line["split"]) for line in read_metrics(tmp_path / "killed")]
    assert sorted(steps) == sorted(set(steps))
