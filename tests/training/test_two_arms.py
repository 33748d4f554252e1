"""Another robot than LIBERO's: 14 numbers, two grippers, three cameras, chunks of 16; nothing of it is a constant."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from pokevla_jax.cli import ingest
from pokevla_jax.cli import train
from pokevla_jax.cli.flags import load_config
from pokevla_jax.data.normalize import compute_statistics
from pokevla_jax.data.pipeline import sample_rows
from pokevla_jax.data.pipeline import train_iterator
from pokevla_jax.data.records import open_dataset
from pokevla_jax.data.schema import batch_spec
from pokevla_jax.data.tokenize import load_tokenizer
from tests.data.ingest import foreign

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs/two_arms_finetune.py")
VIEWS = ("front", "left_wrist", "right_wrist")
# The published network is too large for a test; the robot's own numbers stay as the file has them.
TINY = {
    "model.vision.image_size": 28,
    **{
        f"model.vision.{tower}.{key}": value
        for tower in ("dinov2", "siglip")
        for key, value in {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32, "feature_block": -1}.items()
    },
    "model.vision.projector_dim": 16,
    "model.language.width": 16,
    "model.language.num_layers": 1,
    "model.language.num_heads": 2,
    "model.language.num_kv_heads": 1,
    "model.language.head_dim": 8,
    "model.language.mlp_dim": 32,
    "model.language.vocab_size": 64,
    "model.action_head.num_layers": 1,
    "model.action_head.width": 16,
    "model.action_head.num_heads": 2,
    "model.action_head.num_queries": 4,
    "model.max_prompt_length": 16,
    "model.dtype": "float32",
    "batch_size": 8,
}


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    """Ingested as the documentation says."""
    folder = tmp_path_factory.mktemp("two_arms")
    foreign.lerobot(folder / "in", "v3.0", count=4, state=14, action=14, views=VIEWS, dtype="image")
    robot = str(ROOT / "configs/robots/two_arms.json")
    arguments = ["--source", "lerobot", "--robot", robot, "--data", str(folder / "in"), "--out", str(folder / "out")]
    assert ingest.main([*arguments, "--image-size", "28"]) == 0
    return folder / "out"


def config(**changes):
    return load_config(CONFIG, [f"{key}={value}" for key, value in {**TINY, **changes}.items()])


def test_views_widths_and_chunks_are_the_dataset_s(episodes):
    dataset = open_dataset(episodes)
    assert dataset.views == VIEWS
    assert dataset.gripper_dims == (6, 13)
    assert dataset.absolute_actions
    statistics = compute_statistics(dataset)
    assert np.flatnonzero(~statistics.action.mask).tolist() == [6, 13]
    settings = config()
    tokenizer = load_tokenizer("compact", (info.instruction for info in dataset.episodes))
    iterator = train_iterator(settings, dataset, statistics, tokenizer)
    batch = next(iterator)
    iterator.close()
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
        key: tuple(spec) for key, spec in batch_spec(settings, 8).items()
    }
    assert batch["images"].shape == (8, 3, 28, 28, 3)
    assert batch["actions"].shape == (8, 16, 14)
    # Episodes of 5 to 8 steps are shorter than a chunk: the rest is masked.
    assert set(batch["action_mask"].sum(1).tolist()) <= set(range(1, 9))


def test_noops_of_positions_are_steps_that_change_nothing(tmp_path, episodes):
    dataset = open_dataset(episodes)
    settings = config(**{"data.holdout_fraction": 0.0})
    dropped = dataclasses.replace(settings, data=dataclasses.replace(settings.data, drop_noops=True))
    action = dataset.action
    action[3] = action[2]
    rows = set(sample_rows(settings, dataset, "train").tolist())
    assert rows - set(sample_rows(dropped, dataset, "train").tolist()) == {3}


@pytest.mark.slow
def test_it_trains_and_acts(episodes, tmp_path):
    from pokevla_jax.policy import Policy

    run = {"num_steps": 4, "log_every": 2, "eval_every": 2, "checkpoint.every_steps": 2, "data.path": episodes}
    overrides = [f"--config.{key}={value}" for key, value in {**TINY, **run}.items()]
    assert train.main([f"--config={CONFIG}", f"--workdir={tmp_path / 'run'}", *overrides]) == 0
    policy = Policy.load(tmp_path / "run")
    images = np.zeros((3, 40, 60, 3), np.uint8)
    actions = policy.infer([{"images": images, "state": np.zeros(14, np.float32), "prompt": "task 0"}])
    assert np.asarray(actions).shape == (1, 16, 14)
