"""What public checkpoints call their tensors, and the names they have here.

A dialect renames; what it cannot rename (separate q, k and v, a class position inside the position embedding) is put
together in ``assembled``. Which dialect a file speaks is told from its names alone.
"""

import re
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pokevla_jax.interop.layouts import Shape
from pokevla_jax.interop.readers import SourceError
from pokevla_jax.interop.readers import Stored
from pokevla_jax.interop.readers import TensorFile


@dataclass(frozen=True)
class Tensor:
    """A tensor under its name here, not yet read.

    Attributes:
        origin: file and name, for messages.
    """

    shape: Shape
    dtype: str
    read: Callable[[], np.ndarray]
    origin: str


@dataclass(frozen=True)
class Dialect:
    """One kind of checkpoint.

    Attributes:
        kind: what reports call it.
        marks: it is this kind where all of these patterns are among the names.
        renames: patterns and replacements, applied in order to every name.
        dropped: names (before renaming) that belong to parts nobody needs here.
        copies: prefixes that the renamed ``*`` stands for; more than one where the network uses the part repeatedly.
    """

    kind: str
    marks: tuple[str, ...]
    renames: tuple[tuple[str, str], ...] = ()
    dropped: str | None = None
    copies: tuple[str, ...] = ()


_DINOV2, _SIGLIP = "vision_backbone.featurizer.", "vision_backbone.fused_featurizer."
_LAYER_SCALE = (r"(ls[12])\.gamma$", r"\1.scale_factor")
_SAM_STAGES = (r"^(prompt_encoder|mask_decoder)\.", r"*.\1.")

