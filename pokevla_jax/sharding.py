"""Mesh, logical-axis rules and the shardings of parameters, optimizer state and batch.

The model names the axes of every parameter (``("layers", "embed", "mlp")``), ``RULES`` maps names to mesh axes, and
everything that follows a parameter (Adam's moments, the moving average) takes that parameter's sharding by its path.
Activations are placed by the same names with ``constrain``, and a parameter is made whole for its use with ``gather``;
both act on the mesh that the program is compiled for (``jax.set_mesh``) and do nothing without one, so that a network
reads the same on one device and on a thousand. Nothing here knows a model class.
"""

import functools
import logging
import math
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from pokevla_jax.config import ConfigError
from pokevla_jax.config import MeshConfig

AXES = ("replica", "data", "fsdp", "tensor")
"""Mesh axes, outermost first: ``replica`` may cross slices (only gradients travel), ``tensor`` stays on neighbours."""

BATCH_AXES = ("replica", "data", "fsdp")

# Logical axis -> mesh axis. ZeRO-3 cuts every matrix along the residual stream; tensor parallelism cuts what a block
# computes independently (heads, hidden units, vocabulary rows).
RULES: dict[str, str | None] = {
    "layers": None,  # scanned: one layer is gathered at a time, never all
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "vocab": "tensor",
}

# The same for activations: rows over every axis but ``tensor``. Along that, the residual stream is cut by positions and
# a block's inside by heads or hidden units ("sequence parallelism", Korthikanti et al. 2022): nothing is kept twice.
ACTIVATION_RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": BATCH_AXES,
    "length": "tensor",
    "embed": None,
    "mlp": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "vocab": "tensor",
    # Around an embedding lookup: each device looks up its slice of the width, for the rows of all of them.
    "lookup_batch": ("replica", "data"),
    "lookup_embed": "fsdp",
}

# An array above this size that is left whole on every device of an fsdp mesh is a bug, not a choice.
LARGEST_REPLICATED = 4 * 2**20


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The device mesh ``replica x data x fsdp x tensor``; an axis of size -1 takes the devices that are left.

    Raises:
        ConfigError: when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in AXES]
    described = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
    if any(size == 0 or size < -1 for size in sizes) or sizes.count(-1) > 1:
        raise ConfigError(f"config.mesh {described}: sizes are positive, and one of them may be -1 (what is left)")
    known = math.prod(size for size in sizes if size > 0)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        raise ConfigError(
            f"config.mesh {described} needs a multiple of {known} devices, found {len(devices)}; "
            "set one axis to -1 or change the others"
        )
    if len(devices) > 1 and devices[0].platform == "tpu":
        # On TPU the order of the devices decides which collectives ride on neighbouring links.
        return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
    return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of every array of a batch: rows over ``replica``, ``data`` and ``fsdp``."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of scalars: whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh: Mesh) -> int:
    """Parts that the rows of a batch are cut into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def loader_place(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
    """``(index, count)``: which of ``count`` equal parts of every global batch a process (by default, this one) loads.

    Processes whose devices hold the same rows, as those along ``tensor`` may, load the same part.

    Raises:
        ConfigError: when processes would need rows that overlap in part.
    """
    process = jax.process_index() if process is None else process
    rows: dict[int, set[int]] = {}
    held_by: Mapping[Any, Any] = batch_sharding(mesh).devices_indices_map((batch_shards(mesh),))
    for device, (piece, *_) in held_by.items():
        rows.setdefault(device.process_index, set()).add(piece.start or 0)
    groups = sorted({tuple(sorted(held)) for held in rows.values()})
    if len({len(group) for group in groups}) > 1 or sum(map(len, groups)) != batch_shards(mesh):
        raise ConfigError(
            f"The mesh ({describe(mesh)}) gives processes rows that overlap in part; make replica x data x fsdp a "
            "multiple of the number of processes, or a divisor of it"
        )
    return groups.index(tuple(sorted(rows[process]))), len(groups)


def check_batch_size(batch_size: int, accumulation_steps: int, mesh: Mesh) -> None:
    """Raises ``ConfigError`` naming the nearest valid batch sizes when the rows cannot be cut evenly."""
    unit = batch_shards(mesh) * accumulation_steps
    if batch_size % unit:
        below, above = batch_size // unit * unit, (batch_size // unit + 1) * unit
        nearest = f"{below} or {above}" if below else str(above)
        raise ConfigError(
            f"config.batch_size {batch_size} is not divisible by replica x data x fsdp x accumulation_steps = {unit}; "
            f"nearest: {nearest}"
        )


def param_shardings(abstract: Any, axes: Any, mesh: Mesh, *, rules: Mapping[str, str | None] = RULES) -> Any:
    """The parameters' tree with a ``NamedSharding`` in place of each array.

    Args:
        abstract: nested dict of arrays or ``ShapeDtypeStruct``s.
        axes: the same tree with a tuple of logical axis names per array.
        mesh: from ``make_mesh``.
        rules: logical name -> mesh axis.

    Raises:
        ValueError: for an axis name without a rule, or a tuple of the wrong length, naming the parameter.
    """
    named = flatten(axes, is_leaf=lambda x: isinstance(x, tuple))

    def one(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path_name(path)
        if name not in named:
            raise ValueError(f"Parameter {name} has no logical axes; name them where the module is defined")
        return NamedSharding(mesh, _spec(name, leaf.shape, leaf.dtype.itemsize, named[name], mesh, rules))

    return jax.tree_util.tree_map_with_path(one, abstract)


def current_mesh() -> jax.sharding.AbstractMesh | None:
    """The mesh of more than one device that this program is compiled for, or None; None inside ``shard_map`` too."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 or mesh.manual_axes else mesh


