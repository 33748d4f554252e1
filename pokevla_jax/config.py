"""Typed configuration: the one place where an ``ml_collections.ConfigDict`` becomes frozen dataclasses.

``configs/*.py`` describe experiments as ConfigDicts that override the defaults below; ``from_config_dict`` turns one
into a ``Config``, answers an unknown key with its nearest known neighbour and asks ``config_rules`` of the rest.
Nothing else in the package sees a ConfigDict. A field whose value the paper does not state says so, with the reason
for its default.
"""

from dataclasses import dataclass
from dataclasses import field
from typing import Any
from typing import Literal

from pokevla_jax.config_rules import validate
from pokevla_jax.fields import ConfigError
from pokevla_jax.fields import from_dict
from pokevla_jax.fields import to_dict

__all__ = [
    "ActionHeadConfig",
    "AugmentConfig",
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "GeometryConfig",
    "KeypointConfig",
    "LanguageConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "SegmentationConfig",
    "TowerConfig",
    "VggtConfig",
    "VisionConfig",
    "from_config_dict",
    "from_dict",
    "to_dict",
    "validate",
]


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """One vision transformer of the fused pair (DINOv2 or SigLIP)."""

    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    class_token: bool = False
    num_registers: int = 0
    layer_scale: bool = False
    # Which block's raw output is the feature; Prismatic reads the second-to-last one and applies no final norm.
    feature_block: int = -2
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The fused vision encoder: towers side by side, their features concatenated per patch, then one MLP."""

    image_size: int = 224
    patch_size: int = 14
    dinov2: TowerConfig
    siglip: TowerConfig
    # fused MLP: sum of tower widths -> projector_dim -> language width -> language width
    projector_dim: int = 8704

    @property
    def grid(self) -> int:
        """Patches along one side of a view."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of one view."""
        return self.grid**2


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """A causal Qwen2-style decoder."""

    vocab_size: int = 151_936
    width: int = 896
    num_layers: int = 24
    num_heads: int = 14
    num_kv_heads: int = 2
    head_dim: int = 64
    mlp_dim: int = 4864
    rope_theta: float = 1e6
    norm_eps: float = 1e-6


@dataclass(frozen=True, kw_only=True)
class ActionHeadConfig:
    """The action expert: action latents attend to themselves and to what the language model produced.

    Unknown in the paper and therefore configurable: depth, width, heads, what is concatenated, the gate, which layer
    is read. Defaults follow VLA-Adapter-Pro, the baseline PokeVLA grew from.
    """

    num_layers: int = 24
    width: int = 896
    num_heads: int = 8
    num_queries: int = 64
    # "pro": separate keys and values per source, rotary positions; "original": one shared key and value projection.
    block: Literal["pro", "original"] = "pro"
    # Every block reads the last layer ("last", a note on the paper) or block i reads layer i + 1 ("layerwise").
    context: Literal["last", "layerwise"] = "last"
    # One softmax over the logits of all sources, or one attention per source and a linear layer over their outputs.
    concat: Literal["joint_softmax", "outputs"] = "joint_softmax"
    # tanh(g), g = 0 at the start, multiplies the logits of the gated sources.
    gate: Literal["vision", "vision_and_seg", "none"] = "vision"
    inject_seg: bool = True
    # What the latents start from: a learned vector per step of the chunk, or VLA-Adapter's norm and linear layer over
    # zeros (in training over noise, one sample for the whole batch).
    latents: Literal["learned", "projected"] = "learned"
    # Positions of the "pro" block: Qwen2's rotation, or the one that the released VLA-Adapter-Pro weights learned with.
    rotary: Literal["half_split", "vla_adapter"] = "half_split"
    # VLA-Adapter reads vision and query states one position early: the first prompt token instead of the last patch,
    # the last prompt token instead of the last query.
    shifted_context: bool = False


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig:
    """Goal-aware segmentation of both views from the ``<SEG>`` state (training only)."""

    weight: float = 0.2
    focal_weight: float = 1.0
    kld_weight: float = 1.0
    # Deep supervision of the coarse map; 0 as in GLOVER++, whose decoder the paper's resembles.
    coarse_weight: float = 0.0
    # "sam": frozen SAM image encoder; "small": a small convolutional encoder trained with the rest.
    image_encoder: Literal["sam", "small"] = "sam"
    sam_variant: Literal["vit_b", "vit_h"] = "vit_b"
    # "inside": SAM's encoder runs in the training step; "precomputed": its features are part of the batch.
    source: Literal["inside", "precomputed"] = "inside"
    # Side of the square feature map that the decoder sees; the mask logits are 4 times as large.
    feature_grid: int = 64
    decoder_dim: int = 256
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048

    @property
    def mask_size(self) -> int:
        """Side of the square mask logits."""
        return 4 * self.feature_grid


