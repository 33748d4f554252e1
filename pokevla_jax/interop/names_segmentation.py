"""Names of the mask branch: segment-anything's, its prompt encoder and mask decoder once coarse and once fine."""

from pokevla_jax.config import SegmentationConfig
from pokevla_jax.interop.layouts import BATCHED
from pokevla_jax.interop.layouts import CONV
from pokevla_jax.interop.layouts import CONV_1X1
from pokevla_jax.interop.layouts import CONV_TRANSPOSED
from pokevla_jax.interop.layouts import LINEAR
from pokevla_jax.interop.layouts import LINEAR_FROM_HEADS
from pokevla_jax.interop.layouts import SAME
from pokevla_jax.interop.layouts import VECTOR
from pokevla_jax.interop.layouts import patches
from pokevla_jax.interop.names_common import dense
from pokevla_jax.interop.names_common import norm
from pokevla_jax.interop.table import Row
from pokevla_jax.interop.table import Rows
from pokevla_jax.interop.table import under
from pokevla_jax.models.image_encoders import SAM_SIZES


def _sam_block(numbers: tuple[object, ...]) -> Rows:
    rows = (
        *norm("norm1", "norm1"),
        *dense("attention/qkv", "attn.qkv", LINEAR),
        *dense("attention/proj", "attn.proj", LINEAR_FROM_HEADS),
        Row("attention/rel_pos_h", "attn.rel_pos_h", SAME),
        Row("attention/rel_pos_w", "attn.rel_pos_w", SAME),
        *norm("norm2", "norm2"),
        *dense("mlp/fc1", "mlp.lin1"),
        *dense("mlp/fc2", "mlp.lin2"),
    )
    return tuple(Row(row.ours, f"blocks.{{}}.{row.theirs}", row.layout, numbers) for row in rows)


def _sam_encoder(config: SegmentationConfig) -> Rows:
    size = SAM_SIZES[config.sam_variant]
    # A group is some windowed blocks and a global one; PyTorch numbers them straight through.
    length = size.num_windowed + 1
    starts = [length * group for group in range(size.num_groups)]
    windowed = tuple(tuple(start + i for i in range(size.num_windowed)) for start in starts)
    full = tuple(start + size.num_windowed for start in starts)
    return (
        *dense("patch_embed/linear", "patch_embed.proj", patches(channels=3)),
        Row("pos_embed", "pos_embed", BATCHED),
        *under("groups/windowed/", "", _sam_block(windowed)),
        *under("groups/full/", "", _sam_block(full)),
        Row("neck1/kernel", "neck.0.weight", CONV_1X1),
        *norm("neck_norm1", "neck.1"),
        Row("neck2/kernel", "neck.2.weight", CONV),
        *norm("neck_norm2", "neck.3"),
    )


def _small_encoder(config: SegmentationConfig) -> Rows:
    """Trained with the rest, so without a PyTorch original: convolutions and channel norms in the order of use."""
    return (
        *dense("conv1/linear", "conv1", patches(channels=3)),
        *norm("norm1", "norm1"),
        *dense("conv2/linear", "conv2", patches(channels=config.decoder_dim // 2)),
        *norm("norm2", "norm2"),
        *dense("conv3", "conv3", CONV),
        *norm("norm3", "norm3"),
    )


_PROMPT_ENCODER: Rows = (
    Row("gaussian_matrix", "pe_layer.positional_encoding_gaussian_matrix", SAME),
    Row("no_mask_embed", "no_mask_embed.weight", BATCHED),
    *dense("conv1/linear", "mask_downscaling.0", patches(channels=1)),
    *norm("norm1", "mask_downscaling.1"),
    *dense("conv2/linear", "mask_downscaling.3", patches(channels=4)),
    *norm("norm2", "mask_downscaling.4"),
    *dense("conv3/linear", "mask_downscaling.6", patches(channels=16)),
)


def _attention(ours: str, theirs: str) -> Rows:
    return (
        *dense(f"{ours}/q_proj", f"{theirs}.q_proj"),
        *dense(f"{ours}/k_proj", f"{theirs}.k_proj"),
        *dense(f"{ours}/v_proj", f"{theirs}.v_proj"),
        *dense(f"{ours}/out_proj", f"{theirs}.out_proj", LINEAR_FROM_HEADS),
    )


def _three_layers(ours: str, theirs: str) -> Rows:
    return (
        *dense(f"{ours}/fc1", f"{theirs}.layers.0"),
        *dense(f"{ours}/fc2", f"{theirs}.layers.1"),
        *dense(f"{ours}/fc3", f"{theirs}.layers.2"),
    )


def _up(ours: str, theirs: str) -> Rows:
    return (
        Row(f"{ours}/linear/kernel", f"{theirs}.weight", CONV_TRANSPOSED),
        Row(f"{ours}/bias", f"{theirs}.bias", VECTOR),
    )


_TWO_WAY_LAYER: Rows = (
    *_attention("self_attn", "self_attn"),
    *norm("norm1", "norm1"),
    *_attention("cross_attn_token_to_image", "cross_attn_token_to_image"),
    *norm("norm2", "norm2"),
    *dense("mlp/fc1", "mlp.lin1"),
    *dense("mlp/fc2", "mlp.lin2"),
    *norm("norm3", "norm3"),
    *_attention("cross_attn_image_to_token", "cross_attn_image_to_token"),
    *norm("norm4", "norm4"),
)

_MASK_DECODER: Rows = (
    Row("iou_token", "iou_token.weight", SAME),
    Row("mask_tokens", "mask_tokens.weight", SAME),
    *under("transformer/layers/", "transformer.layers.{}.", _TWO_WAY_LAYER),
    *_attention("transformer/final_attn_token_to_image", "transformer.final_attn_token_to_image"),
    *norm("transformer/norm_final_attn", "transformer.norm_final_attn"),
    *_up("upscale1", "output_upscaling.0"),
    *norm("upscale_norm", "output_upscaling.1"),
    *_up("upscale2", "output_upscaling.3"),
    *_three_layers("hypernetworks", "output_hypernetworks_mlps.{}"),
    *_three_layers("iou_head", "iou_prediction_head"),
)


def rows(config: SegmentationConfig) -> Rows:
    """The rows of the encoder that the configuration names, of the ``<SEG>`` projection and of both stages."""
    encoder: Rows
    if config.source == "precomputed":
        encoder = ()
    elif config.image_encoder == "sam":
        encoder = under("image_encoder/vit/", "image_encoder.", _sam_encoder(config))
    else:
        encoder = under("image_encoder/", "image_encoder.", _small_encoder(config))
    branch = (
        *encoder,
        *dense("seg_projection/fc1", "text_hidden_fcs.0.0"),
        *dense("seg_projection/fc2", "text_hidden_fcs.0.2"),
        *under("coarse_prompt/", "coarse.prompt_encoder.", _PROMPT_ENCODER),
        *under("coarse_decoder/", "coarse.mask_decoder.", _MASK_DECODER),
        *under("fine_prompt/", "fine.prompt_encoder.", _PROMPT_ENCODER),
        *under("fine_decoder/", "fine.mask_decoder.", _MASK_DECODER),
    )
    return under("segmentation/", "", branch)
