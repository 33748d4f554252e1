"""What the readers of foreign data share: how a sample is named, read and set aside.

A reader lists ``Reference`` objects in a fixed order, cheaply and without decoding anything, and turns one of them into
a sample later, in whatever process. What cannot be used is set aside with a reason from ``REASONS``; nothing is dropped
silently and nothing stops the rest.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import Any
from typing import Protocol

from pokevla_jax.data.codec import DataError
from pokevla_jax.data.codec import Frame
from pokevla_jax.data.corpus import CorpusSample
from pokevla_jax.data.episode import Episode

REASONS = (
    "truncated shard",
    "missing image",
    "broken image",
    "wrong size",
    "empty answer",
    "point outside",
    "wrong type",
    "not finite",
    "duplicate id",
    "malformed",
)
"""Why something was set aside."""


class Reject(DataError):  # noqa: N818  (what the engine does with it)
    """A sample that cannot be used, and which of ``REASONS`` it is."""

    def __init__(self, reason: str, detail: str):
        assert reason in REASONS, reason
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Reference:
    """One sample of the input: a name that is unique in its source, and what ``load`` needs to find it."""

    id: str
    payload: Any


@dataclass(frozen=True)
class Rejection:
    """One sample, or the rest of a file, that was set aside."""

    id: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Layout:
    """What all episodes of a dataset must share."""

    views: tuple[str, ...]
    image_size: tuple[int, int] | None
    state_dim: int
    action_dim: int


class Adapter(Protocol):
    """A reader of one kind of input; plain data, so that it travels to worker processes."""

    @property
    def source(self) -> str:
        """Names shards, and is the source of samples or the suite of episodes."""

    @property
    def licence(self) -> str:
        """Under which the data is published, as its publisher states it."""

    def inputs(self, data: Path) -> list[Path]:
        """The files that say which samples there are; raises ``FileNotFoundError`` where they are not."""

    def references(self, data: Path) -> Iterator[Reference | Rejection]:
        """All samples in a fixed order."""

    def settings(self) -> dict[str, Any]:
        """What shapes the output, plain JSON; another value makes another dataset."""


class CorpusAdapter(Adapter, Protocol):
    """A reader of image-text samples."""

    def load(self, data: Path, reference: Reference) -> CorpusSample:
        """One sample; raises ``Reject``."""


class EpisodeAdapter(Adapter, Protocol):
    """A reader of robot episodes."""

    def load(self, data: Path, reference: Reference) -> tuple[Episode, Mapping[int, Frame]]:
        """One episode with its frames; raises ``Reject``."""


@dataclass(frozen=True)
class Unit:
    """The samples of one output shard, in order, and what was set aside while listing them."""

    name: str
    references: tuple[Reference, ...]
    rejected: tuple[Rejection, ...] = field(default=())


def inside(root: Path, relative: str) -> Path:
    """The file ``relative`` below ``root``; raises ``Reject`` for a path that leads elsewhere."""
    path = root / relative.replace("\\", "/").lstrip("/")
    # Normalised, not resolved: a data folder may well consist of links.
    if ".." in path.relative_to(root).parts:
        raise Reject("malformed", f"path {relative[:120]!r} leads out of {root}")
    return path


def found(paths: list[Path], expected: str) -> list[Path]:
    """``paths`` if there are any; raises ``FileNotFoundError`` naming what was expected."""
    if not paths:
        raise FileNotFoundError(f"No {expected} found; check --data, or see the layout in docs/add_your_data.md")
    return paths
