"""``python -m eval report``: one self-contained HTML page about runs and the training behind them.

``report.json`` and ``report.csv`` beside it hold the numbers; the page is made from the same object as the JSON.
"""

import argparse
import json
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval import report_media
from eval.errors import EvaluationError
from eval.errors import unwritable
from eval.html import templates
from eval.html import timestamp
from eval.report_data import Run
from eval.report_data import load_all
from eval.report_data import sections
from eval.report_files import csv_text
from eval.report_plots import COLORS
from eval.report_plots import level_curves
from eval.report_plots import load_training
from eval.report_plots import step_curves
from eval.report_plots import training_curves
from eval.report_text import headline
from eval.report_text import senses
from eval.report_text import warnings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of ``report``."""
    parser.description = "Writes one HTML page, and its figures as JSON and CSV, about evaluations and their training."
    add = parser.add_argument
    runs = "an evaluation, the policy's first; repeat for more"
    add("--run-dir", action="append", required=True, metavar="[NAME=]DIR", help=runs)
    curves = "a training run, for its curves; repeat for more"
    add("--workdir", action="append", default=[], metavar="[NAME=]DIR", help=curves)
    page = "the HTML file; its .json and .csv are written beside it"
    add("--out", type=Path, required=True, metavar="FILE", help=page)
    add("--title", default="PokeVLA evaluation", help="the page's title (default: %(default)s)")
    add("--max-videos", type=int, default=12, metavar="N", help="most videos on the page (default: %(default)s)")
    add("--no-masks", action="store_true", help="leave out the frames with predicted masks, which take a simulation")


def main(options: argparse.Namespace) -> int:
    """Writes the page, the JSON and the CSV, and says where they are."""
    if options.out.suffix in (".json", ".csv"):
        raise EvaluationError(f"--out {options.out} is the page, with a .json and a .csv beside it; name it .html")
    runs = load_all(options.run_dir)
    training = [load_training(argument) for argument in options.workdir]
    data = collect(runs, training, title=options.title)
    html = render(data, runs, training, max_videos=options.max_videos, masks=not options.no_masks)
    files = {".json": json.dumps(data, indent=1), ".csv": csv_text(data["sections"]), ".html": html}
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        for suffix, text in files.items():
            path = options.out if suffix == ".html" else options.out.with_suffix(suffix)
            path.write_text(text)
    except OSError as error:
        raise unwritable("--out", options.out, error, "file") from error
    print(f"report: {options.out.resolve()} ({len(html) / 1e6:.1f} MB), its numbers in .json and .csv beside it")
    return 0


def collect(
    runs: Sequence[Run], training: Sequence[Mapping[str, Any]] = (), *, title: str = "PokeVLA evaluation"
) -> dict[str, Any]:
    """Everything that the report says, as plain JSON types.

    Raises:
        EvaluationError: when runs that the page would set side by side cannot be compared.
    """
    parts = sections(runs)
    return {
        "title": title,
        "written": timestamp(),
        "headlines": [headline(part) for part in parts],
        "warnings": warnings(parts),
        "sections": [part | {"senses": senses(part)} for part in parts],
        "training": [{"label": run["label"], "facts": run["facts"]} for run in training],
        "commands": [run.summary["context"]["command"] for run in runs],
    }


def render(
    data: Mapping[str, Any],
    runs: Sequence[Run] = (),
    training: Sequence[Mapping[str, Any]] = (),
    *,
    max_videos: int = 12,
    masks: bool = True,
) -> str:
    """The page as HTML text, with everything it shows inside it: ``data``, and films, frames and curves of the runs."""
    frames, masks_note = report_media.frames(runs) if masks else ([], "")
    environment = templates()
    environment.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.0f} %"
    environment.filters["tenth"] = lambda value: "–" if value is None else f"{value:.1f}"
    environment.filters["points"] = points
    environment.filters["span"] = lambda ends: f"{100 * ends[0]:.0f} to {100 * ends[1]:.0f}"
    environment.filters["pointspan"] = lambda ends: f"{points(ends[0])} to {points(ends[1])}"
    environment.filters["p_value"] = lambda p: "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
    return environment.get_template("report.html.j2").render(
        **data,
        colors=COLORS,
        charts=[{"levels": level_curves(part), "steps": step_curves(part)} for part in data["sections"]],
        curves=training_curves(training),
        videos=report_media.videos(runs, max_videos) if runs else [],
        frames=frames,
        masks_note=masks_note,
    )


def points(share: float) -> str:
    """A difference of rates in percentage points, signed; what rounds to nothing is +0."""
    return f"{round(100 * share):+d}"
