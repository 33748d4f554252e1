"""Names of the language model: Qwen2's own, under ``language_model``; ``lm_head`` is tied and therefore absent."""

from pokevla_jax.interop.layouts import LINEAR
from pokevla_jax.interop.layouts import LINEAR_FROM_HEADS
from pokevla_jax.interop.layouts import SAME
from pokevla_jax.interop.names_common import dense
from pokevla_jax.interop.table import Row
from pokevla_jax.interop.table import Rows
from pokevla_jax.interop.table import under

_DECODER: Rows = (
    Row("embed_tokens", "embed_tokens.weight", SAME),
    Row("layers/input_layernorm/scale", "layers.{}.input_layernorm.weight", SAME),
    *dense("layers/attention/q_proj", "layers.{}.self_attn.q_proj"),
    *dense("layers/attention/k_proj", "layers.{}.self_attn.k_proj"),
    *dense("layers/attention/v_proj", "layers.{}.self_attn.v_proj"),
    Row("layers/attention/o_proj/kernel", "layers.{}.self_attn.o_proj.weight", LINEAR_FROM_HEADS),
    Row("layers/post_attention_layernorm/scale", "layers.{}.post_attention_layernorm.weight", SAME),
    Row("layers/mlp/gate_proj/kernel", "layers.{}.mlp.gate_proj.weight", LINEAR),
    Row("layers/mlp/up_proj/kernel", "layers.{}.mlp.up_proj.weight", LINEAR),
    Row("layers/mlp/down_proj/kernel", "layers.{}.mlp.down_proj.weight", LINEAR),
    Row("norm/scale", "norm.weight", SAME),
)

ROWS: Rows = (
    *under("language/", "language_model.model.", _DECODER),
    Row("action_queries", "action_queries.weight", SAME),
    Row("seg_token", "seg_token.weight", SAME),
)
