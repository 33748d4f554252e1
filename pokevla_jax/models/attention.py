"""The one attention function, what limits who sees whom, and its implementations."""

from functools import partial
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pokevla_jax import sharding
from pokevla_jax.models import blockwise
from pokevla_jax.models import splash
from pokevla_jax.models.layers import multiply
from pokevla_jax.models.layers import summed_in_float32
from pokevla_jax.typing import Array
from pokevla_jax.typing import Bool
from pokevla_jax.typing import Float
from pokevla_jax.typing import Int

Implementation = Literal["xla", "cudnn", "splash", "blockwise"]
TPU = ("splash", "blockwise")
"""Those that choose between XLA and a kernel by what suits a TPU."""

PADDING = 0
"""Segment of padding."""

SHORT = 512
"""Tokens up to which those leave attention without a mask to XLA.

The kernel wants heads in front, widths that fill the lanes and whole blocks. Laying the patches of one view out like
that takes longer than the kernel, and XLA keeps their logits in a TPU's fast memory. Not where two cores are one device
(v4, v5p): there "blockwise" stores no logits of patches either (docs/results.md).
"""


class Source(NamedTuple):
    """What queries attend to.

    ``gain`` multiplies the logits (0 makes the attention over this source uniform), ``bias`` is added to them.
    """

    keys: Float[Array, "b z g k"]
    values: Float[Array, "b z g w"]
    gain: Float[Array, ""] | None = None
    bias: Float[Array, "b h s z"] | None = None


def attend(
    queries: Float[Array, "b s h k"],
    *sources: Source,
    segments: Int[Array, "b s"] | None = None,
    causal: bool = False,
    implementation: Implementation = "xla",
) -> Float[Array, "b s h w"]:
    """Softmax attention over the keys of all ``sources`` at once: one softmax, in float32, over their joined logits.

    Args:
        queries: ``h`` heads; ``h`` is a multiple of the sources' ``g`` heads, and query heads share keys in
            consecutive groups (grouped-query attention).
        sources: keys and values. Ordinary attention has one source.
        segments: for self-attention: a position sees positions of its own segment alone, see ``visible``.
        causal: for self-attention: a position sees itself and what stands before it.
        implementation: all but "xla" take one source without gain and bias, and but for what is ``SHORT`` never hold
            all logits. "blockwise" is for causal attention, and otherwise what "splash" is.

    Raises:
        ValueError: for several sources, a gain or a bias with another implementation than XLA's.
    """
    plain = len(sources) == 1 and sources[0].gain is None and sources[0].bias is None
    if implementation != "xla" and not plain:
        raise ValueError(f"attention {implementation!r} takes one source without gain and bias; use 'xla' for this one")
    keys, values = sources[0].keys, sources[0].values
    short = segments is None and not causal and keys.shape[1] <= SHORT
    megacore = sharding.cores_per_device() > 1
    if implementation == "cudnn":
        mask = None if segments is None else visible(segments, causal=False)[:, None]
        out = jax.nn.dot_product_attention(queries, keys, values, mask=mask, is_causal=causal, implementation="cudnn")
    elif implementation == "blockwise" and (causal or (short and megacore)):
        # These two name their output themselves, and beside it what their backward pass needs of the softmax.
        return _blockwise(queries, sources[0], segments, causal, lean=megacore)
    elif implementation == "xla" or short:
        out = _xla(queries, sources, segments, causal)
    else:
        return splash.attend(queries, keys, values, segments, causal=causal)
    return checkpoint_name(out, "attention")


def _blockwise(
    queries: Float[Array, "b s h k"], source: Source, segments: Int[Array, "b s"] | None, causal: bool, *, lean: bool
) -> Float[Array, "b s h w"]:
    b, s, h, k = queries.shape
    (source,) = _heads_to_cut((source,), h)
    grouped = (queries * k**-0.5).reshape(b, s, source.keys.shape[2], -1, k)
    out = blockwise.attend(grouped, source.keys, source.values, segments, causal, lean).reshape(b, s, h, -1)
    return sharding.constrain(out, "batch", None, "heads", "head_dim")