DIALECTS = (
    Dialect(
        "Prismatic",
        marks=(r"llm_backbone\.llm\.",),
        renames=(
            (r"^vision_backbone\.dino_featurizer\.", _DINOV2),
            (r"^vision_backbone\.siglip_featurizer\.", _SIGLIP),
            (r"^llm_backbone\.llm\.", "language_model."),
            (r"^projector\.projector\.0\.", "projector.fc1."),
            (r"^projector\.projector\.2\.", "projector.fc2."),
            (r"^projector\.projector\.4\.", "projector.fc3."),
            _LAYER_SCALE,
        ),
    ),
    Dialect(
        "own or VLA-Adapter export",
        marks=(
            r"vision_backbone\.|language_model\.|action_queries\.|action_head\.model\.|proprio_projector\.|seg_token\."
            r"|text_hidden_fcs\.|(coarse|fine)\.|align_projector\.|keypoint_head\.|vggt\.|projector\.fc1\.",
        ),
    ),
    Dialect(
        "VLA-Adapter action head",
        marks=(r"model\.mlp_resnet_blocks\.0\.",),
        renames=((r"^", "action_head."),),
    ),
    Dialect("align projector", marks=(r"vlm_norm\.", r"fc1\."), renames=((r"^", "align_projector."),)),
    Dialect("proprio projector", marks=(r"fc1\.weight$", r"fc2\.weight$"), renames=((r"^", "proprio_projector."),)),
    Dialect(
        "Qwen2 (Hugging Face)",
        marks=(r"(model\.)?embed_tokens\.weight$", r"(model\.)?layers\.0\.self_attn\.q_proj\.weight$"),
        renames=(
            (r"^(model\.)?(embed_tokens|layers|norm)\.", r"language_model.model.\2."),
            (r"^lm_head", r"language_model.lm_head"),
        ),
    ),
    Dialect(
        "SAM (Hugging Face)",
        marks=(r"vision_encoder\.patch_embed\.projection\.", r"mask_decoder\.iou_token\."),
        renames=(
            (r"^vision_encoder\.patch_embed\.projection", "image_encoder.patch_embed.proj"),
            (r"^vision_encoder\.layers\.", "image_encoder.blocks."),
            (r"^vision_encoder\.neck\.conv1", "image_encoder.neck.0"),
            (r"^vision_encoder\.neck\.layer_norm1", "image_encoder.neck.1"),
            (r"^vision_encoder\.neck\.conv2", "image_encoder.neck.2"),
            (r"^vision_encoder\.neck\.layer_norm2", "image_encoder.neck.3"),
            (r"^vision_encoder\.", "image_encoder."),
            # One matrix, stored under either name or under both.
            (
                r"^(shared_image_embedding|prompt_encoder\.shared_embedding)\.positional_embedding$",
                "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
            ),
            (r"\.point_embed\.", ".point_embeddings."),
            (r"\.mask_embed\.conv1\.", ".mask_downscaling.0."),
            (r"\.mask_embed\.layer_norm1\.", ".mask_downscaling.1."),
            (r"\.mask_embed\.conv2\.", ".mask_downscaling.3."),
            (r"\.mask_embed\.layer_norm2\.", ".mask_downscaling.4."),
            (r"\.mask_embed\.conv3\.", ".mask_downscaling.6."),
            (r"\.upscale_conv1\.", ".output_upscaling.0."),
            (r"\.upscale_layer_norm\.", ".output_upscaling.1."),
            (r"\.upscale_conv2\.", ".output_upscaling.3."),
            (r"(mlps\.\d|iou_prediction_head)\.layers\.0\.", r"\1.layers.1."),
            (r"(mlps\.\d|iou_prediction_head)\.proj_in\.", r"\1.layers.0."),
            (r"(mlps\.\d|iou_prediction_head)\.proj_out\.", r"\1.layers.2."),
            (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
            (r"\.layer_norm(\d)\.", r".norm\1."),
            _SAM_STAGES,
        ),
        copies=("coarse", "fine"),
    ),
    Dialect(
        "SAM (segment-anything)",
        marks=(r"image_encoder\.patch_embed\.proj\.", r"mask_decoder\.iou_token\."),
        renames=(_SAM_STAGES,),
        copies=("coarse", "fine"),
    ),
    Dialect(
        "VGGT",
        marks=(r"aggregator\.camera_token$",),
        # Heads that read the aggregator's features; the teacher is the aggregator alone.
        dropped=r"(camera|point|depth|track)_head\.",
        renames=((r"^", "vggt."),),
    ),
    Dialect(
        "DINOv2 (Hugging Face)",
        marks=(r"(\w+\.)?embeddings\.cls_token$", r"(\w+\.)?encoder\.layer\.0\.layer_scale1\.lambda1$"),
        dropped=r"(\w+\.)?embeddings\.mask_token$",
        renames=(
            (r"^(?!embeddings|encoder|layernorm)\w+\.", ""),
            (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
            (r"^embeddings\.cls_token$", "cls_token"),
            (r"^embeddings\.register_tokens$", "reg_token"),
            (r"^embeddings\.position_embeddings$", "pos_embed"),
            (r"^encoder\.layer\.", "blocks."),
            (r"\.attention\.(attention\.)?(query|q_proj)\.", ".attn.q."),
            (r"\.attention\.(attention\.)?(key|k_proj)\.", ".attn.k."),
            (r"\.attention\.(attention\.)?(value|v_proj)\.", ".attn.v."),
            (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
            (r"\.layer_scale([12])\.lambda1$", r".ls\1.scale_factor"),
            (r"^layernorm\.", "norm."),
            (r"^", _DINOV2),
        ),
    ),
    Dialect(
        "SigLIP (Hugging Face)",
        marks=(r"(vision_model\.)?embeddings\.patch_embedding\.weight$",),
        dropped=r"text_model\.|logit_(scale|bias)$",
        renames=(
            (r"^vision_model\.", ""),
            (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
            (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
            (r"^encoder\.layers\.", "blocks."),
            (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
            (r"\.self_attn\.out_proj\.", ".attn.proj."),
            (r"\.layer_norm([12])\.", r".norm\1."),
            (r"^post_layernorm\.", "norm."),
            (r"^head\.probe$", "attn_pool.latent"),
            (r"^head\.attention\.in_proj_", "attn_pool.in_proj."),
            (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
            (r"^head\.layernorm\.", "attn_pool.norm."),
            (r"^head\.mlp\.", "attn_pool.mlp."),
            (r"^", _SIGLIP),
        ),
    ),
    Dialect(
        "DINOv2 (timm or original)",
        marks=(r"cls_token$", r"blocks\.0\.ls1\.gamma$"),
        dropped=r"mask_token$",
        renames=((r"^register_tokens$", "reg_token"), _LAYER_SCALE, (r"^", _DINOV2)),
    ),
    Dialect(
        "SigLIP (timm)",
        marks=(r"patch_embed\.proj\.weight$", r"blocks\.0\.attn\.qkv\.weight$", r"attn_pool\.latent$"),
        renames=((r"^", _SIGLIP),),
    ),
)


def recognise(names: Collection[str], path: object) -> Dialect:
    """The kind of checkpoint that has these names.

    Raises:
        SourceError: when it is none that is known, or an adapter that was not merged.
    """
    if not names:
        raise SourceError(f"{path} holds no tensors")
    if adapter := next((name for name in names if "lora_" in name), None):
        raise SourceError(f"{path} holds LoRA adapters ({adapter}); give the checkpoint into which they were merged")
    for dialect in DIALECTS:
        if all(any(re.match(mark, name) for name in names) for mark in dialect.marks):
            return dialect
    kinds = ", ".join(dialect.kind for dialect in DIALECTS)
    raise SourceError(f"{path} holds tensors such as {min(names)!r}, which no known kind has; known: {kinds}")


def translate(file: TensorFile) -> tuple[Dialect, dict[str, Tensor], list[str]]:
    """A file's dialect, its tensors by their names here, and the names of those that are left out.

    Raises:
        SourceError: when the names are of no known kind, or tensors that belong together are not all there.
    """
    # What DistributedDataParallel wraps is saved with this prefix.
    prefix = "module." if all(name.startswith("module.") for name in file.tensors) else ""
    raw = {name.removeprefix(prefix): name for name in file.tensors}
    dialect = recognise(raw, file.path)
    tensors: dict[str, Tensor] = {}
    left_out = []
    for short, name in raw.items():
        if dialect.dropped and re.match(dialect.dropped, short):
            left_out.append(name)
            continue
        new = short
        for pattern, replacement in dialect.renames:
            new = re.sub(pattern, replacement, new)
        tensor = _stored(file, name, file.tensors[name])
        for copy in dialect.copies or ("",):
            tensors[new.replace("*", copy)] = tensor
    return dialect, assembled(tensors), left_out


def _stored(file: TensorFile, name: str, stored: Stored) -> Tensor:
    return Tensor(stored.shape, stored.dtype, lambda: file.read(name), f"{name} in {file.path}")


def assembled(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` with those parts joined or cut that are one tensor here and several there, or the other way round."""
    result = dict(tensors)
    for name in tensors:
        if match := re.fullmatch(r"(vision_backbone\..*\.attn)\.q\.(weight|bias)", name):
            _join_qkv(result, *match.groups())
        elif match := re.fullmatch(r"(vision_backbone\..*)\.in_proj\.(weight|bias)", name):
            _cut_in_proj(result, *match.groups())
    _separate_class_position(result)
    if (name := f"{_SIGLIP}pos_embed") in result and len(result[name].shape) == 2:
        old = result[name]  # Hugging Face's is an embedding table
        result[name] = Tensor((1, *old.shape), old.dtype, lambda: old.read()[None], old.origin)
    return result


def _join_qkv(tensors: dict[str, Tensor], prefix: str, kind: str) -> None:
    """One fused projection: q's rows, k's, v's."""
    names = [f"{prefix}.{letter}.{kind}" for letter in "qkv"]
    if missing := [name for name in names if name not in tensors]:
        raise SourceError(f"{tensors[names[0]].origin} has no partner {missing[0]}; the file is incomplete")
    parts = [tensors.pop(name) for name in names]
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    read = lambda: np.concatenate([part.read() for part in parts])  # noqa: E731 - closes over this call's parts
    tensors[f"{prefix}.qkv.{kind}"] = Tensor(shape, parts[0].dtype, read, parts[0].origin)


def _cut_in_proj(tensors: dict[str, Tensor], prefix: str, kind: str) -> None:
    """The pooling's projection: the first third makes queries, the rest keys and values."""
    old = tensors.pop(f"{prefix}.in_proj.{kind}")
    width = old.shape[0] // 3
    for name, rows in (("q", slice(0, width)), ("kv", slice(width, None))):
        shape = (len(range(*rows.indices(old.shape[0]))), *old.shape[1:])
        read = lambda rows=rows: old.read()[rows]  # noqa: E731
        tensors[f"{prefix}.{name}.{kind}"] = Tensor(shape, old.dtype, read, old.origin)


def _separate_class_position(tensors: dict[str, Tensor]) -> None:
    """DINOv2's original position embedding begins with the class token's, which timm adds to the token instead."""
    pos, cls = (tensors.get(_DINOV2 + name) for name in ("pos_embed", "cls_token"))
    if pos is None or cls is None or len(pos.shape) != 3:
        return
    side = round((pos.shape[1] - 1) ** 0.5)
    if side**2 + 1 != pos.shape[1]:
        return

    def summed() -> np.ndarray:
        token = cls.read()
        return (token.astype(np.float32) + pos.read()[:, :1].astype(np.float32)).astype(token.dtype)

    tensors[f"{_DINOV2}cls_token"] = Tensor(cls.shape, cls.dtype, summed, cls.origin)
    shape = (1, pos.shape[1] - 1, pos.shape[2])
    tensors[f"{_DINOV2}pos_embed"] = Tensor(shape, pos.dtype, lambda: pos.read()[:, 1:], pos.origin)
