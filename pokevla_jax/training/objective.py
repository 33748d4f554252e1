"""What a run trains: the parameters, the loss of a batch and the held-out measures.

The loop, the step and the checkpoints know only this interface; each stage of training is one ``Objective``.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from typing import Protocol

from pokevla_jax.data.schema import ArraySpec
from pokevla_jax.typing import Array
from pokevla_jax.typing import Batch
from pokevla_jax.typing import Float
from pokevla_jax.typing import Params

Scalars = dict[str, Float[Array, ""]]


@dataclass(frozen=True)
class Objective:
    """A training problem over a plain parameter tree."""

    # key -> float32 parameters; the same values on any mesh.
    initialize: Callable[[Array], Params]
    # The parameters' tree of ``ShapeDtypeStruct``s, of tuples of logical axis names, and of False where a parameter is
    # never trained, whatever the configuration freezes besides.
    abstract_params: Params
    logical_axes: Any
    trainable: Any
    # global batch -> valid entries per term of the loss
    count: Callable[[Batch], Scalars]
    # (params, micro-batch, key, counts of the global batch) -> total, parts; sums over the micro-batches are the
    # global batch's total and parts
    loss: Callable[[Params, Batch, Array, Scalars], tuple[Float[Array, ""], Scalars]]
    # (params, batch) -> {measure: (sum, count)}; sums and counts add up over batches
    measure: Callable[[Params, Batch], dict[str, tuple[Float[Array, ""], Float[Array, ""]]]]
    # The measure that tells the best checkpoint (lower is better).
    criterion: str = "action_error"


class PositionedIterator(Protocol):
    """Batches in a fixed order, from a position that can be saved."""

    def __next__(self) -> Batch:
        """This host's rows of the next global batch."""
        ...

    def get_state(self) -> dict[str, Any]:
        """The position as plain JSON types."""
        ...

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues at ``state``; refuses one of other data."""
        ...

    def close(self) -> None:
        """Stops reading ahead."""
        ...


@dataclass(frozen=True)
class TrainData:
    """Where a run's batches come from."""

    # Of the global batch.
    spec: Mapping[str, ArraySpec]
    # start step -> this host's batches from there on
    iterate: Callable[[int], PositionedIterator]
    # this host's rows of the held-out batches, each sample once
    holdout: Callable[[], Iterable[Batch]]
    # JSON that travels with each checkpoint: statistics, tokenizer, dataset
    assets: Mapping[str, Any]
    # What the data are, in a line: sources, sizes, weights.
    description: str = ""
