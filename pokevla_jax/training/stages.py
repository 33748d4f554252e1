"""The two stages of training by name: what ``config.stage`` selects."""

from types import ModuleType

from pokevla_jax.config import Config
from pokevla_jax.training import stage1
from pokevla_jax.training import stage2
from pokevla_jax.training.objective import Objective
from pokevla_jax.training.objective import TrainData

STAGES: dict[str, ModuleType] = {"vlm": stage1, "vla": stage2}


def make_objective(config: Config) -> Objective:
    """The training problem of ``config.stage``."""
    objective: Objective = STAGES[config.stage].make_objective(config)
    return objective


def make_data(config: Config) -> TrainData:
    """Batches, held-out batches and assets of ``config.stage``; this host's rows only."""
    data: TrainData = STAGES[config.stage].make_data(config)
    return data
