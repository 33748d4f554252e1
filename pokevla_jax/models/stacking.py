"""Stacked layers, and the bridge between NNX modules and a plain tree of parameters.

The only place that touches NNX beyond module definitions. Modules are written for one layer; ``stack`` puts
many of them on a leading axis and ``scan`` applies them in turn, so a 24-layer network compiles as one layer.
Outside this file parameters are a plain nested dict of float32 arrays, such as
``params["vision"]["dinov2"]["blocks"]["attention"]["qkv"]["kernel"]``.
"""

import functools
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pokevla_jax import sharding
from pokevla_jax.config import ModelConfig
from pokevla_jax.models import lora as lora_lib
from pokevla_jax.models.layers import Buffer
from pokevla_jax.models.layers import Init
from pokevla_jax.models.lora import Lora
from pokevla_jax.sharding import flatten
from pokevla_jax.sharding import unflatten
from pokevla_jax.typing import Array
from pokevla_jax.typing import Params

Remat = Literal["none", "dots", "layers", "full"]


@dataclass(frozen=True)
class Variant:
    """Which network of a configuration: the policy ("vla") or its vision-language model, with or without adapters."""

    stage: Literal["vla", "vlm"] = "vla"
    lora: Lora | None = None


POLICY = Variant()


# Stacks up to this deep are unrolled: XLA's CPU backend runs a loop body without fusing across iterations and copies
# the stacked parameters' slices; for a few layers the larger program is the better price.
UNROLL_UP_TO = 4
# Parameters up to this size are cut from one random vector per part: a generator per parameter would compile for ten
# times as long. Larger ones are drawn one by one, each in its own sharding.
DRAW_TOGETHER_UP_TO = 2**22


# What is kept for the backward pass, by the names that ``Linear`` ("linear") and ``attend`` ("attention", with the sums
# that a fused kernel's backward pass needs) give their outputs. Of those only what a gradient reads is stored. "layers"
# keeps attention, the dearest to compute again for its size; plain XLA attention repeats its softmax nevertheless.
SAVED: dict[Remat, tuple[str, ...]] = {"dots": ("linear", "attention"), "layers": ("attention",), "full": ()}


def checkpoint(function: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """``function`` whose backward pass recomputes what ``remat`` says."""
    if remat == "none":
        return function
    policy = jax.checkpoint_policies.save_only_these_names(*SAVED[remat])
    # Inside a scan, XLA cannot undo the recomputation by common-subexpression elimination; no barrier is needed.
    return jax.checkpoint(function, policy=policy, prevent_cse=False)


def stack(make: Callable[[], nnx.Module], num_layers: int) -> Any:
    """One module whose parameters carry a leading axis of ``num_layers``."""
    graphdef, state = nnx.split(make())
    one = nnx.to_pure_dict(state)
    return nnx.merge(graphdef, jax.tree.map(lambda x: jax.ShapeDtypeStruct((num_layers, *x.shape), x.dtype), one))


def scan(
    stacked: nnx.Module,
    x: Any,
    *,
    step: Callable[[Any, Any, Any], Any] = lambda layer, x, _: layer(x),
    per_layer: Any = None,
    remat: Remat = "none",
    collect: bool = False,
) -> tuple[Any, Any]:
    """Applies the layers of ``stack`` in turn; the final carry and, with ``collect``, the carry after each layer.

    Args:
        stacked: what ``stack`` returned.
        x: the carry given to the first layer.
        step: ``step(layer, carry, slice of per_layer) -> carry``.
        per_layer: arrays with a leading layer axis, one slice per layer.
        remat: what the backward pass recomputes.
        collect: whether to stack the carries.
    """

    def step_and_collect(layer: Any, carry: Any, extra: Any) -> tuple[Any, Any]:
        carry = step(layer, carry, extra)
        return carry, carry if collect else None

    return scan_outputs(stacked, x, step=step_and_collect, per_layer=per_layer, remat=remat)


def scan_outputs(
    stacked: nnx.Module,
    x: Any,
    *,
    step: Callable[[Any, Any, Any], tuple[Any, Any]],
    per_layer: Any = None,
    remat: Remat = "none",
) -> tuple[Any, Any]:
    """``scan`` for a ``step`` that returns ``(carry, output)``; the final carry and the outputs, stacked by layer."""
    graphdef, state = nnx.split(stacked)
    params = nnx.to_pure_dict(state)
    num_layers = jax.tree.leaves(params)[0].shape[0]

    def body(carry: Any, xs: tuple[Params, Any]) -> tuple[Any, Any]:
        layer_params, extra = xs
        return step(nnx.merge(graphdef, jax.tree.map(from_bits, layer_params)), carry, extra)

    unroll = num_layers if num_layers <= UNROLL_UP_TO else 1
    return jax.lax.scan(checkpoint(body, remat), x, (params, per_layer), unroll=unroll)


def as_bits(config: ModelConfig, params: Params) -> Params:
    """``params`` for inference on CPUs: what is read in slices and stored in bfloat16 becomes its bits, uint16.

    That is the stacked layers and the token embeddings; ``scan`` and ``Decoder.embed`` read both forms. XLA's CPU
    backend has no slices of bfloat16: at every call it would first convert the whole of them to float32.
    """
    named = flatten(logical_axes(config), is_leaf=lambda x: isinstance(x, tuple))
    sliced = {name for name, names in named.items() if names[0] in ("layers", "vocab")}
    leaves = {
        name: np.asarray(x).view(np.uint16) if name in sliced and x.dtype == jnp.bfloat16 else x
        for name, x in flatten(params).items()
    }
    return unflatten(leaves)


def from_bits(x: Array) -> Array:
    """A slice of what ``as_bits`` returned as bfloat16 again; anything else as it is."""
    return jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x


def layer(stacked: nnx.Module, index: int) -> Any:
    """Layer ``index`` of a stack, as a module of its own."""
    graphdef, params = nnx.split(stacked)
    return nnx.merge(graphdef, jax.tree.map(lambda x: x[index], nnx.to_pure_dict(params)))


@functools.partial(jax.jit, static_argnums=(0, 2))
def initialize(config: ModelConfig, key: Array, variant: Variant = POLICY) -> Params:
    """Fresh float32 parameters of the network that ``config`` describes; traceable, so shardings may be asked of it.

    The parts (vision, language, ...) and the adapters draw from keys of their own: switching one off leaves the others'
    start unchanged.
    """
    inits = _per_variable(config, lambda variable: variable.get_metadata()["init"], variant)
    leaves: dict[str, Array] = {}
    for part, abstract in abstract_params(config, variant).items():
        part_key = jax.random.fold_in(key, zlib.crc32(part.encode()))
        named, stds = flatten({part: abstract}), flatten({part: inits[part]}, is_leaf=lambda x: isinstance(x, Init))
        for adapters in (False, True):
            names = [name for name in named if bool(lora_lib.ADAPTER.search(name)) == adapters]
            own_key = jax.random.fold_in(part_key, zlib.crc32(b"lora")) if adapters else part_key
            drawn = _draw(own_key, [named[name] for name in names], [stds[name] for name in names])
            leaves |= dict(zip(names, drawn, strict=True))
    return unflatten(leaves)


def shapes(module: nnx.Module) -> Params:
    """Shapes and dtypes of the parameters of any module."""
    return nnx.to_pure_dict(nnx.split(module)[1])


def axes(module: nnx.Module) -> Params:
    """Logical axis names of the parameters of any module, as ``logical_axes`` has them."""
    return nnx.to_pure_dict(_map_variables(_axes_of, nnx.split(module)[1]))


def fill(module: nnx.Module, params: Params) -> Any:
    """``module`` with values: its arrays are those of ``params``."""
    return nnx.merge(nnx.graphdef(module), params)


def _draw(key: Array, abstract: list[Any], inits: list[Init]) -> list[Array]:
    """Values for some parameters of one part."""
    pairs = list(zip(abstract, inits, strict=True))
    leaves: list[Array] = []
    small = [x.size for x, init in pairs if init.std and x.size <= DRAW_TOGETHER_UP_TO]
    pool, used = jax.random.normal(key, (sum(small),), jnp.float32), 0
    for i, (x, init) in enumerate(pairs):
        if not init.std:
            values = jnp.zeros(x.shape, x.dtype)
        elif x.size > DRAW_TOGETHER_UP_TO:
            values = jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype)
        else:
            # Whole first: what is cut from a vector and then folded has no cut in common with it.
            values = sharding.constrain(pool[used : used + x.size].reshape(x.shape), *(None,) * len(x.shape))
            used += x.size
        leaves.append(init.mean + init.std * values)
    return leaves


