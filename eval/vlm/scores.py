"""Scores of answers: pure functions of texts, masks and boxes, and their means with intervals.

Rates have Wilson's interval. Means of overlaps, and every paired difference, have the percentile interval of a
bootstrap over pictures: several questions may be asked about one picture, and they stand or fall together.
"""

import re
from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from typing import Literal

import numpy as np

from eval.statistics import Interval
from eval.statistics import clustered_bootstrap
from eval.statistics import wilson
from eval.vlm.questions import Box
from eval.vlm.questions import Form
from eval.vlm.questions import Question
from pokevla_jax.typing import Float
from pokevla_jax.typing import Int

Metric = Literal["exact_match", "point_in_mask", "box_iou", "box_iou_50"]
METRICS: dict[Metric, str] = {
    "exact_match": "answers that equal the true one, word by word",
    "point_in_mask": "points that lie on the mask of what was asked for",
    "box_iou": "mean overlap with the true box (intersection over union)",
    "box_iou_50": "boxes that overlap the true one by at least half",
}
METRICS_OF: dict[Form, tuple[Metric, ...]] = {
    "text": ("exact_match",),
    "points": ("point_in_mask",),
    "box": ("box_iou", "box_iou_50"),
}
_MEANS = ("box_iou",)
RESAMPLES = 2000
# Constant points are tried at the centres of this many cells a side, constant boxes with sides between them.
_GRID = 50
_WORD = re.compile(r"\w+|[^\w\s]")
_NUMBER = r"\s*(-?\d*\.?\d+)\s*"
_POINT = re.compile(rf"[(\[]{_NUMBER},{_NUMBER}[)\]]")
_BOX = re.compile(rf"[(\[]{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}[)\]]")


def words(text: str) -> tuple[str, ...]:
    """Words and marks of an answer, in lower case, without a last full stop."""
    found = tuple(_WORD.findall(text.lower()))
    return found[:-1] if found[-1:] == (".",) else found


def read_point(text: str) -> tuple[float, float] | None:
    """The first ``(x, y)`` of an answer, as fractions of width and height."""
    found = _POINT.search(text)
    return (float(found[1]), float(found[2])) if found else None


def read_box(text: str) -> Box | None:
    """The first ``[x0, y0, x1, y1]`` of an answer, as fractions; None too where a corner lies before the other."""
    found = _BOX.search(text)
    if not found:
        return None
    x0, y0, x1, y1 = (float(found[i]) for i in range(1, 5))
    return (x0, y0, x1, y1) if x0 <= x1 and y0 <= y1 else None


def on_mask(point: tuple[float, float] | None, mask: np.ndarray) -> bool:
    """Whether the point's pixel is set; never for a point outside the image."""
    if point is None or not all(0 <= value < 1 for value in point):
        return False
    height, width = mask.shape
    return bool(mask[int(point[1] * height), int(point[0] * width)])


def overlap(a: Box | None, b: Box) -> float:
    """Intersection over union of two boxes; 0 without a box."""
    if a is None:
        return 0.0
    return float(overlaps(np.array([a]), np.array([b]))[0, 0])


def score(question: Question, answer: str) -> float:
    """Of one answer: 0 or 1, or the overlap of a box."""
    if question.mask is not None:
        return float(on_mask(read_point(answer), question.mask))
    if question.box is not None:
        return overlap(read_box(answer), question.box)
    return float(words(answer) == words(question.answer))


def best_constant(questions: Sequence[Question]) -> str:
    """The one answer that scores best on all of these questions, which are of one type.

    Chosen with hindsight on the held-out questions themselves: no constant answer that was chosen before does better.
    Points are tried on a grid; the box is that of the largest mean overlap which a search from the true boxes finds.
    """
    first = questions[0]
    if first.mask is not None:
        return _text(_best_point([q.mask for q in questions if q.mask is not None]))
    if first.box is not None:
        return _text(_best_box(np.array([q.box for q in questions])))
    counts = Counter(words(q.answer) for q in questions)
    most = max(counts.values())
    return next(q.answer for q in questions if counts[words(q.answer)] == most)


