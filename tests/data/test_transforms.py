import colorsys
import dataclasses

import numpy as np
import pytest

from pokevla_jax.config import AugmentConfig
from pokevla_jax.data.codec import DataError
from pokevla_jax.data.normalize import normalize
from pokevla_jax.data.records import open_dataset
from pokevla_jax.data.schema import batch_spec
from pokevla_jax.data.transforms import Window
from pokevla_jax.data.transforms import action_chunk
from pokevla_jax.data.transforms import central_window
from pokevla_jax.data.transforms import crop_image
from pokevla_jax.data.transforms import crop_mask
from pokevla_jax.data.transforms import inference_transform
from pokevla_jax.data.transforms import jitter_colors
from pokevla_jax.data.transforms import patch_points
from pokevla_jax.data.transforms import random_window
from pokevla_jax.data.transforms import training_sample
from tests.data import synthetic

PAPER = AugmentConfig()
CROP = dataclasses.replace(synthetic.NO_AUGMENTATION, crop_area=0.9)
SHIFT = dataclasses.replace(synthetic.NO_AUGMENTATION, shift=8)
WINDOWS = [
    Window(),
    central_window(CROP),
    *(random_window(augment, (128, 128), np.random.default_rng(i)) for i in range(4) for augment in (CROP, SHIFT)),
]


def observation(dataset, row: int) -> dict:
    frame = dataset.frame_at(row)
    return {
        "images": np.stack([frame.images[view] for view in dataset.views]),
        "state": dataset.state[row],
        "prompt": dataset.episodes[dataset.episode[row]].instruction,
    }


@pytest.mark.parametrize("augment", [synthetic.NO_AUGMENTATION, PAPER, SHIFT])
def test_the_policy_sees_what_training_sees_without_augmentation(dataset, statistics, tokenizer, augment):
    config = synthetic.config(augment=augment, proprio_noise=0.1)
    transform = inference_transform(config, statistics, tokenizer)
    for row in np.flatnonzero(dataset.record >= 0)[:5]:
        sample = training_sample(config, dataset, int(row), statistics, tokenizer, None)
        seen = transform(observation(dataset, int(row)))
        assert list(seen) == list(batch_spec(config, 1, train=False))
        for key, value in seen.items():
            np.testing.assert_array_equal(value, sample[key], err_msg=key)
        plain = [crop_image(image, central_window(augment), 96) for image in observation(dataset, int(row))["images"]]
        np.testing.assert_array_equal(seen["images"], plain)
        np.testing.assert_array_equal(seen["proprio"], normalize(dataset.state[row], statistics.state))


def test_nothing_is_resampled_where_nothing_changes(dataset):
    image = dataset.frame_at(0).images["agentview"]
    assert crop_image(image, Window(), 128) is image


@pytest.mark.parametrize(("x", "y"), [(3, 0), (0, -5), (-8, 8)])
def test_a_shift_moves_whole_pixels_exactly_and_repeats_the_border(dataset, x, y):
    image = dataset.frame_at(0).images["agentview"]
    shifted = crop_image(image, Window(x / 128, y / 128, 1), 128)
    columns, rows = np.clip(np.arange(128) + x, 0, 127), np.clip(np.arange(128) + y, 0, 127)
    np.testing.assert_array_equal(shifted, image[rows][:, columns])


def test_a_central_crop_is_symmetric():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    window = Window(0.25, 0.25, 0.5)
    crop, mirrored = crop_image(image, window, 64), crop_image(np.ascontiguousarray(image[::-1, ::-1]), window, 64)
    assert np.abs(crop[::-1, ::-1].astype(int) - mirrored).max() <= 2


