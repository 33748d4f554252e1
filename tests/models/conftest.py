"""A network of a few thousand parameters with every part of the real ones, initialised and compiled once."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from pokevla_jax.config import Config
from pokevla_jax.data.schema import fake_batch
from pokevla_jax.models import presets
from pokevla_jax.models import stacking


def micro_config():
    """``tiny`` with every size cut down: two layers each, so that stacks are stacks; one in the mask decoders."""
    tiny = presets.tiny(vocab_size=50)
    replace = dataclasses.replace
    tower = dict(width=16, depth=2, num_heads=2, mlp_dim=24)
    return replace(
        tiny,
        vision=replace(
            tiny.vision,
            image_size=32,
            dinov2=replace(tiny.vision.dinov2, **tower),
            siglip=replace(tiny.vision.siglip, **tower),
            projector_dim=40,
        ),
        language=replace(tiny.language, width=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48),
        action_head=replace(tiny.action_head, num_layers=2, width=32, num_heads=4, num_queries=4),
        segmentation=replace(
            tiny.segmentation,
            feature_grid=4,
            decoder_dim=16,
            decoder_depth=1,
            decoder_heads=2,
            decoder_mlp_dim=24,
            weight=0.2,
        ),
        geometry=replace(tiny.geometry, frequencies=(0.5, 1.0), feature_dim=12, weight=0.4),
        keypoint=replace(tiny.keypoint, weight=0.3),
        max_prompt_length=6,
    )


@pytest.fixture(scope="session")
def random_params():
    """``random_params(module) -> params``, by numpy: JAX would compile every shape of every variant."""

    def draw(module, seed=0):
        rng = np.random.default_rng(seed)
        return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), stacking.shapes(module))

    return draw


@pytest.fixture(scope="session")
def micro():
    """Namespace of config, params, batch of 3 and jitted ``encode(params, images, tokens, mask)``."""
    config = micro_config()
    batch = fake_batch(Config(model=config), 3)
    batch["token_mask"][:, 4:] = False
    return SimpleNamespace(
        config=config,
        params=jax.device_get(stacking.initialize(config, jax.random.key(0))),
        batch=batch,
        encode=jax.jit(lambda params, *inputs: stacking.bind(config, params).encode(*inputs)),
    )
