"""Shared start of every experiment: all keys with their defaults, around one network.

Not an experiment itself. A configuration file reads::

    from configs import common
    from pokevla_jax.models import presets


    def get_config():
        config = common.experiment(presets.tiny())
        config.batch_size = 16
        return config
"""

import dataclasses

import ml_collections

from pokevla_jax.config import Config
from pokevla_jax.config import ModelConfig


def experiment(model: ModelConfig) -> ml_collections.ConfigDict:
    """Every key of ``Config`` with its default value, around ``model``."""
    # Unlocked on purpose: a misspelt key reaches `config.from_dict`, whose error names the nearest known one.
    return ml_collections.ConfigDict(dataclasses.asdict(Config(model=model)))
