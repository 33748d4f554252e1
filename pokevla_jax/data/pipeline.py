"""Stage-2 batches from robot episodes, for training and for held-out evaluation.

Sample number g of a run (batch_size samples per step) is a row of the dataset's table, in the order of ``mixture``;
its augmentation is seeded by (seed, epoch, row).
"""

import functools
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Literal

import numpy as np

from pokevla_jax.config import Config
from pokevla_jax.data import hashing
from pokevla_jax.data.codec import DataError
from pokevla_jax.data.conventions import noop_steps
from pokevla_jax.data.features import FeatureStore
from pokevla_jax.data.iterator import TrainIterator
from pokevla_jax.data.iterator import check_batch
from pokevla_jax.data.iterator import local_rows
from pokevla_jax.data.iterator import spread
from pokevla_jax.data.mixture import Order
from pokevla_jax.data.mixture import Part
from pokevla_jax.data.mixture import digest
from pokevla_jax.data.mixture import weighted_parts
from pokevla_jax.data.normalize import Statistics
from pokevla_jax.data.records import EpisodeDataset
from pokevla_jax.data.schema import batch_spec
from pokevla_jax.data.tokenize import Tokenizer
from pokevla_jax.data.transforms import Sample
from pokevla_jax.data.transforms import training_sample
from pokevla_jax.typing import Bool
from pokevla_jax.typing import Int

Split = Literal["train", "holdout"]

_VALIDITY = ("action_mask", "mask_valid", "points_valid", "keypoints_valid")


def train_iterator(
    config: Config,
    dataset: EpisodeDataset,
    statistics: Statistics,
    tokenizer: Tokenizer,
    features: Sequence[FeatureStore] = (),
    *,
    process_index: int = 0,
    process_count: int = 1,
    start_step: int = 0,
) -> TrainIterator:
    """Training batches of this process; see ``TrainIterator``.

    Args:
        config: of the run.
        dataset: the episodes.
        statistics: of the dataset.
        tokenizer: of the run.
        features: of frozen teachers, those that the configuration has precomputed.
        process_index: of this process.
        process_count: of the run.
        start_step: first step.

    Raises:
        DataError: when dataset, tokenizer and configuration do not fit together, saying what to change.
    """
    _check_fit(config, dataset, tokenizer)
    parts = sample_parts(config, dataset)
    num_samples = sum(part.count for part in parts)
    if not num_samples:
        raise DataError(
            f"{dataset.directory} holds no training sample: no rendered step with a valid action outside the "
            "held-out episodes; record more episodes, or lower config.data.holdout_fraction or raise source_weights"
        )
    return TrainIterator(
        config,
        functools.partial(Order, parts),
        _BatchBuilder(config, dataset, statistics, tokenizer, features),
        mixture=digest(parts, config.data),
        num_samples=num_samples,
        features=" ".join(store.identity for store in features),
        process_index=process_index,
        process_count=process_count,
        start_step=start_step,
    )


def sample_parts(config: Config, dataset: EpisodeDataset) -> list[Part]:
    """The training rows of each suite, weighted by ``config.data.source_weights``."""
    rows = sample_rows(config, dataset, "train")
    suites = [info.suite for info in dataset.episodes]
    names = sorted(set(suites))
    groups = np.array([names.index(suite) for suite in suites])[dataset.episode[rows]]
    if config.data.pillar_weights:
        raise DataError("config.data.pillar_weights weighs stage 1's pillars; episodes have suites: use source_weights")
    return weighted_parts(names, groups, rows, config.data.source_weights)


