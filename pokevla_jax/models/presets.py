"""The named networks: ``tiny`` for two CPU cores, ``pokevla`` with the paper's sizes, and the VLA-Adapter baselines.

Same classes, other numbers.
"""

import dataclasses
import difflib
from collections.abc import Callable
from typing import Literal

from pokevla_jax.config import ActionHeadConfig
from pokevla_jax.config import ConfigError
from pokevla_jax.config import GeometryConfig
from pokevla_jax.config import KeypointConfig
from pokevla_jax.config import LanguageConfig
from pokevla_jax.config import ModelConfig
from pokevla_jax.config import SegmentationConfig
from pokevla_jax.config import TowerConfig
from pokevla_jax.config import VisionConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def pokevla() -> ModelConfig:
    """PokeVLA's stage 2: DINOv2-L/14 and SigLIP-So400m/14 at 224 pixels, Qwen2.5-0.5B, a 24-block action expert."""
    return ModelConfig(
        preset="pokevla",
        vision=VisionConfig(
            image_size=224,
            patch_size=14,
            dinov2=TowerConfig(
                width=1024,
                depth=24,
                num_heads=16,
                mlp_dim=4096,
                class_token=True,
                num_registers=4,
                layer_scale=True,
                image_mean=IMAGENET_MEAN,
                image_std=IMAGENET_STD,
            ),
            siglip=TowerConfig(width=1152, depth=27, num_heads=16, mlp_dim=4304),
            projector_dim=8704,
        ),
        language=LanguageConfig(),
        action_head=ActionHeadConfig(),
        segmentation=SegmentationConfig(),
        geometry=GeometryConfig(),
    )


def _vla_adapter(preset: str, block: Literal["pro", "original"]) -> ModelConfig:
    """PokeVLA without what it added to VLA-Adapter, and with VLA-Adapter's ways that its released weights rely on."""
    base = pokevla()
    dinov2 = dataclasses.replace(
        base.vision.dinov2,
        # ImageNet's constants as the released checkpoints carry them: rounded to bfloat16.
        image_mean=(0.484375, 0.455078125, 0.40625),
        image_std=(0.228515625, 0.2236328125, 0.224609375),
    )
    return dataclasses.replace(
        base,
        preset=preset,
        vision=dataclasses.replace(base.vision, dinov2=dinov2),
        action_head=ActionHeadConfig(
            block=block,
            context="layerwise",
            inject_seg=False,
            latents="projected",
            rotary="vla_adapter",
            shifted_context=True,
        ),
        segmentation=SegmentationConfig(weight=0.0),
        geometry=GeometryConfig(weight=0.0),
        seg_token=False,
        vision_position="after_first_token",
    )


def vla_adapter() -> ModelConfig:
    """VLA-Adapter with its original head: one key and value projection for all sources, no positions."""
    return _vla_adapter("vla_adapter", "original")


def vla_adapter_pro() -> ModelConfig:
    """VLA-Adapter-Pro: keys and values per source, rotary positions."""
    return _vla_adapter("vla_adapter_pro", "pro")


def tiny(vocab_size: int = 256) -> ModelConfig:
    """A PokeVLA of 1.2 M parameters that two CPU cores train in minutes; its teachers need no weights."""
    return ModelConfig(
        preset="tiny",
        vision=VisionConfig(
            image_size=128,
            patch_size=16,
            dinov2=TowerConfig(
                width=64,
                depth=2,
                num_heads=2,
                mlp_dim=256,
                class_token=True,
                num_registers=4,
                layer_scale=True,
                feature_block=-1,
                image_mean=IMAGENET_MEAN,
                image_std=IMAGENET_STD,
            ),
            siglip=TowerConfig(width=64, depth=2, num_heads=2, mlp_dim=256, feature_block=-1),
            projector_dim=256,
        ),
        language=LanguageConfig(
            vocab_size=vocab_size,
            width=128,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            mlp_dim=256,
            rope_theta=10_000.0,
        ),
        action_head=ActionHeadConfig(num_layers=2, width=128, num_heads=4, num_queries=8),
        segmentation=SegmentationConfig(
            image_encoder="small",
            feature_grid=8,
            decoder_dim=32,
            decoder_depth=2,
            decoder_heads=2,
            decoder_mlp_dim=64,
        ),
        geometry=GeometryConfig(teacher="depth", feature_dim=24),
        keypoint=KeypointConfig(weight=0.3),
        max_prompt_length=24,
        dtype="float32",
        remat="none",
    )


PRESETS: dict[str, Callable[[], ModelConfig]] = {
    "tiny": tiny,
    "pokevla": pokevla,
    "vla_adapter": vla_adapter,
    "vla_adapter_pro": vla_adapter_pro,
}


def get_preset(name: str) -> ModelConfig:
    """The preset called ``name``.

    Raises:
        ConfigError: naming the nearest one if there is none.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        raise ConfigError(
            f"Unknown preset {name!r}; " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(PRESETS)}")
        )
    return PRESETS[name]()