def axis_size(axis: str) -> int:
    """Devices along one axis of the current mesh; 1 without a mesh."""
    mesh = current_mesh()
    return 1 if mesh is None else mesh.shape[axis]


def cores_per_device() -> int:
    """Tensor cores of one device that the current mesh is of: two on TPU v4 and v5p ("megacore"), else one."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (device.num_cores if device is not None else None) or 1


def activation_spec(shape: Sequence[int], axes: Sequence[str | None]) -> PartitionSpec:
    """How an activation is cut on the current mesh: by name, and only where the mesh axes divide the dimension.

    Raises:
        ValueError: for an unknown name or a tuple of the wrong length.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if len(axes) != len(shape):
        raise ValueError(f"An activation of shape {tuple(shape)} has {len(axes)} logical axes {tuple(axes)}")
    spec: list[Any] = []
    for size, axis in zip(shape, axes, strict=True):
        if axis is not None and axis not in ACTIVATION_RULES:
            raise ValueError(
                f"Logical axis {axis!r} of an activation has no rule; known: {', '.join(ACTIVATION_RULES)}"
            )
        target = ACTIVATION_RULES[axis] if axis is not None else None
        names = (target,) if isinstance(target, str) else target or ()
        spec.append(target if names and size % math.prod(mesh.shape[name] for name in names) == 0 else None)
    return PartitionSpec(*spec)


def parameter_spec(shape: Sequence[int], axes: Sequence[str | None]) -> PartitionSpec:
    """How the rules alone cut a parameter on the current mesh."""
    return _rule_spec(shape, axes, jax.sharding.get_abstract_mesh(), RULES)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """``x``, placed by the logical names of its dimensions on the current mesh; ``x`` itself without one."""
    if current_mesh() is None:
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(x.shape, axes))