def test_windows_have_the_stated_area_and_stay_inside():
    for seed in range(50):
        window = random_window(CROP, (128, 128), np.random.default_rng(seed))
        assert window.side**2 == pytest.approx(0.9)
        assert min(window.x, window.y) >= 0
        assert max(window.x, window.y) + window.side <= 1
    centre = central_window(CROP)
    assert centre.x == centre.y == pytest.approx((1 - centre.side) / 2)
    shifts = {random_window(SHIFT, (64, 128), np.random.default_rng(seed)) for seed in range(100)}
    assert {round(window.x * 128, 9) for window in shifts} == set(range(-8, 9))
    assert max(abs(window.y) for window in shifts) == 8 / 64


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("view", synthetic.VIEWS)
def test_image_mask_and_keypoint_stay_together(dataset, window, view):
    row, camera = 12, synthetic.VIEWS.index(view)
    frame, info = dataset.frame_at(row), dataset.episodes[dataset.episode[row]]
    image, mask = crop_image(frame.images[view], window, 96), crop_mask(frame.masks[view], window, 96)
    red = (image[..., 0] > 150) & (image[..., 1] < 100)
    overlap = (red & (mask > 0)).sum() / (red | (mask > 0)).sum()
    assert overlap > 0.9
    # The ball's centre, projected into the source image and then into the window.
    in_camera = np.linalg.inv(dataset.base_from_camera[row, camera]) @ [*dataset.keypoints[row, 0], 1]
    u, v, depth = info.intrinsics[camera] @ in_camera[:3]
    x, y = u / depth / 128, v / depth / 128
    column, line = (x - window.x) / window.side * 96, (y - window.y) / window.side * 96
    assert mask[int(line), int(column)] == 1
    ys, xs = np.nonzero(mask)
    assert np.hypot(xs.mean() + 0.5 - column, ys.mean() + 0.5 - line) < 1.0


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("view", synthetic.VIEWS)
def test_points_lie_on_the_surfaces_that_the_window_shows(dataset, window, view):
    row, camera, grid = 12, synthetic.VIEWS.index(view), 24
    frame, info = dataset.frame_at(row), dataset.episodes[dataset.episode[row]]
    points, valid = patch_points(
        frame.depth[view], info.intrinsics[camera], dataset.base_from_camera[row, camera], window, grid
    )
    from_ball = np.abs(np.linalg.norm(points - dataset.keypoints[row, 0], axis=-1) - synthetic.RADIUS)
    on_ball, on_table = (from_ball < 1e-3) & valid, (np.abs(points[..., 2]) < 1e-3) & valid
    assert (on_ball | on_table)[valid].all()
    assert on_ball.sum() >= 4
    # Seen from the camera, each lies within half a source pixel of its patch's centre.
    world_to_pixel = info.intrinsics[camera] @ np.linalg.inv(dataset.base_from_camera[row, camera])[:3]
    u, v, depth = np.moveaxis(np.concatenate([points, np.ones((grid, grid, 1))], -1) @ world_to_pixel.T, -1, 0)
    centres = (np.arange(grid) + 0.5) / grid * window.side
    assert np.abs(u / depth - (window.x + centres) * 128)[valid].max() < 0.51
    assert np.abs(v / depth - (window.y + centres)[:, None] * 128)[valid].max() < 0.51
    # Patches that show the ball are those whose centre the cropped mask covers, but for its rim.
    centre = (np.arange(grid) + 0.5) * 96 / grid
    mask = crop_mask(frame.masks[view], window, 96)[centre.astype(int)][:, centre.astype(int)]
    assert ((mask > 0) != on_ball)[valid].mean() < 0.02
    assert (points[~valid] == 0).all()


def test_what_lies_outside_or_has_no_depth_is_invalid():
    depth = np.ones((8, 8), np.float32)
    depth[:, :4] = 0
    _, valid = patch_points(depth, synthetic.intrinsics(8), np.eye(4), Window(0.25, 0, 1), 4)
    # Source columns 0.375, 0.625, 0.875, 1.125 of the width: no depth, depth, depth, outside.
    np.testing.assert_array_equal(valid, [[False, True, True, False]] * 4)


def test_a_mask_cell_is_set_where_more_than_half_is_covered():
    mask = np.zeros((8, 8), np.uint8)
    mask[:4, :3] = 1
    np.testing.assert_array_equal(crop_mask(mask, Window(), 2), [[1, 0], [0, 0]])
    mask[:4, 2] = 0
    assert crop_mask(mask, Window(), 2).sum() == 0


def test_colours_follow_the_order_brightness_contrast_saturation_hue():
    image = np.random.default_rng(1).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    for seed in range(10):
        b, c, s, h = np.random.default_rng(seed).uniform(-1, 1, 4) * [0.2, 0.2, 0.2, 0.05]
        bright = image / 255 + b
        contrasted = np.clip((bright - bright.mean((0, 1))) * (1 + c) + bright.mean((0, 1)), 0, 1)
        expected = np.empty(image.shape)
        for place in np.ndindex(6, 5):
            hue, saturation, value = colorsys.rgb_to_hsv(*contrasted[place])
            expected[place] = colorsys.hsv_to_rgb((hue + h) % 1, min(saturation * (1 + s), 1), value)
        jittered = jitter_colors(image, PAPER, np.random.default_rng(seed))
        assert np.abs(jittered - 255 * expected).max() <= 1.0


def test_colours_stay_where_jitter_is_off(dataset):
    image = dataset.frame_at(0).images["wrist"]
    off = dataclasses.replace(PAPER, brightness=0, contrast=0, saturation=0, hue=0)
    assert jitter_colors(image, off, np.random.default_rng(0)) is image


