"""Goal-aware segmentation: the ``<SEG>`` state becomes a mask of the goal objects in every view (training only).

Coarse to fine as in GLOVER++, whose decoder the paper's resembles: the embedded ``<SEG>`` state prompts one SAM mask
decoder, and a second copy refines, taking the first one's logits as its dense prompt and the same embedding again.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from pokevla_jax.config import ConfigError
from pokevla_jax.config import ModelConfig
from pokevla_jax.config import SegmentationConfig
from pokevla_jax.models import stacking
from pokevla_jax.models.image_encoders import SamEncoder
from pokevla_jax.models.image_encoders import SmallEncoder
from pokevla_jax.models.layers import MLP
from pokevla_jax.models.mask_decoder import MaskDecoder
from pokevla_jax.models.mask_decoder import PromptEncoder
from pokevla_jax.typing import Array
from pokevla_jax.typing import Float
from pokevla_jax.typing import UInt8


def check_encoder(config: SegmentationConfig) -> None:
    """Raises ``ConfigError`` where fields of the image encoder contradict each other."""
    if config.source == "precomputed" and config.image_encoder != "sam":
        raise ConfigError(
            "config.model.segmentation.source 'precomputed' needs image_encoder 'sam': the small encoder is trained, "
            "so its features change"
        )


def computes_features(config: SegmentationConfig) -> bool:
    """Whether the network holds an image encoder for its masks."""
    return bool(config.weight) and config.source == "inside"


class Segmentation(nnx.Module):
    """Image features (SAM's may come precomputed), the ``<SEG>`` projection, and the two decoding stages."""

    def __init__(self, config: ModelConfig):
        seg, width = config.segmentation, config.language.width
        # "layers" recomputes the deep stacks alone; the decoders are wide in space, not deep.
        self.remat: stacking.Remat = "full" if config.remat == "full" else "none"
        self.frozen_encoder = seg.image_encoder == "sam"
        encoder = SamEncoder if self.frozen_encoder else SmallEncoder
        self.image_encoder = encoder(config) if seg.source == "inside" else None
        self.dtype = jnp.dtype(config.dtype)
        axes = ("embed", "mlp", None)
        self.seg_projection = MLP(width, width, seg.decoder_dim, activation=jax.nn.relu, axes=axes)
        self.coarse_prompt = PromptEncoder(seg, mask_prompt=False)
        self.coarse_decoder = MaskDecoder(seg)
        self.fine_prompt = PromptEncoder(seg, mask_prompt=True)
        self.fine_decoder = MaskDecoder(seg)

    def encode(self, images: UInt8[Array, "b v h w 3"]) -> Float[Array, "b v g g d"]:
        """The image encoder's features of every view; without a gradient where they are SAM's.

        Raises:
            ConfigError: when the network was built without the encoder.
        """
        if self.image_encoder is None:
            raise ConfigError(
                "This network does not hold SAM's image encoder: it was built with config.model.segmentation.source "
                "'precomputed', and only features can be segmented"
            )
        with jax.named_scope("image_encoder"):
            features = self.image_encoder(images.reshape(-1, *images.shape[2:]))
            if self.frozen_encoder:
                features = jax.lax.stop_gradient(features)
        return features.reshape(*images.shape[:2], *features.shape[1:])

    def __call__(
        self, features: Float[Array, "b v g g d"], seg: Float[Array, "b d"]
    ) -> tuple[Float[Array, "b v m m"], Float[Array, "b v m m"]]:
        """Coarse and fine mask logits, float32; the same ``<SEG>`` state serves all views."""
        b, v = features.shape[:2]
        features = features.reshape(b * v, -1, features.shape[-1]).astype(self.dtype)
        embedding = jnp.repeat(self.seg_projection(seg), v, axis=0)
        with jax.named_scope("coarse"):
            prompt = self.coarse_prompt
            coarse = stacking.checkpoint(self.coarse_decoder, self.remat)(
                prompt.add_to(features), prompt.positions(), embedding
            )
        with jax.named_scope("fine"):
            prompt = self.fine_prompt
            fine = stacking.checkpoint(self.fine_decoder, self.remat)(
                prompt.add_to(features, coarse), prompt.positions(), embedding
            )
        return coarse.reshape(b, v, *coarse.shape[1:]), fine.reshape(b, v, *fine.shape[1:])