def gather(x: jax.Array, axes: Sequence[str | None], dtype: Any) -> jax.Array:
    """A parameter in the dtype of its use, whole along ``fsdp`` and still cut along ``tensor``.

    Said outright because a partitioner left alone may pass the pieces around within the matrix product instead, which
    moves the same bytes in more time. The cast comes first: half the bytes. The gradient is summed over devices in
    that dtype too, and cut in one go (reduce-scatter) instead of being summed everywhere and then cut.
    """
    if current_mesh() is None:
        return x.astype(dtype)
    return _gather(x, tuple(axes), jnp.dtype(dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(x: jax.Array, axes: tuple[str | None, ...], dtype: Any) -> jax.Array:
    cut = parameter_spec(x.shape, axes)
    whole = PartitionSpec(*(None if axis == "fsdp" else axis for axis in cut))
    # Both: with the second alone, the cast itself would be placed by it and happen after the gathering.
    x = x.astype(dtype)
    x = jax.lax.with_sharding_constraint(x, cut) if "fsdp" in cut else x
    return jax.lax.with_sharding_constraint(x, whole)


def _gather_forward(x: jax.Array, axes: tuple[str | None, ...], dtype: Any) -> tuple[jax.Array, jax.Array]:
    return _gather(x, axes, dtype), jnp.zeros((), x.dtype)


def _gather_backward(axes: tuple[str | None, ...], dtype: Any, like: jax.Array, grad: jax.Array) -> tuple[jax.Array]:
    cut = parameter_spec(grad.shape, axes)
    return (jax.lax.with_sharding_constraint(grad, cut).astype(like.dtype),)


_gather.defvjp(_gather_forward, _gather_backward)


def _rule_spec(
    shape: Sequence[int], axes: Sequence[str | None], mesh: Any, rules: Mapping[str, str | None]
) -> PartitionSpec:
    """The partition of a parameter by the rules alone: each mesh axis once, and only where it divides."""
    spec: list[str | None] = []
    for size, axis in zip(shape, axes, strict=True):
        target = rules[axis] if axis is not None else None
        usable = target is not None and target not in spec and mesh.shape[target] > 1 and size % mesh.shape[target] == 0
        spec.append(target if usable else None)
    return PartitionSpec(*spec)


def _spec(
    name: str,
    shape: Sequence[int],
    itemsize: int,
    axes: Sequence[str | None],
    mesh: Mesh,
    rules: Mapping[str, str | None],
) -> PartitionSpec:
    """The partition of one parameter; a mesh axis is used once, and only where it divides the dimension."""
    if len(axes) != len(shape):
        raise ValueError(f"Parameter {name} of shape {tuple(shape)} has {len(axes)} logical axes {tuple(axes)}")
    for axis in axes:
        if axis is not None and axis not in rules:
            raise ValueError(f"Logical axis {axis!r} of parameter {name} has no rule; known: {', '.join(rules)}")
    spec = list(_rule_spec(shape, axes, mesh, rules))
    large = math.prod(shape) * itemsize > LARGEST_REPLICATED
    if large and mesh.shape["fsdp"] > 1 and "fsdp" not in spec:
        # A large array that its rules leave whole still has to be cut: along its largest free dimension, but not the
        # scanned one.
        parts = mesh.shape["fsdp"]
        free = [i for i, s in enumerate(spec) if s is None and axes[i] != "layers" and shape[i] % parts == 0]
        if free:
            spec[max(free, key=lambda i: shape[i])] = "fsdp"
        else:
            message = "Parameter %s %s stays whole on each of the %d fsdp devices: no dimension is divisible"
            logging.getLogger(__name__).warning(message, name, shape, parts)
    return PartitionSpec(*spec)


def follow(tree: Any, shardings: Any, mesh: Mesh) -> Any:
    """Shardings of a tree that contains copies of the parameters' tree, such as an optimizer state.

    Each array whose path ends in a parameter's path is placed like that parameter, anything else is replicated.
    ``jax.eval_shape(optimizer.init, params)`` loses the shardings, which is why they are looked up by path.

    Raises:
        ValueError: when an array above 4 MiB matches no parameter.
    """
    by_path = flatten(shardings)

    def one(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = [_key_name(key) for key in path]
        for start in range(len(names)):
            sharding = by_path.get("/".join(names[start:]))
            if sharding is not None and len(sharding.spec) == len(leaf.shape):
                return sharding
        if math.prod(leaf.shape) * leaf.dtype.itemsize > LARGEST_REPLICATED:
            raise ValueError(f"{'/'.join(names)} {tuple(leaf.shape)} follows no parameter and would be replicated")
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(one, tree)


def explain(abstract: Any, shardings: Any) -> str:
    """A table of every parameter: path, shape, dtype, partition, MiB on one device; large uncut ones are marked."""
    placed = flatten(shardings)
    rows = [("parameter", "shape", "dtype", "partition", "MiB per device", "")]
    total = on_device = 0
    for name, leaf in flatten(abstract).items():
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        local = math.prod(placed[name].shard_shape(tuple(leaf.shape))) * leaf.dtype.itemsize
        total, on_device = total + size, on_device + local
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        cut = ", ".join("-" if axis is None else str(axis) for axis in placed[name].spec) or "-"
        note = "  whole on every device" if local == size > LARGEST_REPLICATED else ""
        rows.append((name, shape, str(leaf.dtype), cut, f"{local / 2**20:.3f}", note))
    rows.append(("total", "", "", f"of {total / 2**20:.1f} MiB", f"{on_device / 2**20:.3f}", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for *cells, last, note in rows:
        left = [cell.ljust(width) for cell, width in zip(cells, widths[:4], strict=True)]
        lines.append("  ".join([*left, last.rjust(widths[4])]) + note)
    return "\n".join(lines)


def flatten(tree: Any, *, is_leaf: Any = None) -> dict[str, Any]:
    """``{"vision/dinov2/…/kernel": leaf}`` in the tree's order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]}


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict whose ``flatten`` is ``leaves``."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def path_name(path: Iterable[Any]) -> str:
    """A key path as ``vision/dinov2/blocks/attention/qkv/kernel``."""
    return "/".join(_key_name(key) for key in path)


def _key_name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def describe(mesh: Mesh) -> str:
    """The mesh in words, such as ``8 cpu devices: replica 1 x data 2 x fsdp 2 x tensor 2``."""
    sizes = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in AXES)
    return f"{mesh.size} {mesh.devices.flat[0].platform} device{'s' if mesh.size > 1 else ''}: {sizes}"
