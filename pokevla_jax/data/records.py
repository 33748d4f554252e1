"""Robot episodes on disk: a random-access file of frames and a table of numbers per shard.

A dataset is a folder of shards. ``<shard>.arrayrecord`` holds one entry per rendered frame (see ``codec``);
``<shard>.parquet`` holds one row per step with every numeric column, so that chunks, filters and statistics never touch
an image, and a shuffled read decodes one frame. The parquet file is renamed into place last: a shard without it does
not exist, whatever else was left behind. Several processes may write different shards of one dataset at a time.
``manifest.json`` is a readable summary which also notices shards that have gone missing. See docs/data_formats.md.
"""

import functools
import json
import os
from collections.abc import Iterable
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pokevla_jax.data import files
from pokevla_jax.data import manifest as manifests
from pokevla_jax.data import shards
from pokevla_jax.data.codec import DataError
from pokevla_jax.data.codec import Frame
from pokevla_jax.data.codec import chroma
from pokevla_jax.data.codec import decode_frame
from pokevla_jax.data.codec import encode_frame
from pokevla_jax.data.codec import frame_jpegs
from pokevla_jax.data.conventions import gripper_dims
from pokevla_jax.data.episode import COLUMNS
from pokevla_jax.data.episode import INDICES
from pokevla_jax.data.episode import Episode
from pokevla_jax.data.episode import EpisodeInfo
from pokevla_jax.data.episode import check_episode
from pokevla_jax.data.episode import check_frame
from pokevla_jax.data.episode import from_table
from pokevla_jax.data.episode import info_from_json
from pokevla_jax.data.episode import info_to_json
from pokevla_jax.data.episode import to_table
from pokevla_jax.data.shards import RecordFiles

__all__ = [
    "DataError",
    "Episode",
    "EpisodeDataset",
    "EpisodeInfo",
    "Frame",
    "open_dataset",
    "shard_exists",
    "write_shard",
]


def shard_exists(directory: str | os.PathLike, shard_name: str) -> bool:
    """Whether the shard is complete on disk."""
    return (files.local(directory) / f"{shards.checked_name(shard_name)}.parquet").is_file()


def write_shard(
    directory: str | os.PathLike,
    shard_name: str,
    episodes: Iterable[tuple[Episode, Mapping[int, Frame]]],
    *,
    settings: Mapping[str, Any] | None = None,
    jpeg_quality: int = 95,
    update_manifest: bool = True,
) -> None:
    """Writes one shard: it appears whole or not at all.

    Args:
        directory: the dataset's folder; created when missing.
        shard_name: letters, digits, ``_ . -``; must be new.
        episodes: each with its rendered frames by step, for any subset of its steps. Consumed once, a frame at a time.
        settings: how the data was made (renderer, assets, noise), plain JSON; kept in the manifest.
        jpeg_quality: 1 to 100.
        update_manifest: whether to compare with the other shards now and list this one. Who writes thousands of shards
            leaves it to ``open_dataset``.

    Raises:
        FileExistsError: when the shard exists.
        DataError: when an episode contradicts itself or the ones before it.
    """
    directory = files.local(directory)
    if shard_exists(directory, shard_name):
        raise FileExistsError(f"Shard {directory / shard_name}.parquet exists; choose another name or delete it first")
    directory.mkdir(parents=True, exist_ok=True)
    records_path, table_path = directory / f"{shard_name}.arrayrecord", directory / f"{shard_name}.parquet"
    infos: list[dict] = []
    tables: list[pa.Table] = []
    num_records, image_size = 0, None
    with files.temporary(records_path) as records_temp, files.temporary(table_path) as table_temp:
        with files.RecordWriter(records_temp) as writer:
            for episode, frames in episodes:
                check_episode(episode)
                records = np.full(len(episode), -1, np.int32)
                for step in sorted(frames):
                    image_size = check_frame(episode, step, frames[step], image_size)
                    writer.write(encode_frame(frames[step], jpeg_quality=jpeg_quality))
                    records[step] = num_records
                    num_records += 1
                tables.append(to_table(episode, len(infos), records))
                infos.append(info_to_json(episode))
        if not infos:
            raise DataError(f"Shard {shard_name!r} of {directory} would hold no episode; record at least one")
        files.sync(records_temp)
        header = {
            "format": manifests.FORMAT,
            "image_size": list(image_size) if image_size else None,
            "image_format": f"jpeg q{jpeg_quality} {chroma(image_size or (1, 1))}",
            "num_records": num_records,
            "records_bytes": records_temp.stat().st_size,
            "records_sha256": manifests.sha256(records_temp),
            "settings": dict(settings or {}),
            "episodes": infos,
        }
        try:
            table = pa.concat_tables(tables)
        except pa.ArrowInvalid as error:
            raise DataError(f"Episodes of shard {shard_name!r} differ in their columns' widths: {error}") from error
        table = table.replace_schema_metadata({manifests.METADATA_KEY: json.dumps(header)})
        pq.write_table(table, table_temp, compression="zstd")
        files.sync(table_temp)
        # Before anything appears: an episode id that the dataset has already would make all of it unreadable.
        others = {path.stem: _read_shard(path)[0] for path in shards.tables(directory)} if update_manifest else {}
        manifests.build({**others, shard_name: header})
        os.replace(records_temp, records_path)
        os.replace(table_temp, table_path)
    files.sync(directory)
    if update_manifest:
        manifests.write(directory, dict(sorted({**others, shard_name: header}.items())))


