"""A network so small that it compiles in seconds, and parameters under which every one of them matters."""

import dataclasses

import jax
import numpy as np

from pokevla_jax import config as config_lib
from pokevla_jax.config import Config
from pokevla_jax.config import GeometryConfig
from pokevla_jax.config import KeypointConfig
from pokevla_jax.config import ModelConfig
from pokevla_jax.config import SegmentationConfig
from pokevla_jax.interop import names
from pokevla_jax.models import presets
from pokevla_jax.models import stacking
from pokevla_jax.sharding import flatten

replace = dataclasses.replace


def make_model(**head) -> ModelConfig:
    """The tiny preset, narrower: odd sizes, so that no two axes can be exchanged unnoticed."""
    model = presets.tiny(vocab_size=40)
    tower = {"depth": 2, "feature_block": -2, "num_heads": 2}
    vision = replace(
        model.vision,
        image_size=32,
        patch_size=8,
        dinov2=replace(model.vision.dinov2, width=16, mlp_dim=24, **tower),
        siglip=replace(model.vision.siglip, width=12, mlp_dim=20, **tower),
        projector_dim=28,
    )
    return replace(
        model,
        vision=vision,
        language=replace(model.language, width=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=32),
        action_head=replace(model.action_head, width=24, num_heads=2, num_layers=2, num_queries=5, **head),
        segmentation=replace(model.segmentation, feature_grid=4, decoder_dim=16, decoder_mlp_dim=28),
        max_prompt_length=24,
    )


def make_vla_adapter(block: str = "pro") -> ModelConfig:
    """The same sizes in VLA-Adapter's ways."""
    model = make_model(
        block=block,
        context="layerwise",
        inject_seg=False,
        latents="projected",
        rotary="vla_adapter",
        shifted_context=True,
    )
    return replace(
        model,
        seg_token=False,
        vision_position="after_first_token",
        segmentation=SegmentationConfig(weight=0.0),
        geometry=GeometryConfig(weight=0.0),
        keypoint=KeypointConfig(),
    )


def make_config(model: ModelConfig | None = None, **optimizer) -> Config:
    optimizer = replace(config_lib.OptimizerConfig(), **optimizer)
    return Config(model=model or make_model(), optimizer=optimizer)


def make_params(model: ModelConfig, seed=0):
    """Random numbers everywhere, gates and LayerScale of order one, without a compilation."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        factor = 1.0 if any(part in name for part in ("gates", "ls1", "ls2", "latents", "token")) else 0.3
        centre = 1.0 if "scale" in name else 0.0
        return (centre + factor * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, stacking.abstract_params(model))


def make_batch(model: ModelConfig, seed=0):
    """Two rows whose prompts have different lengths."""
    rng = np.random.default_rng(seed)
    size, length = model.vision.image_size, model.max_prompt_length
    return {
        "images": rng.integers(0, 256, (2, len(model.views), size, size, 3), dtype=np.uint8),
        "tokens": rng.integers(3, model.language.vocab_size, (2, length), dtype=np.int32),
        "token_mask": np.arange(length) < np.array([[9], [6]]),
        "proprio": rng.uniform(-1, 1, (2, model.proprio_dim)).astype(np.float32),
    }


def to_torch(model: ModelConfig, params) -> dict[str, np.ndarray]:
    """The parameters under their PyTorch names."""
    arrays = flatten(params)
    entries = names.table(model).entries
    return {name: tensor for e in entries for name, tensor in e.to_torch(np.asarray(arrays[e.path]))}
