"""Writing an imported checkpoint: one parameter in memory at a time, and whole or not at all."""

import time
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import type_handlers
from safetensors.numpy import save as safetensors_bytes

from pokevla_jax.checkpoints import CARRIED
from pokevla_jax.checkpoints import CHECKPOINTS
from pokevla_jax.interop.layouts import Shape

REMOVE_ATTEMPTS = 50


class OutputError(ValueError):
    """A folder that cannot be written to; the message says why and what to do."""


class Later:
    """A parameter that is made when it is written."""

    def __init__(self, shape: Shape, dtype: np.dtype, make: Callable[[], np.ndarray]):
        self.shape, self.dtype, self.make = shape, dtype, make
        self.size = int(np.prod(shape, dtype=np.int64))
        self.nbytes = self.size * dtype.itemsize


class _LaterHandler(type_handlers.NumpyHandler):
    """Orbax's handler of numpy arrays, fed with one array after the other."""

    def __init__(self) -> None:
        super().__init__(deepcopy_host_arrays=False)

    async def serialize(
        self, values: Sequence[Later], infos: Sequence[Any], args: Sequence[ocp.SaveArgs] | None = None
    ) -> Sequence[Any]:
        for value, info, arg in zip(values, infos, args or [ocp.SaveArgs()] * len(values), strict=True):
            array = value.make()
            if array.shape != value.shape or array.dtype != value.dtype:
                raise AssertionError(f"made {array.dtype}{array.shape}, announced {value.dtype}{value.shape}")
            for written in await super().serialize([array], [info], [arg]):
                written.result()
        return []


def unwritable(out: epath.PathLike, error: OSError) -> OutputError:
    """What to say when the disk refuses ``out``."""
    return OutputError(
        f"--out {out} cannot be written ({error.strerror or error}); make room there, or choose another folder"
    )


def check_free(out: epath.Path) -> None:
    """Raises ``OutputError`` if there is something at ``out`` already."""
    if out.exists():
        raise OutputError(f"--out {out} exists already; give a new folder, or remove it first")


def write_checkpoint(
    out: epath.Path, params: Any, assets: Mapping[str, Any], carried: Mapping[str, np.ndarray], *, step: int = 0
) -> None:
    """Writes ``out/checkpoints/<step>``, which ``checkpoints.load_policy_checkpoint`` reads.

    Everything is written to ``<out>.incomplete``, where even a finished step has another name than a step has, and
    renamed at the end.

    Args:
        out: folder that does not exist yet.
        params: nested dict of ``Later``.
        assets: configuration, statistics, tokenizer, versions; plain JSON types.
        carried: tensors that the network does not use, by PyTorch's names.
        step: the checkpoint's number.

    Raises:
        OutputError: when ``out`` exists or cannot be written.
    """
    check_free(out)
    incomplete = out.parent / f"{out.name}.incomplete"
    if incomplete.exists():  # of a conversion that was killed
        incomplete.rmtree()
    try:
        writing = incomplete / "writing"
        writing.parent.mkdir(parents=True)
        _save(writing, params, assets)
        if carried:
            (writing / "assets" / CARRIED).write_bytes(safetensors_bytes(dict(carried)))
        (incomplete / CHECKPOINTS).mkdir()
        writing.rename(incomplete / CHECKPOINTS / str(step))
        check_free(out)
        incomplete.rename(out)
    except BaseException as error:
        _remove(incomplete)
        if isinstance(error, OSError):
            raise unwritable(out, error) from error
        raise


def _remove(folder: epath.Path) -> None:
    """Removes what a failed save left, into which Orbax's threads may still be writing for a moment."""
    for patience in range(REMOVE_ATTEMPTS, -1, -1):
        try:
            folder.rmtree(missing_ok=True)
        except OSError:
            if not patience:
                raise
            time.sleep(0.2)
        else:
            return


def _save(folder: epath.Path, params: Any, assets: Mapping[str, Any]) -> None:
    registry = type_handlers.create_type_handler_registry(
        (Later, _LaterHandler()), (jax.Array, type_handlers.ArrayHandler())
    )
    handler = ocp.CompositeCheckpointHandler(
        params=ocp.PyTreeCheckpointHandler(type_handler_registry=registry), assets=ocp.JsonCheckpointHandler()
    )
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(
            folder.resolve(),
            args=ocp.args.Composite(params=ocp.args.PyTreeSave(params), assets=ocp.args.JsonSave(dict(assets))),
        )
