"""Next-token cross-entropy over a large vocabulary, without the logits of all tokens in memory.

Tokens pass in chunks: a chunk's logits are computed, give their loss and at once their gradient, and are dropped. The
backward pass only scales. Each device holds the logits of one chunk of its own rows; compared with recomputing them in
the backward pass (``jax.checkpoint``) that is one product with the embeddings less, for one array of their gradient
that lives from the forward to the backward pass.

On a mesh this is written per device (``shard_map``): the embeddings are gathered along ``fsdp`` once a step, stay cut
by vocabulary along ``tensor``, and their gradient is summed over devices once, not once a chunk.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from pokevla_jax import sharding
from pokevla_jax.typing import Array
from pokevla_jax.typing import Bool
from pokevla_jax.typing import Float
from pokevla_jax.typing import Int

Sums = tuple[Float[Array, ""], Float[Array, ""]]


@dataclass(frozen=True)
class _Cut:
    """How the arrays are cut over the current mesh; mesh axes by name, none without a mesh."""

    batch: tuple[str, ...] = ()
    vocab: str | None = None
    width: str | None = None

    @classmethod
    def of(cls, states: Any, table: Any) -> "_Cut":
        if sharding.current_mesh() is None:
            return cls()
        batch = sharding.activation_spec(states.shape[:1], ("batch",))[0] or ()
        vocab, width = sharding.parameter_spec(table.shape, ("vocab", "embed"))
        return cls(batch, vocab, width)

    @property
    def states(self) -> PartitionSpec:
        return PartitionSpec(self.batch or None)

    @property
    def table(self) -> PartitionSpec:
        return PartitionSpec(self.vocab, self.width)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def token_loss(
    states: Float[Array, "b s d"],
    table: Float[Array, "vocab d"],
    targets: Int[Array, "b s"],
    mask: Bool[Array, "b s"],
    chunk: int,
    z_loss: float = 0.0,
) -> Sums:
    """Sums over the tokens of ``mask``: the loss to minimise, and its cross-entropy part.

    Args:
        states: last hidden states, in the compute dtype.
        table: output embeddings; logits are their products with ``states``, summed in float32.
        targets: the next token of each position.
        mask: which positions count.
        chunk: tokens per device whose logits exist at one time.
        z_loss: weight of ``log(sum of exponentials)^2``, the difference between the two sums.

    The first sum has gradients; the second is to be reported.
    """
    loss, entropy = _run(states, table, targets, mask, chunk, z_loss, (False, False))
    return loss, entropy


def _forward(states: Any, table: Any, targets: Any, mask: Any, chunk: int, z_loss: float) -> Any:
    wanted = (states.perturbed, table.perturbed)
    loss, entropy, *gradients = _run(states.value, table.value, targets.value, mask.value, chunk, z_loss, wanted)
    d_states = gradients.pop(0) if wanted[0] else None
    d_table = gradients.pop(0) if wanted[1] else None
    # Of the table only its dtype is needed later.
    return (loss, entropy), (d_states, d_table, jnp.zeros((), table.value.dtype))


def _backward(chunk: int, z_loss: float, saved: Any, cotangents: Any) -> Any:
    d_states, d_table, like = saved
    scale, _ = cotangents
    if isinstance(scale, jax.custom_derivatives.SymbolicZero):
        return None, None, None, None
    d_states = None if d_states is None else (scale * d_states).astype(d_states.dtype)
    return d_states, None if d_table is None else (scale * d_table).astype(like.dtype), None, None


token_loss.defvjp(_forward, _backward, symbolic_zeros=True)


def _run(states: Any, table: Any, targets: Any, mask: Any, chunk: int, z_loss: float, wanted: tuple[bool, bool]) -> Any:
    """Both sums, and then those gradients of the first, by states and by table, that are wanted."""
    cut = _Cut.of(states, table)
    local = functools.partial(_local, chunk=chunk, z_loss=z_loss, wanted=wanted, cut=cut)
    with jax.named_scope("token_loss"):
        if sharding.current_mesh() is None:
            return local(states, table, targets, mask)
        rows, whole = cut.states, PartitionSpec()
        gradients = [spec for spec, want in zip((rows, cut.table), wanted, strict=True) if want]
        inputs, outputs = (rows, cut.table, rows, rows), (whole, whole, *gradients)
        # Without the check, which does not know that a sum over all holders of a row is the same for all of them.
        sharded = jax.shard_map(local, in_specs=inputs, out_specs=outputs, check_vma=False)
        return sharded(states, table, targets, mask)


def _local(
    states: Any, table: Any, targets: Any, mask: Any, *, chunk: int, z_loss: float, wanted: tuple[bool, bool], cut: _Cut
) -> Any:
    """One device's part."""
    tokens, width = targets.size, states.shape[-1]
    table = table.astype(states.dtype)
    if cut.width:
        table = jax.lax.all_gather(table, cut.width, axis=1, tiled=True)
    # Equal chunks of at most ``chunk`` tokens, filled up with tokens that do not count.
    count = -(-tokens // chunk)
    size = -(-tokens // count)

    def chunked(x: Any) -> Any:
        x = x.reshape(tokens, *x.shape[2:])
        return jnp.pad(x, ((0, count * size - tokens), *((0, 0),) * (x.ndim - 1))).reshape(count, size, *x.shape[1:])

    def one(carry: Any, xs: Any) -> Any:
        (loss, entropy, d_table), (x, target, counts) = carry, xs
        chunk_loss, chunk_entropy, d_states, d_logits = _chunk(table, x, target, counts, z_loss, wanted, cut.vocab)
        if wanted[1]:
            d_table += jnp.einsum("vt,td->vd", d_logits, x, preferred_element_type=jnp.float32)
        return (loss + chunk_loss, entropy + chunk_entropy, d_table), d_states

    start = (jnp.float32(0), jnp.float32(0), jnp.zeros(table.shape, jnp.float32) if wanted[1] else None)
    xs = (chunked(states), chunked(targets), chunked(mask.astype(jnp.float32)))
    (loss, entropy, d_table), d_states = jax.lax.scan(one, start, xs)
    if wanted[0]:
        d_states = d_states.reshape(count * size, width)[:tokens].reshape(states.shape)
    if cut.batch:
        loss, entropy = jax.lax.psum((loss, entropy), cut.batch)
    if wanted[1]:
        summed = tuple(axis for axis in cut.batch if axis != cut.width)
        if cut.width:
            # Devices along the cut width hold other rows, or all the same ones.
            d_table = (
                jax.lax.psum_scatter(d_table, cut.width, scatter_dimension=1, tiled=True)
                if cut.width in cut.batch
                else _own_slice(d_table, cut.width)
            )
        d_table = jax.lax.psum(d_table, summed) if summed else d_table
    return loss, entropy, *(x for x in (d_states, d_table) if x is not None)


def _own_slice(x: Any, axis: str) -> Any:
    size = x.shape[1] // jax.lax.axis_size(axis)
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis) * size, size, axis=1)


