"""Training curves as inline SVG that takes the page's colours, light or dark."""

import io
import json
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.errors import EvaluationError
from eval.policies import control_label

# Drawn in these, replaced by the page's CSS variables afterwards.
INK, GRID = "#010203", "#040506"
COLORS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#64748b")
PANELS = (
    ("train", "loss", "total loss"),
    ("train", "loss/action", "action loss (L1)"),
    ("train", "loss/focal", "mask loss (focal)"),
    ("train", "loss/kld", "mask loss (KLD)"),
    ("train", "loss/geometry", "geometry alignment (1 - cosine)"),
    ("train", "loss/keypoint", "keypoint loss"),
    ("holdout", "action_error", "held-out action error"),
    ("holdout", "mask_iou", "held-out mask IoU"),
)
MAX_POINTS = 300


def load_training(argument: str) -> dict[str, Any]:
    """The label, settings and metric lines of a training run's folder, given as ``DIR`` or ``NAME=DIR``."""
    name, _, path = argument.rpartition("=")
    folder = Path(path)
    try:
        config = json.loads((folder / "config.json").read_text())
        lines = (folder / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError as error:
        raise EvaluationError(
            f"--workdir {folder} is no training run: it has no {Path(error.filename).name}"
        ) from error
    metrics = []
    for line in lines:
        try:
            metrics.append(json.loads(line))
        except json.JSONDecodeError:
            break  # the run is still being written
    label = name or control_label(config["data"]["zero_images"], config["data"]["zero_language"])
    return {"label": label, "config": config, "metrics": metrics, "facts": _facts(config, metrics)}


def _facts(config: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What the training table shows."""
    train = [m for m in metrics if m.get("split") == "train"]
    # The first lines hold compilation.
    steady = [m for m in train[1:] if "samples_per_second" in m]
    facts = {
        "steps": f"{train[-1]['step']:,}" if train else "0",
        "batch size": str(config["batch_size"]),
        "seed": str(config["seed"]),
        "preset": str(config["model"]["preset"]),
    }
    if steady:
        speeds = sorted(m["samples_per_second"] for m in steady)
        facts["samples per second (median)"] = f"{speeds[len(speeds) // 2]:.0f}"
        waits = sum(m.get("data_wait_seconds", 0.0) for m in steady)
        steps = sum(m.get("step_seconds", 0.0) for m in steady)
        if steps:
            facts["waiting for data"] = f"{waits / (waits + steps):.1%}"
    return facts


def training_curves(runs: Sequence[Mapping[str, Any]]) -> str:
    """One small chart per quantity with a line per run, as an ``<svg>`` element; empty without any metric."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    panels = [(split, key, title) for split, key, title in PANELS if any(_series(r, split, key)[0] for r in runs)]
    if not panels:
        return ""
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    style: Any = {
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": GRID,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": "pokevla",
    }
    with matplotlib.rc_context(style):
        figure, grid = pyplot.subplots(rows, columns, figsize=(3.1 * columns, 2.3 * rows), squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            split, key, title = panel
            for index, run in enumerate(runs):
                steps, values = _series(run, split, key)
                marker = "." if len(steps) < 15 else ""
                axes.plot(steps, values, marker, linestyle="-", color=COLORS[index % len(COLORS)], linewidth=1.4)
            axes.set_title(title, fontsize=9, loc="left")
            axes.grid(color=GRID, linewidth=0.5)
            axes.margins(x=0.02)
            axes.set_ylim(bottom=0)
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        for axes in grid[-1]:
            if axes.figure is not None:
                axes.set_xlabel("step")
        figure.tight_layout()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        pyplot.close(figure)
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "var(--ink)").replace(GRID, "var(--line)")


def _series(run: Mapping[str, Any], split: str, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one quantity, thinned to what a small chart can show."""
    points = [(m["step"], m[key]) for m in run["metrics"] if m.get("split") == split and m.get(key) is not None]
    points = points[:: max(1, len(points) // MAX_POINTS)]
    return [step for step, _ in points], [value for _, value in points]
