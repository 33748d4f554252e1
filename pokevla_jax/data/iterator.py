"""Batches in an order that is a pure function of (seed, epoch, step), from any position, for any number of processes.

A global batch is named first (items ``step * batch_size`` onwards of an endless sequence) and split over the processes
afterwards, so neither the number of processes or workers nor a restart changes what any step sees, and the whole state
of the iterator is the number of the next step, plus the step at which the present mixture began.
"""

import logging
import os
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Protocol

import grain
import numpy as np
from absl import flags

from pokevla_jax.config import Config
from pokevla_jax.data.codec import DataError
from pokevla_jax.typing import Int

_MAX_THREADS = 16
# More steps than any run has; Grain wants a length.
_ENDLESS = 1 << 60


class Sequenced(Protocol):
    """An endless sequence of what rows are made of."""

    def __getitem__(self, g: int) -> Any:
        """Item ``g`` of the run."""


Builder = Callable[[Sequence[Any]], dict[str, np.ndarray]]
"""Makes this process's part of a batch of its items; pickled into worker processes."""


class TrainIterator:
    """This process's rows of every global batch, endlessly, starting at ``start_step``.

    Attributes:
        step: the step whose batch comes next.
        num_samples: samples per epoch over all processes.
    """

    def __init__(
        self,
        config: Config,
        order: Callable[[int], Sequenced],
        build: Builder,
        *,
        mixture: str,
        num_samples: int,
        features: str = "",
        process_index: int = 0,
        process_count: int = 1,
        start_step: int = 0,
    ):
        """Starts reading.

        Args:
            config: seed, batch size, workers and read-ahead are taken from it.
            order: from a seed to the sequence of items.
            build: from items to arrays.
            mixture: name of the data and its weights; a position saved with another one begins the new order there.
            num_samples: per epoch, for the log.
            features: identity of what teachers told of the samples beforehand; a position saved with another is
                refused.
            process_index: of this process.
            process_count: of the run.
            start_step: first step.
        """
        self.num_samples = num_samples
        self._config, self._order, self._build, self._mixture = config, order, build, mixture
        self._fixed = {"seed": config.seed, "batch_size": config.batch_size, "features": features}
        self._local = local_rows(config, process_index, process_count)
        self._seek(start_step, 0)

    def __iter__(self) -> "TrainIterator":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._iterator)
        self.step += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """The position, in plain JSON types; the same for every process and any number of them."""
        return {
            "step": self.step,
            **self._fixed,
            "mixture": self._mixture,
            "mixture_start": self._start,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues where ``get_state`` was called, on however many processes and workers there are now.

        With another mixture than before (weights or data were edited) the new one begins at the saved step, in an order
        of its own; the log says so.

        Raises:
            DataError: when seed, batch size or features differ, since the steps would not mean the same any more.
        """
        for key, own in self._fixed.items():
            # Positions of before there were features do not mention any.
            saved = state.get(key, "" if key == "features" else None)
            if saved != own:
                raise DataError(
                    f"The saved data position has {key} {saved!r}, this run has {own!r}; "
                    "restore it, or start a new run from the checkpoint's parameters"
                )
        step, start = int(state["step"]), int(state.get("mixture_start", 0))
        if state.get("mixture", self._mixture) != self._mixture:
            logging.getLogger(__name__).warning(
                "Data or weights have changed since step %d: the new mixture of %d samples an epoch begins here",
                step,
                self.num_samples,
            )
            start = step
        self._seek(step, start)

    def close(self) -> None:
        """Stops reading ahead."""
        self._iterator.close()

    def _seek(self, step: int, start: int) -> None:
        data = self._config.data
        # A mixture that begins later must not repeat the order of one that began at 0.
        seed = self._config.seed + (start << 32)
        build = _Step(self._order(seed), self._build, self._config.batch_size, self._local)
        # A sliced dataset starts anew: the position then does not depend on how many workers there were before.
        steps = grain.MapDataset.range(step - start, _ENDLESS).map(build)
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
        self.step, self._start = step, start


class _Step:
    """From the number of a step (counted from the mixture's start) to this process's part of its batch."""

    def __init__(self, order: Sequenced, build: Builder, batch_size: int, local: slice):
        self._order, self._build, self._batch_size, self._local = order, build, batch_size, local

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        first = int(step) * self._batch_size
        return self._build([self._order[first + row] for row in range(self._local.start, self._local.stop)])


def local_rows(config: Config, process_index: int, process_count: int) -> slice:
    """This process's rows of a global batch."""
    local, rest = divmod(config.batch_size, process_count)
    if rest:
        raise DataError(
            f"config.batch_size {config.batch_size} does not divide over {process_count} processes; nearest: "
            f"{max(local, 1) * process_count}"
        )
    return slice(process_index * local, (process_index + 1) * local)


def spread(total: int, batch_size: int, max_batches: int | None) -> Int[np.ndarray, " n"]:
    """Indices of as many items as ``max_batches`` hold, evenly spread over ``total``; all of them without a limit."""
    count = total if max_batches is None else min(total, max_batches * batch_size)
    return np.arange(count) * total // max(count, 1)


def check_batch(batch: Mapping[str, np.ndarray], spec: Mapping[str, Any]) -> None:
    """Raises ``DataError`` where a batch has not the keys, shapes and dtypes of its specification."""
    for key in sorted(spec.keys() | batch.keys()):
        if key not in batch or key not in spec:
            raise DataError(f"Batch key {key!r} is in only one of the loader and batch_spec; make them agree")
        if (batch[key].shape, batch[key].dtype) != tuple(spec[key]):
            raise DataError(
                f"Batch key {key!r} is {batch[key].dtype}{batch[key].shape}, the configuration asks for "
                f"{spec[key].dtype}{spec[key].shape}"
            )
