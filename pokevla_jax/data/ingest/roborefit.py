r"""RoboRefIt: referring expressions for things on tables, with boxes in pixels.

The layout of its archive::

    DATA/final_dataset/train/roborefit_train.json
        [{"num": 0, "text": "the cup on the left", "bbox": [x1, y1, x2, y2],
          "rgb_path": "final_dataset\train\image\0000000.png", ...}, ...]
    DATA/final_dataset/train/image/0000000.png

Each expression becomes two turns: its box, and the box's centre as the point to go to. The test splits (``testA``,
``testB``) are not read.
"""

from collections.abc import Iterator
from dataclasses import asdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pokevla_jax.data.corpus import CorpusSample
from pokevla_jax.data.ingest import base
from pokevla_jax.data.ingest.base import Reference
from pokevla_jax.data.ingest.base import Reject
from pokevla_jax.data.ingest.base import Rejection
from pokevla_jax.data.ingest.grounding import format_points
from pokevla_jax.data.ingest.grounding import format_tuple
from pokevla_jax.data.ingest.grounding import valid_points
from pokevla_jax.data.ingest.jsonstream import iterate_json
from pokevla_jax.data.ingest.llava import load_images

_BOX = "Give the box of {text} as (x1, y1, x2, y2), in fractions of the image."
_POINT = "Point to {text}: answer with a list of (x, y), in fractions of the image."


@dataclass(frozen=True)
class RoboRefItAdapter:
    """Reads the training split."""

    source: str
    pillar: str
    licence: str
    size: int | None = None

    def settings(self) -> dict[str, Any]:
        return {"adapter": "roborefit", **asdict(self)}

    def inputs(self, data: Path) -> list[Path]:
        return base.found(sorted(data.glob("**/train/roborefit_train.json")), f"{data}/**/train/roborefit_train.json")

    def references(self, data: Path) -> Iterator[Reference | Rejection]:
        for path in self.inputs(data):
            root = path.parent.parent.parent.relative_to(data).as_posix()
            index = -1
            try:
                for index, item in enumerate(iterate_json(path)):
                    yield Reference(f"train/{index}", (root, item))
            except Reject as error:
                yield Rejection(f"train/{index + 1}...", error.reason, error.detail)

    def load(self, data: Path, reference: Reference) -> CorpusSample:
        root, item = reference.payload
        try:
            text, name, box = item["text"].strip(), item["rgb_path"], [float(v) for v in item["bbox"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Reject("malformed", f"lacks text, rgb_path or bbox ({error!r})") from error
        if not text:
            raise Reject("empty answer", "the expression is empty")
        images, sizes = load_images(data / root, name, self.size)
        valid = valid_points([box], sizes[0]) if len(box) == 4 else []
        if not valid:
            raise Reject("point outside", f"box {box} does not lie in the image of {sizes[0][0]}x{sizes[0][1]}")
        x1, y1, x2, y2 = valid[0]
        turns = (
            *(_BOX.format(text=text), format_tuple(valid[0])),
            *(_POINT.format(text=text), format_points([((x1 + x2) / 2, (y1 + y2) / 2)])),
        )
        return CorpusSample(id=reference.id, source=self.source, pillar=self.pillar, images=tuple(images), turns=turns)
