"""How many parameters each part has, by what they are for: counted from shapes, nothing is allocated.

Three columns. *Forward*: what a policy computes actions with. *Training only*: what no policy loads. *Carried*: tensors
of the public models that no forward pass here reads (the towers' last blocks, SigLIP's attention pooling, SAM's point
prompts, VGGT's mask token); they are not part of the network, and conversion hands them through.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from pokevla_jax.config import GeometryConfig
from pokevla_jax.config import ModelConfig
from pokevla_jax.config import SegmentationConfig
from pokevla_jax.config import TowerConfig
from pokevla_jax.models import stacking

# SAM's prompt encoder: four point embeddings, one for "no point", the network that embeds a mask given as a prompt.
SAM_POINT_EMBEDDINGS = 5


@dataclass(frozen=True)
class Row:
    """Parameters of one part."""

    part: str
    forward: int = 0
    training: int = 0
    carried: int = 0

    @property
    def total(self) -> int:
        """All of the part, as its public checkpoint counts."""
        return self.forward + self.training + self.carried


def rows(config: ModelConfig) -> list[Row]:
    """One row per part of the network that ``config`` describes."""
    params = stacking.abstract_params(config)
    vision, head = params["vision"], dict(params["action_head"])
    tokens = [name for name in ("action_queries", "seg_token") if name in params]
    proprio = head.pop("proprio")
    table = [
        Row("DINOv2", _count(vision["dinov2"]), carried=_tower_rest(config.vision.dinov2)),
        Row("SigLIP", _count(vision["siglip"]), carried=_tower_rest(config.vision.siglip)),
        Row("projector", _count(vision["projector"])),
        Row("language model", _count(params["language"])),
        *(Row(name.replace("_", " "), _count(params[name])) for name in tokens),
        Row("action head", _count(head), carried=_head_rest(config)),
        Row("proprio projector", _count(proprio)),
    ]
    if "segmentation" in params:
        table += _segmentation_rows(config.segmentation, params["segmentation"])
    if "vggt" in params:
        table.append(Row("VGGT aggregator", training=_count(params["vggt"]), carried=_vggt_rest(config.geometry)))
    names = {"align_projector": "align projector", "keypoint_head": "keypoint head"}
    return table + [Row(name, training=_count(params[key])) for key, name in names.items() if key in params]


def table(config: ModelConfig) -> str:
    """The rows as text, their sums, and a sentence that tells which sum is which."""
    parts = rows(config)
    columns = ("forward", "training", "carried", "total")
    sums = Row("sum", *(sum(getattr(row, column) for row in parts) for column in columns[:3]))
    cells: list[tuple[str, ...]] = [("part", "forward", "training only", "carried", "total")]
    cells += [(row.part, *(f"{getattr(row, column):,}" for column in columns)) for row in [*parts, sums]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join([name.ljust(widths[0]), *(x.rjust(w) for x, w in zip(numbers, widths[1:], strict=True))])
        for name, *numbers in cells
    ]
    backbone = [row for row in parts if row.part in ("DINOv2", "SigLIP", "language model")]
    total = sum(row.total for row in backbone)
    sentences = [
        f"A policy computes actions with {sums.forward:,} parameters.",
        f"Vision and language alone (both towers and the language model, carried tensors included, without the "
        f"projector) are {total:,}" + (": the paper's 1.22 B." if round(total / 1e9, 2) == 1.22 else "."),
        f"Training adds {sums.training:,}; {sums.carried:,} of the public checkpoints are handed through unread.",
    ]
    return "\n".join([*lines, "", *sentences])


def _count(tree: Any) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def _linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


def _tower_rest(tower: TowerConfig) -> int:
    """What a public tower has behind its feature block: blocks, final norm and, without a class token, the pooling."""
    unread = tower.depth - 1 - tower.feature_block % tower.depth
    if not unread:
        return 0  # A tower that is read at its last block is trained here, not imported.
    width, norm = tower.width, 2 * tower.width
    mlp = _linear(width, tower.mlp_dim) + _linear(tower.mlp_dim, width)
    block = 2 * norm + _linear(width, 3 * width) + _linear(width, width) + mlp + 2 * width * tower.layer_scale
    pool = width + _linear(width, width) + _linear(width, 2 * width) + _linear(width, width) + norm + mlp
    return unread * block + norm + (0 if tower.class_token else pool)


def _vggt_rest(geometry: GeometryConfig) -> int:
    """What the released aggregator has beside the network here: a mask token, and the pairs behind the one read."""
    vggt = geometry.vggt
    width, norm = vggt.width, 2 * vggt.width
    mlp = _linear(width, vggt.mlp_dim) + _linear(vggt.mlp_dim, width)
    heads = 2 * 2 * (width // vggt.num_heads)
    block = 2 * norm + _linear(width, 3 * width) + heads + _linear(width, width) + mlp + 2 * width
    unread = vggt.depth - 1 - geometry.layer % vggt.depth
    return width + 2 * unread * block


def _head_rest(config: ModelConfig) -> int:
    """The modulation layer that every block of the released VLA-Adapter-Pro has and none applies."""
    head = config.action_head
    released_pro = head.block == "pro" and head.latents == "projected"
    return head.num_layers * _linear(head.width, 2 * head.width) if released_pro else 0


def _segmentation_rows(config: SegmentationConfig, params: Mapping[str, Any]) -> list[Row]:
    names = {
        "image_encoder": "image encoder",
        "seg_projection": "<SEG> projection",
        "coarse_prompt": "coarse prompt encoder",
        "coarse_decoder": "coarse mask decoder",
        "fine_prompt": "fine prompt encoder",
        "fine_decoder": "fine mask decoder",
    }
    # A network that is given its image features has no encoder.
    parts = {part: Row(name, training=_count(params[part])) for part, name in names.items() if part in params}
    if config.image_encoder == "sam":
        # Each stage reads another half of SAM's prompt encoder, and neither its points.
        coarse, fine = params["coarse_prompt"], params["fine_prompt"]
        points = SAM_POINT_EMBEDDINGS * config.decoder_dim
        rest = {
            part: _count({k: v for k, v in b.items() if k not in a})
            for part, a, b in (("coarse_prompt", coarse, fine), ("fine_prompt", fine, coarse))
        }
        parts |= {part: dataclasses.replace(parts[part], carried=points + rest[part]) for part in rest}
    return list(parts.values())
