"""Cosmos-Reason1's fine-tuning part: questions with reasoning about short videos of robots and people.

The layout that is read, per subset (robovqa, bridgev2, agibot, holoassist, ...)::

    DATA/<subset>/*.json or *.jsonl
        [{"video": "clips/0001.mp4",
          "conversations": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}, ...]
    DATA/<subset>/clips/0001.mp4

A user's content may be the JSON text of a list of ``{"type": "video" | "text", ...}`` parts, which names the video.
``system`` turns are left out. A video becomes a few frames, evenly spread, shown in order.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pokevla_jax.data.codec import encode_jpeg
from pokevla_jax.data.corpus import CorpusSample
from pokevla_jax.data.ingest import base
from pokevla_jax.data.ingest.base import Reference
from pokevla_jax.data.ingest.base import Reject
from pokevla_jax.data.ingest.base import Rejection
from pokevla_jax.data.ingest.images import reduced
from pokevla_jax.data.ingest.jsonstream import iterate_json
from pokevla_jax.data.ingest.llava import read_turns
from pokevla_jax.data.video import spread_frames


@dataclass(frozen=True)
class CosmosReasonAdapter:
    """Reads every annotation file of every subset."""

    source: str
    pillar: str
    licence: str
    num_frames: int = 4
    size: int | None = None

    def settings(self) -> dict[str, Any]:
        return {"adapter": "cosmos_reason", **asdict(self)}

    def inputs(self, data: Path) -> list[Path]:
        paths = sorted([*data.glob("*/*.json"), *data.glob("*/*.jsonl")])
        return base.found(paths, f"{data}/<subset>/*.json")

    def references(self, data: Path) -> Iterator[Reference | Rejection]:
        for path in self.inputs(data):
            subset, index = path.parent.name, -1
            try:
                for index, item in enumerate(iterate_json(path)):
                    yield Reference(f"{subset}/{path.stem}/{index}", (subset, item))
            except Reject as error:
                yield Rejection(f"{subset}/{path.stem}/{index + 1}...", error.reason, error.detail)

    def load(self, data: Path, reference: Reference) -> CorpusSample:
        subset, item = reference.payload
        if not isinstance(item, dict) or not isinstance(item.get("conversations"), list):
            raise Reject("malformed", "has no conversations")
        video, conversations = item.get("video"), []
        for turn in item["conversations"]:
            if not isinstance(turn, dict) or turn.get("role", turn.get("from")) == "system":
                continue
            content, shown = _flatten(turn.get("content", turn.get("value")))
            video = video or shown
            conversations.append({**turn, "content": content, "value": content})
        if not isinstance(video, str):
            raise Reject("missing image", "names no video")
        turns = read_turns(conversations)
        frames = spread_frames(base.inside(data / subset, video), self.num_frames)
        images = tuple(encode_jpeg(reduced(frame, self.size)) for frame in frames)
        return CorpusSample(id=reference.id, source=self.source, pillar=self.pillar, images=images, turns=turns)


def _flatten(content: Any) -> tuple[Any, str | None]:
    """The text of a turn, and the video that its parts name."""
    if isinstance(content, str) and content.lstrip().startswith("[{"):
        try:
            content = json.loads(content)
        except ValueError:
            return content, None
    if not isinstance(content, list):
        return content, None
    parts = [part for part in content if isinstance(part, dict)]
    texts = [str(part.get("text", "")) for part in parts if part.get("type") == "text"]
    videos = [part["video"] for part in parts if part.get("type") == "video" and isinstance(part.get("video"), str)]
    return "\n".join(texts), videos[0] if videos else None
