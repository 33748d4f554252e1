"""OpenVLA's image functions in TensorFlow, as its evaluators call them, and pictures to try them on.

``python -m tests.eval.tensorflow_images`` writes what they make of the pictures to ``tensorflow_images.npz``: arrays of
the small ones, SHA-256 of the others.
"""

import hashlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).with_suffix(".npz")
SMALL = 44  # a small picture's target, elsewhere 224


def pictures():
    """Name -> image: noise and saturated shapes at the sizes that evaluators render, and small ones of odd sizes."""
    rng = np.random.default_rng(3)
    found = {"noise_256": rng.integers(0, 256, (256, 256, 3), np.uint8), "shapes_256": shapes(256)}
    found |= {"shapes_128": shapes(128), "shapes_360": shapes(360), "extremes_256": extremes(rng, 256)}
    found |= {"small_noise": rng.integers(0, 256, (37, 53, 3), np.uint8), "small_shapes": shapes(48)[:41]}
    return found | {"small_same": shapes(SMALL), "small_tiny": rng.integers(0, 256, (9, 7, 3), np.uint8)}


def shapes(size):
    """Slopes, saturated rectangles and a fine grid."""
    y, x = np.mgrid[0:size, 0:size] * 256 // size
    image = np.stack([x, y, 255 - (x + y) // 2], axis=-1).astype(np.uint8)
    u = size // 16
    image[4 * u : 8 * u, 5 * u : 11 * u] = (200, 20, 30)
    image[9 * u :, 2 * u : 4 * u] = (0, 255, 0)
    image[::7, ::5] = 255
    return image


def extremes(rng, size):
    """Black or white in every channel of every pixel."""
    return rng.integers(0, 2, (size, size, 3), np.uint8) * np.uint8(255)


def target(name):
    return SMALL if name.startswith("small") else 224


def resize_image_for_policy(image, size):
    """openvla-oft, experiments/robot/openvla_utils.py."""
    import tensorflow as tf

    image = tf.image.encode_jpeg(image)
    image = tf.io.decode_image(image, expand_animations=False, dtype=tf.uint8)
    image = tf.image.resize(image, (size, size), method="lanczos3", antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8).numpy()


def center_crop_image(image):
    """openvla-oft, experiments/robot/openvla_utils.py, of a square image and to its own size."""
    import tensorflow as tf

    size = image.shape[0]
    pixels = tf.image.convert_image_dtype(tf.convert_to_tensor(image), tf.float32)[None]
    side = tf.reshape(tf.clip_by_value(tf.sqrt(0.9), 0, 1), shape=(1,))
    offset = (1 - side) / 2
    boxes = tf.stack([offset, offset, offset + side, offset + side], axis=1)
    crop = tf.image.crop_and_resize(pixels, boxes, tf.range(1), (size, size))[0]
    return tf.image.convert_image_dtype(tf.clip_by_value(crop, 0, 1), tf.uint8, saturate=True).numpy()


def kept(name, image):
    """The image itself, or its hash."""
    if name.startswith("small"):
        return image
    return np.frombuffer(hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest(), np.uint8)


def main():
    golden = {}
    for name, image in pictures().items():
        resized = resize_image_for_policy(image, target(name))
        golden[f"{name}/resized"] = kept(name, resized)
        golden[f"{name}/cropped"] = kept(name, center_crop_image(resized))
    np.savez_compressed(GOLDEN, **golden)


if __name__ == "__main__":
    main()