def overlaps(a: Float[np.ndarray, "n 4"], b: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, "n m"]:
    """``overlap`` of every pair."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    # An answer may state any number, and numbers without end overlap with nothing.
    with np.errstate(over="ignore", invalid="ignore"):
        shared = np.prod(np.maximum(high - low, 0), axis=-1)
        area_a, area_b = (np.prod(x[:, 2:] - x[:, :2], axis=-1) for x in (a, b))
        union = area_a[:, None] + area_b[None] - shared
    return np.divide(shared, union, out=np.zeros_like(union), where=union > 0)


def _best_point(masks: Sequence[np.ndarray]) -> np.ndarray:
    centres = (np.arange(_GRID) + 0.5) / _GRID
    hits = np.zeros((_GRID, _GRID), np.int64)
    for mask in masks:
        rows, columns = ((centres * size).astype(int) for size in mask.shape)
        hits += mask[np.ix_(rows, columns)] > 0
    row, column = np.unravel_index(int(hits.argmax()), hits.shape)
    return centres[[column, row]]


def _best_box(truths: Float[np.ndarray, "n 4"]) -> np.ndarray:
    """Coordinate ascent on the mean overlap, one side of the box after the other."""
    sides = np.linspace(0, 1, _GRID + 1)
    candidates = np.concatenate([np.unique(truths, axis=0), np.median(truths, axis=0)[None]])
    values = overlaps(candidates, truths).mean(axis=1)
    best, value = candidates[int(values.argmax())], float(values.max())
    improved = True
    while improved:
        improved = False
        for side in range(4):
            moved = np.repeat(best[None], len(sides), axis=0)
            moved[:, side] = sides
            moved = moved[(moved[:, 0] < moved[:, 2]) & (moved[:, 1] < moved[:, 3])]
            values = overlaps(moved, truths).mean(axis=1)
            if values.max() > value + 1e-9:
                best, value, improved = moved[int(values.argmax())], float(values.max()), True
    return best


def _text(numbers: np.ndarray) -> str:
    return f"({', '.join(f'{number:.3f}' for number in numbers)})"


@dataclass(frozen=True, eq=False)
class Group:
    """Questions that are summed up together.

    Attributes:
        metric: what is averaged.
        pillar, kind: of all of them; "all" where they are of several.
        new: what of each of them is new and no more ("task", "layout and phrasing", ...); "any" where that does not
            matter.
        members: their indices.
    """

    metric: Metric
    pillar: str
    kind: str
    new: str
    members: Int[np.ndarray, " n"]


ALL, ANY = "all", "any"


def groups(questions: Sequence[Question]) -> list[Group]:
    """Every metric over all questions that have it, by what of them is new, by pillar, and by type."""
    found: dict[tuple[str, str, str, Metric], list[int]] = {}
    for index, question in enumerate(questions):
        kinds = [(ALL, ALL, ANY), (question.pillar, ALL, ANY), (question.pillar, question.kind, ANY)]
        if question.new:
            kinds.append((ALL, ALL, " and ".join(question.new)))
        for metric in METRICS_OF[question.form]:
            for key in kinds:
                found.setdefault((*key, metric), []).append(index)
    order = list(METRICS)

    def place(key: tuple[str, str, str, Metric]) -> tuple:
        pillar, kind, new, metric = key
        return (pillar != ALL, new != ANY, pillar, kind != ALL, kind, new, order.index(metric))

    return [
        Group(metric, pillar, kind, new, np.array(found[pillar, kind, new, metric]))
        for pillar, kind, new, metric in sorted(found, key=place)
    ]


def summarize(
    questions: Sequence[Question], scores: Mapping[str, Float[np.ndarray, " n"]], seed: int = 0
) -> list[dict[str, Any]]:
    """One entry per group: value, interval and paired difference of every system.

    Args:
        questions: all of them.
        scores: of each system, one per question; differences are the first system's minus another's.
        seed: of the bootstrap.
    """
    first = next(iter(scores))
    _, pictures = np.unique([question.picture for question in questions], return_inverse=True)
    entries = []
    for group in groups(questions):
        read = _threshold if group.metric == "box_iou_50" else _same
        values = {name: read(all_scores[group.members]) for name, all_scores in scores.items()}
        clusters = np.unique(pictures[group.members], return_inverse=True)[1]
        systems: dict[str, dict[str, Any]] = {}
        for name, own in values.items():
            if group.metric in _MEANS:
                interval = bootstrap(own, clusters, seed)
            else:
                interval = wilson(int(own.sum()), len(own))
            systems[name] = {"value": float(own.mean()), "interval95": list(interval)}
            if name != first:
                difference = values[first] - own
                systems[name]["difference"] = float(difference.mean())
                systems[name]["difference_interval95"] = list(bootstrap(difference, clusters, seed))
        entries.append(
            {
                "pillar": group.pillar,
                "type": group.kind,
                "new": group.new,
                "metric": group.metric,
                "questions": len(group.members),
                "pictures": int(clusters.max()) + 1,
                "systems": systems,
            }
        )
    return entries


def _same(values: np.ndarray) -> np.ndarray:
    return values


def _threshold(values: np.ndarray) -> np.ndarray:
    return (values >= 0.5).astype(np.float64)


def bootstrap(values: Float[np.ndarray, " n"], clusters: Int[np.ndarray, " n"], seed: int = 0) -> Interval:
    """Percentile 95 % interval of the mean, resampling whole clusters; of no width where no draw changes the mean.

    Source: Davison and Hinkley, Bootstrap Methods and their Application (1997), section 3.8.
    """
    sums, sizes = np.bincount(clusters, values)[:, None], np.bincount(clusters)[:, None]
    one_stratum = np.zeros(len(sums), int)
    interval = clustered_bootstrap(sums, sizes, one_stratum, resamples=RESAMPLES, seed=seed).pooled
    return interval or Interval(float(values.mean()), float(values.mean()))
