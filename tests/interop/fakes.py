"""Small networks, and random files of every kind of checkpoint that fits them."""

import dataclasses

import numpy as np
import torch
from safetensors.numpy import save_file

from pokevla_jax.config import ActionHeadConfig
from pokevla_jax.config import Config
from pokevla_jax.config import GeometryConfig
from pokevla_jax.config import KeypointConfig
from pokevla_jax.config import LanguageConfig
from pokevla_jax.config import ModelConfig
from pokevla_jax.config import SegmentationConfig
from pokevla_jax.config import TowerConfig
from pokevla_jax.config import VggtConfig
from pokevla_jax.config import VisionConfig
from tests.interop import published
from tests.interop.published import Shapes

WIDTH, VOCAB, QUERIES, GRID = 16, 30, 3, 2
DINOV2 = {"width": 8, "depth": 2, "mlp": 16, "patch": 4, "patches": GRID**2}
SIGLIP = {"width": 12, "depth": 3, "mlp": 20, "patch": 4, "patches": GRID**2}
QWEN = {"vocab": VOCAB, "width": WIDTH, "depth": 2, "queries": 16, "keys": 8, "mlp": 24}


def make_config(*, pro: bool = True) -> Config:
    """A network as VLA-Adapter's: no mask branch, no teacher; towers with a last block that is not read."""
    model = ModelConfig(
        preset="tiny",
        vision=VisionConfig(
            image_size=8,
            patch_size=4,
            dinov2=TowerConfig(
                width=8, depth=2, num_heads=2, mlp_dim=16, class_token=True, num_registers=4, layer_scale=True
            ),
            siglip=TowerConfig(width=12, depth=3, num_heads=2, mlp_dim=20),
            projector_dim=24,
        ),
        language=LanguageConfig(
            vocab_size=VOCAB, width=WIDTH, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24
        ),
        action_head=ActionHeadConfig(
            num_layers=2,
            width=WIDTH,
            num_heads=2,
            num_queries=QUERIES,
            block="pro" if pro else "original",
            context="layerwise",
            inject_seg=False,
            latents="projected",
            rotary="vla_adapter",
            shifted_context=True,
        ),
        segmentation=SegmentationConfig(weight=0.0),
        geometry=GeometryConfig(weight=0.0),
        keypoint=KeypointConfig(),
        seg_token=False,
        vision_position="after_first_token",
        max_prompt_length=8,
        dtype="float32",
        remat="none",
    )
    return Config(model=model)


def with_masks(config: Config) -> Config:
    """The same network with SAM's mask branch, and what PokeVLA adds to VLA-Adapter."""
    seg = SegmentationConfig(feature_grid=4, decoder_dim=8, decoder_depth=2, decoder_heads=2, decoder_mlp_dim=12)
    head = dataclasses.replace(config.model.action_head, inject_seg=True, latents="learned", shifted_context=False)
    model = dataclasses.replace(config.model, segmentation=seg, action_head=head, seg_token=True)
    return dataclasses.replace(config, model=model)


def with_teacher(config: Config) -> Config:
    """The same network with VGGT, of whose two pairs the first is read."""
    vggt = VggtConfig(image_size=28, width=8, num_heads=2, mlp_dim=32, num_registers=4, embed_depth=2, depth=2)
    geometry = GeometryConfig(vggt=vggt, layer=0, feature_dim=16)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, geometry=geometry))


def draw(shapes: Shapes, dtype=np.float32, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def vision_language() -> Shapes:
    """``model.safetensors`` of a VLA-Adapter folder."""
    return {
        **published.under("vision_backbone.featurizer.", published.dinov2(**DINOV2, scale="scale_factor")),
        **published.under("vision_backbone.fused_featurizer.", published.siglip(**SIGLIP)),
        **published.under("projector.", published.projector(20, 24, WIDTH)),
        **published.under("language_model.", published.qwen(**QWEN)),
        "action_queries.weight": (QUERIES, WIDTH),
    }


def action_head(*, pro: bool) -> Shapes:
    return published.action_head(2, WIDTH, 7, pro=pro)


def save_torch(path, tensors, *, prefix: str = "", wrap=lambda state: state, **options) -> None:
    state = {prefix + name: torch.from_numpy(array.copy()) for name, array in tensors.items()}
    torch.save(wrap(state), path, **options)


def write_vla_adapter(folder, *, pro: bool = True, dtype=np.float32) -> dict[str, np.ndarray]:
    """A VLA-Adapter folder; its tensors by the names that they have here."""
    folder.mkdir()
    model = draw(vision_language(), dtype, seed=1)
    head, proprio = draw(action_head(pro=pro), seed=2), draw(published.proprio_projector(8, WIDTH), seed=3)
    save_file(model, folder / "model.safetensors")
    save_torch(folder / "action_head--100_checkpoint.pt", head, prefix="module.")
    save_torch(folder / "proprio_projector--100_checkpoint.pt", proprio, prefix="module.")
    renamed = {f"action_head.{name}": array for name, array in head.items()}
    return model | renamed | {f"proprio_projector.{name}": array for name, array in proprio.items()}
