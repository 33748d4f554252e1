"""How far the evaluator's image path is from TensorFlow's, and how far Pillow's own would be.

    python tests/benchmarks/tensorflow_images.py render frames.npz
    MUJOCO_GL=disable python tests/benchmarks/tensorflow_images.py compare frames.npz

Rendered frames of the four suites at 256 and 128 pixels, noise and smooth pictures of all sizes; resize and crop of
each. Two commands, because the software renderer and TensorFlow cannot be loaded into one process.
"""

import argparse
import io
import json
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np
from PIL import Image

from eval import images
from eval import jpeg
from tests.eval import tensorflow_images as tensorflow

TASKS = (("libero_spatial", 0), ("libero_goal", 0), ("libero_object", 0), ("libero_10", 2))


def render(path: Path) -> int:
    """Writes both views of random motions, from two stored states of each task, as published evaluators render them."""
    from pokevla_jax.sim import tasks
    from pokevla_jax.sim.assets import resolve_assets
    from pokevla_jax.sim.environment import LiberoEnvironment

    frames = []
    for suite, index in TASKS:
        task, rng = tasks.load_task(suite, index), np.random.default_rng(0)
        environment = LiberoEnvironment(task, assets=resolve_assets(), renderer="robosuite", image_size=256)
        for state in tasks.load_init_states(task)[[0, 20]]:
            environment.reset(state)
            for _ in range(4):
                for _ in range(5):
                    environment.step(rng.uniform(-1, 1, 7))
                frames.extend(environment.observe()["images"])
        environment.close()
    np.savez_compressed(path, frames=np.array(frames))
    return len(frames)


def pictures(frames):
    """Kind and image."""
    rng = np.random.default_rng(11)
    yield from (("frame", frame) for frame in frames)
    yield from (("frame_128", np.ascontiguousarray(frame[::2, ::2])) for frame in frames[::2])
    for _ in range(200):
        yield "noise", rng.integers(0, 256, (*rng.integers(8, 400, 2), 3), np.uint8)
    for _ in range(212):
        coarse = rng.integers(0, 256, (*rng.integers(2, 30, 2), 3), np.uint8)
        size = tuple(int(side) for side in rng.integers(60, 380, 2))
        yield "smooth", cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)


def compare(path: Path) -> dict[str, dict[str, float]]:
    """Per kind: pictures, largest difference and share of numbers that differ, ours and with Pillow's decoder."""
    found: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    for kind, image in pictures(np.load(path)["frames"]):
        resized = tensorflow.resize_image_for_policy(image, 224)
        ours = np.abs(images.openvla_resize(image, 224).astype(int) - resized)
        crop = np.abs(images.center_crop(resized, 0.9).astype(int) - tensorflow.center_crop_image(resized))
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=95)
        pillow = np.abs(np.asarray(Image.open(file)).astype(int) - jpeg.round_trip(image))
        found[kind].append((ours.max(), crop.max(), pillow.max(), (pillow > 0).mean()))
    table = {}
    for kind, rows in found.items():
        resized, cropped, decoder, _ = np.max(rows, axis=0)
        table[kind] = {
            "pictures": len(rows),
            "resize_max": float(resized),
            "crop_max": float(cropped),
            "pillow_decoder_max": float(decoder),
            "pillow_decoder_share": float(np.mean(rows, axis=0)[3]),
        }
    return table


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=("render", "compare"))
    parser.add_argument("frames", type=Path)
    arguments = parser.parse_args()
    result = {"frames": render(arguments.frames)} if arguments.command == "render" else compare(arguments.frames)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
