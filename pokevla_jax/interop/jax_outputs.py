"""What every part of the network returns, by the names that the exported PyTorch network records."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pokevla_jax.config import ModelConfig
from pokevla_jax.models import segmentation
from pokevla_jax.models import stacking
from pokevla_jax.typing import Array
from pokevla_jax.typing import Batch
from pokevla_jax.typing import Params

TEACHER = "vggt"
TRAINING_PARTS = ("segmentation", "align_projector", "keypoint_head", TEACHER)
"""Parameters that no policy needs to act."""


def without_training_parts(config: ModelConfig) -> ModelConfig:
    """The network that acts, and nothing else."""
    return dataclasses.replace(
        config,
        segmentation=dataclasses.replace(config.segmentation, weight=0.0),
        geometry=dataclasses.replace(config.geometry, weight=0.0),
        keypoint=dataclasses.replace(config.keypoint, weight=0.0),
    )


def without_teacher(config: ModelConfig) -> ModelConfig:
    """The network with all it computes from, but not the geometry teacher that it is compared with."""
    if config.geometry.teacher != "vggt":
        return config
    return dataclasses.replace(config, geometry=dataclasses.replace(config.geometry, source="precomputed"))


class _Recorded:
    """A module whose outputs are kept; everything else of it is as it was."""

    def __init__(self, module: Any, name: str, record: dict[str, Array]):
        self._module, self._name, self._record = module, name, record

    def __call__(self, *args: Any, **options: Any) -> Any:
        self._record[self._name] = self._module(*args, **options)
        return self._record[self._name]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _RecordedLayers(_Recorded):
    """A language model whose layers' outputs are kept, whether they were asked for or not."""

    def __call__(self, *args: Any, all_layers: bool = False, **options: Any) -> Any:
        last, layers = self._module(*args, all_layers=True, **options)
        self._record |= {f"{self._name} {index}": state for index, state in enumerate(layers)}
        return last, layers if all_layers else None


def outputs(config: ModelConfig, params: Params, batch: Batch, *, training_parts: bool) -> dict[str, Array]:
    """The outputs of every part, float32; traceable."""
    model, record = stacking.bind(config, params), dict[str, Array]()
    hooks = (
        (model.vision, "dinov2", _Recorded(model.vision.dinov2, "DINOv2", record)),
        (model.vision, "siglip", _Recorded(model.vision.siglip, "SigLIP", record)),
        (model.vision, "projector", _Recorded(model.vision.projector, "projector", record)),
        (model, "language", _RecordedLayers(model.language, "language layer", record)),
    )
    for parent, name, hook in hooks:
        object.__setattr__(parent, name, hook)  # past NNX, which wants to know every attribute's kind
    hidden = model.encode(batch["images"], batch["tokens"], batch["token_mask"])
    record["projector"] = record["projector"].reshape(len(batch["images"]), -1, record["projector"].shape[-1])
    record["actions"] = model.act(hidden, batch["proprio"])
    if training_parts:
        if segmentation.computes_features(config.segmentation):
            coarse, fine = model.segment(hidden.seg, batch)
            record |= {"coarse mask logits": coarse, "mask logits": fine}
        if config.geometry.weight:
            record["align projector"] = model.align(hidden.vision)
        if config.keypoint.weight:
            record["keypoint head"] = model.keypoints(hidden.seg)
    return jax.tree.map(lambda x: x.astype(jnp.float32), record)
