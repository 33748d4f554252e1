"""The train state: a plain pytree of what one step reads and writes."""

import re
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from pokevla_jax import sharding
from pokevla_jax.config import OptimizerConfig
from pokevla_jax.training.guard import Monitor
from pokevla_jax.training.objective import Objective
from pokevla_jax.training.optimizer import frozen_names
from pokevla_jax.training.optimizer import merge
from pokevla_jax.training.optimizer import split
from pokevla_jax.typing import Array
from pokevla_jax.typing import Int
from pokevla_jax.typing import Params

# The frozen parameters that are kept in ``frozen_dtype``: what matrix products and lookups read.
MATRICES = re.compile(r"(^|/)(kernel|embed_tokens)$")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes, and the frozen parameters it needs beside it."""

    step: Int[Array, ""]
    trained: Params  # float32
    frozen: Params
    opt_state: optax.OptState  # of ``trained`` alone
    ema: Params | None  # moving average of ``trained``; None costs nothing
    monitor: Monitor  # of the last steps' losses

    @property
    def params(self) -> Params:
        """The network's parameters as they are being trained."""
        return merge(self.trained, self.frozen)

    @property
    def inference_params(self) -> Params:
        """The parameters to evaluate and to publish: the moving average where there is one."""
        return self.params if self.ema is None else merge(self.ema, self.frozen)


class StateFactory:
    """Makes train states of one objective on one mesh, and knows their shapes and shardings without making one."""

    def __init__(
        self, objective: Objective, config: OptimizerConfig, optimizer: optax.GradientTransformation, mesh: Mesh
    ):
        self._objective = objective
        self._config = config
        self._optimizer, self._mesh = optimizer, mesh
        self._frozen = frozen_names(objective.trainable, config.freeze)
        self.param_shardings = sharding.param_shardings(objective.abstract_params, objective.logical_axes, mesh)
        shapes = jax.eval_shape(self._create, objective.abstract_params)
        self.shardings: TrainState = sharding.follow(shapes, self.param_shardings, mesh)
        # The state as ``ShapeDtypeStruct``s with shardings: what init, restore and the step agree on.
        self.abstract: TrainState = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, self.shardings
        )

    def initialize(self, seed: int) -> TrainState:
        """The state before the first step, a pure function of ``seed`` whatever the mesh."""
        create = jax.jit(lambda key: self._create(self._objective.initialize(key)), out_shardings=self.shardings)
        with jax.set_mesh(self._mesh):
            return create(jax.random.key(seed))

    def from_params(self, params: Params) -> TrainState:
        """The state before the first step, with given parameters (float32 as they are trained)."""
        create = jax.jit(self._create, out_shardings=self.shardings)
        return create(jax.device_put(params, self.param_shardings))

    def _create(self, params: Params) -> TrainState:
        trained, frozen = split(params, self._frozen)
        frozen = as_kept(frozen, self._config.frozen_dtype)
        # A copy, because the step donates both trees and a buffer can be given away once.
        ema = jax.tree.map(jnp.copy, trained) if self._config.ema_decay else None
        opt_state = self._optimizer.init(trained)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            trained=trained,
            frozen=frozen,
            opt_state=opt_state,
            ema=ema,
            monitor=Monitor.initial(),
        )


def as_kept(frozen: Params, dtype: str) -> Params:
    """Frozen parameters as they are kept: matrices in ``dtype``."""

    def keep(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        # Norms, biases and buffers weigh nothing, and rounding them would cost accuracy for it.
        return x.astype(dtype) if MATRICES.search(sharding.path_name(path)) else x

    return jax.tree_util.tree_map_with_path(keep, frozen)


def num_bytes(tree: Any) -> int:
    """Bytes of all arrays of ``tree`` together, each counted once however it is sharded."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
