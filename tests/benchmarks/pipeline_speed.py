"""Samples per second of the stage-2 pipeline beside a tuned `tf.data` pipeline over RLDS, in one run on the same bytes.

    python tests/benchmarks/pipeline_speed.py [--frames 4000] [--rounds 3] [--seconds 8]

Both decode the same JPEG files of two views, resize to 224, cut and enlarge a crop of 90 % of the area, jitter
brightness, contrast, saturation and hue, normalise state and action by q01 and q99, and give chunks of 8 actions with
their mask, shuffled, in batches of 64. RLDS holds whole episodes, read as OpenVLA and Octo do: interleaved files,
episodes cut into frames that stay encoded, a shuffle buffer over frames, parallel maps with AUTOTUNE, prefetch. Ours is
measured with threads and with worker processes, from the pictures' own size (256) and from records of training size.
Beside them stands stage 1: rows of 2,048 positions packed from conversations of 60 to 400 words about one picture of
256 pixels each, at most four a row. The readers take turns, so that other load on the machine meets all of them. Prints
JSON lines: medians over rounds, and the share of stage 1's positions that hold nothing.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import cv2
import numpy as np

from pokevla_jax.config import Config
from pokevla_jax.config import DataConfig
from pokevla_jax.config import GeometryConfig
from pokevla_jax.config import KeypointConfig
from pokevla_jax.data.codec import encode_jpeg
from pokevla_jax.data.corpus import CorpusSample
from pokevla_jax.data.corpus import open_corpus
from pokevla_jax.data.corpus import write_corpus_shard
from pokevla_jax.data.export.rlds import export_rlds
from pokevla_jax.data.iterator import TrainIterator
from pokevla_jax.data.normalize import compute_statistics
from pokevla_jax.data.packing import packed_iterator
from pokevla_jax.data.pipeline import train_iterator
from pokevla_jax.data.records import Frame
from pokevla_jax.data.records import open_dataset
from pokevla_jax.data.records import write_shard
from pokevla_jax.data.tokenize import CompactTokenizer
from pokevla_jax.data.tokenize import load_tokenizer
from pokevla_jax.models import presets
from tests.benchmarks.statistics_speed import VIEWS
from tests.benchmarks.statistics_speed import episode

SIZE, BATCH, HORIZON, LENGTH = 224, 64, 8, 125


def pictures(count: int, size: int) -> list[np.ndarray]:
    """Photograph-like pictures: smooth shapes with a little noise (about 20 KB as JPEG at 256)."""
    rng = np.random.default_rng(0)
    result = []
    for _ in range(count):
        smooth = cv2.resize(
            rng.uniform(0, 255, (12, 12, 3)).astype(np.float32), (256, 256), interpolation=cv2.INTER_CUBIC
        )
        image = np.clip(smooth + rng.normal(0, 3, smooth.shape), 0, 255).astype(np.uint8)
        result.append(image if size == 256 else cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA))
    return result


def write(folder: Path, frames: int, size: int) -> None:
    """Episodes of ``LENGTH`` steps with a picture at every one."""
    pool = pictures(64, size)
    for shard in range(0, frames // LENGTH, 8):
        numbers = range(shard, min(shard + 8, frames // LENGTH))
        chosen = (
            (
                episode(n, LENGTH),
                {t: Frame({v: pool[(n * 7 + t + 31 * k) % 64] for k, v in enumerate(VIEWS)}) for t in range(LENGTH)},
            )
            for n in numbers
        )
        write_shard(folder, f"s{shard:04d}", chosen)


def settings(workers: int) -> Config:
    """VLA-Adapter's augmentation at 224 pixels, no labels but actions."""
    tiny = presets.tiny()
    model = dataclasses.replace(
        tiny,
        vision=dataclasses.replace(tiny.vision, image_size=SIZE),
        segmentation=dataclasses.replace(tiny.segmentation, weight=0.0),
        geometry=GeometryConfig(weight=0.0),
        keypoint=KeypointConfig(weight=0.0),
        action_horizon=HORIZON,
    )
    data = DataConfig(num_workers=workers, holdout_fraction=0.0, prefetch=4)
    return Config(model=model, data=data, batch_size=BATCH)


