"""From tensors of sources to parameters: what is imported, what starts fresh, what is carried along unread.

A part (see ``names.PARTS``) comes from the sources as a whole or not at all; anything else is refused by name.
"""

import math
from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pokevla_jax.config import ModelConfig
from pokevla_jax.interop import names
from pokevla_jax.interop.dialects import Tensor
from pokevla_jax.interop.layouts import Shape
from pokevla_jax.interop.readers import SourceError
from pokevla_jax.interop.table import Entry
from pokevla_jax.interop.table import Table
from pokevla_jax.models import resize

EMBEDDING, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
FLOATS = ("float32", "bfloat16", "float16")
# Rows of a large table that are compared at once.
COMPARED_ROWS = 16_384


@dataclass(frozen=True)
class Plan:
    """What becomes of every parameter, and of every tensor that is none.

    Attributes:
        imported: each imported parameter with the tensors that it is made of, in order.
        fresh: parameters that no source has.
        carried: tensors that the network does not use, by name.
    """

    imported: tuple[tuple[Entry, tuple[Tensor, ...]], ...]
    fresh: tuple[Entry, ...]
    carried: Mapping[str, Tensor]


def plan(config: ModelConfig, tensors: Mapping[str, Tensor]) -> Plan:
    """What to do with ``tensors`` in the network that ``config`` describes; reads none of them but a tied ``lm_head``.

    Raises:
        SourceError: naming the first tensor that is missing, superfluous, of another shape or of an unusable type.
    """
    table, unused = names.table(config), names.unused(config)
    tensors = dict(tensors)
    _drop_tied_head(tensors)
    parts = {names.part_of(name) for name in table.names}
    _check_head(config, tensors)
    found: dict[str, Tensor] = {}
    carried: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        part = names.part_of(name)
        if part not in parts:
            raise SourceError(
                f"{tensor.origin} belongs to the {part}, which preset {config.preset!r} lacks; leave this source out, "
                "or choose another preset"
            )
        if tensor.dtype not in FLOATS:
            raise SourceError(f"{tensor.origin} is of type {tensor.dtype}; importable are {', '.join(FLOATS)}")
        if entry := table.entry_of(name):
            found[name] = _fitted(config, name, tensor, entry)
        elif unused.match(name):
            carried[name] = tensor
        else:
            raise SourceError(
                f"{tensor.origin} has no place in the {part} of preset {config.preset!r} (it would be {name}); "
                "choose the preset that the checkpoint was made for"
            )
    _check_complete(config, table, found)
    imported = tuple(
        (entry, tuple(found[name] for name in entry.names)) for entry in table.entries if entry.names[0] in found
    )
    fresh = tuple(entry for entry in table.entries if entry.names[0] not in found)
    return Plan(imported, fresh, carried)


def _drop_tied_head(tensors: dict[str, Tensor]) -> None:
    """Takes ``lm_head`` away where it is the embedding once more, as some files store it."""
    head, table = tensors.pop(HEAD, None), tensors.get(EMBEDDING)
    if head is None or table is None:
        return
    same = head.shape == table.shape
    if same:
        a, b = head.read(), table.read()
        starts = range(0, len(a), COMPARED_ROWS)
        same = all(np.array_equal(a[i : i + COMPARED_ROWS], b[i : i + COMPARED_ROWS]) for i in starts)
    if not same:
        raise SourceError(
            f"{head.origin} differs from the input embedding, and this network ties the two; give a checkpoint whose "
            "embeddings are tied, such as Qwen2.5-0.5B's"
        )


def _check_head(config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
    """Refuses the other version of VLA-Adapter's head before its tensors are counted one by one."""
    prefix = "action_head.model.mlp_resnet_blocks.0."
    kinds = {"original": f"{prefix}k_proj.weight", "pro": f"{prefix}k_adapter.weight"}
    for kind, name in kinds.items():
        if name in tensors and config.action_head.block != kind:
            raise SourceError(
                f"{tensors[name].origin} is of the {kind} action head, and preset {config.preset!r} has the "
                f"{config.action_head.block} one; choose preset "
                f"{'vla_adapter' if kind == 'original' else 'vla_adapter_pro'!r}, or set config.model.action_head.block"
            )


def _fitted(config: ModelConfig, name: str, tensor: Tensor, entry: Entry) -> Tensor:
    """The tensor in the shape that the network needs; position embeddings are resampled to its grid."""
    expected = entry.torch_shape
    if tensor.shape == expected:
        return tensor
    resampled = _resampled(name, tensor, expected)
    if resampled is None:
        raise SourceError(
            f"{tensor.origin} has shape {_shape(tensor.shape)}, and preset {config.preset!r} needs {_shape(expected)} "
            f"for {name}; choose the preset that the checkpoint was made for"
        )
    return resampled


def _resampled(name: str, tensor: Tensor, expected: Shape) -> Tensor | None:
    """Position embeddings on another grid as PyTorch's users resample them, or None where that is not defined.

    Towers as timm does (bicubic, antialiased), SAM's relative positions as its own code does (linear).
    """
    if len(tensor.shape) != len(expected) or tensor.shape[-1] != expected[-1]:
        return None
    if name.startswith("vision_backbone.") and name.endswith(".pos_embed"):
        grid = math.isqrt(expected[1])
        if math.isqrt(tensor.shape[1]) ** 2 != tensor.shape[1]:
            return None
        return _mapped(tensor, expected, lambda x: resize.resample_positions(x[0], grid))
    if name == "image_encoder.pos_embed" and tensor.shape[1] == tensor.shape[2]:
        return _mapped(tensor, expected, lambda x: resize.resample_positions(x.reshape(-1, x.shape[-1]), expected[1]))
    if name.startswith("image_encoder.") and ".rel_pos_" in name:
        return _mapped(tensor, expected, lambda x: resize.resample_relative(x, expected[0]))
    return None


def _mapped(tensor: Tensor, shape: Shape, function: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    """The tensor through a function that computes in float32, rounded to its type once."""

    def read() -> np.ndarray:
        values = tensor.read()
        return function(values.astype(np.float32)).reshape(shape).astype(values.dtype)

    return Tensor(shape, tensor.dtype, read, tensor.origin)


def _check_complete(config: ModelConfig, table: Table, found: Mapping[str, Tensor]) -> None:
    given = {names.part_of(name) for name in found}
    for name, shape in table.torch_shapes().items():
        if name not in found and names.part_of(name) in given:
            raise SourceError(
                f"The sources' {names.part_of(name)} lacks {name} of shape {_shape(shape)}, which preset "
                f"{config.preset!r} needs; fetch the file again, or choose the preset that it was made for"
            )


def _shape(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"