def abstract_params(config: ModelConfig, variant: Variant = POLICY) -> Params:
    """Shapes and dtypes of the parameters, without memory or a mesh."""
    return nnx.to_pure_dict(_abstract(config, variant)[1])


def logical_axes(config: ModelConfig, variant: Variant = POLICY) -> Params:
    """The parameters' tree with a tuple of logical axis names, one per dimension, at each leaf."""
    return _per_variable(config, _axes_of, variant)


def trainable(config: ModelConfig, variant: Variant = POLICY) -> Params:
    """The parameters' tree with False at each leaf that is never trained.

    That is: buffers, SAM's encoder, the VGGT teacher, and what has an adapter beside it.
    """
    tree = _per_variable(config, lambda variable: not isinstance(variable, Buffer), variant)
    if "vggt" in tree:
        tree["vggt"] = jax.tree.map(lambda _: False, tree["vggt"])
    if "image_encoder" in tree.get("segmentation", {}) and config.segmentation.image_encoder == "sam":
        encoder = tree["segmentation"]["image_encoder"]
        tree["segmentation"]["image_encoder"] = jax.tree.map(lambda _: False, encoder)
    leaves = flatten(tree)
    return unflatten(leaves | dict.fromkeys(lora_lib.adapted(set(leaves)), False))


def bind(config: ModelConfig, params: Params, variant: Variant = POLICY) -> Any:
    """The ``PokeVLA`` (or ``PokeVLM``) module of ``config`` over ``params``; cheap, and usable inside ``jax.jit``."""
    return nnx.merge(_abstract(config, variant)[0], params)


def _axes_of(variable: nnx.Variable) -> tuple[str | None, ...]:
    named, ndim = variable.get_metadata()["axes"], len(variable.get_value().shape)
    return ("layers",) * (ndim - len(named)) + named


def _map_variables(function: Callable[[nnx.Variable], Any], state: Any) -> Any:
    return jax.tree.map(function, state, is_leaf=lambda x: isinstance(x, nnx.Variable))


def _per_variable(config: ModelConfig, function: Callable[[nnx.Variable], Any], variant: Variant) -> Params:
    return nnx.to_pure_dict(_map_variables(function, _abstract(config, variant)[1]))


@functools.lru_cache(maxsize=32)
def _abstract(config: ModelConfig, variant: Variant) -> tuple[Any, Any]:
    # The model's parts import this file.
    from pokevla_jax.models.pokevla import PokeVLA
    from pokevla_jax.models.pokevlm import PokeVLM

    module = PokeVLA(config) if variant.stage == "vla" else PokeVLM(config)
    if variant.lora is not None:
        lora_lib.adapt(module, variant.lora)
    return nnx.split(module)
