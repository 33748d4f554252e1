"""Matrix-product FLOPs of the network, counted from its configuration: what MFU means here.

Convention (printed with every figure): a product of [m, k] with [k, n] is 2 m k n FLOPs; only products count, not
norms, softmax, activations, the optimizer or what rematerialisation computes again. Causal attention counts half its
square. A backward pass counts a gradient by the weights (where they are trained) and one by the input (where something
before it is trained): 2x forward on fully trained paths, 1x for frozen weights that gradients only pass, 0 for parts
that no gradient reaches. Frozen teachers count forward, and apart from the student. LoRA's own small products are not
counted, and packed rows count as one causal sequence.

    MFU = student FLOPs of a sample x samples per second / (devices x peak FLOP/s of one device in bfloat16)
"""

import re
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Set
from dataclasses import dataclass

from pokevla_jax.config import Config
from pokevla_jax.config import GeometryConfig
from pokevla_jax.config import ModelConfig
from pokevla_jax.config import TowerConfig
from pokevla_jax.config import VisionConfig

FORMULA = "student matmul FLOPs per sample x samples/s / (devices x peak bf16 FLOP/s)"

# bfloat16 peak of one JAX device, by what its ``device_kind`` begins with; the longest match counts. Dense figures of
# the vendors' data sheets (a v4 device is a chip of two cores).
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989.4e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA L40S": 362e12,
}

TEACHERS = ("teacher/sam", "teacher/vggt")
_ADAPTER = re.compile(r"/lora_[ab]$")


@dataclass(frozen=True)
class Flops:
    """Forward FLOPs of one part for one sample."""

    weights: float = 0.0  # activations x parameters
    mixing: float = 0.0  # activations x activations: attention scores and weighted sums
    first: float = 0.0  # of ``weights``: those whose input comes from outside the part

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.weights + other.weights, self.mixing + other.mixing, self.first + other.first)

    def times(self, count: float) -> "Flops":
        """The same part ``count`` times side by side."""
        return Flops(count * self.weights, count * self.mixing, count * self.first)

    @property
    def forward(self) -> float:
        """All products of the forward pass."""
        return self.weights + self.mixing

    def backward(self, *, trained: bool, input_gradient: bool, passed: bool | None = None) -> float:
        """Products of the backward pass.

        Args:
            trained: gradients by the weights are needed.
            input_gradient: something before the part is trained.
            passed: gradients flow through the part at all; by default, if either of the above holds.
        """
        if not (passed if passed is not None else trained or input_gradient):
            return 0.0
        by_input = self.weights - (0.0 if input_gradient else self.first)
        return by_input + 2.0 * self.mixing + (self.weights if trained else 0.0)


@dataclass(frozen=True)
class TrainFlops:
    """FLOPs of one sample's training step, by part."""

    forward: Mapping[str, float]
    backward: Mapping[str, float]

    @property
    def student(self) -> float:
        """Forward and backward of everything that is not a frozen teacher: what MFU counts."""
        parts = [name for name in self.forward if name not in TEACHERS]
        return sum(self.forward[name] + self.backward[name] for name in parts)

    @property
    def teachers(self) -> float:
        """Forward of the frozen teachers that run inside the step."""
        return sum(self.forward[name] for name in self.forward if name in TEACHERS)


def peak_flops(device_kind: str) -> float | None:
    """The bfloat16 peak of a device in FLOP/s; None where it is not known (a CPU, an unlisted card)."""
    matches = [name for name in PEAK_FLOPS if device_kind.startswith(name)]
    return PEAK_FLOPS[max(matches, key=len)] if matches else None


def mfu(student_flops: float, samples_per_second: float, num_devices: int, peak: float) -> float:
    """Model FLOPs utilisation, by ``FORMULA``."""
    return student_flops * samples_per_second / (num_devices * peak)


def sequence_length(config: Config) -> int:
    """Positions of one sample in the language model."""
    model = config.model
    if config.stage == "vlm":
        return config.data.pack_length
    return model.num_vision_tokens + model.max_prompt_length + model.seg_token + model.action_head.num_queries


def forward_flops(config: Config) -> dict[str, Flops]:
    """Forward FLOPs of one training sample by part; a sample of stage 1 is one packed row."""
    model = config.model
    num_images = config.data.pack_images if config.stage == "vlm" else len(model.views)
    parts = _vision(model, num_images) | {"language": _language(model, sequence_length(config))}
    if config.stage == "vlm":
        language = model.language
        logits = 2.0 * config.data.pack_length * language.width * language.vocab_size
        return parts | {"lm_head": Flops(weights=logits)}
    parts["action_head"] = _action_head(model)
    if model.segmentation.weight:
        parts |= _segmentation(model)
    width = model.language.width
    if model.geometry.weight:
        dim = model.geometry.feature_dim
        first = 2.0 * model.num_vision_tokens * width * dim
        parts["align_projector"] = Flops(weights=first + 2.0 * model.num_vision_tokens * dim * dim, first=first)
        if model.geometry.teacher == "vggt" and model.geometry.source == "inside":
            parts["teacher/vggt"] = _vggt(model.geometry, len(model.views))
    if model.keypoint.weight:
        first, last = 2.0 * width * width, 2.0 * width * 3 * model.keypoint.num_keypoints
        parts["keypoint_head"] = Flops(weights=first + last, first=first)
    return parts


