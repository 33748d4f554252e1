"""PokeVLM, stage 1: conversations about images, to the hidden states that predict each next token.

The towers, the projector and the language model of ``PokeVLA``, under the same names: its parameters start a policy.
A row holds several conversations one behind the other (``data.schema.stage1_batch_spec``); none sees another.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from pokevla_jax import sharding
from pokevla_jax.config import ModelConfig
from pokevla_jax.models.language import Decoder
from pokevla_jax.models.vision import VisionEncoder
from pokevla_jax.typing import Array
from pokevla_jax.typing import Batch
from pokevla_jax.typing import Float
from pokevla_jax.typing import Int


class PokeVLM(nnx.Module):
    """The network; build it with ``stacking.bind(config, params, Variant("vlm"))``."""

    def __init__(self, config: ModelConfig):
        self.config = config
        self.vision = VisionEncoder(config)
        self.language = Decoder(config.language, config.attention)

    def embed(self, batch: Batch) -> Float[Array, "b s d"]:
        """The row as the language model reads it: token embeddings, and vision tokens in the image slots."""
        with jax.named_scope("vision"):
            vision = self.vision(batch["images"])
        with jax.named_scope("embed"):
            text = self.language.embed(batch["tokens"], vision.dtype)
            return jnp.where((batch["image_slots"] >= 0)[..., None], fill_slots(vision, batch["image_slots"]), text)

    def __call__(self, batch: Batch) -> Float[Array, "b s d"]:
        """Hidden states after the final norm; those of padding mean nothing."""
        with jax.named_scope("language"):
            x, segments = self.embed(batch), batch["segment_ids"]
            return self.language(x, batch["positions"], segments, remat=self.config.remat)[0]


def fill_slots(vision: Float[Array, "b n d"], slots: Int[Array, "b s"]) -> Float[Array, "b s d"]:
    """Vision token ``slots[b, s]`` of its row at each position; zeros where the slot is negative.

    A product with one-hot rows: exact, and cheaper on an accelerator than a gather, whose gradient scatters.
    """
    chosen = jax.nn.one_hot(slots, vision.shape[1], dtype=vision.dtype)
    filled = jnp.einsum("bsn,bnd->bsd", chosen, vision, precision="highest")
    return sharding.constrain(filled, "batch", None, "embed")
