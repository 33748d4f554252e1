"""Batches for training and for held-out evaluation, in an order that is a pure function of (seed, epoch, step).

Sample number g of a run (batch_size samples per step) is row ``order[g]`` of the dataset's table, where every epoch is
shuffled by (seed, epoch); its augmentation is seeded by (seed, epoch, row). A global batch is batched first and split
over the processes afterwards, so neither the number of processes or workers nor a restart changes what any step sees,
and the whole state of the iterator is the number of the next step.
"""

import hashlib
import os
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any
from typing import Literal

import grain
import numpy as np
from absl import flags

from pokevla_jax.config import Config
from pokevla_jax.data.codec import DataError
from pokevla_jax.data.normalize import Statistics
from pokevla_jax.data.records import EpisodeDataset
from pokevla_jax.data.schema import batch_spec
from pokevla_jax.data.tokenize import Tokenizer
from pokevla_jax.data.transforms import Sample
from pokevla_jax.data.transforms import training_sample
from pokevla_jax.typing import Bool
from pokevla_jax.typing import Int

Split = Literal["train", "holdout"]

_MAX_THREADS = 16
_VALIDITY = ("action_mask", "mask_valid", "points_valid", "keypoints_valid")


class TrainIterator:
    """This process's rows of every global batch, endlessly, starting at ``step``.

    Attributes:
        step: the step whose batch comes next.
        num_samples: samples per epoch over all processes.
    """

    def __init__(
        self,
        config: Config,
        dataset: EpisodeDataset,
        statistics: Statistics,
        tokenizer: Tokenizer,
        *,
        process_index: int = 0,
        process_count: int = 1,
        start_step: int = 0,
    ):
        _check_fit(config, dataset, tokenizer)
        local = _local_rows(config, process_index, process_count)
        rows = sample_rows(config, dataset, "train")
        if not len(rows):
            raise DataError(
                f"{dataset.directory} holds no training sample: no rendered step with a valid action outside the "
                "held-out episodes; record more episodes or lower config.data.holdout_fraction"
            )
        self.num_samples = len(rows)
        self._config = config
        build = _BatchBuilder(config, dataset, statistics, tokenizer, len(rows), local)
        order = grain.MapDataset.source(rows).seed(config.seed).shuffle().repeat()
        self._steps = order.map_with_index(_with_index).batch(config.batch_size).map(build)
        self._seek(start_step)

    def __iter__(self) -> "TrainIterator":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._iterator)
        self.step += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """The position, in plain JSON types; the same for every process and any number of them."""
        return {
            "step": self.step,
            "seed": self._config.seed,
            "batch_size": self._config.batch_size,
            "num_samples": self.num_samples,
        }

    def set_state(self, state: Mapping[str, int]) -> None:
        """Continues where ``get_state`` was called, on however many processes and workers there are now.

        Raises:
            DataError: when seed, batch size or data differ, since the order would not continue but start anew.
        """
        for key, value in self.get_state().items():
            if key != "step" and state.get(key) != value:
                raise DataError(
                    f"The saved data position has {key} {state.get(key)}, this run has {value}; restore it, or start a "
                    "new run from the checkpoint's parameters"
                )
        self._seek(int(state["step"]))

    def close(self) -> None:
        """Stops reading ahead."""
        self._iterator.close()

    def _seek(self, step: int) -> None:
        data = self._config.data
        # A sliced dataset starts anew: the position then does not depend on how many workers there were before.
        steps = self._steps[step:] if step else self._steps
        # One element is one batch; threads build several at once (OpenCV releases the GIL), workers many more.
        threads = 1 if data.num_workers else min(os.cpu_count() or 1, _MAX_THREADS, data.prefetch)
        batches = steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=data.prefetch))
        if data.num_workers:
            if not flags.FLAGS.is_parsed():
                # Grain reads absl flags when it starts workers; outside of absl's own main nobody has parsed them.
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(data.num_workers, per_worker_buffer_size=data.prefetch)
            batches = batches.mp_prefetch(options)
        self._iterator = iter(batches)
        self.step = step


def train_iterator(
    config: Config,
    dataset: EpisodeDataset,
    statistics: Statistics,
    tokenizer: Tokenizer,
    *,
    process_index: int = 0,
    process_count: int = 1,
    start_step: int = 0,
) -> TrainIterator:
    """Training batches of this process; see ``TrainIterator``.

    Raises:
        DataError: when dataset, tokenizer and configuration do not fit together, saying what to change.
    """
    return TrainIterator(
        config,
        dataset,
        statistics,
        tokenizer,
        process_index=process_index,
        process_count=process_count,
        start_step=start_step,
    )


