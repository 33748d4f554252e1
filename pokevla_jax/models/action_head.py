"""The action expert: action latents attend to themselves and to what the language model made of the scene.

Source: the paper's figure 3 for the branches, VLA-Adapter(-Pro) for everything it leaves open. In VLA-Adapter the
latents come from a LayerNorm of zeros through a linear layer, which after training is a constant; here that constant
is the parameter ``latents`` (one vector per step of the chunk), and the 5.6 M weights behind it are gone. What the
released VLA-Adapter weights need instead is in ``vla_adapter.py``.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from pokevla_jax.config import ConfigError
from pokevla_jax.config import ModelConfig
from pokevla_jax.models import stacking
from pokevla_jax.models import vla_adapter
from pokevla_jax.models.attention import Source
from pokevla_jax.models.attention import attend
from pokevla_jax.models.layers import MLP
from pokevla_jax.models.layers import ZEROS
from pokevla_jax.models.layers import Init
from pokevla_jax.models.layers import LayerNorm
from pokevla_jax.models.layers import Linear
from pokevla_jax.models.layers import parameter
from pokevla_jax.models.layers import repeat
from pokevla_jax.models.layers import rotary_table
from pokevla_jax.models.layers import rotate
from pokevla_jax.models.vla_adapter import EPS
from pokevla_jax.models.vla_adapter import ROPE_THETA
from pokevla_jax.typing import Array
from pokevla_jax.typing import Float

GATED = {"vision": ("vision",), "vision_and_seg": ("vision", "seg"), "none": ()}

Context = dict[str, Float[Array, "... b z d"]]
"""What the latents attend to, by source: ``query`` (queries, then proprio), ``vision`` and, if injected, ``seg``."""

Rotary = Callable[[Float[Array, "b z h k"]], Float[Array, "b z h k"]]
"""Queries or keys with their positions put in; positions restart at 0 in every source."""


def _rotate(x: Float[Array, "b z h k"]) -> Float[Array, "b z h k"]:
    return rotate(x, rotary_table(jnp.arange(x.shape[1]), x.shape[-1], ROPE_THETA))


def _keep(x: Float[Array, "b z h k"]) -> Float[Array, "b z h k"]:
    return x


ROTARY: dict[str, Rotary] = {"half_split": _rotate, "vla_adapter": vla_adapter.rotate}


class KeyValue(nnx.Module):
    """Keys and values of one source."""

    def __init__(self, inputs: int, heads: tuple[int, int]):
        self.k_proj = Linear(inputs, heads, axes=("embed", "heads", "head_dim"))
        self.v_proj = Linear(inputs, heads, axes=("embed", "heads", "head_dim"))

    def __call__(self, x: Float[Array, "b z d"], rotary: Rotary) -> Source:
        return Source(rotary(self.k_proj(x)), self.v_proj(x))


class Block(nnx.Module):
    """Self- and cross-attention side by side, then ``relu(linear(norm(x)))``, without a residual as in VLA-Adapter."""

    def __init__(self, config: ModelConfig):
        head = config.action_head
        width, context_width = head.width, config.language.width
        self.pro, self.joint = head.block == "pro", head.concat == "joint_softmax"
        self.rotary = ROTARY[head.rotary] if self.pro else _keep
        heads = (head.num_heads, width // head.num_heads)
        self.names = ("latents", "query", "vision") + (("seg",) if head.inject_seg else ())
        self.q_proj = Linear(width, heads, axes=("embed", "heads", "head_dim"))
        if self.pro:
            widths = {name: width if name == "latents" else context_width for name in self.names}
            self.sources = nnx.Dict({name: KeyValue(widths[name], heads) for name in self.names})
        else:
            self.shared = KeyValue(width, heads)
        gated = [name for name in GATED[head.gate] if name in self.names]
        self.gates = nnx.Dict({name: parameter(ZEROS, (), ()) for name in gated})
        if self.joint:
            self.o_proj = Linear(heads, width, axes=("heads", "head_dim", "embed"))
        else:
            axes = (None, "heads", "head_dim", "embed")
            self.o_proj = Linear((len(self.names), *heads), width, axes=axes)
        self.norm = LayerNorm(width, eps=EPS)
        self.ffn = Linear(width, width, axes=("embed", "mlp"))

    def __call__(self, x: Float[Array, "b t d"], context: Context) -> Float[Array, "b t d"]:
        with jax.named_scope("attention"):
            queries = self.rotary(self.q_proj(x))
            sources = [self._source(name, x if name == "latents" else context[name]) for name in self.names]
            if self.joint:
                y = attend(queries, *sources)
            else:
                y = jnp.stack([attend(queries, source) for source in sources], axis=2)
            x = x + self.o_proj(y)
        with jax.named_scope("mlp"):
            return jax.nn.relu(self.ffn(self.norm(x)))

    def _source(self, name: str, tokens: Float[Array, "b z d"]) -> Source:
        project = self.sources[name] if self.pro else self.shared
        source = project(tokens, self.rotary)
        return source._replace(gain=jnp.tanh(self.gates[name][...])) if name in self.gates else source


class ActionHead(nnx.Module):
    """Context and robot state to a chunk of normalised actions, float32."""

    def __init__(self, config: ModelConfig):
        head, width = config.action_head, config.language.width
        if head.block == "original" and head.width != width:
            raise ConfigError(
                f"config.model.action_head.block 'original' shares one projection between latents and language states: "
                f"action_head.width {head.width} must equal language.width {width}; or use block 'pro'"
            )
        self.remat, self.layerwise = config.remat, head.context == "layerwise"
        # The reference's latents enter at unit variance.
        self.latents = (
            parameter(Init(std=1.0), (config.action_horizon, head.width), (None, "embed"))
            if head.latents == "learned"
            else vla_adapter.ProjectedLatents(config)
        )
        self.proprio = MLP(config.proprio_dim, width, width, axes=(None, "mlp", "embed"))
        self.blocks = stacking.stack(lambda: Block(config), head.num_layers)
        self.norm = LayerNorm(head.width, eps=EPS)
        self.out = Linear(head.width, config.action_dim, axes=("embed", None))

    def __call__(
        self,
        vision: Float[Array, "... b n d"],
        seg: Float[Array, "... b d"] | None,
        queries: Float[Array, "... b q d"],
        proprio: Float[Array, "b r"],
        key: Array | None = None,
    ) -> Float[Array, "b t a"]:
        """The context carries a leading layer axis where the head is layer-wise; ``key`` switches training noise on."""
        state = self.proprio(proprio.astype(queries.dtype))[:, None]
        state = jnp.broadcast_to(state, (*queries.shape[:-2], 1, state.shape[-1]))
        context = {"query": jnp.concatenate([queries, state], axis=-2), "vision": vision}
        if seg is not None:
            context["seg"] = seg[..., None, :]
        if isinstance(self.latents, vla_adapter.ProjectedLatents):
            latents = self.latents(queries.dtype, key)
        else:
            latents = self.latents[...]
        x = repeat(latents, proprio.shape[0]).astype(queries.dtype)
        if self.layerwise:
            x, _ = stacking.scan(
                self.blocks, x, step=lambda block, x, c: block(x, c), per_layer=context, remat=self.remat
            )
        else:
            x, _ = stacking.scan(self.blocks, x, step=lambda block, x, _: block(x, context), remat=self.remat)
        return self.out(self.norm(x)).astype(jnp.float32)
