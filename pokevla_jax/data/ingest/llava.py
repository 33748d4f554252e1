r"""Conversations in LLaVA's layout, which most image-text sets follow.

A JSON list (or JSON lines) of samples::

    {"id": "...", "image": "coco/train2017/000000033471.jpg",      (a list of several; absent: text only)
     "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A bus."}, ...]}

``role``/``content`` and the names ``user`` and ``assistant`` are read too; ``width`` and ``height``, where given, must
be the image's. Every turn is kept; ``<image>`` marks are taken out, since images stand before the text.
"""

from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import asdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Literal

from pokevla_jax.data.corpus import CorpusSample
from pokevla_jax.data.ingest import base
from pokevla_jax.data.ingest.base import Reference
from pokevla_jax.data.ingest.base import Reject
from pokevla_jax.data.ingest.base import Rejection
from pokevla_jax.data.ingest.grounding import normalise_text
from pokevla_jax.data.ingest.images import read_jpeg
from pokevla_jax.data.ingest.jsonstream import iterate_json

_SPEAKERS = {"human": 0, "user": 0, "gpt": 1, "assistant": 1}


@dataclass(frozen=True)
class AnnotationFile:
    """One annotation file, the folder of its images, and the unit of the coordinates in its texts.

    Attributes:
        annotation: path or pattern below the data folder.
        images: folder below the data folder.
        coordinates: "fraction" of the image, "pixels", or "none" where brackets of numbers are no places.
    """

    annotation: str
    images: str
    coordinates: Literal["fraction", "pixels", "none"] = "none"


@dataclass(frozen=True)
class LlavaAdapter:
    """Reads one or several annotation files as one source."""

    source: str
    pillar: str
    licence: str
    files: tuple[AnnotationFile, ...]
    size: int | None = None

    def settings(self) -> dict[str, Any]:
        return {"adapter": "llava", **asdict(self), "files": [asdict(file) for file in self.files]}

    def inputs(self, data: Path) -> list[Path]:
        return [path for path, _ in self._files(data)]

    def references(self, data: Path) -> Iterator[Reference | Rejection]:
        for path, number in self._files(data):
            name = path.relative_to(data).with_suffix("").as_posix()
            index = -1
            try:
                for index, item in enumerate(iterate_json(path)):
                    own = item.get("id", "") if isinstance(item, dict) else ""
                    yield Reference(f"{name}/{index}/{str(own)[:100]}", (number, item))
            except Reject as error:
                yield Rejection(f"{name}/{index + 1}...", error.reason, error.detail)

    def load(self, data: Path, reference: Reference) -> CorpusSample:
        number, item = reference.payload
        file = self.files[number]
        if not isinstance(item, dict):
            raise Reject("malformed", f"is a {type(item).__name__}, not a map")
        names = item.get("image", item.get("images"))
        turns = read_turns(item.get("conversations", item.get("messages")))
        encoded, sizes = load_images(data / file.images, names, self.size)
        check_size(item, sizes)
        if file.coordinates != "none" and sizes:
            scale = (1.0, 1.0) if file.coordinates == "fraction" else sizes[0]
            turns = tuple(normalise_text(text, scale) for text in turns)
        return CorpusSample(id=reference.id, source=self.source, pillar=self.pillar, images=tuple(encoded), turns=turns)

    def _files(self, data: Path) -> list[tuple[Path, int]]:
        matched = [(path, n) for n, file in enumerate(self.files) for path in sorted(data.glob(file.annotation))]
        expected = " or ".join(f"{data}/{file.annotation}" for file in self.files)
        base.found([path for path, _ in matched], expected)
        return matched


def read_turns(conversations: Any) -> tuple[str, ...]:
    """Question, answer, question, ...; raises ``Reject`` where they do not alternate or one says nothing."""
    if not isinstance(conversations, list) or not conversations:
        raise Reject("malformed", "has no conversations")
    turns: list[str] = []
    for turn in conversations:
        if not isinstance(turn, dict):
            raise Reject("malformed", f"a turn is a {type(turn).__name__}")
        speaker, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if not isinstance(text, str):
            raise Reject("wrong type", f"a turn says {text!r}, which is no text")
        if _SPEAKERS.get(str(speaker)) != len(turns) % 2:
            raise Reject("malformed", f"turn {len(turns)} is of {speaker!r}; questions and answers must alternate")
        turns.append(text.replace("<image>", "").strip())
    if len(turns) % 2:
        raise Reject("empty answer", "the last question has no answer")
    for index, text in enumerate(turns):
        if not text:
            raise Reject("empty answer", f"turn {index} is empty")
    return tuple(turns)


def load_images(root: Path, names: Any, size: int | None) -> tuple[list[bytes], list[tuple[int, int]]]:
    """JPEG files and sizes (width, height) of one name, a list of names, or none."""
    if names is None or names == "":
        return [], []
    listed: Sequence[Any] = [names] if isinstance(names, str) else names
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise Reject("wrong type", f"image is {names!r}, neither a path nor a list of paths")
    read = [read_jpeg(base.inside(root, name), size=size) for name in listed]
    return [data for data, _ in read], [size for _, size in read]


def check_size(item: dict, sizes: Sequence[tuple[int, int]]) -> None:
    """Raises ``Reject`` where the annotation states another size than the first image has."""
    stated = (item.get("width"), item.get("height"))
    if sizes and all(isinstance(side, int) for side in stated) and stated != sizes[0]:
        raise Reject("wrong size", f"the image is {sizes[0][0]}x{sizes[0][1]}, stated {stated[0]}x{stated[1]}")
