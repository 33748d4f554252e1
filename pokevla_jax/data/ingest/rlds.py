"""RLDS episodes in TFRecord files, as LIBERO's ``*_no_noops`` and Open X-Embodiment publish them.

::

    DATA/<name>/<version>/<name>-train.tfrecord-00000-of-00016      (or those files anywhere below DATA)
        one tf.train.Example per episode, its features flattened:
        steps/observation/image      encoded pictures          steps/language_instruction   text
        steps/observation/state      numbers                   steps/action                 numbers
        steps/is_first, ...          one entry per step

Numbers per step follow from the number of steps. Checksums are TensorFlow's to check, one record at a time: a broken
one is set aside, and those behind it are read.
"""

import io
import os
import struct
import tempfile
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from pokevla_jax.data.codec import MAX_SIDE
from pokevla_jax.data.codec import Frame
from pokevla_jax.data.episode import Episode
from pokevla_jax.data.ingest import base
from pokevla_jax.data.ingest.base import Reference
from pokevla_jax.data.ingest.base import Reject
from pokevla_jax.data.ingest.base import Rejection
from pokevla_jax.data.ingest.robots import Robot
from pokevla_jax.data.ingest.robots import build_episode

_MAX_RECORD = 2 << 30
# A record is its length (8 bytes), the length's checksum (4), the data, and the data's checksum (4).
_FRAMING = 16


@dataclass(frozen=True)
class RldsAdapter:
    """Reads every TFRecord file below the folder whose name says ``-<split>.tfrecord``."""

    source: str
    licence: str
    robot: Robot
    size: int | None = None
    split: str = "train"

    def settings(self) -> dict[str, Any]:
        return {"adapter": "rlds", "size": self.size, "split": self.split, **self.robot.settings()}

    def inputs(self, data: Path) -> list[Path]:
        pattern = f"**/*-{self.split}.tfrecord*"
        return base.found(sorted(data.glob(pattern)), f"{data}/{pattern}")

    def references(self, data: Path) -> Iterator[Reference | Rejection]:
        for path in self.inputs(data):
            name = path.relative_to(data).as_posix()
            number = 0
            try:
                for number, (offset, length) in enumerate(record_spans(path)):
                    yield Reference(f"{path.name}/{number}", (name, offset, length))
                    number += 1
            except Reject as error:
                yield Rejection(f"{path.name}/{number}...", error.reason, error.detail)

    def load(self, data: Path, reference: Reference) -> tuple[Episode, Mapping[int, Frame]]:
        name, offset, length = reference.payload
        features = read_example(data / name, offset, length)
        robot = self.robot
        steps = len(features.get("steps/is_first", features.get("steps/reward", ())))
        if not steps:
            raise Reject("malformed", "the record has no steps/is_first, so it is no RLDS episode")
        columns = {key: _per_step(features, f"steps/{key}", steps) for key in (*robot.state, *robot.action)}
        keys = (*robot.views.values(), *robot.masks.values(), *robot.depth.values())
        pictures = {key: [_decode(item, key) for item in _per_step(features, f"steps/{key}", steps)] for key in keys}
        texts = _per_step(features, f"steps/{robot.instruction}", steps)
        return build_episode(
            robot,
            id=reference.id,
            suite=self.source,
            instruction=bytes(texts[0]).decode("utf-8", errors="replace"),
            columns=columns,
            pictures=pictures,
            size=self.size,
            source={"file": name, "record": int(reference.id.rpartition("/")[2])},
        )


def record_spans(path: Path) -> Iterator[tuple[int, int]]:
    """Yields where each record of a TFRecord file begins and how long it is, framing included.

    Raises:
        Reject: where the file ends within a record.
    """
    size, offset = path.stat().st_size, 0
    with path.open("rb") as file:
        while offset < size:
            file.seek(offset)
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] + _FRAMING if len(head) == 8 else size + 1
            if length > _MAX_RECORD or offset + length > size:
                raise Reject("truncated shard", f"{path.name} ends within the record at byte {offset}")
            yield offset, length
            offset += length


def read_example(path: Path, offset: int, length: int) -> dict[str, Any]:
    """The features of one record: arrays of numbers, or lists of bytes."""
    import tensorflow as tf

    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(length)
    # TensorFlow reads and checks files only, so the one record becomes one.
    handle, single = tempfile.mkstemp(prefix="pokevla-record-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        (record,) = tf.data.TFRecordDataset(single).as_numpy_iterator()
        example = tf.train.Example.FromString(record)
    except (tf.errors.DataLossError, tf.errors.OutOfRangeError, ValueError) as error:
        raise Reject("truncated shard", f"{path.name} at byte {offset}: {str(error)[:200]}") from error
    except Exception as error:
        # protobuf's DecodeError has no importable common base across its back-ends.
        if type(error).__name__ != "DecodeError":
            raise
        raise Reject("malformed", f"{path.name} at byte {offset} is no tf.train.Example") from error
    finally:
        os.unlink(single)
    features: dict[str, Any] = {}
    for key, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        if kind == "bytes_list":
            features[key] = list(feature.bytes_list.value)
        elif kind is not None:
            dtype = np.float32 if kind == "float_list" else np.int64
            features[key] = np.asarray(getattr(feature, kind).value, dtype)
    return features


def _per_step(features: Mapping[str, Any], key: str, steps: int) -> Any:
    """A feature cut into steps: numbers [t, n], or a list of t bytes."""
    if key not in features:
        known = sorted(name.removeprefix("steps/") for name in features if name.startswith("steps/"))
        raise Reject("malformed", f"there is no {key.removeprefix('steps/')!r}; there are {', '.join(known)}")
    values = features[key]
    if len(values) % steps:
        raise Reject("malformed", f"{key} has {len(values)} entries for {steps} steps")
    return values if isinstance(values, list) else values.reshape(steps, -1)


def _decode(data: Any, key: str) -> np.ndarray:
    """Pixels of an encoded picture (RGB), mask or 16-bit depth, as stored."""
    if not isinstance(data, bytes):
        raise Reject("wrong type", f"{key} holds numbers, not encoded pictures")
    try:
        with Image.open(io.BytesIO(data)) as header:
            size = header.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Reject("broken image", f"{key} holds something that is no picture ({type(error).__name__})") from error
    # Before anything is allocated for what a header claims.
    if max(size) > MAX_SIDE:
        raise Reject("wrong size", f"{key} holds a picture of {size}; at most {MAX_SIDE} a side are read")
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise Reject("broken image", f"{key} holds a picture that cannot be decoded")
    if array.ndim == 3:
        return cv2.cvtColor(array[..., :3], cv2.COLOR_BGR2RGB)
    return array
