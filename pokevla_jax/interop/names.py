"""The whole network's table of names: every parameter and the PyTorch tensors that it is made of.

The parts' rows are in ``names_vision.py``, ``names_language.py``, ``names_action_head.py``, ``names_segmentation.py``
and ``names_geometry.py``.
"""

import re

from pokevla_jax.config import ModelConfig
from pokevla_jax.interop import names_action_head
from pokevla_jax.interop import names_geometry
from pokevla_jax.interop import names_language
from pokevla_jax.interop import names_segmentation
from pokevla_jax.interop import names_vision
from pokevla_jax.interop.table import Rows
from pokevla_jax.interop.table import Table
from pokevla_jax.models import stacking
from pokevla_jax.sharding import flatten

# PyTorch's parts in the order of the reports: what a source either has or has not, but never has in part.
PARTS = {
    "DINOv2": r"vision_backbone\.featurizer\.",
    "SigLIP": r"vision_backbone\.fused_featurizer\.",
    "projector": r"projector\.",
    "language model": r"language_model\.",
    "action queries": r"action_queries\.",
    "<SEG> token": r"seg_token\.",
    "<SEG> in the action head": r"action_head\.model\.mlp_resnet_blocks\.\d+\.(k_seg|v_seg|gating_factor_seg)",
    "learned latents": r"action_head\.model\.latents",
    "action head": r"action_head\.",
    "proprio projector": r"proprio_projector\.",
    "<SEG> projection": r"text_hidden_fcs\.",
    "mask branch's image encoder": r"image_encoder\.",
    "coarse mask decoder": r"coarse\.",
    "fine mask decoder": r"fine\.",
    "align projector": r"align_projector\.",
    "keypoint head": r"keypoint_head\.",
    "VGGT": r"vggt\.",
}


def unused(config: ModelConfig) -> re.Pattern[str]:
    """Names of what released checkpoints hold and this network does not compute with.

    Conversion carries these tensors along, for the way back. What is in the table counts as used whatever this says.
    """
    towers = [
        rf"{name}\.(blocks\.({'|'.join(map(str, range(tower.feature_block % tower.depth + 1, tower.depth))) or 'none'})"
        r"|norm|attn_pool)\."
        for name, tower in (("featurizer", config.vision.dinov2), ("fused_featurizer", config.vision.siglip))
    ]
    points = r"point_embeddings\.\d+|not_a_point_embed|no_mask_embed|mask_downscaling\.\d"
    return re.compile(
        rf"vision_backbone\.({'|'.join(towers)})"
        r"|action_head\.model\.mlp_resnet_blocks\.\d+\.film_gen\."
        r"|action_head\.model\.(layer_norm1|fc1)\."  # where the latents are learned instead
        rf"|(coarse|fine)\.prompt_encoder\.({points})\."
        r"|vggt\.aggregator\.(patch_embed\.mask_token|(frame|global)_blocks\.\d+\.)"
    )


def rows(config: ModelConfig) -> Rows:
    """All rows that a network like ``config`` may need; those of parts that it lacks included."""
    return (
        *names_vision.ROWS,
        *names_language.ROWS,
        *names_action_head.rows(config.action_head),
        *names_segmentation.rows(config.segmentation),
        *names_geometry.ROWS,
    )


def table(config: ModelConfig) -> Table:
    """The table of the network that ``config`` describes; one-to-one, and complete or a ``ValueError``."""
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(stacking.abstract_params(config)).items()}
    return Table(rows(config), shapes)


def part_of(name: str) -> str:
    """The part that a PyTorch tensor belongs to, in words; the tensor's first word if it is none of ours."""
    return next((part for part, pattern in PARTS.items() if re.match(pattern, name)), name.split(".")[0])
