"""Names of what reads positions in space: VGGT's aggregator, Spatial Forcing's align projector, the keypoint head."""

from pokevla_jax.interop.layouts import BATCHED
from pokevla_jax.interop.layouts import LINEAR
from pokevla_jax.interop.layouts import LINEAR_FROM_HEADS
from pokevla_jax.interop.layouts import SAME
from pokevla_jax.interop.layouts import patches
from pokevla_jax.interop.names_common import dense
from pokevla_jax.interop.names_common import norm
from pokevla_jax.interop.table import Row
from pokevla_jax.interop.table import Rows
from pokevla_jax.interop.table import under

_BLOCK: Rows = (
    *norm("norm1", "norm1"),
    *dense("attention/qkv", "attn.qkv", LINEAR),
    *norm("attention/q_norm", "attn.q_norm"),
    *norm("attention/k_norm", "attn.k_norm"),
    *dense("attention/proj", "attn.proj", LINEAR_FROM_HEADS),
    Row("ls1", "ls1.gamma", SAME),
    *norm("norm2", "norm2"),
    *dense("mlp/fc1", "mlp.fc1"),
    *dense("mlp/fc2", "mlp.fc2"),
    Row("ls2", "ls2.gamma", SAME),
)

_AGGREGATOR: Rows = (
    Row("camera_token", "camera_token", BATCHED),
    Row("register_token", "register_token", BATCHED),
    *dense("patch_embed/patch_embed", "patch_embed.patch_embed.proj", patches(channels=3)),
    Row("patch_embed/cls_token", "patch_embed.cls_token", BATCHED),
    Row("patch_embed/register_tokens", "patch_embed.register_tokens", BATCHED),
    Row("patch_embed/pos_embed", "patch_embed.pos_embed", BATCHED),
    *under("patch_embed/blocks/", "patch_embed.blocks.{}.", _BLOCK),
    *norm("patch_embed/norm", "patch_embed.norm"),
    *under("pairs/frame_block/", "frame_blocks.{}.", _BLOCK),
    *under("pairs/global_block/", "global_blocks.{}.", _BLOCK),
)

ROWS: Rows = (
    *norm("align_projector/norm", "align_projector.vlm_norm"),
    *dense("align_projector/mlp/fc1", "align_projector.fc1"),
    *dense("align_projector/mlp/fc2", "align_projector.fc2"),
    *dense("keypoint_head/fc1", "keypoint_head.fc1"),
    *dense("keypoint_head/fc2", "keypoint_head.fc2"),
    *under("vggt/", "vggt.aggregator.", _AGGREGATOR),
)
