"""Names of the vision encoder: DINOv2 and SigLIP as in timm (LayerScale as Hugging Face exports it), and the projector.

Towers follow VLA-Adapter's export: ``featurizer`` is DINOv2, ``fused_featurizer`` is SigLIP.
"""

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

_TOWER: Rows = (
    *dense("patch_embed", "patch_embed.proj", patches(channels=3)),
    Row("pos_embed", "pos_embed", BATCHED),
    Row("cls_token", "cls_token", BATCHED),
    Row("reg_token", "reg_token", BATCHED),
    *norm("blocks/norm1", "blocks.{}.norm1"),
    *dense("blocks/attention/qkv", "blocks.{}.attn.qkv", LINEAR),
    *dense("blocks/attention/proj", "blocks.{}.attn.proj", LINEAR_FROM_HEADS),
    Row("blocks/ls1", "blocks.{}.ls1.scale_factor", SAME),
    *norm("blocks/norm2", "blocks.{}.norm2"),
    *dense("blocks/mlp/fc1", "blocks.{}.mlp.fc1"),
    *dense("blocks/mlp/fc2", "blocks.{}.mlp.fc2"),
    Row("blocks/ls2", "blocks.{}.ls2.scale_factor", SAME),
)

ROWS: Rows = (
    *under("vision/dinov2/", "vision_backbone.featurizer.", _TOWER),
    *under("vision/siglip/", "vision_backbone.fused_featurizer.", _TOWER),
    *dense("vision/projector/fc1", "projector.fc1"),
    *dense("vision/projector/fc2", "projector.fc2"),
    *dense("vision/projector/fc3", "projector.fc3"),
)
