"""The films and mask frames of a report, as data URIs: the page needs no other file."""

from collections.abc import Sequence
from typing import Any

from eval.breakdown import in_turns
from eval.breakdown import split
from eval.html import data_uri
from eval.manifest import EpisodeSpec
from eval.overlays import mask_frames
from eval.report_data import Run

# A page of this size still opens at once; base64 adds a third.
MAX_VIDEO_BYTES = 8_000_000


def videos(runs: Sequence[Run], most: int) -> list[dict[str, Any]]:
    """At most ``most`` films: two thirds of the first label, failures before successes, and the rest of the controls.

    What a policy fails at teaches more than what it does well, so failures have three of four places while there are
    enough of them; they come from as many tasks and categories as possible.
    """
    filmed = [
        (run, spec)
        for run in runs
        for key, spec in run.specs.items()
        if key in run.decided and run.folder.video(spec.id).exists()
    ]
    lead = runs[0].kind, runs[0].label
    first = [film for film in filmed if (film[0].kind, film[0].label) == lead]
    rest = [film for film in filmed if (film[0].kind, film[0].label) != lead]
    places = min(len(first), most - min(len(rest), most // 3))
    failures = _varied([film for film in first if _outcome(*film) == "failure"])
    successes = _varied([film for film in first if _outcome(*film) == "success"])
    shown = min(len(failures), max(places - len(successes), -(-3 * places // 4)))
    chosen = failures[:shown] + successes[: places - shown]
    controls = in_turns(split(_varied(rest), lambda film: (film[0].kind, film[0].label)).values())
    entries, total = [], 0
    for run, spec in chosen + controls[: most - len(chosen)]:
        data = run.folder.video(spec.id).read_bytes()
        total += len(data)
        if total > MAX_VIDEO_BYTES:
            break
        record = run.decided[spec.base_id]
        entries.append(
            {
                "label": run.label,
                "outcome": record["outcome"],
                "steps": record["steps"],
                "prompt": spec.instruction,
                "start": spec.start,
                "uri": data_uri(data, "video/mp4"),
            }
        )
    return entries


def _outcome(run: Run, spec: EpisodeSpec) -> str:
    return str(run.decided[spec.base_id]["outcome"])


def _varied(films: Sequence[tuple[Run, EpisodeSpec]]) -> list[tuple[Run, EpisodeSpec]]:
    """The films, those of different tasks and categories first."""

    def topic(film: tuple[Run, EpisodeSpec]) -> tuple[Any, ...]:
        record = film[0].decided[film[1].base_id]
        return record["suite"], record["task"], record.get("category")

    return in_turns(split(films, topic).values())


def frames(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], str]:
    """Mask frames of the first run whose policy segments, or a sentence why there are none."""
    candidates = [run for run in runs if run.summary["policy"]["kind"] == "checkpoint" and run.label == runs[0].label]
    if not candidates:
        return [], ""
    try:
        entries = mask_frames(candidates[0].folder)
    except (ValueError, FileNotFoundError) as error:
        return [], str(error)
    outcomes = {record["id"]: record["outcome"] for record in candidates[0].records.values()}
    return [
        # A frame's file is named by its episode.
        entry
        | {
            "uri": data_uri(entry["path"].read_bytes(), f"image/{entry['path'].suffix[1:]}"),
            "outcome": outcomes.get(entry["file"][:16], ""),
        }
        for entry in entries
    ], ""
