"""Finding the benchmark's meshes, textures and scenes, and telling what they are made of.

The package ships ``asset_manifest.json``: for every file that the four suites load, the first 16 hexadecimal digits of
its SHA-256. A folder whose files all match is "real"; one where some were replaced (the largest files are often missing
from copies of the benchmark) is "real+standins"; the simple shapes that this project generates are "standins". The kind
goes into every result, because pixels that differ from the benchmark's make rates incomparable.
"""

import functools
import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pokevla_jax.sim import standins
from pokevla_jax.sim.errors import AssetError
from pokevla_jax.sim.upstream import libero_package

HUB_REPOSITORY = "lerobot/libero-assets"
HUB_TIMEOUT = 5.0
"""Seconds to wait for the hub to answer at all; a download, once begun, takes as long as it takes."""

_MANIFEST = Path(__file__).with_name("asset_manifest.json")
_DIGITS = 16

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assets:
    """A complete asset folder.

    Attributes:
        root: the folder that holds ``scenes``, ``textures`` and the object folders.
        kind: what it is made of.
        sha256: hash of the names and contents of all files that the benchmark loads.
        replaced: files that are not the benchmark's own, relative to ``root``.
    """

    root: Path
    kind: Literal["real", "real+standins", "standins"]
    sha256: str
    replaced: tuple[str, ...] = ()


def resolve_assets(path: str | Path | None = None) -> Assets:
    """The asset folder to use.

    Looked for in this order: ``path``, the environment variable ``LIBERO_ASSETS``, the installed hf-libero package, the
    Hugging Face hub (its local cache first); failing all, stand-ins generated into the user's cache folder.

    Raises:
        AssetError: if a folder that was asked for does not exist or lacks a file.
    """
    given = path or os.environ.get("LIBERO_ASSETS")
    if given:
        return inspect_assets(Path(given))
    installed = libero_package() / "assets"
    if installed.is_dir():
        return inspect_assets(installed)
    downloaded = _from_hub()
    if downloaded is not None:
        return inspect_assets(downloaded)
    log.warning("No LIBERO assets found: using generated stand-ins, whose results compare with no published number.")
    return inspect_assets(standins.generate())


def inspect_assets(root: Path) -> Assets:
    """Reads and hashes an asset folder (0.3 s for the benchmark's 145 MB) and says what it is.

    Raises:
        AssetError: if it does not exist or a file is missing, naming the first one.
    """
    if not root.is_dir():
        raise AssetError(f"Asset folder {root} does not exist; point --assets or LIBERO_ASSETS at LIBERO's assets")
    return _inspect(root.resolve())


@functools.cache
def _inspect(root: Path) -> Assets:
    if standins.is_generated(root):
        found = _hash_files(root, sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()))
        return Assets(root, "standins", _combine(found), tuple(found))
    expected: dict[str, str] = json.loads(_MANIFEST.read_text())["files"]
    found = _hash_files(root, sorted(expected))
    replaced = tuple(name for name, digest in found.items() if not digest.startswith(expected[name]))
    return Assets(root, "real+standins" if replaced else "real", _combine(found), replaced)


def _hash_files(root: Path, names: list[str]) -> dict[str, str]:
    """SHA-256 of each file, by name."""
    hashes = {}
    for name in names:
        try:
            hashes[name] = hashlib.sha256((root / name).read_bytes()).hexdigest()
        except OSError as error:
            raise AssetError(
                f"Asset folder {root} lacks {name} ({error.strerror}); give --assets or LIBERO_ASSETS a complete one"
            ) from error
    return hashes


def _combine(hashes: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def _from_hub() -> Path | None:
    """The hub's copy, downloaded at first use; None where there is no hub to ask, decided within seconds."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    fetch = functools.partial(huggingface_hub.snapshot_download, HUB_REPOSITORY, repo_type="dataset")
    try:
        return Path(fetch(local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    try:
        huggingface_hub.HfApi().repo_info(HUB_REPOSITORY, repo_type="dataset", timeout=HUB_TIMEOUT)
    # The hub's client raises its HTTP library's errors, which library depends on its version.
    except Exception as error:
        log.warning("The Hugging Face hub does not give %s (%s).", HUB_REPOSITORY, error)
        return None
    return Path(fetch())


def build_manifest(root: Path, known: dict[str, str] | None = None) -> dict[str, object]:
    """The manifest of the benchmark's files under ``root``; how ``asset_manifest.json`` was made.

    Args:
        root: an asset folder. If it has a STANDINS.txt, the files it lists are not the benchmark's own.
        known: full SHA-256 of the originals of such files (the public repository's LFS pointers give them). A
            stand-in whose original is not known is left out: the benchmark's XML names it, but nothing loads it.
    """
    notes = root / "STANDINS.txt"
    replaced = set(notes.read_text().split()) if notes.exists() else set()
    names = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and p != notes)
    digests = _hash_files(root, [name for name in names if name not in replaced]) | {
        name: digest for name, digest in (known or {}).items() if name in replaced
    }
    return {"digits": _DIGITS, "files": {name: digests[name][:_DIGITS] for name in sorted(digests)}}