def _chunk(
    table: Any, states: Any, targets: Any, mask: Any, z_loss: float, wanted: tuple[bool, bool], vocab_axis: str | None
) -> Any:
    """Sums of one chunk, and its gradients by states and logits; this device has some of the vocabulary's rows."""
    logits = jnp.einsum("vd,td->vt", table, states, preferred_element_type=jnp.float32)
    first = jax.lax.axis_index(vocab_axis) * table.shape[0] if vocab_axis else 0
    hit = first + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 0) == targets
    top = jnp.max(logits, axis=0)
    top = jax.lax.pmax(top, vocab_axis) if vocab_axis else top
    exponentials = jnp.exp(logits - top)
    sums = jnp.stack([jnp.sum(exponentials, 0), jnp.sum(jnp.where(hit, logits, 0.0), 0)])
    total, picked = jax.lax.psum(sums, vocab_axis) if vocab_axis else sums
    log_total = top + jnp.log(total)
    entropy = jnp.sum((log_total - picked) * mask)
    loss = entropy + z_loss * jnp.sum(jnp.square(log_total) * mask)
    if not any(wanted):
        return loss, entropy, None, None
    probability = (mask * (1.0 + 2.0 * z_loss * log_total) / total) * exponentials
    d_logits = (probability - jnp.where(hit, mask, 0.0)).astype(states.dtype)
    d_states = None
    if wanted[0]:
        d_states = jnp.einsum("vt,vd->td", d_logits, table, preferred_element_type=jnp.float32)
        d_states = (jax.lax.psum(d_states, vocab_axis) if vocab_axis else d_states).astype(states.dtype)
    return loss, entropy, d_states, d_logits