def _xla(
    queries: Float[Array, "b s h k"], sources: tuple[Source, ...], segments: Int[Array, "b s"] | None, causal: bool
) -> Float[Array, "b s h w"]:
    b, s, h, k = queries.shape
    sources = _heads_to_cut(sources, h)
    groups = sources[0].keys.shape[2]
    q = (queries.reshape(b, s, groups, h // groups, k) * k**-0.5).transpose(0, 2, 3, 1, 4)
    logits = []
    for source in sources:
        logit = jnp.einsum("bgrsk,bzgk->bgrsz", q, source.keys, preferred_element_type=jnp.float32)
        if source.gain is not None:
            logit = multiply(logit, source.gain)
        if source.bias is not None:
            logit = logit + source.bias.reshape(logit.shape)
        logits.append(logit)
    joined = logits[0] if len(logits) == 1 else jnp.concatenate(logits, axis=-1)
    if segments is not None or causal:
        mask = visible(jnp.zeros((1, s), jnp.int32) if segments is None else segments, causal=causal)
        joined = jnp.where(mask[:, None, None], joined, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(joined, axis=-1).astype(queries.dtype)
    values = sources[0].values if len(sources) == 1 else jnp.concatenate([x.values for x in sources], axis=1)
    out = summed_in_float32(partial(jnp.einsum, "bgrsz,bzgk->bgrsk"), weights, values)
    out = out.transpose(0, 3, 1, 2, 4).reshape(b, s, h, -1)
    return sharding.constrain(out, "batch", None, "heads", "head_dim")


def attend_in_chunks(queries: Float[Array, "b s h k"], source: Source, *, size: int) -> Float[Array, "b s h w"]:
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
    return outputs.swapaxes(0, 1).reshape(b, count * size, h, -1)[:, :s]


def _heads_to_cut(sources: tuple[Source, ...], heads: int) -> tuple[Source, ...]:
    """``sources``; with fewer groups than devices along ``tensor``, each holds the keys of its own query heads."""
    tensor = sharding.axis_size("tensor")
    if sources[0].keys.shape[2] % tensor == 0 or heads % tensor:
        return sources
    return tuple(x._replace(keys=_per_head(x.keys, heads), values=_per_head(x.values, heads)) for x in sources)


def _per_head(x: Float[Array, "b z g k"], heads: int) -> Float[Array, "b z h k"]:
    return sharding.constrain(jnp.repeat(x, heads // x.shape[2], axis=2), "batch", None, "heads", "head_dim")


def visible(segments: Int[Array, "b s"], *, causal: bool) -> Bool[Array, "b s s"]:
    """Who sees whom: positions of one segment, with ``causal`` only themselves and those before.

    Packed conversations are segments 1, 2, … and padding is segment 0. The sequence of the policy,
    ``[vision | prompt | <SEG> | queries]``, is segment 1; its prompt is padded on the right, so the padding (p) stands
    in the middle and nobody else looks at it (rows look at columns)::

              V V L L p S Q Q
          V   x
          V   x x
          L   x x x
          L   x x x x
          p           x          padding sees padding, so that its softmax is defined; it is never read
          S   x x x x . x
          Q   x x x x . x x
          Q   x x x x . x x x
    """
    same = segments[:, :, None] == segments[:, None, :]
    return same & jnp.tril(jnp.ones(same.shape[1:], bool)) if causal else same


def positions(valid: Bool[Array, "b s"]) -> Float[Array, "b s"]:
    """Position ids that count valid tokens only, so that padding in the middle shifts nothing behind it.

    ::

    token     V V L L p p S Q
    position  0 1 2 3 3 3 4 5
    """
    return jnp.cumsum(valid, axis=-1) - 1
