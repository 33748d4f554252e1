"""``python -m eval report``: one self-contained HTML page about runs and the training behind them."""

import argparse
import base64
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.errors import EvaluationError
from eval.overlays import mask_frames
from eval.report_data import Run
from eval.report_data import headline
from eval.report_data import load_run
from eval.report_data import sections
from eval.report_data import warnings
from eval.report_plots import load_training
from eval.report_plots import training_curves

TEMPLATES = Path(__file__).parent / "templates"
# A page of this size still opens at once; base64 adds a third.
MAX_VIDEO_BYTES = 8_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of ``report``."""
    add = parser.add_argument
    add("--run-dir", action="append", required=True, metavar="[NAME=]DIR", help="an evaluation; the policy's first")
    add("--workdir", action="append", default=[], metavar="[NAME=]DIR", help="a training run, for its curves")
    add("--out", type=Path, required=True, help="the HTML file")
    add("--title", default="PokeVLA evaluation", help="the page's title")
    add("--max-videos", type=int, default=12, help="most videos on the page (default: 12)")
    add("--no-masks", action="store_true", help="leave out the frames with predicted masks, which take a simulation")


def main(options: argparse.Namespace) -> int:
    """Writes the page and says where it is."""
    html = build(
        [load_run(argument) for argument in options.run_dir],
        [load_training(argument) for argument in options.workdir],
        title=options.title,
        max_videos=options.max_videos,
        masks=not options.no_masks,
    )
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(html)
    except OSError as error:
        raise EvaluationError(
            f"--out {options.out} cannot be written ({error.strerror}); choose another file"
        ) from error
    print(f"report: {options.out.resolve()} ({len(html) / 1e6:.1f} MB)")
    return 0


def build(
    runs: Sequence[Run],
    training: Sequence[dict[str, Any]] = (),
    *,
    title: str = "PokeVLA evaluation",
    max_videos: int = 12,
    masks: bool = True,
) -> str:
    """The page as HTML text, with everything it shows inside it.

    Raises:
        EvaluationError: when runs that the page would set side by side cannot be compared.
    """
    import jinja2

    parts = sections(runs)
    frames, masks_note = _mask_frames(runs) if masks else ([], "")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.0f} %"
    environment.filters["points"] = lambda value: f"{100 * value:+.0f}"
    return environment.get_template("report.html.j2").render(
        title=title,
        headlines=[headline(part) for part in parts],
        warnings=warnings(parts),
        sections=parts,
        runs=runs,
        videos=_videos(runs, max_videos),
        curves=training_curves(training),
        training=training,
        frames=frames,
        masks_note=masks_note,
        written=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _videos(runs: Sequence[Run], most: int) -> list[dict[str, Any]]:
    """Videos as data URIs: of each label some successes and some failures, the first label's first."""
    queues: dict[tuple[str, str, str], list[tuple[Run, Any]]] = {}
    for run in runs:
        for spec in run.folder.specs():
            record = run.decided.get(spec.base_id)
            if record is not None and run.folder.video(spec.id).exists():
                queues.setdefault((run.kind, run.label, record["outcome"]), []).append((run, spec))
    first = (runs[0].kind, runs[0].label)
    shares = {key: most if key[:2] == first else 2 for key in queues}
    # The first label's successes and failures alternate; the controls come after it.
    chosen: list[tuple[Run, Any]] = []
    for own in (True, False):
        keys = [key for key in queues if (key[:2] == first) == own]
        for turn in range(most):
            chosen += [queues[key][turn] for key in keys if turn < min(len(queues[key]), shares[key])]
        # A third of the places stay for the controls, as far as they have films.
        if own and any(key[:2] != first for key in queues):
            chosen = chosen[: max(1, most - most // 3)]
    entries, total = [], 0
    for run, spec in chosen[:most]:
        data = run.folder.video(spec.id).read_bytes()
        total += len(data)
        if total > MAX_VIDEO_BYTES:
            break
        record = run.records[spec.id]
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


def _mask_frames(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], str]:
    """Mask frames of the first run whose policy segments, or a sentence why there are none."""
    candidates = [run for run in runs if run.summary["policy"]["kind"] == "checkpoint" and run.label == runs[0].label]
    if not candidates:
        return [], ""
    try:
        frames = mask_frames(candidates[0].folder)
    except (ValueError, FileNotFoundError) as error:
        return [], str(error)
    return [frame | {"uri": data_uri(frame["path"].read_bytes(), "image/png")} for frame in frames], ""


def data_uri(data: bytes, kind: str) -> str:
    """``data`` as a URI that needs no other file."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
