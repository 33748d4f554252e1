"""PokeVLA, stage 2: two views, an instruction and the robot's state to a chunk of actions.

The sequence of the language model is ``[vision tokens, view by view | prompt | <SEG> | action queries]``, causal (the
VLA-Adapter presets have no ``<SEG>``, and the first prompt token in front of the vision tokens). The robot's state
stays out of it and enters the action head. Segmentation, alignment and keypoints exist for their losses:
with ``train=False`` they are not computed, and where their weight is 0 they have no parameters.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pokevla_jax.config import ConfigError
from pokevla_jax.config import ModelConfig
from pokevla_jax.models import attention
from pokevla_jax.models import geometry
from pokevla_jax.models import precomputed
from pokevla_jax.models import segmentation
from pokevla_jax.models.action_head import ActionHead
from pokevla_jax.models.geometry import AlignProjector
from pokevla_jax.models.language import Decoder
from pokevla_jax.models.layers import MLP
from pokevla_jax.models.layers import TOKEN
from pokevla_jax.models.layers import parameter
from pokevla_jax.models.layers import repeat
from pokevla_jax.models.segmentation import Segmentation
from pokevla_jax.models.vggt import Aggregator
from pokevla_jax.models.vggt import teacher_features
from pokevla_jax.models.vision import VisionEncoder
from pokevla_jax.typing import Array
from pokevla_jax.typing import Batch
from pokevla_jax.typing import Bool
from pokevla_jax.typing import Float
from pokevla_jax.typing import Int
from pokevla_jax.typing import UInt8

# Parts that only training's losses read; segmentation stays, for a policy may be asked for its masks.
TRAINING_ONLY = ("align_projector", "keypoint_head", "vggt")


def without_training_parts(config: ModelConfig) -> ModelConfig:
    """The same network without the parts named ``TRAINING_ONLY``, for inference."""
    geometry_config = dataclasses.replace(config.geometry, weight=0.0)
    return dataclasses.replace(
        config, geometry=geometry_config, keypoint=dataclasses.replace(config.keypoint, weight=0.0)
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Hidden:
    """Hidden states of the language model, by what stands at their positions; ``seg`` is None without a ``<SEG>``.

    ``context`` is what the action head reads instead, where it reads every layer (on a leading axis) or one position
    early.
    """

    vision: Float[Array, "... b n d"]
    seg: Float[Array, "... b d"] | None
    queries: Float[Array, "... b q d"]
    context: "Hidden | None" = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Outputs:
    """What one forward pass returns, float32; all but the actions only in training, where the part has weight."""

    actions: Float[Array, "b t a"]
    coarse_logits: Float[Array, "b v m m"] | None = None
    mask_logits: Float[Array, "b v m m"] | None = None
    aligned: Float[Array, "b n f"] | None = None
    # What ``aligned`` is compared with, where the network holds the geometry teacher; without a gradient.
    teacher: Float[Array, "b n f"] | None = None
    # In the units of ``geometry.scale_keypoints``.
    keypoints: Float[Array, "b k 3"] | None = None


def _built(part: Any, name: str) -> Any:
    """``part``, or a ``ConfigError`` if the network was built without it."""
    if part is None:
        raise ConfigError(f"This network has no {name} part: it was built with config.model.{name}.weight 0")
    return part


def _seen(seg: Float[Array, "b d"] | None) -> Float[Array, "b d"]:
    """The state of ``<SEG>``, or a ``ConfigError`` if the network has no such token."""
    if seg is None:
        raise ConfigError("This network has no <SEG> token: it was built with config.model.seg_token False")
    return seg


class PokeVLA(nnx.Module):
    """The network; build it with ``stacking.bind(config, params)``."""

    def __init__(self, config: ModelConfig):
        geometry.check_teacher(config.geometry)
        segmentation.check_encoder(config.segmentation)
        width = config.language.width
        self.config = config
        self.vision = VisionEncoder(config)
        self.language = Decoder(config.language, config.attention)
        self.seg_token = parameter(TOKEN, (1, width), (None, "embed")) if config.seg_token else None
        self.action_queries = parameter(TOKEN, (config.action_head.num_queries, width), (None, "embed"))
        self.action_head = ActionHead(config)
        self.segmentation = Segmentation(config) if config.segmentation.weight else None
        self.align_projector = AlignProjector(config) if config.geometry.weight else None
        self.vggt = (
            Aggregator(config.geometry.vggt, layer=config.geometry.layer, implementation=config.attention)
            if geometry.computes_teacher(config.geometry)
            else None
        )
        outputs = 3 * config.keypoint.num_keypoints
        self.keypoint_head = MLP(width, width, outputs) if config.keypoint.weight else None

    def encode(
        self,
        images: UInt8[Array, "b v h w 3"],
        tokens: Int[Array, "b l"],
        token_mask: Bool[Array, "b l"],
    ) -> Hidden:
        """Hidden states of the vision tokens, ``<SEG>`` and the action queries.

        Padding of the prompt is masked out and takes no position, so the result does not depend on how much there is.
        """
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        with jax.named_scope("vision"):
            vision = self.vision(images)
        b, n, _ = vision.shape
        own = [token[...] for token in (self.seg_token, self.action_queries) if token is not None]
        learned = repeat(jnp.concatenate(own), b).astype(dtype)
        prompt, start = self.language.embed(tokens, dtype), self._vision_start
        sequence = jnp.concatenate([prompt[:, :start], vision, prompt[:, start:], learned], axis=1)
        seen, own_seen = jnp.ones((b, n), bool), jnp.ones(learned.shape[:2], bool)
        valid = jnp.concatenate([token_mask[:, :start], seen, token_mask[:, start:], own_seen], axis=1)
        with jax.named_scope("language"):
            last, layers = self.language(
                sequence,
                attention.positions(valid),
                valid.astype(jnp.int32),
                remat=config.remat,
                all_layers=config.action_head.context == "layerwise",
            )
        hidden = self._split(last, n)
        read = last if layers is None else layers
        if config.action_head.shifted_context:
            return dataclasses.replace(hidden, context=self._split_shifted(read, n, token_mask.sum(-1)))
        return hidden if layers is None else dataclasses.replace(hidden, context=self._split(layers, n))

    @property
    def _vision_start(self) -> int:
        return 0 if self.config.vision_position == "first" else 1

    def _split(self, states: Float[Array, "... b s d"], num_vision: int) -> Hidden:
        start, first = self._vision_start, states.shape[-2] - self.config.action_head.num_queries
        seg = states[..., first - 1, :] if self.config.seg_token else None
        return Hidden(states[..., start : start + num_vision, :], seg, states[..., first:, :])

    def _split_shifted(
        self, states: Float[Array, "... b s d"], num_vision: int, prompt_length: Int[Array, "b"]
    ) -> Hidden:
        """Vision and query states one position early, counting valid tokens: no padding comes into view."""
        hidden, start = self._split(states, num_vision), self._vision_start - 1
        if hidden.seg is not None:
            before = hidden.seg[..., None, :]
        else:
            last_prompt = (num_vision + prompt_length - 1).reshape((1,) * (states.ndim - 3) + (-1, 1, 1))
            before = jnp.take_along_axis(states, last_prompt, axis=-2)
        queries = jnp.concatenate([before, hidden.queries[..., :-1, :]], axis=-2)
        return Hidden(states[..., start : start + num_vision, :], hidden.seg, queries)

    def act(self, hidden: Hidden, proprio: Float[Array, "b r"], key: Array | None = None) -> Float[Array, "b t a"]:
        """The chunk of normalised actions; ``key`` switches the training noise of projected latents on."""
        read = hidden.context or hidden
        with jax.named_scope("action_head"):
            return self.action_head(read.vision, read.seg, read.queries, proprio, key)

    def segment(
        self, seg: Float[Array, "b d"] | None, batch: Batch
    ) -> tuple[Float[Array, "b v m m"], Float[Array, "b v m m"]]:
        """Coarse and fine mask logits of the goal objects in every view, from its image or SAM's features of it."""
        with jax.named_scope("segmentation"):
            part, config = _built(self.segmentation, "segmentation"), self.config
            if segmentation.computes_features(config.segmentation):
                return part(part.encode(batch["images"]), _seen(seg))
            features = precomputed.features(
                batch, "segmentation_features", config.segmentation_features, "segmentation"
            )
            return part(features, _seen(seg))

    def align(self, vision: Float[Array, "b n d"]) -> Float[Array, "b n f"]:
        """Vision states in the geometry teacher's feature space."""
        with jax.named_scope("align_projector"):
            return _built(self.align_projector, "geometry")(vision)

    def teach(self, images: UInt8[Array, "b v h w 3"]) -> Float[Array, "b n f"]:
        """The geometry teacher's features of every vision token; no gradient."""
        config = self.config
        if self.vggt is None:
            raise ConfigError("This network does not hold the VGGT teacher; see config.model.geometry")
        with jax.named_scope("vggt"):
            dtype = jnp.dtype(config.dtype)
            return teacher_features(self.vggt, images, config.geometry, grid=config.vision.grid, dtype=dtype)

    def keypoints(self, seg: Float[Array, "b d"] | None) -> Float[Array, "b k 3"]:
        """Positions of target and goal, in the units of ``geometry.scale_keypoints``."""
        with jax.named_scope("keypoint_head"):
            states = _built(self.keypoint_head, "keypoint")(_seen(seg)).astype(jnp.float32)
            return states.reshape(states.shape[0], -1, 3)

    def __call__(self, batch: Batch, *, train: bool, key: Array | None = None) -> Outputs:
        """Actions and, in training, the outputs of every auxiliary part that has weight; ``key`` as for ``act``."""
        hidden = self.encode(batch["images"], batch["tokens"], batch["token_mask"])
        actions = self.act(hidden, batch["proprio"], key)
        if not train:
            return Outputs(actions)
        coarse, fine = (None, None) if self.segmentation is None else self.segment(hidden.seg, batch)
        return Outputs(
            actions,
            coarse_logits=coarse,
            mask_logits=fine,
            aligned=None if self.align_projector is None else self.align(hidden.vision),
            teacher=None if self.vggt is None else self.teach(batch["images"]),
            keypoints=None if self.keypoint_head is None else self.keypoints(hidden.seg),
        )