def closing(iterator: TrainIterator) -> Iterator[Any]:
    """Its batches; whoever stops reading stops its workers too."""
    with contextlib.closing(iterator):
        yield from iterator


def ours(folder: Path, workers: int) -> Iterator[Any]:
    """Batches of this project's pipeline."""
    dataset = open_dataset(folder)
    tokenizer = load_tokenizer("compact", (info.instruction for info in dataset.episodes))
    yield from closing(train_iterator(settings(workers), dataset, compute_statistics(dataset), tokenizer))


def write_conversations(folder: Path, count: int) -> None:
    """Questions and answers about one picture each; made-up words, as many as the paper's sources have."""
    pool = [encode_jpeg(image) for image in pictures(64, 256)]
    rng = np.random.default_rng(1)

    def sample(number: int) -> CorpusSample:
        words = [f"w{word}" for word in rng.integers(0, 900, int(np.clip(rng.lognormal(np.log(180), 0.5), 60, 400)))]
        turns = (" ".join(words[:20]), " ".join(words[20:]))
        return CorpusSample(
            id=str(number), source="made", pillar="general", images=(pool[number % 64],), turns=turns, split="train"
        )

    write_corpus_shard(folder, "s", (sample(number) for number in range(count)))


def stage1(folder: Path, workers: int) -> Iterator[Any]:
    """Packed batches of 16 rows for the full-size network."""
    data = DataConfig(num_workers=workers, prefetch=4, pack_length=2048, pack_images=4)
    config = Config(model=presets.pokevla(), data=data, stage="vlm", batch_size=16)
    corpus = open_corpus(folder)
    words = (f"w{word}" for word in range(900))
    tokenizer = CompactTokenizer.from_conversations(words, data.prompt_template)
    yield from closing(packed_iterator(config, corpus, tokenizer))


def rlds(folder: Path, original: Path) -> Iterator[Any]:
    """Batches of a tuned ``tf.data`` pipeline with the same work per sample."""
    import tensorflow as tf

    figures = compute_statistics(open_dataset(original))
    auto = tf.data.AUTOTUNE
    augment = settings(0).data.augment
    spec = {
        "steps/observation/image": tf.io.VarLenFeature(tf.string),
        "steps/observation/wrist_image": tf.io.VarLenFeature(tf.string),
        "steps/observation/state": tf.io.VarLenFeature(tf.float32),
        "steps/action": tf.io.VarLenFeature(tf.float32),
    }

    def scaled(values, column):
        low, length = (tf.constant(x, tf.float32) for x in column.bounds())
        normal = tf.clip_by_value(2 * (values - low) / length - 1, -1, 1)
        return tf.where(tf.constant(column.mask), normal, values)

    def frames(record):
        parsed = {key: tf.sparse.to_dense(value) for key, value in tf.io.parse_single_example(record, spec).items()}
        action = tf.reshape(parsed["steps/action"], [-1, 7])
        count = tf.shape(action)[0]
        places = tf.range(count)[:, None] + tf.range(HORIZON)[None, :]
        return tf.data.Dataset.from_tensor_slices(
            {
                "images": tf.stack([parsed["steps/observation/image"], parsed["steps/observation/wrist_image"]], 1),
                "proprio": scaled(tf.reshape(parsed["steps/observation/state"], [-1, 8]), figures.state),
                "actions": scaled(tf.gather(action, tf.minimum(places, count - 1)), figures.action),
                "action_mask": places < count,
            }
        )

    def view(data):
        image = tf.image.resize(tf.io.decode_jpeg(data, channels=3), [SIZE, SIZE], method="area") / 255
        side = float(np.sqrt(augment.crop_area))
        offset = tf.random.uniform([2]) * (1 - side)
        box = tf.concat([offset, offset + side], 0)[None]
        image = tf.image.crop_and_resize(image[None], box, [0], [SIZE, SIZE])[0]
        image = tf.image.random_brightness(image, augment.brightness)
        image = tf.image.random_contrast(image, 1 - augment.contrast, 1 + augment.contrast)
        image = tf.clip_by_value(image, 0, 1)
        image = tf.image.random_saturation(image, 1 - augment.saturation, 1 + augment.saturation)
        image = tf.image.random_hue(image, augment.hue)
        return tf.cast(tf.clip_by_value(image, 0, 1) * 255, tf.uint8)

    def sample(item):
        return {**item, "images": tf.stack([view(item["images"][0]), view(item["images"][1])])}

    options = tf.data.Options()
    options.deterministic = False
    paths = sorted(map(str, folder.glob("**/*.tfrecord*")))
    files = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths)).repeat()
    data = files.interleave(tf.data.TFRecordDataset, cycle_length=4, num_parallel_calls=auto)
    data = data.interleave(frames, cycle_length=4, num_parallel_calls=auto).shuffle(2000)
    data = data.map(sample, num_parallel_calls=auto).batch(BATCH, drop_remainder=True, num_parallel_calls=auto)
    yield from data.prefetch(auto).with_options(options).as_numpy_iterator()


