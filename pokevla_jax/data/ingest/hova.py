"""HOVA-500K: where a hand acts on an object, as heat maps over frames of human videos.

The layout that is read, per part (``ego4d``, ``epic100``)::

    DATA/annotations/<part>.json     [{"image": "<part>/frames/0001.jpg", "heatmap": "<part>/GT_gaussian/0001.jpg",
                                       "action": "open", "object": "drawer"}, ...]

Instead of ``heatmap`` an entry may hold ``points``, in pixels. Annotations that are published as pickles have to be
turned into this JSON once: a pickle can run code, so none is read here.

The answer is the heat map's centre of mass and highest point as fractions of the image; a heat map of another shape
than its image is scaled to it.
"""

from collections.abc import Iterator
from dataclasses import asdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pokevla_jax.data.corpus import CorpusSample
from pokevla_jax.data.ingest import base
from pokevla_jax.data.ingest.base import Reference
from pokevla_jax.data.ingest.base import Reject
from pokevla_jax.data.ingest.base import Rejection
from pokevla_jax.data.ingest.grounding import format_points
from pokevla_jax.data.ingest.grounding import valid_points
from pokevla_jax.data.ingest.images import read_jpeg
from pokevla_jax.data.ingest.jsonstream import iterate_json

_QUESTION = (
    "Where should the hand go to {action} the {object}? Answer with a list of (x, y), in fractions of the image."
)


@dataclass(frozen=True)
class HovaAdapter:
    """Reads one part."""

    source: str
    pillar: str
    licence: str
    part: str
    size: int | None = None

    def settings(self) -> dict[str, Any]:
        return {"adapter": "hova", **asdict(self)}

    def inputs(self, data: Path) -> list[Path]:
        path = data / "annotations" / f"{self.part}.json"
        return base.found([path] if path.is_file() else [], str(path))

    def references(self, data: Path) -> Iterator[Reference | Rejection]:
        (path,) = self.inputs(data)
        index = -1
        try:
            for index, item in enumerate(iterate_json(path)):
                yield Reference(f"{self.part}/{index}", item)
        except Reject as error:
            yield Rejection(f"{self.part}/{index + 1}...", error.reason, error.detail)

    def load(self, data: Path, reference: Reference) -> CorpusSample:
        item = reference.payload
        try:
            words = {key: item[key].strip() for key in ("action", "object")}
            name, heatmap, points = item["image"], item.get("heatmap"), item.get("points")
        except (KeyError, TypeError, AttributeError) as error:
            raise Reject("malformed", f"lacks image, action or object ({error!r})") from error
        if not all(words.values()):
            raise Reject("empty answer", "action or object is empty")
        image, size = read_jpeg(base.inside(data, name), size=self.size)
        if points is None:
            valid = heat_points(base.inside(data, str(heatmap)))
        else:
            valid = valid_points(points, size)
        if not valid:
            raise Reject("point outside", "no point lies in the image")
        turns = (_QUESTION.format(**words), format_points(valid))
        return CorpusSample(id=reference.id, source=self.source, pillar=self.pillar, images=(image,), turns=turns)


def heat_points(path: Path) -> list[tuple[float, ...]]:
    """Centre of mass and highest point of a heat map, as fractions of its sides; one of them where they coincide."""
    if not path.is_file():
        raise Reject("missing image", str(path))
    try:
        with Image.open(path) as image:
            heat = np.asarray(image.convert("L"), np.float64)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Reject("broken image", f"{path}: {error}") from error
    # JPEG leaves a little everywhere; it would pull the centre to the middle of the image.
    heat = np.where(heat > heat.max() / 4, heat, 0)
    if not heat.any():
        raise Reject("point outside", f"heat map {path} is empty")
    height, width = heat.shape
    x = (heat.sum(0) @ (np.arange(width) + 0.5)) / heat.sum() / width
    y = (heat.sum(1) @ (np.arange(height) + 0.5)) / heat.sum() / height
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    top = ((column + 0.5) / width, (row + 0.5) / height)
    return [(x, y)] if np.hypot(x - top[0], y - top[1]) < 0.02 else [(x, y), top]
