"""Configuration of an exported PokeVLA network."""

from types import SimpleNamespace
from typing import Any

from transformers import PretrainedConfig


class PokeVLAConfig(PretrainedConfig):
    """What the network consists of and how observations are prepared for it.

    Args:
        network: sizes and choices of every part, as ``config.model`` of the training configuration.
        preprocessing: how images and instructions are prepared, and whether a control sees or reads them at all.
        training_parts: whether the weights include the parts that only training's losses need.
    """

    model_type = "pokevla"

    def __init__(
        self,
        network: dict[str, Any] | None = None,
        preprocessing: dict[str, Any] | None = None,
        training_parts: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.network = network or {}
        self.preprocessing = preprocessing or {}
        self.training_parts = training_parts


def namespace(values: Any) -> Any:
    """Nested dictionaries with attribute access."""
    return SimpleNamespace(**{k: namespace(v) for k, v in values.items()}) if isinstance(values, dict) else values
