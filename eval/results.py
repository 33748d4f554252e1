"""The run folder: manifest and protocol written once, results appended one fsynced JSON line at a time.

::

    manifest.json    the episode specifications, in order
    protocol.json    the conditions, with their hash
    episodes.jsonl   one record per finished attempt; the file survives a crash at any byte
    summary.json     counts and rates, rewritten after every run
    videos/          one mp4 per filmed episode, named by its id
    masks/           frames with predicted masks, made by the first report
    controls/        a run folder for each control, by its name
"""

import contextlib
import json
import os
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.errors import EvaluationError
from eval.errors import unwritable
from eval.lock import FolderLock
from eval.manifest import EpisodeSpec
from eval.manifest import digest
from eval.protocol import Protocol

Record = dict[str, Any]
FINAL = ("success", "failure")


class RunFolder:
    """One evaluation run on disk."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._results = -1
        self._lock = FolderLock(self.path)

    # -- writing -----------------------------------------------------------------------------------------------------

    def open(self, specs: Sequence[EpisodeSpec], protocol: Protocol, context: Mapping[str, Any]) -> None:
        """Takes the folder for this process: writes manifest and protocol, or checks that it holds the same ones.

        Args:
            specs: the episodes, in order.
            protocol: the conditions.
            context: what no result depends on but a reader wants to know: command, policy folder, machine.

        Raises:
            EvaluationError: when the folder cannot be written, is in use, or holds another protocol or episode list.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except OSError as error:
            raise unwritable("--run-dir", self.path, error) from error
        try:
            if (self.path / "protocol.json").exists():
                self._check(specs, protocol)
            else:
                self.write_json("manifest.json", {"episodes": [spec.to_dict() | {"id": spec.id} for spec in specs]})
                self.write_json("protocol.json", protocol.to_dict() | {"context": dict(context)})
            self._drop_cut_line()
            self._results = os.open(self.path / "episodes.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except Exception:
            self.close()
            raise

    def _check(self, specs: Sequence[EpisodeSpec], protocol: Protocol) -> None:
        known = self.protocol()
        if known.hash != protocol.hash:
            raise EvaluationError(
                f"{self.path} holds results of another protocol ({protocol.difference(known)}); results of different "
                "protocols are never merged: choose another --run-dir"
            )
        if [spec.id for spec in specs] != [spec.id for spec in self.specs()]:
            raise EvaluationError(
                f"{self.path} holds another list of episodes ({len(self.specs())}, this command asks for "
                f"{len(specs)}); repeat its command or choose another --run-dir"
            )

    def append(self, record: Record) -> None:
        """Adds one record and returns when it is on disk.

        Raises:
            EvaluationError: when it cannot be written; the file then is as before.
        """
        if self._results < 0:
            raise RuntimeError("append before open")
        self._lock.check()
        size = os.fstat(self._results).st_size
        rest = json.dumps(record).encode() + b"\n"
        try:
            while rest:
                rest = rest[os.write(self._results, rest) :]
            os.fsync(self._results)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._results, size)
            raise self._unwritable("episodes.jsonl", error) from error

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replaces ``summary.json``."""
        self.write_json("summary.json", summary)

    def write_video(self, episode_id: str, content: bytes) -> None:
        """Keeps an episode's mp4; written before its record, so that a record never waits for its film."""
        self._replace(self.video(episode_id), content)

    def close(self) -> None:
        """Releases the folder."""
        if self._results >= 0:
            os.close(self._results)
            self._results = -1
        self._lock.release()

    def write_json(self, name: str, value: Any) -> None:
        """Replaces a file of the folder."""
        self._replace(self.path / name, json.dumps(value, indent=1).encode())

    def _replace(self, path: Path, content: bytes) -> None:
        """Writes through a temporary name, so that a reader sees the old file or the new one."""
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            path.parent.mkdir(exist_ok=True)
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise self._unwritable(path.name, error) from error

    def _unwritable(self, name: str, error: OSError) -> EvaluationError:
        return EvaluationError(
            f"{self.path / name} cannot be written ({error.strerror}); every episode recorded before is safe: make "
            "room and run the same command again"
        )

    def _drop_cut_line(self) -> None:
        """Removes a last line that a crash cut short: it reports an episode whose record never was complete."""
        path = self.path / "episodes.jsonl"
        if not path.exists():
            return
        data = path.read_bytes()
        if data and not data.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(data.rfind(b"\n") + 1)

    # -- reading -----------------------------------------------------------------------------------------------------

    def specs(self) -> list[EpisodeSpec]:
        """The manifest's episodes, each checked against its id."""
        specs = []
        for number, entry in enumerate(self._read("manifest.json", "episodes")["episodes"]):
            try:
                spec = EpisodeSpec.from_dict({key: value for key, value in entry.items() if key != "id"})
                same = spec.id == entry["id"]
            except (KeyError, TypeError, AttributeError):
                same = False
            if not same:
                raise EvaluationError(f"{self.path / 'manifest.json'}: episode {number} was edited; restore the file")
            specs.append(spec)
        return specs

    def protocol(self) -> Protocol:
        """The protocol of every record of the folder."""
        return Protocol.from_dict(self._read("protocol.json", "simulation", "policy"))

    def context(self) -> dict[str, Any]:
        """What ``open`` was given when the run began."""
        return dict(self._read("protocol.json", "context")["context"])

    def summary(self) -> dict[str, Any]:
        """What ``write_summary`` wrote last."""
        return self._read("summary.json")

    def attempts(self) -> list[Record]:
        """Every record in the order of writing; a last line cut short by a crash is skipped.

        Raises:
            EvaluationError: for any other line that is no record.
        """
        path = self.path / "episodes.jsonl"
        if not path.exists():
            return []
        lines = path.read_bytes().split(b"\n")
        records = []
        for number, line in enumerate(lines[:-1], start=1):
            try:
                record = json.loads(line)
                record["id"], record["outcome"]
            except (ValueError, KeyError, TypeError) as error:
                raise EvaluationError(f"{path}, line {number}, is no episode record; remove it to go on") from error
            records.append(record)
        return records

    def records(self) -> dict[str, Record]:
        """One record per episode id: the success or failure if there is one, else the last error."""
        known: dict[str, Record] = {}
        for record in self.attempts():
            if known.get(record["id"], {}).get("outcome") not in FINAL:
                known[record["id"]] = record
        return known

    def missing(self) -> list[EpisodeSpec]:
        """Episodes without a success or failure; those that ended in an error are tried again."""
        known = self.records()
        return [spec for spec in self.specs() if known.get(spec.id, {}).get("outcome") not in FINAL]

    def video(self, episode_id: str) -> Path:
        """Where the episode's video is, or would be."""
        return self.path / "videos" / f"{episode_id}.mp4"

    def _read(self, name: str, *keys: str) -> dict[str, Any]:
        """A file of the folder, which must hold an object with these keys."""
        path = self.path / name
        try:
            values = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise EvaluationError(f"{self.path} is no evaluation run: it has no {name}") from error
        except json.JSONDecodeError as error:
            raise EvaluationError(f"{path} is not valid JSON (line {error.lineno}); restore it from a copy") from error
        except UnicodeDecodeError as error:
            raise EvaluationError(f"{path} is not text; restore it from a copy") from error
        for key in keys:
            if not isinstance(values, dict) or key not in values:
                raise EvaluationError(f"{path} has no {key!r}; restore it from a copy")
        return values


def by_base_id(specs: Iterable[EpisodeSpec], records: Mapping[str, Record]) -> dict[str, Record]:
    """``records`` by the id of the episode without its control, so that a policy's and its control's pair."""
    return {spec.base_id: records[spec.id] for spec in specs if spec.id in records}


def decided(records: Mapping[str, Record]) -> dict[str, Record]:
    """The successes and failures among ``records``."""
    return {key: record for key, record in records.items() if record["outcome"] in FINAL}


def manifest_digest(specs: Iterable[EpisodeSpec]) -> str:
    """One hash for a list of episodes, whatever its order."""
    return digest(sorted(spec.id for spec in specs))
