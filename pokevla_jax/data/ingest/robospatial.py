"""RoboSpatial: spatial questions about scans and tables, one JSON list per subset.

The layout that its generator writes::

    DATA/*.json                      [{"image": "scene/0001.jpg", "question": ..., "answer": ..., "category": ...}, ...]
    DATA/images/scene/0001.jpg

``img`` and ``image_path`` are read for ``image``. Answers are "yes"/"no", names, or lists of points as fractions; those
of ``context`` questions (free space) hold many points, of which the valid ones are kept.
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
from pokevla_jax.data.ingest.grounding import normalise_text
from pokevla_jax.data.ingest.jsonstream import iterate_json
from pokevla_jax.data.ingest.llava import load_images


@dataclass(frozen=True)
class RoboSpatialAdapter:
    """Reads every ``*.json`` of the folder."""

    source: str
    pillar: str
    licence: str
    size: int | None = None

    def settings(self) -> dict[str, Any]:
        return {"adapter": "robospatial", **asdict(self)}

    def inputs(self, data: Path) -> list[Path]:
        return base.found(sorted(data.glob("*.json")), f"{data}/*.json")

    def references(self, data: Path) -> Iterator[Reference | Rejection]:
        for path in self.inputs(data):
            index = -1
            try:
                for index, item in enumerate(iterate_json(path)):
                    yield Reference(f"{path.stem}/{index}", item)
            except Reject as error:
                yield Rejection(f"{path.stem}/{index + 1}...", error.reason, error.detail)

    def load(self, data: Path, reference: Reference) -> CorpusSample:
        item = reference.payload
        if not isinstance(item, dict):
            raise Reject("malformed", f"is a {type(item).__name__}, not a map")
        name = item.get("image", item.get("img", item.get("image_path")))
        if not name:
            raise Reject("missing image", "names no image")
        question, answer = item.get("question"), item.get("answer")
        if not isinstance(question, str) or not isinstance(answer, str | list):
            raise Reject("wrong type", f"question {question!r}, answer {answer!r}")
        text = str([tuple(point) for point in answer]) if isinstance(answer, list) else answer
        if not question.strip() or not text.strip() or text == "[]":
            raise Reject("empty answer", "question or answer is empty")
        images, _ = load_images(data / "images", name, self.size)
        turns = (question.replace("<image>", "").strip(), normalise_text(text.strip(), (1.0, 1.0)))
        return CorpusSample(id=reference.id, source=self.source, pillar=self.pillar, images=tuple(images), turns=turns)