def holdout_batches(
    config: Config,
    dataset: EpisodeDataset,
    statistics: Statistics,
    tokenizer: Tokenizer,
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
    limit = len(rows) if max_batches is None else min(len(rows), max_batches * config.batch_size)
    # Evenly spread, and every row when there is no limit.
    rows = rows[np.arange(limit) * len(rows) // max(limit, 1)]
    local = _local_rows(config, process_index, process_count)
    for start in range(0, limit, config.batch_size):
        places = start + np.arange(local.start, local.stop)
        samples = [
            training_sample(config, dataset, int(rows[min(int(place), limit - 1)]), statistics, tokenizer, None)
            for place in places
        ]
        for place, sample in zip(places, samples, strict=True):
            if place >= limit:
                sample |= {key: np.zeros_like(sample[key]) for key in _VALIDITY if key in sample}
        yield _stack(config, samples)


def sample_rows(config: Config, dataset: EpisodeDataset, split: Split) -> Int[np.ndarray, " n"]:
    """The rows of the dataset's table that are samples of a split: rendered, and with at least one valid label."""
    lengths = np.diff(dataset.starts)
    usable = (dataset.record >= 0) & (dataset.chunk_end > dataset.step)
    if config.data.drop_tail:
        usable &= dataset.step + config.model.action_horizon <= lengths[dataset.episode]
    if config.data.drop_noops:
        usable &= ~_is_noop(dataset)
    held_out = _held_out(dataset, config.data.holdout_fraction)[dataset.episode]
    return np.flatnonzero(usable & (held_out == (split == "holdout")))


def _held_out(dataset: EpisodeDataset, fraction: float) -> Bool[np.ndarray, " e"]:
    """Which episodes are kept out of training: those whose hashed id is below the fraction, and at least one of two.

    An episode's split thus does not change when others are added.
    """
    hashes = [int.from_bytes(hashlib.sha256(info.id.encode()).digest()[:8], "big") / 2**64 for info in dataset.episodes]
    held_out = np.array(hashes) < fraction
    if fraction > 0 and len(hashes) > 1 and not held_out.any():
        held_out[np.argmin(hashes)] = True
    return held_out


def _is_noop(dataset: EpisodeDataset) -> Bool[np.ndarray, " n"]:
    """Steps whose action neither moves the arm (norm below 1e-4) nor the gripper (OpenVLA's ``regenerate_libero``)."""
    still = np.linalg.norm(dataset.action[:, :-1], axis=1) < 1e-4
    gripper = dataset.action[:, -1]
    return still & ((gripper == np.roll(gripper, 1)) | (dataset.step == 0))


class _BatchBuilder:
    """Builds this process's part of a global batch from the (index, row) pairs of its samples; travels to workers."""

    def __init__(
        self,
        config: Config,
        dataset: EpisodeDataset,
        statistics: Statistics,
        tokenizer: Tokenizer,
        num_samples: int,
        local: slice,
    ):
        self._arguments = (config, dataset, statistics, tokenizer)
        self._num_samples = num_samples
        self._local = local

    def __call__(self, batch: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
        config, dataset, statistics, tokenizer = self._arguments
        samples = []
        for index, row in zip(*(column[self._local] for column in batch), strict=True):
            rng = np.random.default_rng([config.seed, int(index) // self._num_samples, int(row)])
            samples.append(training_sample(config, dataset, int(row), statistics, tokenizer, rng))
        return _stack(config, samples)


def _with_index(index: int, row: Any) -> tuple[int, Any]:
    return index, row


def _stack(config: Config, samples: list[Sample]) -> dict[str, np.ndarray]:
    """The samples as one batch, which has the keys, shapes and dtypes of ``batch_spec``."""
    spec = batch_spec(config, len(samples))
    batch = {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}
    for key in spec.keys() | batch.keys():
        if key not in batch or key not in spec:
            raise DataError(f"Batch key {key!r} is in only one of the loader and batch_spec; make them agree")
        if (batch[key].shape, batch[key].dtype) != tuple(spec[key]):
            raise DataError(
                f"Batch key {key!r} is {batch[key].dtype}{batch[key].shape}, the configuration asks for "
                f"{spec[key].dtype}{spec[key].shape}"
            )
    return batch


def _local_rows(config: Config, process_index: int, process_count: int) -> slice:
    """This process's rows of a global batch."""
    local, rest = divmod(config.batch_size, process_count)
    if rest:
        raise DataError(
            f"config.batch_size {config.batch_size} does not divide over {process_count} processes; nearest: "
            f"{max(local, 1) * process_count}"
        )
    return slice(process_index * local, (process_index + 1) * local)


def _check_fit(config: Config, dataset: EpisodeDataset, tokenizer: Tokenizer) -> None:
    """Raises ``DataError`` where dataset, tokenizer and model do not fit together."""
    model = config.model
    unknown = [view for view in model.views if view not in dataset.views]
    if unknown:
        raise DataError(
            f"config.model.views asks for {unknown[0]!r}, {dataset.directory} holds {', '.join(dataset.views)}; change "
            "the views or record again"
        )
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
