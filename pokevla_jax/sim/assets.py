"""Finding the benchmark's meshes, textures and scenes, and telling what they are."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pokevla_jax.sim.errors import AssetError


@dataclass(frozen=True)
class Assets:
    """A complete asset folder, what it is made of and the hash of its content."""

    root: Path
    kind: Literal["real", "real+standins", "standins"]
    sha256: str


def resolve_assets(path: str | Path | None = None) -> Assets:
    """The asset folder to use: ``path``, ``LIBERO_ASSETS``."""
    given = path or os.environ.get("LIBERO_ASSETS")
    if not given or not Path(given).is_dir():
        raise AssetError(f"Asset folder {given} does not exist; point --assets or LIBERO_ASSETS at one")
    return Assets(Path(given).resolve(), "real+standins", "")