def processor_seconds() -> float:
    """Processor time of this process and its children so far; unlike wall time, other load hardly changes it."""
    total = time.process_time()
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def rate(batches: Iterator[Any], seconds: float) -> dict[str, float]:
    """What a reader does, after what start-up had read ahead is used up."""
    for _ in range(8):
        next(batches)
    count, empty, start, used = 0, 0.0, time.perf_counter(), processor_seconds()
    while time.perf_counter() - start < seconds:
        batch = next(batches)
        count += len(batch["images"])
        if "segment_ids" in batch:
            empty += float(np.mean(batch["segment_ids"] == 0)) * len(batch["images"])
    used = processor_seconds() - used
    speed = count / (time.perf_counter() - start)
    return {"samples_per_second": speed, "processor_ms_per_sample": 1e3 * used / count, "padding": empty / count}


def main() -> None:
    """Writes the data, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8)
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, cores)
    with tempfile.TemporaryDirectory() as name:
        source, small, exported, conversations = (Path(name) / part for part in ("source", "small", "rlds", "corpus"))
        write(source, arguments.frames, 256)
        write(small, arguments.frames, SIZE)
        write_conversations(conversations, arguments.frames)
        export_rlds(open_dataset(source), exported, name="same", episodes_per_file=8)
        readers = {
            "tf.data over RLDS, 256 px": lambda: rlds(exported, source),
            "ours, 256 px, threads": lambda: ours(source, 0),
            "ours, 256 px, 2 workers": lambda: ours(source, 2),
            "ours, 224 px records, threads": lambda: ours(small, 0),
            "ours, 224 px records, 2 workers": lambda: ours(small, 2),
            "stage 1, packed rows, threads": lambda: stage1(conversations, 0),
            "stage 1, packed rows, 2 workers": lambda: stage1(conversations, 2),
        }
        rounds: dict[str, list[dict[str, float]]] = {label: [] for label in readers}
        for _ in range(arguments.rounds):
            for label, reader in readers.items():
                with contextlib.closing(reader()) as batches:
                    rounds[label].append(rate(batches, arguments.seconds))
        for label, figures in rounds.items():
            medians = {name: round(statistics.median(row[name] for row in figures), 3) for name in figures[0]}
            speeds = [round(row["samples_per_second"], 1) for row in figures]
            print(json.dumps({"reader": label, "cores": len(cores), **medians, "rounds": speeds}), flush=True)


if __name__ == "__main__":
    main()
