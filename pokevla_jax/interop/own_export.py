"""What a folder written by ``pokevla-convert to-torch`` says of itself, for the way back."""

from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pokevla_jax import config as config_lib
from pokevla_jax.config import Config
from pokevla_jax.interop.readers import SourceError
from pokevla_jax.interop.sources import TRAINING
from pokevla_jax.interop.sources import Source
from pokevla_jax.interop.sources import read_json


@dataclass(frozen=True)
class OwnExport:
    """Everything of a checkpoint but its tensors and statistics.

    Attributes:
        tokenizer: as in the checkpoint; where it names files, they lie in the folder.
    """

    path: Path
    config: Config
    tokenizer: Mapping[str, Any]
    dataset: str
    pictures: Sequence[Mapping[str, Any]]
    imported_from: Sequence[Mapping[str, str]]


def find(sources: Sequence[Source]) -> OwnExport | None:
    """The exported folder among ``sources``.

    Raises:
        SourceError: when there are two, or its description is incomplete.
    """
    found = [source.path for source in sources if source.is_own]
    if len(found) > 1:
        raise SourceError(f"Two sources are exported networks, {found[0]} and {found[1]}; leave one of them out")
    if not found:
        return None
    values = read_json(found[0] / TRAINING)
    try:
        return OwnExport(
            path=found[0],
            config=config_lib.from_dict(Config, values["config"]),
            tokenizer=dict(values["tokenizer"]),
            dataset=str(values["dataset"]),
            pictures=tuple(dict(way) for way in values["pictures"]),
            imported_from=tuple({"kind": str(x["kind"]), "file": str(x["file"])} for x in values["imported_from"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(
            f"{found[0] / TRAINING} is incomplete or of another version ({error}); export again"
        ) from error
