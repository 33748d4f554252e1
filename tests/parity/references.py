"""The PyTorch references of the parts, built for a configuration; keyword arguments make them wrong on purpose."""

import transformers

from tests.parity.mappings import GATED
from tests.parity.torch_reference.action_head import Head


def qwen2(config, **changes):
    """``transformers``' decoder for a ``LanguageConfig``."""
    options = dict(rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta}, rms_norm_eps=1e-6)
    return transformers.Qwen2Model(
        transformers.Qwen2Config(
            hidden_size=config.width,
            intermediate_size=config.mlp_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            vocab_size=config.vocab_size,
            attn_implementation="eager",
            **(options | changes),
        )
    )


def tower(name, config, vision, **changes):
    """``transformers``' DINOv2 with registers or SigLIP for a ``TowerConfig`` and a ``VisionConfig``."""
    options = dict(
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        layer_norm_eps=1e-6,
        # timm's, which Prismatic loads, and not the approximation by tanh that transformers has for SigLIP.
        hidden_act="gelu",
        attn_implementation="eager",
    )
    options |= changes
    if name == "siglip":
        return transformers.SiglipVisionModel(
            transformers.SiglipVisionConfig(intermediate_size=config.mlp_dim, **options)
        )
    ratio = config.mlp_dim // config.width
    return transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(mlp_ratio=ratio, **options))


def action_head(config, **changes):
    """``torch_reference.action_head``'s head for a ``ModelConfig``."""
    head = config.action_head
    options = dict(
        pro=head.block == "pro",
        seg=head.inject_seg,
        gated=GATED[head.gate],
        rotary=head.rotary,
        latents=head.latents,
        outputs=head.concat == "outputs",
    )
    return Head(
        width=head.width,
        heads=head.num_heads,
        blocks=head.num_layers,
        context_width=config.language.width,
        actions=config.action_dim,
        horizon=config.action_horizon,
        **(options | changes),
    )
