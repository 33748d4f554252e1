"""A small corpus whose samples are recognised by their content: each image has a colour of its own."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np

from pokevla_jax.config import Config
from pokevla_jax.config import DataConfig
from pokevla_jax.data.corpus import PILLARS
from pokevla_jax.data.corpus import CorpusSample
from pokevla_jax.data.corpus import write_corpus_shard
from pokevla_jax.models import presets


def jpeg(color=(10, 200, 30), size=(20, 30)) -> bytes:
    image = np.full((*size, 3), color, np.uint8)
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes()


def color_of(number: int) -> tuple[int, int, int]:
    return (number * 37 % 256, number * 91 % 256, number * 53 % 256)


def sample(number: int, **changes) -> CorpusSample:
    """Sample ``number``: 0 to 2 images, one or two questions, lengths that differ."""
    rng = np.random.default_rng(number)
    turns = [f"question {number} " + "what is here " * int(rng.integers(1, 5)), f"answer {number} thing"]
    if number % 3 == 0:
        turns += ["and where", f"at (0.{number:03d}, 0.500)"]
    values = {
        "id": f"s{number:04d}",
        "source": ("alpha", "beta", "gamma")[number % 3],
        "pillar": PILLARS[number % 4],
        "images": tuple(jpeg(color_of(number + i)) for i in range(number % 3)),
        "turns": tuple(turns),
        "split": "holdout" if number % 10 == 9 else "train",
    }
    return CorpusSample(**{**values, **changes})


def write(directory: Path, *, num_samples: int = 60, num_shards: int = 3, **arguments) -> Path:
    for shard in range(num_shards):
        numbers = range(shard, num_samples, num_shards)
        write_corpus_shard(directory, f"shard-{shard}", (sample(n) for n in numbers), **arguments)
    return directory


def config(**data) -> Config:
    """The tiny network with 4 patches per image."""
    tiny = presets.tiny()
    patch = tiny.vision.patch_size
    model = dataclasses.replace(
        tiny,
        vision=dataclasses.replace(tiny.vision, image_size=2 * patch),
        language=dataclasses.replace(tiny.language, vocab_size=1200),
    )
    data = {"pack_length": 64, "pack_images": 5, **data}
    return Config(model=model, data=DataConfig(**data), stage="vlm", batch_size=4, seed=3)
