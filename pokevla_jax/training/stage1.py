"""Stage 1 as an ``Objective``: the vision-language model's next-token loss on the answers of packed conversations."""

from collections.abc import Iterator

import jax.numpy as jnp

from pokevla_jax import sharding
from pokevla_jax.config import Config
from pokevla_jax.config import ConfigError
from pokevla_jax.data import packing
from pokevla_jax.data import tokenize
from pokevla_jax.data.corpus import Corpus
from pokevla_jax.data.corpus import open_corpus
from pokevla_jax.data.iterator import TrainIterator
from pokevla_jax.data.schema import batch_spec
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
    """Packed batches, held-out ones and assets of ``config.data``; this host's rows only.

    Raises:
        ConfigError: when no corpus is named.
        DataError: when the corpus is missing, damaged or does not fit the configuration.
    """
    if not config.data.path:
        raise ConfigError(
            "config.data.path is empty; give the folder of an ingested corpus with --config.data.path=DIR"
        )
    corpus = open_corpus(config.data.path)
    tokenizer = _tokenizer(config, corpus)
    index, count = sharding.loader_place(sharding.make_mesh(config.mesh))

    def iterate(start_step: int) -> TrainIterator:
        return packing.packed_iterator(
            config, corpus, tokenizer, process_index=index, process_count=count, start_step=start_step
        )

    def holdout() -> Iterator[Batch]:
        limit = config.eval_batches or None
        return packing.packed_holdout(
            config, corpus, tokenizer, process_index=index, process_count=count, max_batches=limit
        )

    return TrainData(
        spec=batch_spec(config, config.batch_size),
        iterate=iterate,
        holdout=holdout,
        assets={"tokenizer": tokenizer.to_json(), "dataset": str(config.data.path)},
        description=(
            f"{packing.describe(config, corpus, tokenizer)}, of {', '.join(corpus.sources)} from {config.data.path}"
        ),
    )


def _tokenizer(config: Config, corpus: Corpus) -> tokenize.Tokenizer:
    template = config.data.prompt_template
    if config.data.tokenizer != "compact":
        return tokenize.load_tokenizer(config.data.tokenizer, prompt_template=template)
    turns = (turn for i in range(len(corpus)) for turn in corpus[i].turns)
    return tokenize.CompactTokenizer.from_conversations(turns, template)


def _count(batch: Batch) -> Float[Array, ""]:
    return jnp.sum(batch["loss_mask"]).astype(jnp.float32)
