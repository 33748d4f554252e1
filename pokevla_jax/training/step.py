"""One optimizer step, and one held-out measurement, as compiled functions.

``make_train_step`` and ``make_eval_step`` place and compile; ``_train_step`` is the mathematics.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from pokevla_jax import sharding
from pokevla_jax.config import Config
from pokevla_jax.training import guard
from pokevla_jax.training.objective import Objective
from pokevla_jax.training.objective import Scalars
from pokevla_jax.training.optimizer import learning_rate_schedule
from pokevla_jax.training.optimizer import merge
from pokevla_jax.training.state import TrainState
from pokevla_jax.typing import Batch

# Left alone, XLA for TPU cuts the products with gathered weights, and those that make their gradients, into loops that
# pass the pieces around. Whole layers at once move the same bytes with a fraction of the instructions.
TPU_OPTIONS: dict[str, str | bool] = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


def compiler_options(mesh: Mesh) -> dict[str, str | bool]:
    """Options of XLA for the train step, by the kind of device."""
    return dict(TPU_OPTIONS) if mesh.devices.flat[0].platform == "tpu" else {}


def abstract_batch(spec: Mapping[str, Any], mesh: Mesh) -> Batch:
    """The batch of ``data.schema.batch_spec`` as ``ShapeDtypeStruct``s with their shardings."""
    placed = sharding.batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=placed) for name, array in spec.items()}


def make_train_step(
    objective: Objective,
    config: Config,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    abstract_state: TrainState,
    abstract_batch: Batch,
) -> Callable[[TrainState, Batch], tuple[TrainState, Scalars]]:
    """The compiled ``(state, batch) -> (state, scalars)``; the old state's memory is reused for the new one.

    Compiled ahead of time: a batch of another shape raises instead of compiling again.
    """
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Scalars]:
        return _train_step(state, batch, objective, config, optimizer, mesh, shardings.trained)

    jitted = jax.jit(train_step, out_shardings=(shardings, sharding.replicated(mesh)), donate_argnums=0)
    with jax.set_mesh(mesh):
        return jitted.lower(abstract_state, abstract_batch).compile(compiler_options=compiler_options(mesh))


def make_eval_step(
    objective: Objective, mesh: Mesh, abstract_state: TrainState, abstract_batch: Batch
) -> Callable[[TrainState, Batch], dict[str, Any]]:
    """The compiled ``(state, batch) -> {measure: (sum, count)}`` of the parameters that would be published."""

    def eval_step(state: TrainState, batch: Batch) -> dict[str, Any]:
        return objective.measure(state.inference_params, batch)

    jitted = jax.jit(eval_step, out_shardings=sharding.replicated(mesh))
    with jax.set_mesh(mesh):
        return jitted.lower(abstract_state, abstract_batch).compile()


def _train_step(
    state: TrainState,
    batch: Batch,
    objective: Objective,
    config: Config,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    placed: Any,
) -> tuple[TrainState, Scalars]:
    """Gradient of the global batch, update, moving average. All randomness comes from (seed, step)."""
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    counts = objective.count(batch)

    def loss(trained, micro_batch, key):
        return objective.loss(merge(trained, state.frozen), micro_batch, key, counts)

    def value_and_grad(trained, micro_batch, key):
        result, grads = jax.value_and_grad(loss, has_aux=True)(trained, micro_batch, key)
        # Placed like the parameters from the start: summed over devices, a gradient need not be whole anywhere.
        return result, jax.lax.with_sharding_constraint(grads, placed)

    if config.optimizer.accumulation_steps == 1:
        (total, parts), grads = value_and_grad(state.trained, batch, key)
    else:
        (total, parts), grads = _accumulate(value_and_grad, state.trained, batch, key, config, mesh, placed)

    with jax.named_scope("optimizer"):
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trained)
        trained = optax.apply_updates(state.trained, updates)
    ema = state.ema
    if ema is not None:
        decay = config.optimizer.ema_decay
        ema = jax.tree.map(lambda average, new: decay * average + (1.0 - decay) * new, ema, trained)
    grad_norm = optax.tree.norm(grads)
    bad, monitor = guard.judge(state.monitor, total, grad_norm, config.optimizer)
    if config.optimizer.on_bad_step == "skip":
        old = (state.trained, state.opt_state, state.ema)
        trained, opt_state, ema = guard.keep_if(bad, old, (trained, opt_state, ema))
    scalars = {
        "loss": total,
        **{f"loss/{name}": value for name, value in parts.items()},
        "grad_norm": grad_norm,
        "learning_rate": learning_rate_schedule(config.optimizer, config.num_steps)(state.step),
        guard.BAD: monitor.bad_in_a_row,
    }
    new = TrainState(
        step=state.step + 1, trained=trained, frozen=state.frozen, opt_state=opt_state, ema=ema, monitor=monitor
    )
    return new, scalars


def _accumulate(value_and_grad, trained, batch, key, config: Config, mesh: Mesh, placed: Any):
    """Totals, parts and gradients summed over micro-batches, one at a time in memory.

    Every loss term is already divided by the global batch's count, so sums over micro-batches are the global means.
    """
    steps = config.optimizer.accumulation_steps
    rows = jax.sharding.PartitionSpec(None, sharding.BATCH_AXES)

    def cut(x):
        # Strided rows: each device's rows are dealt out evenly, so no row leaves its device.
        x = x.reshape(x.shape[0] // steps, steps, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(x, jax.sharding.NamedSharding(mesh, rows))

    def one(carry, inputs):
        micro_batch, index = inputs
        result = value_and_grad(trained, micro_batch, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, carry, result), None

    micro_batches = jax.tree.map(cut, batch)
    first = jax.tree.map(lambda x: x[0], micro_batches)
    shapes = jax.eval_shape(value_and_grad, trained, first, key)
    scalars, grads = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    zeros = (scalars, jax.lax.with_sharding_constraint(grads, placed))
    return jax.lax.scan(one, zeros, (micro_batches, jnp.arange(steps)))[0]