def train_flops(config: Config, names: Iterable[str], frozen: Set[str]) -> TrainFlops:
    """FLOPs of one sample's training step.

    Args:
        config: the experiment.
        names: paths of all parameters ("vision/dinov2/…/kernel").
        frozen: those that are not trained.
    """
    forward = forward_flops(config)
    learning = {name for name in names if name not in frozen}
    # A part with adapters passes gradients on to the first of them, whatever else in it is frozen.
    trained = {name for name in learning if not _ADAPTER.search(name)}
    adapted = learning - trained

    def weights(prefix: str) -> bool:
        # Matrices: beside adapters norms and tokens may still be trained, at no products.
        return any(name.startswith(prefix) and name.endswith("/kernel") for name in trained)

    def learns(*prefixes: str) -> bool:
        return any(name.startswith(prefix) for name in learning for prefix in prefixes)

    def within(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in adapted)

    vision_tokens = learns("vision/")
    sequence = vision_tokens or learns("language/embed_tokens", "seg_token", "action_queries")
    states = sequence or learns("language/")
    features = learns("vision/dinov2/", "vision/siglip/")
    # Per part: are its weights trained, and does anything before or beside them need a gradient?
    paths = {
        "vision/dinov2": (weights("vision/dinov2/blocks/"), within("vision/dinov2/")),
        "vision/siglip": (weights("vision/siglip/blocks/"), within("vision/siglip/")),
        "vision/projector": (weights("vision/projector/"), features or within("vision/projector/")),
        "language": (weights("language/layers/"), sequence or within("language/layers/")),
        "lm_head": (learns("language/embed_tokens"), states),
        "action_head": (weights("action_head/"), states),
        "image_encoder": (weights("segmentation/image_encoder/"), False),
        "mask_decoder": (weights("segmentation/seg_"), states),
        "align_projector": (weights("align_projector/"), states),
        "keypoint_head": (weights("keypoint_head/"), states),
    }
    backward = {
        name: 0.0 if name in TEACHERS else part.backward(trained=paths[name][0], input_gradient=paths[name][1])
        for name, part in forward.items()
    }
    return TrainFlops({name: part.forward for name, part in forward.items()}, backward)


def _attention_block(tokens: float, width: float, mlp: float) -> Flops:
    """A ViT block: fused query, key, value, output, and a two-layer MLP."""
    return Flops(2.0 * tokens * (4 * width**2 + 2 * width * mlp), 4.0 * tokens**2 * width)


def _tower(tower: TowerConfig, vision: VisionConfig) -> Flops:
    tokens = vision.num_patches + int(tower.class_token) + tower.num_registers
    embed = 2.0 * vision.num_patches * vision.patch_size**2 * 3 * tower.width
    # The blocks after the one that is read are not built.
    num_layers = tower.feature_block % tower.depth + 1
    return Flops(weights=embed, first=embed) + _attention_block(tokens, tower.width, tower.mlp_dim).times(num_layers)


def _vision(model: ModelConfig, num_images: int) -> dict[str, Flops]:
    vision, width = model.vision, model.language.width
    inputs, hidden = vision.dinov2.width + vision.siglip.width, vision.projector_dim
    first = 2.0 * vision.num_patches * inputs * hidden
    rest = 2.0 * vision.num_patches * (hidden * width + width * width)
    return {
        "vision/dinov2": _tower(vision.dinov2, vision).times(num_images),
        "vision/siglip": _tower(vision.siglip, vision).times(num_images),
        "vision/projector": Flops(weights=first + rest, first=first).times(num_images),
    }


def _language(model: ModelConfig, length: int) -> Flops:
    c = model.language
    queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    weights = 2.0 * length * (2 * c.width * queries + 2 * c.width * keys + 3 * c.width * c.mlp_dim)
    return Flops(weights, 2.0 * length**2 * queries).times(c.num_layers)


