"""Features of frozen teachers that come with the batch instead of being computed in the step."""

from pokevla_jax.config import ConfigError
from pokevla_jax.typing import Array
from pokevla_jax.typing import Batch


def features(batch: Batch, name: str, shape: tuple[int, ...], part: str) -> Array:
    """``batch[name]``, of ``shape`` behind the rows.

    Args:
        batch: one batch, or a part of its rows.
        name: the entry of ``data.schema.batch_spec``.
        shape: what one row must have.
        part: "geometry" or "segmentation", whose ``source`` is "precomputed".

    Raises:
        ConfigError: when the batch has no such features, or of another shape.
    """
    if name not in batch:
        raise ConfigError(
            f"config.model.{part}.source 'precomputed' reads {name} from the batch, which has none; make them "
            "with pokevla-features, or set source to 'inside'"
        )
    found = tuple(batch[name].shape[1:])
    if found != shape:
        raise ConfigError(
            f"The batch's {name} have shape {found} a sample and config.model.{part} needs {shape}; make them "
            "with this configuration"
        )
    return batch[name]
