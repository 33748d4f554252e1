"""Names of the action head, VLA-Adapter's, original and Pro block.

VLA-Adapter calls the queries' source "adapter" and the vision's source "task" in the Pro block. What PokeVLA adds has
names of its own kind: ``latents``, ``k_seg``, ``v_seg``, ``gating_factor_seg``.
"""

from pokevla_jax.config import ActionHeadConfig
from pokevla_jax.interop.layouts import SAME
from pokevla_jax.interop.layouts import VECTOR
from pokevla_jax.interop.layouts import linear
from pokevla_jax.interop.names_common import dense
from pokevla_jax.interop.names_common import norm
from pokevla_jax.interop.table import Row
from pokevla_jax.interop.table import Rows
from pokevla_jax.interop.table import under

SOURCES = {"latents": "self", "query": "adapter", "vision": "task", "seg": "seg"}
"""What a block attends to, here and there."""


def _block(config: ActionHeadConfig) -> Rows:
    # With concat "outputs" the map behind the attention has an axis of sources in front of its heads.
    output = linear(2 if config.concat == "joint_softmax" else 3)
    return (
        *dense("q_proj", "q_proj"),
        # Pro block.
        *(
            row
            for ours, theirs in SOURCES.items()
            for row in (
                *dense(f"sources/{ours}/k_proj", f"k_{theirs}"),
                *dense(f"sources/{ours}/v_proj", f"v_{theirs}"),
            )
        ),
        # Original block.
        *dense("shared/k_proj", "k_proj"),
        *dense("shared/v_proj", "v_proj"),
        *dense("o_proj", "o_proj", output),
        Row("gates/vision", "gating_factor", VECTOR),
        Row("gates/seg", "gating_factor_seg", VECTOR),
        *norm("norm", "ffn.0"),
        *dense("ffn", "ffn.1"),
    )


def rows(config: ActionHeadConfig) -> Rows:
    """The rows of both kinds of blocks and of both kinds of latents; a network has one of each."""
    head = (
        Row("latents", "latents", SAME),
        *norm("latents/norm", "layer_norm1"),
        *dense("latents/fc1", "fc1"),
        *under("blocks/", "mlp_resnet_blocks.{}.", _block(config)),
        *norm("norm", "layer_norm2"),
        *dense("out", "fc2"),
    )
    return (
        *under("action_head/", "action_head.model.", head),
        *dense("action_head/proprio/fc1", "proprio_projector.fc1"),
        *dense("action_head/proprio/fc2", "proprio_projector.fc2"),
    )
