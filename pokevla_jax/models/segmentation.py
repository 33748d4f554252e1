"""Goal-aware segmentation: the ``<SEG>`` state becomes a mask of the goal objects in every view (training only).

Coarse to fine as in GLOVER++, whose decoder the paper's resembles: the embedded ``<SEG>`` state prompts one SAM mask
decoder, and a second copy refines, taking the first one's logits as its dense prompt and the same embedding again.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from pokevla_jax.config import ModelConfig
from pokevla_jax.models import stacking
from pokevla_jax.models.image_encoders import SamEncoder
from pokevla_jax.models.image_encoders import SmallEncoder
from pokevla_jax.models.layers import MLP
from pokevla_jax.models.mask_decoder import MaskDecoder
from pokevla_jax.models.mask_decoder import PromptEncoder
from pokevla_jax.typing import Array
from pokevla_jax.typing import Float
from pokevla_jax.typing import UInt8


class Segmentation(nnx.Module):
    """Image features, the ``<SEG>`` projection, and the two decoding stages."""

    def __init__(self, config: ModelConfig):
        seg, width = config.segmentation, config.language.width
        # "layers" recomputes the deep stacks alone; the decoders are wide in space, not deep.
        self.remat: stacking.Remat = "full" if config.remat == "full" else "none"
        self.frozen_encoder = seg.image_encoder == "sam"
        encoder = SamEncoder if self.frozen_encoder else SmallEncoder
        self.image_encoder = encoder(config)
        axes = ("embed", "mlp", None)
        self.seg_projection = MLP(width, width, seg.decoder_dim, activation=jax.nn.relu, axes=axes)
        self.coarse_prompt = PromptEncoder(seg, mask_prompt=False)
        self.coarse_decoder = MaskDecoder(seg)
        self.fine_prompt = PromptEncoder(seg, mask_prompt=True)
        self.fine_decoder = MaskDecoder(seg)

    def __call__(
        self, images: UInt8[Array, "b v h w 3"], seg: Float[Array, "b d"]
    ) -> tuple[Float[Array, "b v m m"], Float[Array, "b v m m"]]:
        """Coarse and fine mask logits, float32; the same ``<SEG>`` state serves all views."""
        b, v = images.shape[:2]
        with jax.named_scope("image_encoder"):
            features = self.image_encoder(images.reshape(b * v, *images.shape[2:]))
            if self.frozen_encoder:
                features = jax.lax.stop_gradient(features)
            features = features.reshape(b * v, -1, features.shape[-1])
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