class EpisodeDataset:
    """A dataset with its tables in memory and its frames on disk; safe to pickle and to read from several threads.

    Attributes:
        manifest: the summary of ``manifest.json``.
        views, image_size: cameras in order, and (height, width) of every stored image (None: nothing was rendered).
        episodes: one ``EpisodeInfo`` per episode; rows ``starts[e] .. starts[e + 1] - 1`` belong to episode ``e``.
        state, action, executed, chunk_end, base_from_camera, keypoints: the columns of ``Episode``, all steps in a row.
        episode, step: which step of which episode a row is.
        shard, record: where a row's frame is stored; record is -1 when it was not rendered.
        gripper_dims: entries of an action that command grippers; the last one, unless the shards' settings say so.
        absolute_actions: whether actions are target positions rather than motions.
    """

    def __init__(self, directory: Path, shards: tuple[str, ...], manifest: dict, infos: list, columns: dict):
        self.directory = directory
        self.shards = shards
        self.manifest = manifest
        self.views = tuple(manifest["views"])
        self.image_size = tuple(manifest["image_size"]) if manifest["image_size"] else None
        self.episodes: tuple[EpisodeInfo, ...] = tuple(infos)
        self.state: np.ndarray = columns["state"]
        self.action: np.ndarray = columns["action"]
        self.executed: np.ndarray = columns["executed"]
        self.base_from_camera: np.ndarray = columns["base_from_camera"]
        self.keypoints: np.ndarray = columns["keypoints"]
        self.chunk_end: np.ndarray = columns["chunk_end"]
        self.episode: np.ndarray = columns["episode"]
        self.step: np.ndarray = columns["step"]
        self.record: np.ndarray = columns["record"]
        self.shard: np.ndarray = columns["shard"]
        self.starts: np.ndarray = np.append(np.searchsorted(self.episode, np.arange(len(infos))), len(self.episode))
        self.gripper_dims, self.absolute_actions = _action_meaning(directory, manifest, self.action.shape[1])
        self._records = RecordFiles(directory, shards, manifests.NAME)

    def __len__(self) -> int:
        """Steps in the dataset, rendered or not."""
        return len(self.step)

    def check_views(self, views: Iterable[str]) -> None:
        """Raises ``DataError`` for a view that the dataset does not hold."""
        unknown = [view for view in views if view not in self.views]
        if unknown:
            raise DataError(
                f"config.model.views asks for {unknown[0]!r}, {self.directory} holds {', '.join(self.views)}; change "
                "the views or record again"
            )

    def frame(self, shard: int, record: int, *, masks: bool = True, depth: bool = True) -> Frame:
        """The frame stored as entry ``record`` of shard ``shard`` (an index into ``shards``).

        Raises:
            DataError: when the entry cannot be read, naming file and index.
        """
        frame = self._records.read(shard, record, functools.partial(decode_frame, masks=masks, depth=depth))
        for view in self.views:
            if view not in frame.images or frame.images[view].shape[:2] != self.image_size:
                raise DataError(
                    f"Record {record} of {self._records.path(shard)} lacks view {view!r} at {self.image_size}; record "
                    "the shard again"
                )
        return frame

    def jpegs_at(self, row: int) -> dict[str, bytes]:
        """The stored JPEG file of each view of a row, which must have been rendered."""
        return self._records.read(int(self.shard[row]), int(self.record[row]), frame_jpegs)

    def frame_at(self, row: int, *, masks: bool = True, depth: bool = True) -> Frame:
        """The frame of a row, which must have been rendered."""
        if self.record[row] < 0:
            raise DataError(f"Step {self.step[row]} of episode {self.episodes[self.episode[row]].id} was not rendered")
        return self.frame(int(self.shard[row]), int(self.record[row]), masks=masks, depth=depth)


