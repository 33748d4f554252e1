"""A report's curves, of training and of rates, as inline SVG that takes the page's colours, light or dark."""

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
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pokevla",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
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


def training_curves(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """One small chart per quantity that was logged, with a line per run, as ``<svg>`` elements."""
    charts = []
    for split, key, title in PANELS:
        lines = [_series(run, split, key) for run in runs]
        if any(steps for steps, _ in lines):
            charts.append(_chart(title, "step", [(x, y, "." if len(x) < 15 else "") for x, y in lines]))
    return charts


def level_curves(section: Mapping[str, Any]) -> list[str]:
    """One small chart per category of LIBERO-Plus: the rate by level with Wilson's interval, a line per group."""
    charts = []
    for category in section["categories"]:
        lines, bars = [], []
        for index in range(len(section["groups"])):
            cells = [(row["level"], row["cells"][index]) for row in category["levels"]]
            cells = [(level, cell) for level, cell in cells if cell["success_rate"] is not None]
            rates = [100 * cell["success_rate"] for _, cell in cells]
            lines.append(([level for level, _ in cells], rates, "o"))
            bars.append([[100 * end for end in cell["interval95"]] for _, cell in cells])
        if any(levels for levels, _, _ in lines):
            charts.append(_chart(category["title"], "level", lines, bars=bars, percent=True, ticks=range(1, 6)))
    return charts


def step_curves(section: Mapping[str, Any]) -> list[str]:
    """One small chart per suite: the share of episodes that had succeeded within so many steps, a line per group."""
    charts = []
    for suite in dict.fromkeys(part["suite"] for group in section["groups"] for part in group["steps"]):
        lines = []
        for group in section["groups"]:
            curve: list[Any] = next((part["curve"] for part in group["steps"] if part["suite"] == suite), [])
            lines.append(([x for x, _ in curve], [100 * y for _, y in curve], ""))
        charts.append(_chart(suite, "steps", lines, percent=True, drawstyle="steps-post"))
    return charts


def _chart(
    title: str,
    xlabel: str,
    lines: Sequence[tuple[Sequence[float], Sequence[float], str]],
    *,
    bars: Sequence[Sequence[Sequence[float]]] = (),
    percent: bool = False,
    ticks: Sequence[int] | None = None,
    drawstyle: Any = "default",
) -> str:
    """A chart of ``(x, y, marker)`` lines, each with its place's colour, and of vertical ``bars`` at their points."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(3.1, 2.3))
        for index, (x, y, marker) in enumerate(lines):
            color = COLORS[index % len(COLORS)]
            # Whiskers of several lines stand beside each other.
            x = [value + 0.08 * (index - (len(lines) - 1) / 2) for value in x] if bars else x
            axes.plot(x, y, marker=marker, markersize=3.5, color=color, linewidth=1.4, drawstyle=drawstyle)
            for place, (low, high) in zip(x, bars[index] if bars else (), strict=False):
                axes.plot([place, place], [low, high], color=color, linewidth=1, alpha=0.6)
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xlabel(xlabel)
        axes.grid(color=GRID, linewidth=0.5)
        axes.margins(x=0.02)
        axes.set_ylim(0, 102 if percent else None)
        if percent:
            axes.set_yticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"])
        if ticks is not None:
            axes.set_xticks(list(ticks))
            axes.set_xlim(ticks[0] - 0.4, ticks[-1] + 0.4)
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
