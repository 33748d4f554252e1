"""Stage 2 as an ``Objective``: PokeVLA's action, segmentation and geometry losses, and its held-out measures."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp

from pokevla_jax import sharding
from pokevla_jax.config import Config
from pokevla_jax.config import ConfigError
from pokevla_jax.data import features
from pokevla_jax.data import normalize
from pokevla_jax.data import pipeline
from pokevla_jax.data import records
from pokevla_jax.data import tokenize
from pokevla_jax.data.schema import batch_spec
from pokevla_jax.models import lora
from pokevla_jax.models import stacking
from pokevla_jax.training.losses import compute_losses
from pokevla_jax.training.losses import count_valid
from pokevla_jax.training.losses import has_target
from pokevla_jax.training.objective import Objective
from pokevla_jax.training.objective import Scalars
from pokevla_jax.training.objective import TrainData
from pokevla_jax.typing import Array
from pokevla_jax.typing import Batch
from pokevla_jax.typing import Float
from pokevla_jax.typing import Params


def make_objective(config: Config) -> Objective:
    """The training problem of the network that ``config.model`` describes."""
    model = config.model
    variant = stacking.Variant("vla", lora.from_config(config.optimizer))

    def loss(params: Params, batch: Batch, key: Array, counts: Scalars) -> tuple[Float[Array, ""], Scalars]:
        outputs = stacking.bind(model, params, variant)(batch, train=True, key=key)
        return compute_losses(outputs, batch, model, counts)

    def measure(params: Params, batch: Batch) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
        outputs = stacking.bind(model, params, variant)(batch, train=True)
        counts = count_valid(batch, model)
        _, parts = compute_losses(outputs, batch, model, counts)
        # The action error is L1 on normalised actions: the mean over dimensions that differ in unit.
        measures = {"action_error": _mean(parts["action"], _count(batch["action_mask"]) * model.action_dim)}
        if model.segmentation.weight:
            measures["mask_iou"] = mask_iou(outputs.mask_logits, batch["masks"], batch["mask_valid"])
        if model.keypoint.weight:
            measures["loss/keypoint"] = _mean(parts["keypoint"], _count(batch["keypoints_valid"]) * 3)
        return measures

    return Objective(
        initialize=lambda key: stacking.initialize(model, key, variant),
        abstract_params=stacking.abstract_params(model, variant),
        logical_axes=stacking.logical_axes(model, variant),
        trainable=stacking.trainable(model, variant),
        count=lambda batch: count_valid(batch, model),
        loss=loss,
        measure=measure,
    )


def mask_iou(logits: Float[Array, "b v h w"], masks: Array, valid: Array) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum and number of the intersection over union of (logits > 0) and the label, over views that show the target."""
    predicted, target = logits > 0, masks > 0
    intersection = jnp.sum(predicted & target, axis=(-2, -1))
    union = jnp.sum(predicted | target, axis=(-2, -1))
    shown = has_target(masks, valid)
    return jnp.sum(jnp.where(shown, intersection / jnp.maximum(union, 1), 0.0)), _count(shown)


def make_data(config: Config) -> TrainData:
    """Batches, held-out batches and assets of ``config.data``; this host's rows only.

    Raises:
        ConfigError: when no dataset is named, or images are augmented whose features are precomputed.
        DataError: when the dataset is missing, damaged or does not fit the configuration.
    """
    if not config.data.path:
        raise ConfigError("config.data.path is empty; give the folder of recorded episodes with --config.data.path=DIR")
    dataset = records.open_dataset(config.data.path)
    stores = features.open_stores(config, dataset)
    statistics = normalize.compute_statistics(dataset)
    corpus = sorted({info.instruction for info in dataset.episodes})
    tokenizer = tokenize.load_tokenizer(config.data.tokenizer, corpus, prompt_template=config.data.prompt_template)
    place: dict[str, Any] = dict(
        zip(("process_index", "process_count"), sharding.loader_place(sharding.make_mesh(config.mesh)), strict=True)
    )

    def iterate(start_step: int) -> pipeline.TrainIterator:
        return pipeline.train_iterator(config, dataset, statistics, tokenizer, stores, start_step=start_step, **place)

    def holdout() -> Iterator[Batch]:
        limit = config.eval_batches or None
        return pipeline.holdout_batches(config, dataset, statistics, tokenizer, stores, max_batches=limit, **place)

    return TrainData(
        spec=batch_spec(config, config.batch_size),
        iterate=iterate,
        holdout=holdout,
        assets={
            "statistics": statistics.to_json(),
            "tokenizer": tokenizer.to_json(),
            "dataset": str(config.data.path),
            "pictures": pictures(dataset),
            **({"features": {store.name: store.made_by for store in stores}} if stores else {}),
        },
        description="; ".join(
            [
                f"{len(dataset.episodes)} episodes, {len(corpus)} instructions from {config.data.path}",
                *(f"{store.name} of a teacher with weights {store.made_by['weights']}" for store in stores),
            ]
        ),
    )


def pictures(dataset: records.EpisodeDataset) -> list[dict[str, Any]]:
    """How the simulator drew the dataset's images, once per way; empty for data from elsewhere."""
    keys = ("assets", "assets_sha256", "renderer")
    protocols = [settings["protocol"] for settings in dataset.manifest["settings"] if "protocol" in settings]
    found = [{key: protocol[key] for key in keys} for protocol in protocols]
    return [entry for i, entry in enumerate(found) if entry not in found[:i]]


def _count(mask: Array) -> Float[Array, ""]:
    return jnp.sum(mask).astype(jnp.float32)


def _mean(mean: Float[Array, ""], count: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """A mean over ``count`` entries as (sum, count)."""
    return mean * count, count
