"""Stacked layers, and the bridge between NNX modules and a plain tree of parameters.

The only place that touches NNX beyond module definitions. Modules are written for one layer; ``stack`` initialises
many of them on a leading axis and ``scan`` applies them in turn, so a 24-layer network compiles as one layer.
Outside this file parameters are a plain nested dict of float32 arrays, such as
``params["vision"]["dinov2"]["blocks"]["attention"]["qkv"]["kernel"]``.
"""

from collections.abc import Callable
import functools
from typing import Any
from typing import Literal

from flax import nnx
import jax

from pokevla_jax.config import ModelConfig
from pokevla_jax.models.layers import Buffer
from pokevla_jax.typing import Array
from pokevla_jax.typing import Params

Remat = Literal["none", "dots", "layers", "full"]

# Stacks up to this deep are unrolled: XLA's CPU backend runs a loop body without fusing across iterations and copies
# the stacked parameters' slices; for a few layers the larger program is the better price.
UNROLL_UP_TO = 4


def checkpoint(function: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """``function`` whose backward pass recomputes what ``remat`` says."""
    if remat == "none":
        return function
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    # Inside a scan, XLA cannot undo the recomputation by common-subexpression elimination; no barrier is needed.
    return jax.checkpoint(function, policy=policy, prevent_cse=False)


def stack(make: Callable[[nnx.Rngs], nnx.Module], num_layers: int, rngs: nnx.Rngs) -> Any:
    """One module whose parameters carry a leading axis of ``num_layers``, each slice initialised by its own key."""
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    params = jax.vmap(lambda key: _params(make(nnx.Rngs(key))))(jax.random.split(rngs.params(), num_layers))
    return nnx.merge(graphdef, params)


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
    graphdef, params = nnx.split(stacked)
    params = nnx.to_pure_dict(params)
    num_layers = jax.tree.leaves(params)[0].shape[0]

    def body(carry: Any, xs: tuple[Params, Any]) -> tuple[Any, Any]:
        layer_params, extra = xs
        carry = step(nnx.merge(graphdef, layer_params), carry, extra)
        return carry, carry if collect else None

    unroll = num_layers if num_layers <= UNROLL_UP_TO else 1
    return jax.lax.scan(checkpoint(body, remat), x, (params, per_layer), unroll=unroll)


def layer(stacked: nnx.Module, index: int) -> Any:
    """Layer ``index`` of a stack, as a module of its own."""
    graphdef, params = nnx.split(stacked)
    return nnx.merge(graphdef, jax.tree.map(lambda x: x[index], nnx.to_pure_dict(params)))


def initialize(config: ModelConfig, key: Array) -> Params:
    """Fresh float32 parameters of the network that ``config`` describes."""
    return jax.jit(lambda k: _params(_make(config, nnx.Rngs(k))))(key)


def abstract_params(config: ModelConfig) -> Params:
    """Shapes and dtypes of the parameters, without memory or a mesh."""
    return nnx.to_pure_dict(_abstract(config)[1])


def logical_axes(config: ModelConfig) -> Params:
    """The parameters' tree with a tuple of logical axis names, one per dimension, at each leaf."""

    def names(variable: nnx.Variable) -> tuple[str | None, ...]:
        axes, ndim = variable.get_metadata()["axes"], len(variable.get_value().shape)
        return ("layers",) * (ndim - len(axes)) + axes

    return _per_variable(config, names)


def trainable(config: ModelConfig) -> Params:
    """The parameters' tree with False at each leaf that is never trained (buffers, the frozen SAM encoder)."""
    tree = _per_variable(config, lambda variable: not isinstance(variable, Buffer))
    if config.segmentation.weight and config.segmentation.image_encoder == "sam":
        encoder = tree["segmentation"]["image_encoder"]
        tree["segmentation"]["image_encoder"] = jax.tree.map(lambda _: False, encoder)
    return tree


def bind(config: ModelConfig, params: Params) -> Any:
    """The ``PokeVLA`` module of ``config`` over ``params``; cheap, and usable inside ``jax.jit``."""
    return nnx.merge(_abstract(config)[0], params)


def _per_variable(config: ModelConfig, function: Callable[[nnx.Variable], Any]) -> Params:
    is_variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    return nnx.to_pure_dict(jax.tree.map(function, _abstract(config)[1], is_leaf=is_variable))


def _params(module: nnx.Module) -> Params:
    return nnx.to_pure_dict(nnx.state(module))


def _make(config: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
    from pokevla_jax.models.pokevla import PokeVLA  # The model's parts import this file.

    return PokeVLA(config, rngs)


@functools.lru_cache(maxsize=16)
def _abstract(config: ModelConfig) -> tuple[Any, Any]:
    return nnx.split(nnx.eval_shape(lambda: _make(config, nnx.Rngs(0))))
