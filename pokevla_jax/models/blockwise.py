"""Self-attention in blocks of queries by XLA, without the logits of all of them in memory.

What the splash kernel does, written as products that XLA fuses: a block of queries with the keys that they may see, the
forward pass keeping a logarithm per query instead of logits, the backward pass computing a block's logits again (Rabe &
Staats 2021; Dao et al. 2022). For heads of 64 the compiler's own estimate of it is far below what the kernel is priced
at (docs/results.md), and nothing has to be filled or turned for it.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pokevla_jax.typing import Array
from pokevla_jax.typing import Float
from pokevla_jax.typing import Int

BLOCK = 128  # Queries of a causal block. Fewer waste less above the diagonal and make a larger program.
HIDDEN = jnp.finfo(jnp.float32).min

product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def attend(
    queries: Float[Array, "b s g r k"],
    keys: Float[Array, "b s g k"],
    values: Float[Array, "b s g w"],
    segments: Int[Array, "b s"] | None,
    causal: bool,
    lean: bool,
) -> Float[Array, "b s g r w"]:
    """Softmax attention; the softmax and all sums are in float32.

    Args:
        queries: scaled, ``r`` for every one of ``g`` heads of keys.
        keys: of the same positions.
        values: of the same positions.
        segments: a position sees those of its own segment; None: of all.
        causal: it sees itself and those before it. If not, all queries are one block.
        lean: float32 logits are never stored, at the price of computing them twice in the forward pass and of rounding
            the weights to the dtype of ``queries`` before the backward pass multiplies by them. For chips whose
            compiler does not keep a block's logits in fast memory.
    """
    return _forward(queries, keys, values, segments, causal, lean)[0]


def _blocks(length: int, causal: bool) -> Iterator[tuple[slice, slice]]:
    """Queries, and the keys that they see."""
    size = BLOCK if causal else length
    for start in range(0, length, size):
        end = min(start + size, length)
        yield slice(start, end), slice(0, end)


def _logits(q: Array, k: Array, segments: Array | None, causal: bool) -> Float[Array, "b g z r s"]:
    """Those of the last of ``z`` positions, with all ``z`` keys."""
    logits = product("bzgk,bsgrk->bgzrs", k, q)
    rows, seen = q.shape[1], k.shape[1]
    mask = jnp.ones((1, seen, rows), bool)
    if causal:
        mask &= jnp.arange(seen)[:, None] <= jnp.arange(seen - rows, seen)
    if segments is not None:
        mask &= segments[:, :seen, None] == segments[:, None, seen - rows : seen]
    return jnp.where(mask[:, None, :, None], logits, HIDDEN) if causal or segments is not None else logits


def _forward(
    q: Array, k: Array, v: Array, segments: Array | None, causal: bool, lean: bool
) -> tuple[Array, tuple[Any, ...]]:
    # Beside the values a column of ones: the product that weighs the values sums the weights, in lanes that heads of 64
    # leave empty.
    extended = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)
    outputs, logarithms = [], []
    for rows, seen in _blocks(q.shape[1], causal):
        logits = _logits(q[:, rows], k[:, seen], segments, causal)
        largest = logits.max(axis=2, keepdims=True)
        if lean:
            again, largest = jax.lax.optimization_barrier((q[:, rows], largest))
            logits = _logits(again, k[:, seen], segments, causal)
        weights = jnp.exp(logits - largest).astype(q.dtype)
        weighed = product("bzgw,bgzrs->bgrws", extended[:, seen], weights)
        total = weighed[..., -1:, :]
        outputs.append((weighed[..., :-1, :] / total).astype(q.dtype).transpose(0, 4, 1, 2, 3))
        logarithms.append(largest[:, :, 0] + jnp.log(total[..., 0, :]))
    out = checkpoint_name(jnp.concatenate(outputs, axis=1), "attention")
    logarithm = checkpoint_name(jnp.concatenate(logarithms, axis=-1), "attention")
    return out, (q, k, v, segments, out, logarithm)


def _backward(causal: bool, lean: bool, kept: tuple[Any, ...], grad: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, segments, out, logarithm = kept
    # What the softmax takes away from every weight's gradient.
    mean = product("bsgrw,bsgrw->bgrs", out, grad)
    by_q: list[Array] = []
    by_k, by_v = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for rows, seen in _blocks(q.shape[1], causal):
        own, by_out = q[:, rows], grad[:, rows]
        if by_q:
            # One block after another, or the scheduler computes the logits of all of them first.
            own, by_out, by_q[-1] = jax.lax.optimization_barrier((own, by_out, by_q[-1]))
        weights = jnp.exp(_logits(own, k[:, seen], segments, causal) - logarithm[:, :, None, :, rows])
        if lean:
            weights = jax.lax.optimization_barrier(weights.astype(q.dtype))
        by_weights = product("bzgw,bsgrw->bgzrs", v[:, seen], by_out)
        by_logits = (weights * (by_weights - mean[:, :, None, :, rows])).astype(q.dtype)
        by_q.append(product("bzgk,bgzrs->bsgrk", k[:, seen], by_logits).astype(q.dtype))
        by_k = by_k.at[:, seen].add(product("bgzrs,bsgrk->bzgk", by_logits, own))
        by_v = by_v.at[:, seen].add(product("bgzrs,bsgrw->bzgw", weights.astype(q.dtype), by_out))
    return jnp.concatenate(by_q, axis=1), by_k.astype(k.dtype), by_v.astype(v.dtype), None


attend.defvjp(_forward, _backward)
