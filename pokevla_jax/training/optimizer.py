"""AdamW with warm-up and cosine decay, built over the trained part of the parameters alone."""

import re
from collections.abc import Sequence
from collections.abc import Set
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pokevla_jax.config import ConfigError
from pokevla_jax.config import OptimizerConfig
from pokevla_jax.models.lora import ADAPTER
from pokevla_jax.sharding import flatten
from pokevla_jax.sharding import path_name
from pokevla_jax.sharding import unflatten
from pokevla_jax.typing import Params

# Matrices are decayed; biases, norm scales, gates, embeddings and learned tokens are not. Told by name and not by rank,
# because layers are stacked and a stacked bias has the rank of a matrix.
DECAYED = re.compile(r"(^|/)(kernel|lora_[ab])$")


def learning_rate_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Step -> learning rate: linear up to the peak during ``warmup_steps``, then a cosine to the final fraction.

    The first update already has 1/warmup_steps of the peak: a rate of zero would waste it.
    """

    def schedule(step: Any) -> Any:
        step = jnp.asarray(step, jnp.float32)
        warmup = jnp.minimum(1.0, (step + 1.0) / max(config.warmup_steps, 1))
        progress = jnp.clip((step - config.warmup_steps) / max(num_steps - config.warmup_steps, 1), 0.0, 1.0)
        cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        floor = config.final_learning_rate_fraction
        return config.learning_rate * warmup * (floor + (1.0 - floor) * cosine)

    return schedule


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW with decoupled weight decay on matrices."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.adamw(
            learning_rate_schedule(config, num_steps),
            b1=config.b1,
            b2=config.b2,
            mu_dtype=config.moment_dtype,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        ),
    )


def decay_mask(params: Params) -> Any:
    """The parameters' tree with True where weight decay applies."""
    return jax.tree_util.tree_map_with_path(lambda path, _: bool(DECAYED.search(path_name(path))), params)


def frozen_names(trainable: Any, patterns: Sequence[str]) -> frozenset[str]:
    """Paths of the parameters that stay as they are: not trainable, or wholly matched by a regular expression.

    Adapters are always trained: what they adapt is frozen in their place.

    Raises:
        ConfigError: for a pattern that matches nothing, which is always a typing error.
    """
    names = flatten(trainable)
    for pattern in patterns:
        if not any(re.fullmatch(pattern, name) for name in names):
            tops = ", ".join(sorted({name.split("/")[0] for name in names}))
            raise ConfigError(f"config.optimizer.freeze {pattern!r} matches no parameter; paths begin with: {tops}")
    matched = {name for name in names if any(re.fullmatch(pattern, name) for pattern in patterns)}
    matched -= {name for name in matched if ADAPTER.search(name)}
    return frozenset(matched | {name for name, trained in names.items() if not trained})


def split(params: Params, frozen: Set[str]) -> tuple[Params, Params]:
    """``(trained, frozen)``: two nested dicts without each other's leaves; ``merge`` is the inverse."""
    leaves = flatten(params)
    trained = {name: leaf for name, leaf in leaves.items() if name not in frozen}
    return unflatten(trained), unflatten({name: leaf for name, leaf in leaves.items() if name in frozen})


def merge(trained: Params, frozen: Params) -> Params:
    """One nested dict with the leaves of both."""
    return unflatten({**flatten(trained), **flatten(frozen)})
