"""A causal Qwen2 decoder over embeddings: RMSNorm, grouped-query attention (biased q, k, v; rotary), SwiGLU.

Source: Qwen2.5-0.5B (public config and weights); tied input and output embeddings.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from pokevla_jax import sharding
from pokevla_jax.config import LanguageConfig
from pokevla_jax.models import stacking
from pokevla_jax.models.attention import Implementation
from pokevla_jax.models.attention import Source
from pokevla_jax.models.attention import attend
from pokevla_jax.models.layers import TOKEN
from pokevla_jax.models.layers import Linear
from pokevla_jax.models.layers import RMSNorm
from pokevla_jax.models.layers import RotaryTable
from pokevla_jax.models.layers import SwiGLU
from pokevla_jax.models.layers import parameter
from pokevla_jax.models.layers import rotary_table
from pokevla_jax.models.layers import rotate
from pokevla_jax.typing import Array
from pokevla_jax.typing import Bool
from pokevla_jax.typing import Float
from pokevla_jax.typing import Int


class Attention(nnx.Module):
    """Grouped-query self-attention with rotary positions."""

    def __init__(self, config: LanguageConfig, implementation: Implementation):
        d, h, g, k = config.width, config.num_heads, config.num_kv_heads, config.head_dim
        self.implementation = implementation
        self.q_proj = Linear(d, (h, k), axes=("embed", "heads", "head_dim"))
        self.k_proj = Linear(d, (g, k), axes=("embed", "kv_heads", "head_dim"))
        self.v_proj = Linear(d, (g, k), axes=("embed", "kv_heads", "head_dim"))
        self.o_proj = Linear((h, k), d, axes=("heads", "head_dim", "embed"), use_bias=False)

    def __call__(
        self,
        x: Float[Array, "b s d"],
        rotary: RotaryTable,
        segments: Int[Array, "b s"] | None = None,
        past: Source | None = None,
    ) -> tuple[Float[Array, "b s d"], Source]:
        """The output, and the keys and values that later positions will look at.

        With ``past``, ``x`` is one position that sees what ``past`` leaves visible, and itself.
        """
        queries, keys = rotate(self.q_proj(x), rotary), rotate(self.k_proj(x), rotary)
        own = Source(keys, self.v_proj(x))
        if past is None:
            y = attend(queries, own, segments=segments, causal=True, implementation=self.implementation)
        else:
            y = attend(queries, past, own)
        return self.o_proj(y), own


class DecoderLayer(nnx.Module):
    """Pre-norm attention and SwiGLU."""

    def __init__(self, config: LanguageConfig, implementation: Implementation):
        self.input_layernorm = RMSNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config, implementation)
        self.post_attention_layernorm = RMSNorm(config.width, eps=config.norm_eps)
        self.mlp = SwiGLU(config.width, config.mlp_dim)

    def __call__(
        self,
        x: Float[Array, "b s d"],
        rotary: RotaryTable,
        segments: Int[Array, "b s"] | None = None,
        past: Source | None = None,
    ) -> tuple[Float[Array, "b s d"], Source]:
        """The output, and the attention's keys and values; see there."""
        with jax.named_scope("attention"):
            y, own = self.attention(self.input_layernorm(x), rotary, segments, past)
            x = x + y
        with jax.named_scope("mlp"):
            return x + self.mlp(self.post_attention_layernorm(x)), own


class Decoder(nnx.Module):
    """The language model: embeddings in, hidden states out."""

    def __init__(self, config: LanguageConfig, implementation: Implementation = "xla"):
        self.config = config
        self.embed_tokens = parameter(TOKEN, (config.vocab_size, config.width), ("vocab", "embed"))
        self.layers = stacking.stack(lambda: DecoderLayer(config, implementation), config.num_layers)
        self.norm = RMSNorm(config.width, eps=config.norm_eps)

    def embed(self, tokens: Int[Array, "b l"], dtype: jnp.dtype) -> Float[Array, "b l d"]:
        """Token embeddings."""
        table = self.embed_tokens[...]
        if table.shape[1] % sharding.axis_size("fsdp") == 0:
            # Each device looks up its slice of the width for all rows; then slices are exchanged for rows. The
            # activations travel, not the table.
            rows = table[sharding.constrain(tokens, "lookup_batch", None)]
            rows = sharding.constrain(rows, "lookup_batch", None, "lookup_embed")
        else:
            rows = table[tokens]
        return sharding.constrain(stacking.from_bits(rows).astype(dtype), "batch", None, "embed")

    def __call__(
        self,
        x: Float[Array, "b s d"],
        positions: Int[Array, "b s"],
        segments: Int[Array, "b s"] | None,
        *,
        remat: stacking.Remat = "none",
        all_layers: bool = False,
    ) -> tuple[Float[Array, "b s d"], Float[Array, "layers b s d"] | None]:
        """The last hidden states (after the final norm) and, with ``all_layers``, those after every layer.

        The last of all layers is the normed one too, as Hugging Face's ``hidden_states[1:]``.

        Args:
            x: embeddings.
            positions: of the rotary embedding.
            segments: who belongs together (``attention.visible``); None: each row is one.
            remat: what the backward pass recomputes.
            all_layers: whether to return the states after every layer.
        """
        rotary = rotary_table(positions, self.config.head_dim, self.config.rope_theta)
        x, states = stacking.scan(
            self.layers,
            sharding.constrain(x, "batch", "length", "embed"),
            step=lambda layer, x, _: layer(x, rotary, segments)[0],
            remat=remat,
            collect=all_layers,
        )
        last = self.norm(x)
        return last, jnp.concatenate([states[:-1], last[None]]) if all_layers else None

    def prefill(
        self, x: Float[Array, "b s d"], positions: Int[Array, "b s"], segments: Int[Array, "b s"]
    ) -> tuple[Float[Array, "b s d"], Source]:
        """What ``__call__`` returns, and every layer's keys and values: [layers, b, s, g, k]."""
        rotary = rotary_table(positions, self.config.head_dim, self.config.rope_theta)
        x, sources = stacking.scan_outputs(self.layers, x, step=lambda layer, x, _: layer(x, rotary, segments))
        return self.norm(x), sources

    def extend(
        self,
        x: Float[Array, "b 1 d"],
        positions: Int[Array, "b 1"],
        past: Source,
        seen: Bool[Array, "b z"],
    ) -> tuple[Float[Array, "b 1 d"], Source]:
        """The hidden state of one position behind ``past``, and its own keys and values: [layers, b, 1, g, k].

        Args:
            x: its embedding.
            positions: of the rotary embedding.
            past: every layer's keys and values, [layers, b, z, g, k].
            seen: which of the ``z`` it sees; it sees itself too.
        """
        rotary = rotary_table(positions, self.config.head_dim, self.config.rope_theta)
        hidden = jnp.where(seen, 0.0, jnp.finfo(jnp.float32).min)[:, None, None]
        bias = jnp.broadcast_to(hidden, (x.shape[0], self.config.num_heads, 1, seen.shape[1]))
        x, own = stacking.scan_outputs(
            self.layers,
            x,
            step=lambda layer, x, past: layer(x, rotary, past=past._replace(bias=bias)),
            per_layer=past,
        )
        return self.norm(x), own

    def logits(self, states: Float[Array, "b s d"]) -> Float[Array, "b s vocab"]:
        """Next-token logits in float32, by the tied embeddings."""
        table = self.embed_tokens[...].astype(states.dtype)
        return jnp.einsum("bsd,vd->bsv", states, table, preferred_element_type=jnp.float32)