def open_dataset(directory: str | os.PathLike) -> EpisodeDataset:
    """Opens a dataset, checking that its shards are whole and agree with each other and with the manifest.

    Raises:
        FileNotFoundError: when there is no dataset.
        DataError: for a truncated, foreign or missing shard, naming it.
    """
    directory = files.local(directory)
    if not directory.is_dir():
        raise FileNotFoundError(
            f"Dataset folder {directory} does not exist; record one with pokevla-record --out {directory}"
        )
    paths = shards.tables(directory)
    if not paths:
        raise FileNotFoundError(
            f"Dataset folder {directory} holds no complete shard (*.parquet); record one with pokevla-record"
        )
    headers: dict[str, dict] = {}
    infos: list[EpisodeInfo] = []
    columns: dict[str, list[np.ndarray]] = {name: [] for name in (*COLUMNS, *INDICES, "shard")}
    for index, path in enumerate(paths):
        headers[path.stem], table = _read_shard(path, table=True)
        for name in (*COLUMNS, *INDICES):
            columns[name].append(table[name])
        columns["episode"][-1] = columns["episode"][-1] + np.int32(len(infos))
        columns["shard"].append(np.full(len(table["step"]), index, np.int32))
        infos += [info_from_json(info, path) for info in headers[path.stem]["episodes"]]
    summary = manifests.validate(directory, headers)
    for name, parts in columns.items():
        for path, part in zip(paths, parts, strict=True):
            if part.shape[1:] != parts[0].shape[1:]:
                raise DataError(
                    f"Column {name!r} has rows of shape {part.shape[1:]} in {path} but {parts[0].shape[1:]} in "
                    f"{paths[0]}; keep different robots in different folders"
                )
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    return EpisodeDataset(directory, tuple(headers), summary, infos, joined)


def _action_meaning(directory: Path, manifest: dict, width: int) -> tuple[tuple[int, ...], bool]:
    """Gripper entries and kind of the actions, as the settings of all shards state them."""
    stated = [settings.get("actions", {}) for settings in manifest["settings"]] or [{}]
    found = {(gripper_dims(a.get("gripper_dims", [-1]), width), bool(a.get("absolute", False))) for a in stated}
    if len(found) > 1:
        raise DataError(f"Shards of {directory} differ in what their actions mean; keep them in different folders")
    return found.pop()


# --- one shard ---


def _read_shard(path: Path, *, table: bool = False) -> tuple[dict, dict[str, np.ndarray]]:
    """Header and, on request, the columns of a shard, checked against each other and the records' size."""
    with shards.opened(path) as file:
        header = manifests.parse_header(file.schema_arrow.metadata, path)
        columns = from_table(file.read(use_threads=False), header, path) if table else {}
    shards.check_records(path, header)
    return header, columns