def test_views_are_augmented_apart_and_by_the_generator_alone(dataset, statistics, tokenizer):
    config = synthetic.config(augment=PAPER)
    first, again, other = (
        training_sample(config, dataset, 0, statistics, tokenizer, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    for key, value in first.items():
        np.testing.assert_array_equal(value, again[key], err_msg=key)
    assert (first["images"] != other["images"]).any((1, 2, 3)).all()
    assert (first["points"] != other["points"]).any()
    np.testing.assert_array_equal(first["actions"], other["actions"])


def test_chunks_end_with_the_episode_and_with_a_burst(dataset):
    actions, mask = action_chunk(dataset, 0, 8)
    np.testing.assert_array_equal(actions, dataset.action[:8])
    assert mask.all()
    # A burst at step 10 ends what started at step 8; the episode ends after step 19.
    actions, mask = action_chunk(dataset, 8, 8)
    np.testing.assert_array_equal(mask, np.arange(8) < 2)
    np.testing.assert_array_equal(actions[2:], np.tile(dataset.action[9], (6, 1)))
    actions, mask = action_chunk(dataset, 16, 8)
    np.testing.assert_array_equal(mask, np.arange(8) < 4)
    np.testing.assert_array_equal(actions[:4], dataset.action[16:20])


def test_labels_are_those_of_the_row(dataset, statistics, tokenizer):
    sample = training_sample(synthetic.config(), dataset, 24, statistics, tokenizer, None)
    np.testing.assert_array_equal(sample["actions"][:6], normalize(dataset.action[24:30], statistics.action))
    np.testing.assert_array_equal(sample["keypoints"], dataset.keypoints[24])
    assert sample["mask_valid"].all()
    assert sample["keypoints_valid"].all()
    assert sample["masks"].any((1, 2)).all()


def test_controls_take_away_one_input_and_nothing_else(dataset, statistics, tokenizer):
    def sample(**data):
        config = synthetic.config(augment=PAPER, **data)
        return training_sample(config, dataset, 0, statistics, tokenizer, np.random.default_rng(0))

    full, blind, mute = sample(), sample(zero_images=True), sample(zero_language=True)
    assert not blind["images"].any()
    assert all((full[key] == blind[key]).all() for key in full if key != "images")
    assert mute["tokens"][mute["token_mask"]].tolist() == tokenizer.encode("")
    assert all((full[key] == mute[key]).all() for key in full if key not in ("tokens", "token_mask"))
    config = synthetic.config(zero_images=True, zero_language=True)
    seen = inference_transform(config, statistics, tokenizer)(observation(dataset, 0))
    assert not seen["images"].any()
    np.testing.assert_array_equal(seen["tokens"], mute["tokens"])


def test_proprio_noise_is_training_only_and_stays_in_range(dataset, statistics, tokenizer):
    config = synthetic.config(proprio_noise=0.2)
    clean = normalize(dataset.state[0], statistics.state)
    samples = [
        training_sample(config, dataset, 0, statistics, tokenizer, np.random.default_rng(i))["proprio"]
        for i in range(200)
    ]
    assert np.abs(samples).max() <= 1
    free = np.abs(clean) < 0.2
    np.testing.assert_allclose(np.std(np.array(samples) - clean, axis=0)[free], 0.2, rtol=0.2)


def test_frames_without_labels_are_marked_invalid(tmp_path, statistics, tokenizer):
    bare = open_dataset(synthetic.write(tmp_path, num_episodes=2, labels=False))
    sample = training_sample(synthetic.config(), bare, 0, statistics, tokenizer, None)
    assert not sample["mask_valid"].any()
    assert not sample["points_valid"].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((1, 8, 8, 3), np.uint8)}, r"give uint8 \[v, h, w, 3\] of agentview, wrist"),
        ({"images": np.zeros((2, 8, 8, 3))}, "images are float64"),
        ({"state": np.zeros(7)}, "give 8 finite numbers"),
        ({"state": np.full(8, np.nan)}, "give 8 finite numbers"),
        ({"prompt": "word " * 80}, "max_prompt_length"),
    ],
)
def test_a_wrong_observation_is_answered_in_a_sentence(dataset, statistics, tokenizer, changes, message):
    transform = inference_transform(synthetic.config(), statistics, tokenizer)
    with pytest.raises(DataError, match=message):
        transform(observation(dataset, 0) | changes)


def test_an_incomplete_observation_is_named(dataset, statistics, tokenizer):
    with pytest.raises(DataError, match="lacks 'state'"):
        inference_transform(synthetic.config(), statistics, tokenizer)({"images": 0, "prompt": ""})
