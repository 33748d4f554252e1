"""Stage 1 as an ``Objective``: the vision-language model's next-token loss on the answers of packed conversations."""

import jax.numpy as jnp

from pokevla_jax.config import Config
from pokevla_jax.config import ConfigError
from pokevla_jax.models import lora
from pokevla_jax.models import stacking
from pokevla_jax.training.objective import Objective
from pokevla_jax.training.objective import Scalars
from pokevla_jax.training.objective import TrainData
from pokevla_jax.training.token_loss import Sums
from pokevla_jax.training.token_loss import token_loss
from pokevla_jax.typing import Array
from pokevla_jax.typing import Batch
from pokevla_jax.typing import Float
from pokevla_jax.typing import Params


def make_objective(config: Config) -> Objective:
    """The training problem of ``config.model``'s vision-language model; batches as ``schema.stage1_batch_spec``."""
    model = config.model
    variant = stacking.Variant("vlm", lora.from_config(config.optimizer))

    def sums(params: Params, batch: Batch, z_loss: float) -> Sums:
        states = stacking.bind(model, params, variant)(batch)
        table = params["language"]["embed_tokens"]
        return token_loss(states, table, batch["targets"], batch["loss_mask"], model.logits_chunk, z_loss)

    def count(batch: Batch) -> Scalars:
        return {"tokens": jnp.maximum(_count(batch), 1.0)}

    def loss(params: Params, batch: Batch, key: Array, counts: Scalars) -> tuple[Float[Array, ""], Scalars]:
        del key  # nothing in the network is random
        total, entropy = sums(params, batch, config.optimizer.z_loss)
        return total / counts["tokens"], {"tokens": entropy / counts["tokens"]}

    def measure(params: Params, batch: Batch) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
        return {"token_loss": (sums(params, batch, 0.0)[1], _count(batch))}

    return Objective(
        initialize=lambda key: stacking.initialize(model, key, variant),
        abstract_params=stacking.abstract_params(model, variant),
        logical_axes=stacking.logical_axes(model, variant),
        trainable=stacking.trainable(model, variant),
        count=count,
        loss=loss,
        measure=measure,
        criterion="token_loss",
    )


def make_data(config: Config) -> TrainData:
    """Packed batches of ``config.data``.

    Raises:
        ConfigError: always: the corpora of stage 1 have no reader yet.
    """
    raise ConfigError(
        "config.stage 'vlm' cannot read conversations yet: no reader of corpora and no packing is built; "
        "its train step exists and can be planned and tested on synthetic batches"
    )


def _count(batch: Batch) -> Float[Array, ""]:
    return jnp.sum(batch["loss_mask"]).astype(jnp.float32)
