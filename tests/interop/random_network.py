"""A checkpoint of any size with random weights, written one parameter at a time."""

from pathlib import Path

import jax
import numpy as np
from etils import epath

from pokevla_jax import config as config_lib
from pokevla_jax.config import ModelConfig
from pokevla_jax.data.tokenize import load_tokenizer
from pokevla_jax.interop import write
from pokevla_jax.models import stacking
from tests import policy_checkpoint

INSTRUCTION = "pick up the alphabet soup and place it in the basket"


def write_random(model: ModelConfig, tokenizer: str, out: Path) -> None:
    """Writes the checkpoint ``out``: weights of standard deviation 0.02, scales about 1, float32."""
    config = config_lib.Config(model=model)
    tokens = load_tokenizer(tokenizer, [INSTRUCTION], prompt_template=config.data.prompt_template)
    rng = np.random.default_rng(0)

    def later(path, leaf):
        scale = "scale" in jax.tree_util.keystr(path)

        def draw():
            values = rng.standard_normal(leaf.shape, np.float32)
            return 1 + 0.1 * values if scale else 0.02 * values

        return write.Later(leaf.shape, np.dtype(np.float32), draw)

    assets = {
        "config": config_lib.to_dict(config),
        "statistics": policy_checkpoint.make_statistics().to_json(),
        "tokenizer": tokens.to_json(),
        "versions": {},
        "dataset": "none",
    }
    params = jax.tree_util.tree_map_with_path(later, stacking.abstract_params(model))
    write.write_checkpoint(epath.Path(out), params, assets, {})
