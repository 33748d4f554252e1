"""The header of a shard and ``manifest.json``, the readable summary of a dataset.

Each shard's table carries its own header, which is what counts; the manifest repeats it in one place so that people can
read it and a shard that has gone missing is noticed. It is rebuilt whenever shards were added.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pokevla_jax.data import shards
from pokevla_jax.data.codec import DataError

FORMAT = 1
"""Version of the shard layout; others are refused by name."""

METADATA_KEY = b"pokevla"
NAME = "manifest.json"

_HEADER_TYPES: dict[str, Any] = {
    "image_size": (list, type(None)),
    "image_format": str,
    "num_records": int,
    "records_bytes": int,
    "records_sha256": str,
    "settings": dict,
    "episodes": list,
}


_EPISODE_TYPES = {
    "id": str,
    "suite": str,
    "task": int,
    "instruction": str,
    "success": bool,
    "length": int,
    "views": list,
    "intrinsics": list,
    "source": dict,
}


def parse_header(metadata: Mapping[bytes, bytes] | None, path: Path) -> dict[str, Any]:
    """The header stored in a table's metadata.

    Raises:
        DataError: when the table is not a shard of this format.
    """
    header = shards.parse_header(
        metadata,
        path,
        key=METADATA_KEY,
        version=FORMAT,
        types=_HEADER_TYPES,
        foreign="a shard of episodes; move it out of the dataset's folder",
        remedy="record it again or upgrade",
    )
    if not header["episodes"]:
        raise DataError(f"Table {path} holds no episode; delete it")
    for number, info in enumerate(header["episodes"]):
        wrong = [
            key
            for key, kind in _EPISODE_TYPES.items()
            if not isinstance(info.get(key) if isinstance(info, dict) else None, kind)
        ]
        if wrong or info["length"] < 1:
            raise DataError(f"Table {path} describes episode {number} without a valid {(wrong or ['length'])[0]!r}")
    return header


def build(headers: Mapping[str, dict]) -> dict[str, Any]:
    """The summary of all shards.

    Raises:
        DataError: when shards disagree on views or image size, or an episode id occurs twice.
    """
    first = next(iter(headers))
    views = headers[first]["episodes"][0]["views"]
    # A shard of which nothing was rendered has no image size and agrees with any.
    sized = {name: header for name, header in headers.items() if header["image_size"]}
    image_size = next((header["image_size"] for header in sized.values()), None)
    seen: dict[str, str] = {}
    tasks: dict[str, dict[str, int]] = {}
    settings: list[dict] = []
    for name, header in headers.items():
        if name in sized and header["image_size"] != image_size:
            raise DataError(
                f"Shards {next(iter(sized))} and {name} hold images of {image_size} and {header['image_size']} pixels; "
                "keep different sizes in different folders"
            )
        if header["settings"] not in settings:
            settings.append(header["settings"])
        for info in header["episodes"]:
            if info["views"] != views:
                raise DataError(f"Shards {first} and {name} hold views {views} and {info['views']}; keep them apart")
            if info["id"] in seen:
                raise DataError(
                    f"Episode {info['id']!r} stands in shards {seen[info['id']]} and {name}; delete one of them"
                )
            seen[info["id"]] = name
            counts = tasks.setdefault(f"{info['suite']}/{info['task']}", {"episodes": 0, "success": 0, "steps": 0})
            counts["episodes"] += 1
            counts["success"] += info["success"]
            counts["steps"] += info["length"]
    return {
        "format": FORMAT,
        "views": views,
        "image_size": image_size,
        "image_format": sorted({header["image_format"] for header in headers.values()}),
        "num_episodes": len(seen),
        "num_steps": sum(counts["steps"] for counts in tasks.values()),
        "num_records": sum(header["num_records"] for header in headers.values()),
        "tasks": tasks,
        "settings": settings,
        "shards": {
            name: {key: header[key] for key in ("num_records", "records_bytes", "records_sha256")}
            for name, header in headers.items()
        },
    }


def write(directory: Path, headers: Mapping[str, dict]) -> None:
    """Writes ``manifest.json`` anew, atomically."""
    temp = directory / f".{NAME}.{os.getpid()}.tmp"
    temp.write_text(json.dumps(build(headers), indent=1) + "\n")
    os.replace(temp, directory / NAME)


def validate(directory: Path, headers: Mapping[str, dict]) -> dict[str, Any]:
    """The summary of the shards found, after a check that every shard the manifest lists is among them.

    Rewrites a manifest that lacks shards, as it does when two processes finished theirs at the same moment.

    Raises:
        DataError: when a listed shard is missing or changed, or the manifest has another format.
    """
    summary = build(headers)
    path = directory / NAME
    if not path.is_file():
        return summary
    try:
        listed = json.loads(path.read_text())
        version, entries = listed["format"], dict(listed["shards"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a manifest ({error!r}); delete it, it is rebuilt from the shards") from error
    if version != FORMAT:
        raise DataError(f"{path} has format {version!r}, this version reads {FORMAT}; upgrade or record again")
    for name, entry in entries.items():
        if name not in summary["shards"]:
            raise DataError(
                f"{path} lists shard {name!r}, which is missing; restore it, or delete {NAME} to go on without"
            )
        if entry != summary["shards"][name]:
            raise DataError(f"Shard {name!r} is not the one {path} lists; restore it, or delete {NAME} to accept it")
    if listed != summary and os.access(directory, os.W_OK):
        write(directory, headers)
    return summary


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