@dataclass(frozen=True, kw_only=True)
class VggtConfig:
    """The aggregator of VGGT, as released by default."""

    image_size: int = 518
    patch_size: int = 14
    width: int = 1024
    num_heads: int = 16
    mlp_dim: int = 4096
    # Registers of the patch embedding's ViT, and as many again of every view in the aggregator.
    num_registers: int = 4
    # Blocks of the patch embedding's ViT, and pairs of one block within a view and one across views.
    embed_depth: int = 24
    depth: int = 24

    @property
    def grid(self) -> int:
        """Patches along one side of a view."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of one view."""
        return self.grid**2


@dataclass(frozen=True, kw_only=True)
class GeometryConfig:
    """Alignment of the vision states to a frozen geometry teacher by cosine (training only)."""

    weight: float = 0.4
    # "vggt": frozen aggregator features; "depth": Fourier features of each patch's 3-D point in the robot's base frame.
    teacher: Literal["vggt", "depth"] = "vggt"
    # "inside": the teacher is computed in the training step; "precomputed": its features are part of the batch.
    source: Literal["inside", "precomputed"] = "inside"
    vggt: VggtConfig = VggtConfig()
    # Which pair's output is the target; unknown in the paper, Spatial Forcing reads the last.
    layer: int = -1
    # Spatial Forcing adds a position embedding to the target, weighted 0.1.
    position_embedding: bool = True
    feature_dim: int = 2048
    # The depth teacher's workspace centre (metres, base frame) and its Fourier frequencies (cycles per metre).
    workspace_center: tuple[float, ...] = (0.6, 0.0, 0.1)
    frequencies: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class KeypointConfig:
    """Optional regression of the target's and goal's 3-D positions from the ``<SEG>`` state; not in the paper."""

    weight: float = 0.0
    num_keypoints: int = 2
    # Positions are divided by this length (metres) after the workspace centre is subtracted.
    scale: float = 0.2


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The whole stage-2 network; ``models/presets.py`` holds the named ones."""

    preset: str
    vision: VisionConfig
    language: LanguageConfig
    action_head: ActionHeadConfig
    segmentation: SegmentationConfig
    geometry: GeometryConfig
    keypoint: KeypointConfig = KeypointConfig()
    views: tuple[str, ...] = ("agentview", "wrist")
    # Whether a learned <SEG> token stands before the action queries.
    seg_token: bool = True
    # Where the vision tokens stand: in front, or spliced in after the first prompt token, as VLA-Adapter does.
    vision_position: Literal["first", "after_first_token"] = "first"
    action_dim: int = 7
    action_horizon: int = 8
    proprio_dim: int = 8
    max_prompt_length: int = 64
    # Arithmetic of the forward pass; parameters are float32, frozen ones may be bfloat16.
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    # What the backward pass of a layer has at hand: everything; the outputs of linear maps and attention; attention's
    # output alone; or nothing but the layer's input, in the mask decoders too ("full").
    remat: Literal["none", "dots", "layers", "full"] = "layers"
    # Self-attention of towers and language model: plain XLA everywhere, cuDNN's fused kernel on GPU (bfloat16), or what
    # suits a TPU: XLA for the towers' short sequences, and for the language model a kernel ("splash") or blocks of
    # queries ("blockwise"). The action head joins several sources under one softmax, which only XLA computes.
    attention: Literal["xla", "cudnn", "splash", "blockwise"] = "xla"
    # Tokens per device whose logits over the vocabulary exist at one time (stage 1).
    logits_chunk: int = 1024

    @property
    def num_vision_tokens(self) -> int:
        """Vision tokens of all views."""
        return len(self.views) * self.vision.num_patches

    @property
    def segmentation_features(self) -> tuple[int, ...]:
        """Shape of the mask decoders' image features of one sample: views, rows, columns, channels."""
        grid = self.segmentation.feature_grid
        return len(self.views), grid, grid, self.segmentation.decoder_dim

    @property
    def geometry_targets(self) -> tuple[int, ...]:
        """Shape of the geometry teacher's features of one sample: vision tokens, channels."""
        return self.num_vision_tokens, self.geometry.feature_dim


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Image augmentation; zeros switch a part off. Paper defaults are VLA-Adapter's (see ``data/transforms.py``)."""

    crop_area: float = 0.9
    # Random translation in pixels of the source image, drawn per view.
    shift: int = 0
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.05


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where samples come from and what is done to them on the host."""

    path: str = ""
    tokenizer: str = "compact"  # "compact": words of the corpus; otherwise a folder or hub id for AutoTokenizer
    prompt_template: str = "What action should the robot take to {instruction}?"
    augment: AugmentConfig = AugmentConfig()
    # Part of the episodes (by hash of their id) kept out of training, for the action error and mask IoU.
    holdout_fraction: float = 0.05
    num_workers: int = 0
    prefetch: int = 4
    # The last action_horizon - 1 starts of an episode: padded with a validity mask, or dropped as the reference does.
    drop_tail: bool = False
    # Leave out starts at which the robot is told to do nothing (OpenVLA's filter).
    drop_noops: bool = False
    # Controls: the same network, trained and run without sight or without the instruction.
    zero_images: bool = False
    zero_language: bool = False
    # Fraction of noise added to the normalised proprio in training, against copying the state.
    proprio_noise: float = 0.0
    # How often an epoch shows each sample of a source (a corpus, a suite) or of a pillar; 1 where none is given. Both
    # multiply: {"llava_instruct": 0.5} shows half of it per epoch, another half in the next.
    source_weights: dict[str, float] = field(default_factory=dict)
    pillar_weights: dict[str, float] = field(default_factory=dict)
    # Stage 1: tokens of one packed row, image slots included, and how many images a row may hold.
    pack_length: int = 2048
    pack_images: int = 4


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay."""

    learning_rate: float = 1e-4
    warmup_steps: int = 1000
    final_learning_rate_fraction: float = 0.0
    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.999
    clip_norm: float = 1.0
    # Of Adam's first moment; "bfloat16" saves 2 bytes a trained parameter, the second moment stays float32.
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    # Weight of log(sum of exponentials)^2 per token in stage 1, against drifting logits; 0 is the paper's loss.
    z_loss: float = 0.0
    # Low-rank adapters on the linear maps whose paths match; 0: none. What they adapt is frozen, as is what ``freeze``
    # names, adapters excepted. Rank and scale are unknown in the paper; VLA-Adapter's are 64 and alpha 128.
    lora_rank: int = 0
    lora_alpha: float = 128.0
    lora_targets: tuple[str, ...] = (r"vision/(dinov2|siglip)/blocks/.*", r"vision/projector/.*", r"language/layers/.*")
    # Regular expressions on parameter paths ("vision/dinov2/.*"); what matches is frozen and has no optimizer memory.
    freeze: tuple[str, ...] = ()
    # How frozen matrices are kept; "bfloat16" halves their memory and rounds them once.
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    # Exponential moving average of the weights, used for evaluation and export; 0 switches it off.
    ema_decay: float = 0.0
    accumulation_steps: int = 1
    # A step whose loss or gradient is not finite, or a spike: "stop" ends the run before it is saved, naming the step;
    # "skip" leaves the state as it was and goes on, up to max_skipped times in a row.
    on_bad_step: Literal["stop", "skip"] = "stop"
    # A spike lies this many standard deviations above the mean of the last spike_window good steps; 0 looks for none.
    spike_sigmas: float = 0.0
    spike_window: int = 128
    max_skipped: int = 20


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the mesh axes; one of them may be -1 and takes the devices that are left."""

    replica: int = 1
    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is saved, how often, and what is kept."""

    every_steps: int = 1000
    keep_last: int = 2
    # Steps divisible by this are never deleted; 0 keeps none beyond the last and the best.
    keep_every: int = 0


@dataclass(frozen=True, kw_only=True)
class Config:
    """One experiment."""

    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    # "vla": the action policy (stage 2). "vlm": its vision-language model alone, on conversations (stage 1).
    stage: Literal["vla", "vlm"] = "vla"
    batch_size: int = 64
    num_steps: int = 150_000
    seed: int = 0
    log_every: int = 50
    eval_every: int = 1000
    # Held-out batches per evaluation, evenly spread over all held-out samples; 0 takes every sample once.
    eval_batches: int = 0


def from_config_dict(config_dict: Any) -> Config:
    """Builds and validates a ``Config`` from an ``ml_collections.ConfigDict`` or a plain dict."""
    values = config_dict.to_dict() if hasattr(config_dict, "to_dict") else config_dict
    config = from_dict(Config, values)
    validate(config)
    return config