def holdout_batches(
    config: Config,
    dataset: EpisodeDataset,
    statistics: Statistics,
    tokenizer: Tokenizer,
    features: Sequence[FeatureStore] = (),
    *,
    process_index: int = 0,
    process_count: int = 1,
    max_batches: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields this process's rows of batches over the held-out episodes, each sample once, without augmentation.

    ``max_batches`` takes samples evenly spread over all of them. The last batch is filled up with repetitions of which
    no label is valid. Yields nothing where nothing is held out.
    """
    _check_fit(config, dataset, tokenizer)
    rows = sample_rows(config, dataset, "holdout")
    rows = rows[spread(len(rows), config.batch_size, max_batches)]
    local = local_rows(config, process_index, process_count)
    build = _BatchBuilder(config, dataset, statistics, tokenizer, features)
    for start in range(0, len(rows), config.batch_size):
        places = start + np.arange(local.start, local.stop)
        samples = [build.sample(int(rows[min(int(place), len(rows) - 1)]), None) for place in places]
        for place, sample in zip(places, samples, strict=True):
            if place >= len(rows):
                sample |= {key: np.zeros_like(sample[key]) for key in _VALIDITY if key in sample}
        yield _stack(config, samples)


def sample_rows(config: Config, dataset: EpisodeDataset, split: Split) -> Int[np.ndarray, " n"]:
    """The rows of the dataset's table that are samples of a split: rendered, and with at least one valid label."""
    lengths = np.diff(dataset.starts)
    usable = (dataset.record >= 0) & (dataset.chunk_end > dataset.step)
    if config.data.drop_tail:
        usable &= dataset.step + config.model.action_horizon <= lengths[dataset.episode]
    if config.data.drop_noops:
        usable &= ~noop_steps(
            dataset.action, dataset.step == 0, dataset.gripper_dims, absolute=dataset.absolute_actions
        )
    held_out = _held_out(dataset, config.data.holdout_fraction)[dataset.episode]
    return np.flatnonzero(usable & (held_out == (split == "holdout")))


def _held_out(dataset: EpisodeDataset, fraction: float) -> Bool[np.ndarray, " e"]:
    """Which episodes are kept out of training: those whose hashed id is below the fraction, and at least one of two.

    An episode's split thus does not change when others are added.
    """
    hashes = [hashing.uniform(info.id) for info in dataset.episodes]
    held_out = np.array(hashes) < fraction
    if fraction > 0 and len(hashes) > 1 and not held_out.any():
        held_out[np.argmin(hashes)] = True
    return held_out


class _BatchBuilder:
    """Builds this process's part of a batch from the (epoch, row) pairs of its samples; travels to workers."""

    def __init__(
        self,
        config: Config,
        dataset: EpisodeDataset,
        statistics: Statistics,
        tokenizer: Tokenizer,
        features: Sequence[FeatureStore],
    ):
        self._config, self._dataset, self._features = config, dataset, tuple(features)
        self._statistics, self._tokenizer = statistics, tokenizer

    def __call__(self, items: Sequence[tuple[int, int]]) -> dict[str, np.ndarray]:
        seed = self._config.seed
        samples = [self.sample(row, np.random.default_rng([seed, epoch, row])) for epoch, row in items]
        return _stack(self._config, samples)

    def sample(self, row: int, rng: np.random.Generator | None) -> Sample:
        """``training_sample`` with the features of its images."""
        sample = training_sample(self._config, self._dataset, row, self._statistics, self._tokenizer, rng)
        return sample | {store.name: store.read(row) for store in self._features}


def _stack(config: Config, samples: list[Sample]) -> dict[str, np.ndarray]:
    """The samples as one batch, which has the keys, shapes and dtypes of ``batch_spec``."""
    batch = {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}
    check_batch(batch, batch_spec(config, len(samples)))
    return batch


def _check_fit(config: Config, dataset: EpisodeDataset, tokenizer: Tokenizer) -> None:
    """Raises ``DataError`` where dataset, tokenizer and model do not fit together."""
    model = config.model
    dataset.check_views(model.views)
    for name, width, key in (
        ("state", dataset.state.shape[1], "proprio_dim"),
        ("action", dataset.action.shape[1], "action_dim"),
    ):
        if width != getattr(model, key):
            raise DataError(f"{dataset.directory} has {name}s of {width} numbers; set config.model.{key} to {width}")
    if tokenizer.vocab_size > model.language.vocab_size:
        raise DataError(
            f"The tokenizer has {tokenizer.vocab_size} ids, config.model.language.vocab_size is "
            f"{model.language.vocab_size}; raise it to at least {tokenizer.vocab_size}"
        )
