"""The train state: a plain pytree of what one step reads and writes."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from pokevla_jax import sharding
from pokevla_jax.config import OptimizerConfig
from pokevla_jax.training.objective import Objective
from pokevla_jax.training.optimizer import merge
from pokevla_jax.training.optimizer import split_frozen
from pokevla_jax.typing import Array
from pokevla_jax.typing import Int
from pokevla_jax.typing import Params


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes, and the frozen parameters it needs beside it."""

    step: Int[Array, ""]
    trained: Params  # float32
    frozen: Params
    opt_state: optax.OptState  # of ``trained`` alone
    ema: Params | None  # moving average of ``trained``; None costs nothing

    @property
    def params(self) -> Params:
        """The network's parameters as they are being trained."""
        return merge(self.trained, self.frozen)

    @property
    def inference_params(self) -> Params:
        """The parameters to evaluate and to publish: the moving average where there is one."""
        return self.params if self.ema is None else merge(self.ema, self.frozen)


def create_state(params: Params, config: OptimizerConfig, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; called inside ``jax.jit``, so that every array is born sharded."""
    trained, frozen = split_frozen(params, config.freeze)
    frozen = jax.tree.map(lambda x: x.astype(config.frozen_dtype), frozen)
    # A copy, because the step donates both trees and a buffer can be given away once.
    ema = jax.tree.map(jnp.copy, trained) if config.ema_decay else None
    return TrainState(
        step=jnp.zeros((), jnp.int32), trained=trained, frozen=frozen, opt_state=optimizer.init(trained), ema=ema
    )


def abstract_state(
    objective: Objective, config: OptimizerConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The state as ``ShapeDtypeStruct``s with their shardings: what init, restore and the step agree on."""
    placed = sharding.param_shardings(objective.abstract_params, objective.logical_axes, mesh)
    shapes = jax.eval_shape(lambda params: create_state(params, config, optimizer), objective.abstract_params)
    shardings = sharding.follow(shapes, placed, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def initialize(
    objective: Objective, config: OptimizerConfig, optimizer: optax.GradientTransformation, abstract: TrainState, seed: int
) -> TrainState:
    """A fresh state, a pure function of ``seed`` whatever the mesh."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    init = jax.jit(lambda key: create_state(objective.initialize(key), config, optimizer), out_shardings=shardings)
    return init(jax.random.key(seed))


def memory(tree: Any) -> int:
    """Bytes of all arrays of ``tree`` together."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
