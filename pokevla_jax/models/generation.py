"""Answers of the vision-language model: a prefill over padded prompts, then one token of every row at a time.

Prompts are padded on the right to one length, and what is generated stands behind that length in the cache of keys and
values, in the same slot for every row; positions go on from each row's own end. One token is one iteration of a loop on
the device, which ends when all rows have::

    slot       0 1 2 3 4 5 | 6 7 8        p: padding, which nobody sees
    row 0      V V L L L L | A A A        positions 0 1 2 3 4 5   6 7 8
    row 1      V V L L p p | A A E        positions 0 1 2 3 . .   4 5 6
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pokevla_jax.config import ModelConfig
from pokevla_jax.models import stacking
from pokevla_jax.models.attention import Source
from pokevla_jax.typing import Array
from pokevla_jax.typing import Batch
from pokevla_jax.typing import Bool
from pokevla_jax.typing import Float
from pokevla_jax.typing import Int
from pokevla_jax.typing import Params

PROMPT = ("images", "tokens", "image_slots", "segment_ids", "positions")
"""Entries of a stage-1 batch that a prompt has; each row holds one conversation, segment 1, from position 0 on."""


class Answers(NamedTuple):
    """What was generated.

    Attributes:
        tokens: up to an end token, which fills what is left of the row.
        ended: whether the row came to an end token, rather than to the last token that was allowed.
    """

    tokens: Int[Array, "b t"]
    ended: Bool[Array, " b"]


class _State(NamedTuple):
    step: Int[Array, ""]
    logits: Float[Array, "b vocab"]
    past: Source
    tokens: Int[Array, "b t"]
    ended: Bool[Array, " b"]


@functools.partial(jax.jit, static_argnames=("config", "max_new_tokens", "end_ids", "vocab_size"))
def generate(
    config: ModelConfig,
    params: Params,
    prompts: Batch,
    *,
    max_new_tokens: int,
    end_ids: Sequence[int],
    vocab_size: int,
    temperature: Float[Array, ""] | None = None,
    keys: Array | None = None,
) -> Answers:
    """Continues every prompt until an end token, or for ``max_new_tokens``.

    A row's tokens depend on its own prompt (and key) alone. Compiled once for each shape of ``prompts``.

    Args:
        config: the network's configuration.
        params: its parameters; parts of a policy beyond the vision-language model are ignored.
        prompts: ``PROMPT`` of rows that end where the answer begins.
        max_new_tokens: the most tokens of an answer, its end token included.
        end_ids: tokens that end an answer.
        vocab_size: of the tokenizer; ids of the network beyond it are never generated.
        temperature: divides the logits before a token is drawn; None takes the likeliest token.
        keys: one random key per row, needed with ``temperature``.
    """
    model = stacking.bind(config, {part: params[part] for part in ("vision", "language")}, stacking.Variant("vlm"))
    language, segments = model.language, prompts["segment_ids"]
    batch, length = segments.shape
    seen = jnp.pad(segments > 0, ((0, 0), (0, max_new_tokens)))
    lengths = jnp.sum(segments > 0, axis=1)

    def logits(states: Float[Array, "b 1 d"]) -> Float[Array, "b vocab"]:
        return language.logits(states)[:, 0, :vocab_size]

    with jax.named_scope("prefill"):
        states, past = language.prefill(model.embed(prompts), prompts["positions"], segments)
        room = [(0, 0)] * 2 + [(0, max_new_tokens)] + [(0, 0)] * 2
        past = jax.tree.map(lambda x: jnp.pad(x, room), past)
        last = jnp.take_along_axis(states, lengths[:, None, None] - 1, axis=1)

    def unfinished(state: _State) -> Bool[Array, ""]:
        return (state.step < max_new_tokens) & ~jnp.all(state.ended)

    def step(state: _State) -> _State:
        t, slots = state.step, jnp.arange(length + max_new_tokens)
        chosen = _choose(state.logits, temperature, keys, t)
        token = jnp.where(state.ended, end_ids[0], chosen)
        ended = state.ended | jnp.isin(token, jnp.array(end_ids))
        written = (slots >= length) & (slots < length + t)
        x = language.embed(token[:, None], jnp.dtype(config.dtype))
        states, own = language.extend(x, (lengths + t)[:, None], state.past, seen | written)
        past = jax.tree.map(
            lambda cache, new: jax.lax.dynamic_update_slice_in_dim(cache, new, length + t, axis=2), state.past, own
        )
        return _State(t + 1, logits(states), past, state.tokens.at[:, t].set(token), ended)

    with jax.named_scope("decode"):
        empty = jnp.full((batch, max_new_tokens), end_ids[0], jnp.int32)
        start = _State(jnp.int32(0), logits(last), past, empty, jnp.zeros(batch, bool))
        end = jax.lax.while_loop(unfinished, step, start)
    return Answers(end.tokens, end.ended)


def _choose(
    logits: Float[Array, "b vocab"], temperature: Float[Array, ""] | None, keys: Array | None, step: Int[Array, ""]
) -> Int[Array, " b"]:
    if temperature is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if keys is None:
        raise ValueError("Drawing tokens at a temperature needs a random key per row; give keys")
    draw = jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, step), row / temperature))
    return draw(keys, logits).astype(jnp.int32)
