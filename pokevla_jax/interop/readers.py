"""Tensor files of others, read one tensor at a time: safetensors, single or sharded, and what ``torch.save`` wrote.

Files come from outside: nothing in them is ever run. A ``torch.save`` file is opened by PyTorch's loader of weights
alone, which refuses every object that is not plain data.
"""

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from typing import NamedTuple
from typing import Protocol

import ml_dtypes
import numpy as np

from pokevla_jax.interop.layouts import Shape

# Both libraries map the file into memory, and every page that was read counts as this process's until it is unmapped.
REOPEN_AFTER = 256 * 2**20
INDEX = ".safetensors.index.json"
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
# Wrappers around a state dict, in the order in which they are looked for.
WRAPPERS = ("model", "state_dict", "module")
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
MAX_INDEX_BYTES = 64 * 2**20


class SourceError(ValueError):
    """A source that cannot be imported; the message says which file or tensor, why, and what to do."""


class Stored(NamedTuple):
    """Shape and dtype of a tensor in a file."""

    shape: Shape
    dtype: str


class TensorFile(Protocol):
    """The tensors of one file or of the shards of one checkpoint.

    Attributes:
        path: what was opened, for messages.
        tensors: what is in it.
    """

    path: Path
    tensors: Mapping[str, Stored]

    def read(self, name: str) -> np.ndarray:
        """The values of one tensor, in the dtype of the file."""


def open_file(path: Path) -> TensorFile:
    """The tensors of a file, whatever its format.

    Raises:
        SourceError: when the format is unknown, or the file is damaged or holds code.
    """
    if path.name.endswith(INDEX):
        return Sharded(path)
    if path.suffix == ".safetensors":
        return SafeTensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return TorchFile(path)
    raise SourceError(
        f"{path} is no tensor file that is known here: give .safetensors, {INDEX[1:]} or {', '.join(TORCH_SUFFIXES)}"
    )


class SafeTensors:
    """A safetensors file."""

    def __init__(self, path: Path):
        self.path = path
        self._open()
        self.tensors: Mapping[str, Stored] = {name: self._stored(name) for name in self._file.keys()}  # noqa: SIM118 - no mapping

    def _open(self) -> None:
        from safetensors import SafetensorError
        from safetensors import safe_open

        try:
            self._file = safe_open(self.path, framework="np")
        except SafetensorError as error:
            raise SourceError(
                f"{self.path} is truncated or no safetensors file ({error}); fetch it again, or compare its size with "
                "the original's"
            ) from error
        self._read_bytes = 0

    def _stored(self, name: str) -> Stored:
        view = self._file.get_slice(name)
        return Stored(tuple(view.get_shape()), DTYPES.get(view.get_dtype(), view.get_dtype().lower()))

    def read(self, name: str) -> np.ndarray:
        if self._read_bytes > REOPEN_AFTER:
            self._open()
        array = self._file.get_tensor(name)
        self._read_bytes += array.nbytes
        return array


class Sharded:
    """Safetensors shards with their index."""

    def __init__(self, path: Path):
        self.path = path
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise SourceError(f"{path} is {path.stat().st_size >> 20} MiB long, which no index is")
        try:
            weight_map = json.loads(path.read_text())["weight_map"]
            shards = sorted(set(weight_map.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SourceError(f"{path} is no index of safetensors shards ({error!r}); fetch it again") from error
        for shard in shards:
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise SourceError(f"{path} names the shard {shard!r}, which lies outside its folder; do not trust it")
            if not (path.parent / shard).is_file():
                raise SourceError(f"{path} names the shard {shard}, which is missing; fetch it too")
        self._files = {shard: SafeTensors(path.parent / shard) for shard in shards}
        self._shard_of = weight_map
        for name, shard in weight_map.items():
            if name not in self._files[shard].tensors:
                raise SourceError(f"{path} says that {name} is in {shard}, and it is not; fetch both again")
        self.tensors: Mapping[str, Stored] = {
            name: self._files[shard].tensors[name] for name, shard in weight_map.items()
        }

    def read(self, name: str) -> np.ndarray:
        return self._files[self._shard_of[name]].read(name)


class TorchFile:
    """A file of ``torch.save``: nested dicts of tensors become dotted names, anything else in it is passed over."""

    def __init__(self, path: Path):
        self.path = path
        self._open()
        self.tensors: Mapping[str, Stored] = {
            name: Stored(tuple(x.shape), str(x.dtype).split(".")[-1]) for name, x in self._loaded.items()
        }

    def _open(self) -> None:
        self._loaded = _flatten(_unwrap(_load(self.path)))
        self._read_bytes = 0

    def read(self, name: str) -> np.ndarray:
        import torch

        if self._read_bytes > REOPEN_AFTER:
            self._open()
        tensor = self._loaded[name].detach().contiguous()
        self._read_bytes += tensor.nbytes
        if tensor.dtype == torch.bfloat16:  # unknown to numpy
            return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()


def _load(path: Path) -> Any:
    import torch

    # Files older than PyTorch 1.6 are no archives and cannot be mapped into memory.
    mapped = zipfile.is_zipfile(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"code or objects ({found[1]})" if found else "more than tensors, or is damaged"
        raise SourceError(
            f"{path} holds {what}, and a file from outside is never unpickled; save its tensors alone, as safetensors"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise SourceError(f"{path} is truncated or no file of torch.save ({reason}); fetch it again") from error


def _unwrap(loaded: Any) -> Any:
    while isinstance(loaded, Mapping):
        inner = next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if inner is None:
            return loaded
        loaded = inner
    return loaded


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    import torch

    if isinstance(values, torch.Tensor):
        return {prefix[:-1]: values}
    flat: dict[str, Any] = {}
    if isinstance(values, Mapping):
        for key, value in values.items():
            flat |= _flatten(value, f"{prefix}{key}.")
    return flat
