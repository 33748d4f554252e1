"""Points and boxes as text: lists of (x, y) and boxes (x1, y1, x2, y2), fractions of the image with three decimals."""

import re
from collections.abc import Sequence

import numpy as np

from pokevla_jax.data.ingest.base import Reject

_NUMBER = r"[-+]?\d+(?:\.\d*)?"
# Two or four numbers in brackets: a point or a box. Three are something else (a size, a position in space).
_TUPLE = re.compile(
    rf"(?P<open>[(\[])\s*(?P<numbers>{_NUMBER}\s*,\s*{_NUMBER}(?:\s*,\s*{_NUMBER}\s*,\s*{_NUMBER})?)\s*(?P<close>[)\]])"
)


def format_number(value: float) -> str:
    """Three decimals, never "-0.000"."""
    return f"{abs(value) if round(value, 3) == 0 else value:.3f}"


def format_tuple(values: Sequence[float]) -> str:
    """``(0.250, 0.500)`` for a point or ``(x1, y1, x2, y2)`` for a box."""
    return f"({', '.join(map(format_number, values))})"


def format_points(points: Sequence[Sequence[float]]) -> str:
    """``[(0.250, 0.500), ...]``."""
    return f"[{', '.join(map(format_tuple, points))}]"


def valid_points(points: Sequence[Sequence[float]], scale: Sequence[float] = (1.0, 1.0)) -> list[tuple[float, ...]]:
    """The points (or boxes) divided by ``scale`` (width, height) that lie in the image; a box must have an area."""
    kept = []
    for point in points:
        values = np.asarray(point, np.float64) / np.resize(np.asarray(scale, np.float64), len(point))
        inside = np.isfinite(values).all() and (values >= 0).all() and (values <= 1).all()
        if inside and (len(values) != 4 or (values[:2] < values[2:]).all()):
            kept.append(tuple(values.tolist()))
    return kept


def normalise_text(text: str, scale: Sequence[float]) -> str:
    """``text`` with every point and box as fractions of the image; those outside are taken out.

    Args:
        text: an answer (or question).
        scale: what (x, y) are divided by: (1, 1) for fractions, the image's width and height for pixels.

    Raises:
        Reject: when the text named places and none of them is in the image.
    """
    found = kept = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal found, kept
        numbers = [float(part) for part in match["numbers"].split(",")]
        found += 1
        valid = valid_points([numbers], scale)
        kept += len(valid)
        return format_tuple(valid[0]) if valid else "\0"

    result = _TUPLE.sub(replace, text)
    if found and not kept:
        raise Reject("point outside", f"no point of {text[:80]!r} lies in the image")
    # The comma that separated a removed entry from its neighbour goes with it.
    return re.sub(r"\0\s*,\s*|,\s*\0|\0", "", result)
