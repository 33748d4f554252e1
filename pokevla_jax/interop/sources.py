"""What ``--source`` may be: a tensor file, or a folder of a released checkpoint with what lies beside the tensors."""

import json
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pokevla_jax.interop.dialects import Tensor
from pokevla_jax.interop.dialects import translate
from pokevla_jax.interop.readers import INDEX
from pokevla_jax.interop.readers import TORCH_SUFFIXES
from pokevla_jax.interop.readers import SourceError
from pokevla_jax.interop.readers import open_file
from pokevla_jax.interop.write import CARRIED

STATISTICS = "dataset_statistics.json"
# In what this project exported.
TRAINING = "training.json"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
# Modules that VLA-Adapter saves beside the model, each as a file of its own.
SEPARATE = ("action_head", "proprio_projector", "align_projector")
MAX_JSON_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Source:
    """The files of one ``--source``."""

    path: Path
    tensor_files: Sequence[Path]
    statistics: Path | None = None
    tokenizer: Path | None = None
    is_own: bool = False


@dataclass(frozen=True)
class Origin:
    """One file that was read: its kind, where it lies, and how many of its tensors belong to parts nobody needs."""

    kind: str
    path: str
    left_out: int


def open_source(path: Path) -> Source:
    """The files of a source.

    Raises:
        SourceError: when there are none, or several among which the choice is not clear.
    """
    if path.is_file():
        return Source(path, (path,))
    if not path.is_dir():
        raise SourceError(f"--source {path} does not exist; give a tensor file or the folder of a checkpoint")
    names = sorted(child.name for child in path.iterdir() if child.is_file())
    main = _main_file(path, names)
    beside = [file for prefix in SEPARATE if (file := _only(path, names, prefix))]
    files = [name for name in (main, CARRIED if CARRIED in names else None, *beside) if name]
    if not files:
        raise SourceError(f"--source {path} holds no tensor file; give the folder of a checkpoint, or the file itself")
    tokenizer = path if any(name in names for name in TOKENIZER_FILES) else None
    statistics = path / STATISTICS if STATISTICS in names else None
    return Source(path, [path / name for name in files], statistics, tokenizer, is_own=TRAINING in names)


def _main_file(path: Path, names: Sequence[str]) -> str | None:
    """The file of the model itself: an index of shards, or the only file of the best format that is there."""
    candidates = [name for name in names if not name.startswith(SEPARATE) and name != CARRIED]
    for suffixes in ((INDEX,), (".safetensors",), TORCH_SUFFIXES):
        found = [name for name in candidates if name.endswith(suffixes)]
        if len(found) > 1:
            raise SourceError(f"--source {path} holds {', '.join(found)}; give the one that is meant")
        if found:
            return found[0]
    return None


def _only(path: Path, names: Sequence[str], prefix: str) -> str | None:
    found = [name for name in names if name.startswith(f"{prefix}--") and name.endswith(TORCH_SUFFIXES)]
    if len(found) > 1:
        raise SourceError(f"--source {path} holds {len(found)} files {prefix}--*.pt ({', '.join(found)}); keep one")
    return found[0] if found else None


def collect(sources: Sequence[Source]) -> tuple[dict[str, Tensor], list[Origin]]:
    """All tensors of all sources by their names here, and where they come from.

    Raises:
        SourceError: when a file cannot be read, or two give the same tensor.
    """
    tensors: dict[str, Tensor] = {}
    origins = []
    for source in sources:
        for path in source.tensor_files:
            dialect, found, left_out = translate(open_file(path))
            for name, tensor in found.items():
                if name in tensors:
                    raise SourceError(
                        f"Two sources give {name}: {tensors[name].origin} and {tensor.origin}; leave one of them out"
                    )
                tensors[name] = tensor
            origins.append(Origin(dialect.kind, str(path), len(left_out)))
    return tensors, origins


def read_json(path: Path) -> Mapping[str, Any]:
    """The object in a small JSON file.

    Raises:
        SourceError: when it is too long or no JSON object.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise SourceError(f"{path} is {path.stat().st_size >> 20} MiB long; at most {MAX_JSON_BYTES >> 20} are read")
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise SourceError(f"{path} is no valid JSON ({error}); fetch it again") from error
    if not isinstance(values, Mapping):
        raise SourceError(f"{path} must hold a JSON object, not a {type(values).__name__}")
    return values
