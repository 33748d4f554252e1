"""Frozen teachers of a checkpoint, run over images once instead of in every step."""

import hashlib
import itertools
from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from pokevla_jax import checkpoints
from pokevla_jax import sharding
from pokevla_jax.checkpoints import CheckpointError
from pokevla_jax.config import Config
from pokevla_jax.config import MeshConfig
from pokevla_jax.data.schema import precomputed_features
from pokevla_jax.data.schema import teacher_features
from pokevla_jax.models import stacking
from pokevla_jax.models import teachers
from pokevla_jax.training.state import as_kept
from pokevla_jax.typing import Float
from pokevla_jax.typing import Params
from pokevla_jax.typing import UInt8


class Teacher:
    """The frozen teacher of one part of the network, on all of this process's devices.

    Attributes:
        weights: digest of its parameters as a train state keeps them.
    """

    def __init__(self, config: Config, part: str, params: Params):
        kept = as_kept(params, config.optimizer.frozen_dtype)
        self.weights = _digest(kept)
        # Whole on every device, which has no other parameters to hold.
        self._mesh = sharding.make_mesh(MeshConfig())
        self._params = jax.device_put(kept, sharding.replicated(self._mesh))
        self._rows = sharding.batch_sharding(self._mesh)
        self._run = jax.jit(
            lambda params, images: teachers.features(config.model, part, params, images), out_shardings=self._rows
        )

    def features(
        self, images: Iterable[UInt8[np.ndarray, "v s s 3"]], *, batch_size: int
    ) -> Iterator[Float[np.ndarray, "..."]]:
        """Yields the features of each sample's images in order, float16; ``batch_size`` counts a device's samples.

        The images of a batch are made while the devices are busy with the one before.
        """
        rows, running = batch_size * self._mesh.size, None
        remaining = iter(images)
        while group := list(itertools.islice(remaining, rows)):
            started = self._start(group, rows)[: len(group)]
            if running is not None:
                yield from np.asarray(running)
            running = started
        if running is not None:
            yield from np.asarray(running)

    def _start(self, group: list[np.ndarray], rows: int) -> jax.Array:
        # Every batch is of one size, for which the teacher is compiled once.
        filled = group + group[-1:] * (rows - len(group))
        with jax.set_mesh(self._mesh):
            return self._run(self._params, jax.device_put(np.stack(filled), self._rows))


def load(path: epath.PathLike, config: Config) -> tuple[dict[str, Teacher], dict[str, Any]]:
    """The teachers whose features ``config`` has precomputed, by the batch's entry, and where they come from.

    Raises:
        CheckpointError: when the checkpoint does not hold them, or of other sizes.
    """
    wanted = {name: part for name, (part, _) in precomputed_features(config.model).items()}
    source, found = checkpoints.load_assets(path)
    held = teacher_features(source.model).keys() - precomputed_features(source.model).keys()
    for name, part in wanted.items():
        if name not in held or source.stage == "vlm":
            raise CheckpointError(
                f"--init-from {path} holds no teacher that makes {name}; give a checkpoint with config.model.{part}"
                ".source 'inside', as pokevla-convert from-torch writes it of the teacher's weights"
            )
        if teachers.own(part, found.fresh):
            raise CheckpointError(
                f"--init-from {path} was imported without {teachers.NAMES[part]}, which is random there and makes no "
                f"{name}; give a checkpoint that pokevla-convert from-torch wrote of its weights"
            )
    paths = {part: teachers.PATHS[part] for part in wanted.values()}
    skip = stacking.abstract_params(source.model).keys() - {first for first, *_ in paths.values()}
    _, params, _ = checkpoints.load_policy_checkpoint(path, skip=skip)
    loaded = {}
    for name, part in wanted.items():
        tree = params
        for key in paths[part]:
            tree = tree[key]
        _check_shapes(path, part, tree, teachers.abstract_params(config.model, part))
        loaded[name] = Teacher(config, part, tree)
    origin = {
        "checkpoint": str(path),
        "step": found.step,
        "imported_from": [dict(entry) for entry in found.imported_from],
    }
    return loaded, origin


def _check_shapes(path: epath.PathLike, part: str, params: Params, abstract: Params) -> None:
    source, target = (
        {name: leaf.shape for name, leaf in sharding.flatten(tree).items()} for tree in (params, abstract)
    )
    for name in sorted(source.keys() | target.keys()):
        if source.get(name) != target.get(name):
            raise CheckpointError(
                f"--init-from {path} holds another teacher: {'/'.join((*teachers.PATHS[part], name))} is "
                f"{source.get(name, 'missing')} there and {target.get(name, 'missing')} here; set config.model.{part} "
                "as the checkpoint has it"
            )


def _digest(params: Params) -> str:
    digest = hashlib.sha256()
    for name, leaf in sorted(sharding.flatten(params).items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.view(np.uint8).data if array.ndim else array.tobytes())
    return digest.hexdigest()[:16]