def _action_head(model: ModelConfig) -> Flops:
    head, width = model.action_head, model.language.width
    t, d = model.action_horizon, head.width
    lengths = {"latents": t, "query": head.num_queries + 1, "vision": model.num_vision_tokens}
    if head.inject_seg:
        lengths["seg"] = 1
    inputs = {name: d if name == "latents" or head.block == "original" else width for name in lengths}
    key_value = {name: 2.0 * lengths[name] * inputs[name] * 2 * d for name in lengths}
    # The query source ends in the robot's state, which the head embeds itself.
    context = sum(value for name, value in key_value.items() if name in ("vision", "seg"))
    outputs = 1 if head.concat == "joint_softmax" else len(lengths)
    own = 2.0 * t * d * d * (2 + outputs)  # queries, ffn, output
    mixing = 4.0 * t * sum(lengths.values()) * d
    blocks = Flops(own + sum(key_value.values()), mixing, context).times(head.num_layers)
    ends = 2.0 * (model.proprio_dim * width + width * width + t * d * model.action_dim)
    return Flops(weights=ends, first=2.0 * model.proprio_dim * width) + blocks


def _segmentation(model: ModelConfig) -> dict[str, Flops]:
    seg, views, width = model.segmentation, len(model.views), model.language.width
    projection = Flops(weights=2.0 * width * (width + seg.decoder_dim), first=2.0 * width * width)
    decoders = (_mask_decoder(model).times(2) + _mask_prompt(model)).times(views)
    encoder = _sam_encoder(model) if seg.image_encoder == "sam" else _small_encoder(model)
    parts = {"mask_decoder": projection + decoders}
    if seg.source == "precomputed":
        return parts
    name = "teacher/sam" if seg.image_encoder == "sam" else "image_encoder"
    return {name: encoder.times(views)} | parts


def _mask_prompt(model: ModelConfig) -> Flops:
    """The coarse logits as dense prompt, three strided convolutions."""
    cells, dim = model.segmentation.feature_grid**2, model.segmentation.decoder_dim
    return Flops(weights=2.0 * cells * (4 * 4 * 4 + 16 * 16 + 16 * dim))


def _mask_decoder(model: ModelConfig) -> Flops:
    seg = model.segmentation
    # One IoU token, four mask tokens, one prompt.
    z, k, d, m = seg.feature_grid**2, 6, seg.decoder_dim, seg.decoder_mlp_dim
    half = d // 2

    def attention(queries: float, keys: float, inner: float) -> Flops:
        return Flops(2.0 * d * inner * (2 * queries + 2 * keys), 4.0 * queries * keys * inner)

    layer = attention(k, k, d) + attention(k, z, half) + attention(z, k, half) + Flops(weights=4.0 * k * d * m)
    upscale = 2.0 * z * d * d + 2.0 * 4 * z * (d // 4) * 4 * (d // 8)
    hyper = 2.0 * (2 * d * d + d * (d // 8))
    product = Flops(weights=upscale + hyper, mixing=2.0 * 16 * z * (d // 8))
    return layer.times(seg.decoder_depth) + attention(k, z, half) + product


def _small_encoder(model: ModelConfig) -> Flops:
    grid, dim = model.segmentation.feature_grid, model.segmentation.decoder_dim
    first = 2.0 * model.vision.image_size**2 * 3 * (dim // 2)
    return Flops(weights=first + 2.0 * grid**2 * (4 * (dim // 2) * dim + 9 * dim * dim), first=first)


def _vggt(geometry: GeometryConfig, views: int) -> Flops:
    """VGGT's aggregator up to the pair that is read: a ViT per view, then blocks within a view and across views."""
    c = geometry.vggt
    tokens = c.num_patches + 1 + c.num_registers
    embed = Flops(weights=2.0 * c.num_patches * c.patch_size**2 * 3 * c.width)
    view = _attention_block(tokens, c.width, c.mlp_dim)
    pairs = view.times(views) + _attention_block(views * tokens, c.width, c.mlp_dim)
    return (embed + view.times(c.embed_depth)).times(views) + pairs.times(geometry.layer % c.depth + 1)


# Width, groups, windowed blocks per group, window: SAM's ViT-B and ViT-H.
_SAM = {"vit_b": (768, 4, 2, 14), "vit_h": (1280, 4, 7, 14)}


def _sam_encoder(model: ModelConfig) -> Flops:
    seg = model.segmentation
    d, groups, windowed, window = _SAM[seg.sam_variant]
    grid, cells = seg.feature_grid, seg.feature_grid**2

    def block(side: int, count: int) -> Flops:
        tokens = count * side**2
        # Decomposed relative positions: each query with a row and a column of the tables.
        mixing = 4.0 * tokens * side**2 * d + 4.0 * tokens * side * d
        return Flops(2.0 * tokens * 4 * d * d + 2.0 * cells * 8 * d * d, mixing)

    blocks = block(window, (-(-grid // window)) ** 2).times(windowed) + block(grid, 1)
    dim = seg.decoder_dim
    return Flops(weights=2.0 * cells * (16**2 * 3 * d + d * dim + 9 * dim * dim)) + blocks.times(groups)
