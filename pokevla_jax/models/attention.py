"""The one attention function, and the masks it is given."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pokevla_jax.models.layers import multiply
from pokevla_jax.typing import Array
from pokevla_jax.typing import Bool
from pokevla_jax.typing import Float


class Source(NamedTuple):
    """What queries attend to.

    ``gain`` multiplies the logits (0 makes the attention over this source uniform), ``bias`` is added to them.
    """

    keys: Float[Array, "b z g k"]
    values: Float[Array, "b z g k"]
    gain: Float[Array, ""] | None = None
    bias: Float[Array, "b h s z"] | None = None


def attend(
    queries: Float[Array, "b s h k"],
    *sources: Source,
    mask: Bool[Array, "b s z"] | None = None,
) -> Float[Array, "b s h k"]:
    """Softmax attention over the keys of all ``sources`` at once: one softmax, in float32, over their joined logits.

    Args:
        queries: ``h`` heads; ``h`` is a multiple of the sources' ``g`` heads, and query heads share keys in
            consecutive groups (grouped-query attention).
        sources: keys and values. Ordinary attention has one source.
        mask: true where a query may look, over the joined keys. A query must see at least one key.
    """
    b, s, h, k = queries.shape
    groups = sources[0].keys.shape[2]
    q = queries.reshape(b, s, groups, h // groups, k) * k**-0.5
    logits = []
    for source in sources:
        logit = jnp.einsum("bsgrk,bzgk->bgrsz", q, source.keys, preferred_element_type=jnp.float32)
        if source.gain is not None:
            logit = multiply(logit, source.gain)
        if source.bias is not None:
            logit = logit + source.bias.reshape(logit.shape)
        logits.append(logit)
    joined = logits[0] if len(logits) == 1 else jnp.concatenate(logits, axis=-1)
    if mask is not None:
        joined = jnp.where(mask[:, None, None], joined, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(joined, axis=-1).astype(queries.dtype)
    values = sources[0].values if len(sources) == 1 else jnp.concatenate([x.values for x in sources], axis=1)
    return jnp.einsum("bgrsz,bzgk->bsgrk", weights, values).reshape(b, s, h, k)


def attend_in_chunks(queries: Float[Array, "b s h k"], source: Source, *, size: int) -> Float[Array, "b s h k"]:
    """``attend`` with at most ``size`` queries at a time, so that the logits of all of them never exist together.

    For frozen networks: a backward pass would keep every chunk's logits after all.
    """
    b, s, h, k = queries.shape
    if s <= size:
        return attend(queries, source)
    count = -(-s // size)
    padded = jnp.pad(queries, ((0, 0), (0, count * size - s), (0, 0), (0, 0)))
    chunks = padded.reshape(b, count, size, h, k).swapaxes(0, 1)
    outputs = jax.lax.map(lambda chunk: attend(chunk, source), chunks)
    return outputs.swapaxes(0, 1).reshape(b, count * size, h, k)[:, :s]


def causal_mask(valid: Bool[Array, "b s"]) -> Bool[Array, "b s s"]:
    """Each position sees itself and the valid positions before it.

    The sequence of the language model is ``[vision | prompt | <SEG> | queries]``. The prompt is padded on its right,
    so the padding (p) stands in the middle; nobody else looks at it (rows look at columns)::

              V V L L p S Q Q
          V   x
          V   x x
          L   x x x
          L   x x x x
          p   x x x x x            a padding row sees itself, so that its softmax is defined; it is never read
          S   x x x x . x
          Q   x x x x . x x
          Q   x x x x . x x x
    """
    length = valid.shape[-1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    return causal & (valid[:, None, :] | jnp.eye(length, dtype=bool))


def positions(valid: Bool[Array, "b s"]) -> Float[Array, "b s"]:
    """Position ids that count valid tokens only, so that padding in the middle shifts nothing behind it.

    ::

    token     V V L L p p S Q
    position  0 1 2 3 3 3 4 5
    """
    return jnp.cumsum(valid, axis=-1) - 1
