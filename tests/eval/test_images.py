"""Image paths of published evaluators against the libraries they use: TensorFlow, stored and live, and Pillow."""

import numpy as np
import pytest

from eval import images
from eval import jpeg
from tests.eval import tensorflow_images as reference


@pytest.fixture(scope="module")
def golden():
    with np.load(reference.GOLDEN) as stored:
        return dict(stored)


@pytest.mark.parametrize("name", reference.pictures())
def test_resize_and_crop_are_tensorflows_byte_by_byte(name, golden):
    resized = images.openvla_resize(reference.pictures()[name], reference.target(name))
    np.testing.assert_array_equal(reference.kept(name, resized), golden[f"{name}/resized"])
    cropped = images.center_crop(resized, images.CROP_AREA)
    np.testing.assert_array_equal(reference.kept(name, cropped), golden[f"{name}/cropped"])


@pytest.mark.tensorflow
def test_resize_and_crop_are_tensorflows_live(golden):
    for name, image in reference.pictures().items():
        resized = reference.resize_image_for_policy(image, reference.target(name))
        np.testing.assert_array_equal(reference.kept(name, resized), golden[f"{name}/resized"])
        cropped = reference.center_crop_image(resized)
        np.testing.assert_array_equal(reference.kept(name, cropped), golden[f"{name}/cropped"])
    # Pictures that were not chosen beforehand: smooth ones, whose pixels lie close to where rounding turns.
    rng = np.random.default_rng()
    for _ in range(20):
        coarse = rng.integers(0, 256, (rng.integers(3, 20), rng.integers(3, 20), 3), np.uint8)
        image = np.kron(coarse, np.ones((29, 23, 1), np.uint8))
        resized = reference.resize_image_for_policy(image, 224)
        np.testing.assert_array_equal(images.openvla_resize(image, 224), resized)
        np.testing.assert_array_equal(images.center_crop(resized, 0.9), reference.center_crop_image(resized))


@pytest.mark.tensorflow
def test_every_weight_of_the_kernel_is_tensorflows():
    """Each source pixel in a channel of its own, so that the output is the matrix of weights."""
    import tensorflow as tf

    for source, size in ((256, 224), (128, 224), (360, 224), (640, 224), (41, 100), (7, 50)):
        sampled = tf.raw_ops.ScaleAndTranslate(
            images=np.eye(source, dtype=np.float32).reshape(1, source, 1, source),
            size=[size, 1],
            scale=np.array([np.float32(size) / np.float32(source), 1], np.float32),
            translation=np.zeros(2, np.float32),
            kernel_type="lanczos3",
        ).numpy()[0, :, 0]
        starts, weights = images._spans(source, size)
        found = np.zeros((size, source + weights.shape[1]), np.float32)
        np.put_along_axis(found, starts[:, None] + np.arange(weights.shape[1]), weights, axis=1)
        np.testing.assert_array_equal(found[:, :source], sampled)


def test_pillow_decodes_otherwise():
    """Why the round trip is computed here: Pillow's bytes of the same image are others, and they look the same."""
    import io

    from PIL import Image

    image = reference.shapes(256)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95)
    difference = np.abs(np.asarray(Image.open(file)).astype(int) - jpeg.round_trip(image))
    assert (difference > 0).mean() > 0.5
    assert difference.max() < 12


def test_a_round_trip_changes_little_and_grey_stays_grey():
    grey = np.repeat(reference.shapes(64)[..., :1], 3, axis=-1)
    back = jpeg.round_trip(grey).astype(int)
    assert np.ptp(back, axis=-1).max() <= 2
    smooth = np.full((40, 24, 3), (10, 200, 90), np.uint8)
    assert np.abs(jpeg.round_trip(smooth).astype(int) - smooth).max() <= 3
    coarse = np.abs(jpeg.round_trip(reference.shapes(64), quality=30).astype(int) - reference.shapes(64)).mean()
    assert coarse > 2 * np.abs(jpeg.round_trip(reference.shapes(64)).astype(int) - reference.shapes(64)).mean()


@pytest.mark.parametrize("shape", [(256, 256), (360, 360), (128, 128), (120, 200), (301, 77), (224, 224)])
def test_padding_is_openpis_client(shape):
    tools = pytest.importorskip("openpi_client.image_tools")
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    np.testing.assert_array_equal(images.resize_with_pad(image, 224), tools.resize_with_pad(image, 224, 224))


def test_each_path_has_its_size_and_treats_views_alike():
    views = np.stack([reference.shapes(128), reference.shapes(128)[::-1]])
    assert images.prepare(views, "native") is views
    for path in ("openvla", "openvla-crop", "openpi"):
        prepared = images.prepare(views, path)
        assert (prepared.shape, prepared.dtype) == ((2, 224, 224, 3), np.uint8)
        np.testing.assert_array_equal(prepared[1], images.prepare(views[1:], path)[0])
    plain, cropped = images.prepare(views, "openvla"), images.prepare(views, "openvla-crop")
    np.testing.assert_array_equal(cropped[0], images.center_crop(plain[0], 0.9))


def test_the_crop_is_the_middle():
    """A picture that is linear in x and y stays so, and shows the middle sqrt(0.9) of its sides."""
    y, x = np.mgrid[0:224, 0:224]
    image = np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8)
    cropped = images.center_crop(image, 0.9).astype(float)
    margin = 223 * (1 - np.sqrt(0.9)) / 2
    expected = margin + np.arange(224) * np.sqrt(0.9)
    np.testing.assert_allclose(cropped[100, :, 0], expected, atol=1)
    np.testing.assert_allclose(cropped[:, 100, 1], expected, atol=1)
