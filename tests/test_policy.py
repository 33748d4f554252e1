"""The policy: training's transforms, the environment's convention, fixed batch sizes."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from pokevla_jax.checkpoints import CheckpointError
from pokevla_jax.checkpoints import load_policy_checkpoint
from pokevla_jax.data.normalize import unnormalize
from pokevla_jax.data.records import open_dataset
from pokevla_jax.data.transforms import training_sample
from pokevla_jax.models import stacking
from pokevla_jax.models.pokevla import TRAINING_ONLY
from pokevla_jax.policy import Policy
from pokevla_jax.policy import buckets
from tests import policy_checkpoint as fake


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fake.write_checkpoint(tmp_path_factory.mktemp("run"), fake.make_config())


@pytest.fixture(scope="module")
def policy(folder):
    loaded = Policy.load(folder, batch_size=2)
    loaded.warm_up()
    return loaded


def observations(count, size=64, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "images": rng.integers(0, 256, (2, size, size, 3), dtype=np.uint8),
            "state": rng.uniform(-0.5, 0.5, 8).astype(np.float32),
            "prompt": fake.PROMPT,
        }
        for _ in range(count)
    ]


def test_batch_sizes_are_powers_of_two():
    assert [buckets(n) for n in (1, 2, 3, 8)] == [(1,), (1, 2), (1, 2, 4), (1, 2, 4, 8)]


def test_actions_are_in_the_environments_convention(policy):
    actions = policy.infer(observations(3))
    assert actions.shape == (3, 8, 7)
    assert actions.dtype == np.float32
    assert 0 < np.abs(actions[..., :-1]).max() <= 1
    assert set(np.unique(actions[..., -1])) <= {-1.0, 1.0}


def test_nothing_is_compiled_after_the_warm_up(policy):
    compiled = policy._actions._cache_size()
    assert compiled == len(policy.batch_sizes)
    for count in (1, 2, 3, 4, 5, 9):
        assert len(policy.infer(observations(count))) == count
    assert policy._actions._cache_size() == compiled


def test_a_result_does_not_depend_on_the_rest_of_the_batch(policy):
    batch = observations(7)
    together = policy.infer(batch)
    alone = np.concatenate([policy.infer([o]) for o in batch])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_one_batch_size_makes_it_exact(folder):
    policy = Policy.load(folder, batch_sizes=(3,))
    batch = observations(3)
    alone = policy.infer(batch[2:])
    np.testing.assert_array_equal(policy.infer(batch)[2:], alone)
    np.testing.assert_array_equal(policy.infer([batch[0], batch[2]])[1:], alone)


def test_the_network_sees_what_it_saw_in_training(policy, tmp_path):
    """A stored frame through the policy equals the same row of a training batch through the bare network."""
    from tests.data import synthetic

    config = policy.config
    assert config.data.augment.crop_area < 1
    dataset = open_dataset(synthetic.write(tmp_path, num_episodes=2, length=9))
    row = 4
    statistics, tokenizer = fake.make_statistics(), fake.make_tokenizer(config)
    sample = training_sample(config, dataset, row, statistics, tokenizer, rng=None)
    params = fake.make_params(config)
    forward = jax.jit(lambda params, batch: stacking.bind(config.model, params)(batch, train=False).actions)
    inputs = {name: sample[name][None] for name in ("images", "tokens", "token_mask", "proprio")}
    expected = unnormalize(np.asarray(forward(params, inputs)), statistics.action)
    frame = dataset.frame_at(row)
    observation = {
        "images": np.stack([frame.images[view] for view in config.model.views]),
        "state": dataset.state[row],
        "prompt": dataset.episodes[dataset.episode[row]].instruction,
    }
    actions = policy.infer([observation])
    np.testing.assert_allclose(actions[..., :-1], np.clip(expected, -1, 1)[..., :-1], atol=1e-5)
    np.testing.assert_array_equal(actions[..., -1], np.where(expected[..., -1] > 0, 1, -1))


def test_masks_are_probabilities_of_both_views(policy):
    masks = policy.predict_masks(observations(2))
    size = policy.config.model.segmentation.mask_size
    assert masks.shape == (2, 2, size, size)
    assert 0 <= masks.min() < masks.max() <= 1


def test_a_blind_network_is_blind_to_images_alone(tmp_path):
    policy = Policy.load(fake.write_checkpoint(tmp_path, fake.make_config(segmentation=False, zero_images=True)))
    first, second = observations(2)
    other_images = {**first, "images": second["images"]}
    other_state = {**first, "state": second["state"]}
    actions = policy.infer([first])
    np.testing.assert_array_equal(actions, policy.infer([other_images]))
    assert not np.array_equal(actions, policy.infer([other_state]))
    with pytest.raises(ValueError, match="trained without segmentation"):
        policy.predict_masks([first])


def test_broken_input_is_one_sentence(policy, folder, tmp_path):
    (good,) = observations(1)
    with pytest.raises(ValueError, match="lacks 'state'"):
        policy.infer([{"images": good["images"], "prompt": "x"}])
    with pytest.raises(ValueError, match="Observation images"):
        policy.infer([{**good, "images": good["images"][:1]}])
    with pytest.raises(ValueError, match="No observation"):
        policy.infer([])
    with pytest.raises(CheckpointError, match="does not exist"):
        Policy.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"has no step 11; there are 10"):
        Policy.load(folder, step=11)


def test_a_network_of_nan_is_refused(policy):
    config = policy.config
    params = jax.tree.map(lambda x: np.full_like(x, np.nan), fake.make_params(config))
    broken = Policy(config, params, fake.make_statistics(), fake.make_tokenizer(config))
    broken._actions = policy._actions  # compiled already
    with pytest.raises(ValueError, match="not finite; the checkpoint is broken"):
        broken.infer(observations(1))


@pytest.mark.slow
def test_three_lines_are_enough(folder):
    code = (
        "import numpy as np; from pokevla_jax.policy import Policy\n"
        f"policy = Policy.load({str(folder)!r})\n"
        "images = np.zeros((2, 64, 64, 3), np.uint8)\n"
        "print(policy.infer([{'images': images, 'state': np.zeros(8), 'prompt': 'pick up the milk'}]).shape)"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "(1, 8, 7)"


def test_what_only_training_reads_is_not_loaded(folder):
    _, whole, _ = load_policy_checkpoint(folder)
    _, lean, _ = load_policy_checkpoint(folder, skip=TRAINING_ONLY)
    assert set(whole) - set(lean) == {"align_projector", "keypoint_head"}
    jax.tree.map(np.testing.assert_array_equal, lean, {part: whole[part] for part in lean})
