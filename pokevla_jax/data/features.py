"""Features of frozen teachers beside recorded episodes: an array per episode, of which a shuffled read takes one row.

``features/<name>/`` in the dataset's folder holds ``teacher.json``, which says what made the features, and one float16
``.npy`` per episode with a row per rendered step. A file's name carries a digest of the teacher, its weights and the
stored frames, and it is renamed into place when it is whole: features of other images or of another teacher are never
read, and what exists is finished. Several processes may write different episodes at a time.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from pokevla_jax.config import AugmentConfig
from pokevla_jax.config import Config
from pokevla_jax.config import ConfigError
from pokevla_jax.data import files
from pokevla_jax.data.codec import DataError
from pokevla_jax.data.records import EpisodeDataset
from pokevla_jax.data.schema import precomputed_features
from pokevla_jax.typing import Float
from pokevla_jax.typing import Int

FOLDER = "features"
TEACHER = "teacher.json"
FORMAT = 1
DTYPE = np.dtype(np.float16)

_AUGMENTATION_OFF = AugmentConfig(crop_area=1.0, shift=0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)


class FeatureStore:
    """One teacher's features of a dataset; safe to pickle and to read from several threads.

    Attributes:
        name: of the features in a batch (``schema.teacher_features``).
        part: of ``config.model`` that describes their teacher.
        shape: of one row.
        folder: where the files are.
        teacher: all that the features depend on besides weights and frames, as plain JSON types.
    """

    def __init__(self, config: Config, dataset: EpisodeDataset, name: str):
        self.name, self._dataset = name, dataset
        self.part, self.shape = precomputed_features(config.model)[name]
        self.folder = dataset.directory / FOLDER / name
        self.teacher = _describe(config, self.part)
        self.made_by: dict[str, Any] = {}
        self._names: dict[int, str] = {}
        # Which of its episode's rendered steps a row is.
        rendered = dataset.record >= 0
        before: Int[np.ndarray, " n"] = np.cumsum(rendered) - rendered
        self._place = before - before[dataset.starts[dataset.episode]]

    @property
    def identity(self) -> str:
        """Digest of the teacher and its weights, after ``open`` or ``claim``."""
        return _digest([self.name, self.made_by])

    def claim(self, weights: str, origin: Mapping[str, Any]) -> None:
        """Makes the folder this teacher's, or finds that it is.

        Args:
            weights: digest of the teacher's parameters.
            origin: where they come from, for people.

        Raises:
            DataError: when the folder holds another teacher's features.
        """
        path = self.folder / TEACHER
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            made_by = {"teacher": self.teacher, "weights": weights}
            described = {"format": FORMAT, "shape": list(self.shape), "dtype": DTYPE.name, **made_by}
            files.write_json(path, described | {"origin": dict(origin)})
        self.open()
        if (found := self.made_by["weights"]) != weights:
            raise DataError(
                f"{self.folder} holds features of a teacher with weights {found}, this checkpoint's are {weights}; "
                "give the other checkpoint, or delete the folder to make them anew"
            )

    def open(self) -> None:
        """Reads what made the features.

        Raises:
            DataError: when there are none, or they were made by another configuration.
        """
        path = self.folder / TEACHER
        try:
            found = json.loads(path.read_text())
            version, made_by = found["format"], {key: found[key] for key in ("teacher", "weights")}
            teacher = dict(made_by["teacher"])
        except FileNotFoundError as error:
            raise DataError(
                f"config.model.{self.part}.source 'precomputed' reads {self.folder}, which holds no features; make "
                "them with pokevla-features, or set source to 'inside'"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} names no teacher ({error!r}); delete its folder and make it anew") from error
        if version != FORMAT:
            raise DataError(f"{path} has format {version!r}, this version reads {FORMAT}; upgrade, or make it anew")
        for key in sorted(teacher.keys() | self.teacher.keys()):
            if teacher.get(key) != self.teacher.get(key):
                raise DataError(
                    f"{self.folder} was made with {key} {teacher.get(key)!r}, this configuration has "
                    f"{self.teacher.get(key)!r}; restore it, or delete the folder and run pokevla-features again"
                )
        self.made_by, self._names = made_by, {}

    def rows(self, episode: int) -> Int[np.ndarray, " n"]:
        """The dataset's rows of an episode's rendered steps, in order."""
        first, end = self._dataset.starts[episode : episode + 2]
        return first + np.flatnonzero(self._dataset.record[first:end] >= 0)

    def missing(self) -> list[int]:
        """The episodes that have frames and no features.

        Raises:
            DataError: when a file is shorter than its episode: a copy of it was not finished.
        """
        with os.scandir(self.folder) as entries:
            sizes = {entry.name: entry.stat().st_size for entry in entries}
        missing = []
        for episode in range(len(self._dataset.episodes)):
            if not (needed := self.num_bytes([episode])):
                continue
            size = sizes.get(self._file(episode))
            if size is None:
                missing.append(episode)
            elif size <= needed:
                raise self._broken(episode, f"{size} bytes")
        return missing

    def check_complete(self) -> None:
        """Raises ``DataError`` unless every rendered step has features."""
        if missing := self.missing():
            raise DataError(
                f"{self.folder} lacks features of {len(missing)} of {len(self._dataset.episodes)} episodes as they "
                f"are in the dataset, the first {self._dataset.episodes[missing[0]].id!r}; run pokevla-features again, "
                "which makes these alone"
            )

    def num_bytes(self, episodes: Sequence[int]) -> int:
        """Bytes of the features of these episodes."""
        row = int(np.prod(self.shape)) * DTYPE.itemsize
        return sum(len(self.rows(episode)) for episode in episodes) * row

    def write(self, episode: int, rows: Iterable[Float[np.ndarray, "..."]]) -> None:
        """Writes the features of an episode's rendered steps, in order; the file appears whole or not at all.

        Raises:
            DataError: for a number that is not finite in half precision, or another count or shape than needed.
        """
        path = self.folder / self._file(episode)
        count = len(self.rows(episode))
        header = {"descr": np.lib.format.dtype_to_descr(DTYPE), "fortran_order": False, "shape": (count, *self.shape)}
        written = 0
        with files.temporary(path) as temp:
            with temp.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                for row in rows:
                    self._check_row(row, episode)
                    file.write(np.ascontiguousarray(row).tobytes())
                    written += 1
            if written != count:
                raise DataError(f"{path} would hold {written} rows for {count} rendered steps")
            files.sync(temp)
            os.replace(temp, path)
        files.sync(self.folder)

    def read(self, row: int) -> Float[np.ndarray, "..."]:
        """The features of a rendered row.

        Raises:
            DataError: when they cannot be read, naming the file.
        """
        episode = int(self._dataset.episode[row])
        path = self.folder / self._file(episode)
        size = int(np.prod(self.shape))
        try:
            with path.open("rb") as file:
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                if (shape[1:], dtype) != (self.shape, DTYPE):
                    raise ValueError(f"its rows are {dtype}{shape[1:]}")
                start = int(self._place[row]) * size * DTYPE.itemsize
                return np.fromfile(file, DTYPE, size, offset=start).reshape(self.shape)
        except (OSError, ValueError) as error:
            raise self._broken(episode, str(error)[:200]) from error

    def _check_row(self, row: np.ndarray, episode: int) -> None:
        if (row.shape, row.dtype) != (self.shape, DTYPE):
            raise DataError(f"A row of {self.name} is {row.dtype}{row.shape}, it must be {DTYPE}{self.shape}")
        if not np.isfinite(row).all():
            raise DataError(
                f"The teacher of {self.name} gave numbers that half precision does not hold for episode "
                f"{self._dataset.episodes[episode].id!r}; are its weights whole?"
            )

    def _file(self, episode: int) -> str:
        if episode not in self._names:
            dataset = self._dataset
            shard = dataset.shards[dataset.shard[dataset.starts[episode]]]
            frames = dataset.manifest["shards"][shard]["records_sha256"], dataset.record[self.rows(episode)].tolist()
            digest = _digest([self.made_by, dataset.episodes[episode].id, *frames])
            self._names[episode] = f"{shard}-{digest}.npy"
        return self._names[episode]

    def _broken(self, episode: int, what: str) -> DataError:
        path = self.folder / self._file(episode)
        return DataError(f"Features {path} cannot be read: {what}; delete the file and run pokevla-features again")


def make_stores(config: Config, dataset: EpisodeDataset) -> list[FeatureStore]:
    """A store for each entry of a batch that is precomputed; none where the teachers run in the step.

    Raises:
        ConfigError: when images are augmented: features belong to images as they are.
        DataError: for a view that the dataset does not hold.
    """
    names = precomputed_features(config.model)
    for name, (part, _) in names.items():
        for field in dataclasses.fields(AugmentConfig):
            off, value = (getattr(x, field.name) for x in (_AUGMENTATION_OFF, config.data.augment))
            if value != off:
                raise ConfigError(
                    f"config.data.augment.{field.name} is {value}, and {name} belong to images that are not "
                    f"augmented: set it to {off:g}, or config.model.{part}.source to 'inside'"
                )
    dataset.check_views(config.model.views)
    return [FeatureStore(config, dataset, name) for name in names]


def open_stores(config: Config, dataset: EpisodeDataset) -> list[FeatureStore]:
    """The stores that training reads, checked to be complete and of this configuration; raises as they do."""
    stores = make_stores(config, dataset)
    for store in stores:
        store.open()
        store.check_complete()
    return stores


def check_space(stores: Mapping[FeatureStore, Sequence[int]]) -> None:
    """Raises ``DataError`` when a disk cannot hold the features of these episodes; the stores are claimed."""
    disks: dict[int, list[FeatureStore]] = {}
    for store in stores:
        disks.setdefault(store.folder.stat().st_dev, []).append(store)
    for sharing in disks.values():
        folder = sharing[0].folder
        needed, free = sum(store.num_bytes(stores[store]) for store in sharing), shutil.disk_usage(folder).free
        if needed > free:
            raise DataError(
                f"{folder} has {free:,} bytes free ({free / 2**30:.1f} GiB), and the features need {needed:,} "
                f"({needed / 2**30:.1f} GiB); free some space, or make the folder a link to a larger disk"
            )


def _describe(config: Config, part: str) -> dict[str, Any]:
    """What the features of ``part`` depend on besides weights and frames."""
    model, segmentation, geometry = config.model, config.model.segmentation, config.model.geometry
    described: dict[str, Any] = {
        "views": list(model.views),
        "image_size": model.vision.image_size,
        "zero_images": config.data.zero_images,
    }
    if part == "segmentation":
        return described | {
            "sam_variant": segmentation.sam_variant,
            "feature_grid": segmentation.feature_grid,
            "decoder_dim": segmentation.decoder_dim,
        }
    return described | {
        **{f"vggt.{key}": value for key, value in dataclasses.asdict(geometry.vggt).items()},
        "layer": geometry.layer % geometry.vggt.depth,
        "position_embedding": geometry.position_embedding,
        "grid": model.vision.grid,
    }


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
