"""``python -m eval merge``: run folders of the same protocol as one, with exactly one record per episode."""

import argparse
import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import Any

from eval.control_data import read_controls
from eval.controls import FOLDER
from eval.errors import EvaluationError
from eval.errors import unwritable
from eval.manifest import EpisodeSpec
from eval.results import FINAL
from eval.results import Record
from eval.results import RunFolder

# What two runs of an episode must agree in. Times, hosts and attempts may differ.
COMPARED = ("outcome", "steps", "final_state")
LISTED = 10


@dataclass
class Merged:
    """One record per episode, and what was found on the way; every list holds episode ids in the manifests' order.

    Attributes:
        specs: the episodes of all manifests.
        records: the record that is kept of each, where there is one.
        missing: nothing was recorded.
        errors: nothing but errors was recorded; the last one is kept.
        duplicates: recorded more than once, always the same.
        conflicts: recorded more than once, and not the same; the first of each folder and line is kept.
    """

    specs: list[EpisodeSpec] = field(default_factory=list)
    records: dict[str, Record] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    conflicts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Every episode is decided, and never in two ways."""
        return not (self.missing or self.errors or self.conflicts)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of ``merge``."""
    parser.description = (
        "Makes one run of several of the same protocol, such as those of hosts that shared the work:\n"
        "each episode is counted once, and what is missing or contradicts itself is listed."
    )
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR", help="folders of one protocol")
    out = "a new folder, then a run folder like the others"
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help=out)
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")


def merge(folders: Sequence[RunFolder]) -> Merged:
    """What the folders hold together.

    Raises:
        EvaluationError: when their protocols differ, a folder is given twice, or a record belongs to no episode.
    """
    first = folders[0].protocol()
    for number, folder in enumerate(folders):
        if any(folder.path.resolve() == other.path.resolve() for other in folders[:number]):
            raise EvaluationError(f"{folder.path} is given twice; each of its records would count as a duplicate")
        if difference := folder.protocol().difference(first):
            raise EvaluationError(
                f"{folder.path} has another protocol than {folders[0].path} ({difference}); results of different "
                "protocols are never merged"
            )
    result = Merged()
    found: dict[str, list[tuple[Path, Record]]] = {}
    for folder in folders:
        specs = folder.specs()
        result.specs += [spec for spec in specs if spec.id not in found]
        found |= {spec.id: [] for spec in specs if spec.id not in found}
        own = {spec.id for spec in specs}
        for record in folder.attempts():
            if record["id"] not in own:
                raise EvaluationError(f"{folder.path}: episode {record['id']} of episodes.jsonl is not in its manifest")
            found[record["id"]].append((folder.path, record))
    for spec in result.specs:
        _keep(result, spec.id, found[spec.id])
    return result


def _keep(result: Merged, episode_id: str, records: list[tuple[Path, Record]]) -> None:
    """Adds one episode."""
    decided = [(path, record) for path, record in records if record["outcome"] in FINAL]
    if not records:
        result.missing.append(episode_id)
        return
    if not decided:
        result.errors.append(episode_id)
        result.records[episode_id] = records[-1][1]
        return
    result.records[episode_id] = decided[0][1]
    versions = [{"folder": str(path)} | {key: record.get(key) for key in COMPARED} for path, record in decided]
    if len({tuple(version[key] for key in COMPARED) for version in versions}) > 1:
        result.conflicts.append({"id": episode_id, "records": versions})
    elif len(decided) > 1:
        result.duplicates.append(episode_id)


def write(result: Merged, folders: Sequence[RunFolder], out: Path, command: str) -> dict[str, Any]:
    """Writes ``out`` as a run folder with ``merge.json`` beside, all or nothing; returns its summary.

    Raises:
        EvaluationError: when ``out`` exists or cannot be written.
    """
    from eval.summary import summarize

    if out.exists():
        raise EvaluationError(f"--out {out} exists; choose a new folder")
    part = out.with_name(f".{out.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        folder = RunFolder(part)
        try:
            context = {"command": command, "merged": [str(source.path) for source in folders]}
            folder.open(result.specs, folders[0].protocol(), folders[0].context() | context)
            for spec in result.specs:
                if spec.id in result.records:
                    _copy_video(folders, folder, spec.id)
                    folder.append(result.records[spec.id])
            folder.write_json("merge.json", findings(result))
            summary = summarize(folder)
            folder.write_summary(summary)
        finally:
            folder.close()
        part.rename(out)
    except OSError as error:
        raise unwritable("--out", out, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return summary


def _copy_video(folders: Sequence[RunFolder], target: RunFolder, episode_id: str) -> None:
    """The first film of the episode, if there is one."""
    for source in folders:
        if source.video(episode_id).exists():
            target.write_video(episode_id, source.video(episode_id).read_bytes())
            return


def findings(result: Merged) -> dict[str, Any]:
    """What ``merge.json`` says."""
    lists = {key: value for key, value in asdict(result).items() if key not in ("specs", "records")}
    return {"episodes": len(result.specs), "recorded": len(result.records), "complete": result.complete, **lists}


def lines(result: Merged) -> list[str]:
    """The findings for a terminal."""
    prompts = {spec.id: f"{spec.suite} task {spec.task}, {spec.start}" for spec in result.specs}
    text = [f"{len(result.records)} of {len(result.specs)} episodes have a record"]
    for name, ids in (
        ("missing", result.missing),
        ("ended in errors alone", result.errors),
        ("recorded more than once, equally", result.duplicates),
        ("CONFLICTING, the first record was kept", [conflict["id"] for conflict in result.conflicts]),
    ):
        if ids:
            text.append(f"{name}: {len(ids)}")
            text += [f"  {episode_id}  {prompts[episode_id]}" for episode_id in ids[:LISTED]]
            text += [f"  ... and {len(ids) - LISTED} more, in merge.json"] if len(ids) > LISTED else []
    return text


def main(options: argparse.Namespace) -> int:
    """Runs the command, controls included: status 0 when every episode is decided and none in two ways, else 1."""
    runs = [RunFolder(path) for path in options.run_dirs]
    controls = [control for path in options.run_dirs for control in read_controls(path)]
    parts = {"": runs} | {c.name: [other.folder for other in controls if other.name == c.name] for c in controls}
    results = {name: merge(folders) for name, folders in parts.items()}
    command = shlex.join(["python", "-m", "eval", "merge", *map(str, options.run_dirs), "--out", str(options.out)])
    for name, result in results.items():
        write(result, parts[name], options.out / FOLDER / name if name else options.out, command)
    if options.json:
        found = {name: findings(result) for name, result in results.items()}
        own = found.pop("")
        print(json.dumps(own | ({"controls": found} if found else {}), indent=1))
    else:
        print("\n".join(f"{name}: {line}" if name else line for name in results for line in lines(results[name])))
    return 0 if all(result.complete for result in results.values()) else 1
