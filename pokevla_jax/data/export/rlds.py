"""Episodes as RLDS in TFRecord files, with LIBERO's keys; pictures are the stored JPEG files, byte by byte.

Beside the records stand ``dataset_info.json`` and ``features.json``, from which TensorFlow Datasets'
``builder_from_directory`` reads them; ``pokevla_jax/data/ingest/rlds.py`` needs neither. Masks, depth and camera poses
are left out.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from pokevla_jax.data.export.frames import check_exportable
from pokevla_jax.data.export.frames import episode_rows
from pokevla_jax.data.export.frames import new_folder
from pokevla_jax.data.records import EpisodeDataset

# LIBERO's names of our views; another view keeps its own.
_KEYS = {"agentview": "image", "wrist": "wrist_image"}


def export_rlds(dataset: EpisodeDataset, out: Path, *, name: str, episodes_per_file: int = 50) -> int:
    """Writes ``<out>/<name>/1.0.0`` and returns the number of steps; ``out`` appears whole or not at all.

    Args:
        dataset: every step must have pictures.
        out: must not exist.
        name: of the dataset; lower case, digits and ``_``.
        episodes_per_file: how many episodes share a file.

    Raises:
        DataError: where a step has no picture.
        FileExistsError: when ``out`` exists.
    """
    import tensorflow as tf

    check_exportable(dataset)
    count = len(dataset.episodes)
    files = max(-(-count // episodes_per_file), 1)
    lengths, num_bytes = [], 0
    with new_folder(out) as temp:
        folder = temp / name / "1.0.0"
        folder.mkdir(parents=True)
        for number in range(files):
            chosen = range(number * count // files, (number + 1) * count // files)
            path = folder / f"{name}-train.tfrecord-{number:05d}-of-{files:05d}"
            with tf.io.TFRecordWriter(str(path)) as writer:
                for index in chosen:
                    writer.write(_example(dataset, index))
            lengths.append(len(chosen))
            num_bytes += path.stat().st_size
        (folder / "dataset_info.json").write_text(json.dumps(_info(name, lengths, num_bytes), indent=1))
        (folder / "features.json").write_text(json.dumps(_features(dataset), indent=1))
    return len(dataset)


def _example(dataset: EpisodeDataset, index: int) -> bytes:
    import tensorflow as tf

    rows, info = episode_rows(dataset, index), dataset.episodes[index]
    steps = np.arange(len(rows))
    here = slice(rows.start, rows.stop)
    stored = [dataset.jpegs_at(row) for row in rows]
    columns: dict[str, Any] = {
        "steps/observation/state": dataset.state[here],
        "steps/action": dataset.action[here],
        "steps/reward": (steps == len(rows) - 1).astype(np.float32) * np.float32(info.success),
        "steps/discount": np.ones(len(rows), np.float32),
        "steps/is_first": (steps == 0).astype(np.int64),
        "steps/is_last": (steps == len(rows) - 1).astype(np.int64),
        "steps/is_terminal": (steps == len(rows) - 1).astype(np.int64),
        "steps/language_instruction": [info.instruction.encode()] * len(rows),
        "episode_metadata/file_path": [info.id.encode()],
    }
    for view in dataset.views:
        columns[f"steps/observation/{_KEYS.get(view, view)}"] = [images[view] for images in stored]
    features = {}
    for key, values in columns.items():
        if isinstance(values, list):
            features[key] = tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
        elif values.dtype == np.int64:
            features[key] = tf.train.Feature(int64_list=tf.train.Int64List(value=values))
        else:
            features[key] = tf.train.Feature(float_list=tf.train.FloatList(value=values.ravel()))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


def _info(name: str, lengths: list[int], num_bytes: int) -> dict[str, Any]:
    split = {
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "name": "train",
        "numBytes": str(num_bytes),
        "shardLengths": [str(length) for length in lengths],
    }
    return {"fileFormat": "tfrecord", "moduleName": "", "name": name, "splits": [split], "version": "1.0.0"}


def _features(dataset: EpisodeDataset) -> dict[str, Any]:
    """The description that TensorFlow Datasets keeps of nested features."""
    base = "tensorflow_datasets.core.features"

    def tensor(dtype: str, *shape: int) -> dict[str, Any]:
        dimensions = {"dimensions": [str(n) for n in shape]}
        return {
            "pythonClassName": f"{base}.tensor_feature.Tensor",
            "tensor": {"shape": dimensions if shape else {}, "dtype": dtype, "encoding": "none"},
        }

    def group(**features: Any) -> dict[str, Any]:
        return {"pythonClassName": f"{base}.features_dict.FeaturesDict", "featuresDict": {"features": features}}

    text = {"pythonClassName": f"{base}.text_feature.Text", "text": {}}
    height, width = dataset.image_size or (0, 0)
    picture = {
        "pythonClassName": f"{base}.image_feature.Image",
        "image": {
            "shape": {"dimensions": [str(height), str(width), "3"]},
            "dtype": "uint8",
            "encodingFormat": "jpeg",
        },
    }
    views = {_KEYS.get(view, view): picture for view in dataset.views}
    flags = {name: tensor("bool") for name in ("is_first", "is_last", "is_terminal")}
    steps = group(
        observation=group(**views, state=tensor("float32", dataset.state.shape[1])),
        action=tensor("float32", dataset.action.shape[1]),
        reward=tensor("float32"),
        discount=tensor("float32"),
        language_instruction=text,
        **flags,
    )
    sequence = {"pythonClassName": f"{base}.dataset_feature.Dataset", "sequence": {"feature": steps, "length": "-1"}}
    return group(steps=sequence, episode_metadata=group(file_path=text))
