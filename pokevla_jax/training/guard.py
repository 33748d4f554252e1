"""Bad steps: a loss or gradient that is not finite, or far above its recent past; judged on the device.

Mean and variance of loss and gradient norm are kept over the last ``spike_window`` good steps, as exponential averages.
With ``on_bad_step`` "stop" the loop raises before anything bad is saved; with "skip" the step leaves parameters,
optimizer state and averages as they were, and only the count of steps goes on.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from pokevla_jax.config import OptimizerConfig
from pokevla_jax.typing import Array
from pokevla_jax.typing import Bool
from pokevla_jax.typing import Float
from pokevla_jax.typing import Int

BAD = "bad_in_a_row"
"""Scalar of a step: how many bad steps in a row end with it; 0 for a good one."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Monitor:
    """What is remembered of the good steps, and how many bad ones came since the last of them."""

    count: Int[Array, ""]
    mean: Float[Array, "2"]  # loss, gradient norm
    variance: Float[Array, "2"]
    bad_in_a_row: Int[Array, ""]

    @staticmethod
    def initial() -> "Monitor":
        """Before the first step."""
        return Monitor(jnp.zeros((), jnp.int32), jnp.zeros(2), jnp.zeros(2), jnp.zeros((), jnp.int32))


def judge(
    monitor: Monitor, loss: Float[Array, ""], grad_norm: Float[Array, ""], config: OptimizerConfig
) -> tuple[Bool[Array, ""], Monitor]:
    """Whether this step is bad, and the memory after it."""
    values = jnp.stack([loss, grad_norm]).astype(jnp.float32)
    bad = ~jnp.isfinite(values).all()
    if config.spike_sigmas:
        limit = monitor.mean + config.spike_sigmas * jnp.sqrt(monitor.variance)
        # A young average would call anything a spike.
        bad |= (monitor.count >= config.spike_window) & (values > limit).any()
    share = 1.0 / jnp.minimum(monitor.count + 1, config.spike_window).astype(jnp.float32)
    change = values - monitor.mean
    good = Monitor(
        count=monitor.count + 1,
        mean=monitor.mean + share * change,
        variance=(1.0 - share) * (monitor.variance + share * change**2),
        bad_in_a_row=jnp.zeros((), jnp.int32),
    )
    worse = Monitor(monitor.count, monitor.mean, monitor.variance, monitor.bad_in_a_row + 1)
    return bad, keep_if(bad, worse, good)


def keep_if(condition: Bool[Array, ""], old: Any, new: Any) -> Any:
    """``old`` where the condition holds, else ``new``, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), old, new)
