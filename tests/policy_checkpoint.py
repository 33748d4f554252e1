"""A checkpoint of a network that was never trained, in the format that training writes."""

import dataclasses

import jax
import numpy as np
import orbax.checkpoint as ocp

from pokevla_jax import config as config_lib
from pokevla_jax.config import Config
from pokevla_jax.data.normalize import ColumnStatistics
from pokevla_jax.data.normalize import Statistics
from pokevla_jax.data.tokenize import CompactTokenizer
from pokevla_jax.models import presets
from pokevla_jax.models import stacking

PROMPT = "pick up the alphabet soup and place it in the basket"


def make_config(*, segmentation=True, **data) -> Config:
    """The tiny preset with shallow towers, for the compiler's sake."""
    model = presets.tiny()
    vision = dataclasses.replace(
        model.vision,
        dinov2=dataclasses.replace(model.vision.dinov2, depth=1),
        siglip=dataclasses.replace(model.vision.siglip, depth=1),
    )
    model = dataclasses.replace(
        model,
        vision=vision,
        language=dataclasses.replace(model.language, num_layers=1),
        action_head=dataclasses.replace(model.action_head, num_layers=1),
        segmentation=dataclasses.replace(model.segmentation, decoder_depth=1),
    )
    if not segmentation:
        model = dataclasses.replace(model, segmentation=dataclasses.replace(model.segmentation, weight=0.0))
    return Config(model=model, data=config_lib.DataConfig(**data))


def make_tokenizer(config: Config) -> CompactTokenizer:
    return CompactTokenizer.from_corpus([PROMPT], config.data.prompt_template)


def make_statistics(state_dim=8, action_dim=7) -> Statistics:
    """Proprio within +-0.5; actions within +-0.8, the gripper as it is."""

    def columns(size, limit, mask):
        ones = np.ones(size)
        moments = {"mean": 0 * ones, "std": ones, "min": -limit * ones, "max": limit * ones}
        return ColumnStatistics(**moments, q01=-limit * ones, q99=limit * ones, mask=np.array(mask), floor=1e-3)

    return Statistics(
        state=columns(state_dim, 0.5, [True] * state_dim),
        action=columns(action_dim, 0.8, [True] * (action_dim - 1) + [False]),
        num_steps=100,
        num_episodes=1,
    )


def make_params(config, seed=3):
    """Small random numbers, drawn without a compilation; scales of norms are around 1."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        center = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return (center + 0.1 * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, stacking.abstract_params(config.model))


def write_checkpoint(folder, config, *, step=10, params=None, fresh=()):
    """Writes ``folder/checkpoints/<step>`` and returns ``folder``; ``fresh`` is what an import did not find."""
    params = make_params(config) if params is None else params
    assets = {
        "config": config_lib.to_dict(config),
        "statistics": make_statistics().to_json(),
        "tokenizer": make_tokenizer(config).to_json(),
        "versions": {"pokevla_jax": "0.1.0"},
        "dataset": "none",
        "fresh": list(fresh),
    }
    with ocp.CheckpointManager((folder / "checkpoints").absolute()) as manager:
        items = {"params": ocp.args.StandardSave(params), "assets": ocp.args.JsonSave(assets)}
        manager.save(step, args=ocp.args.Composite(**items))
    return folder
