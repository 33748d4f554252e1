"""Unpacking an archive of LIBERO-Plus's metadata: only what is needed, bounded, and never outside its folder."""

import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from pathlib import PurePosixPath

from pokevla_jax.sim.errors import AssetError
from pokevla_jax.sim.plus.metadata import CLASSIFICATION

MAX_FILES = 50_000
MAX_BYTES = 2**30
"""Many times what the benchmark's metadata, or its whole repository, holds."""


def unpack(archive: Path) -> Path:
    """The folder with the archive's content, in the cache; its name is the archive's hash, so it is unpacked once.

    Raises:
        AssetError: for an archive that cannot be read, holds no metadata, or is larger than any metadata.
    """
    from pokevla_jax.sim.simplify import cache_folder

    folder = cache_folder() / "libero_plus" / hashlib.sha256(archive.read_bytes()).hexdigest()[:16]
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, suffix=".partial"))
    try:
        with tarfile.open(archive) as tar:
            for member, name in _wanted(tar, archive):
                content = tar.extractfile(member)
                assert content is not None, "only files are wanted"
                target = partial / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
        try:
            os.replace(partial, folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    except (tarfile.TarError, EOFError, OSError) as error:
        raise AssetError(f"{archive} cannot be unpacked ({error}); fetch LIBERO-Plus's metadata again") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _wanted(tar: tarfile.TarFile, archive: Path) -> Iterator[tuple[tarfile.TarInfo, PurePosixPath]]:
    """Files of the metadata with their names inside its folder.

    Nothing but regular files is read and their names may not climb, so links, devices and paths elsewhere cannot be
    expressed.
    """
    files: list[tuple[tarfile.TarInfo, PurePosixPath]] = []
    size = 0
    for member in tar:
        if member.isfile():
            files.append((member, PurePosixPath(member.name)))
            size += member.size
        if len(files) > MAX_FILES or size > MAX_BYTES:
            raise AssetError(
                f"{archive} is larger than any LIBERO-Plus metadata ({MAX_FILES} files, {MAX_BYTES / 2**20:.0f} MiB); "
                "do not use it"
            )
    classification = PurePosixPath(CLASSIFICATION.as_posix())
    roots = [name.parents[1] for _, name in files if name.parts[-2:] == classification.parts]
    if len(roots) != 1:
        raise AssetError(f"{archive} is no LIBERO-Plus metadata: it holds {len(roots)} files {classification}")
    for member, name in files:
        inside = name.relative_to(roots[0]) if name.is_relative_to(roots[0]) else PurePosixPath()
        if inside == classification or inside.parts[:1] in (("bddl_files",), ("init_files",)):
            if ".." in inside.parts:
                raise AssetError(f"{archive} holds {member.name!r}, which leads out of its folder; do not use it")
            yield member, inside
