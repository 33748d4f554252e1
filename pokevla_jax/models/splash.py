"""Self-attention by the Pallas splash kernel: no logits in memory, and blocks that a causal mask empties are skipped.

The kernel is compiled for TPU; elsewhere JAX refuses it, unless ``INTERPRET`` is set, as the tests do.
Source: ``jax.experimental.pallas.ops.tpu.splash_attention``, called as MaxText does (``shard_map`` over the mesh, one
kernel per row of the batch).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel_lib
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as mask_lib

from pokevla_jax import sharding
from pokevla_jax.typing import Array
from pokevla_jax.typing import Float
from pokevla_jax.typing import Int

LANES = 128  # Blocks are multiples of it.
LARGEST_BLOCK = 640  # The policy's whole sequence; of 2,048 positions, blocks of 512.
# Up to so many keys are one block of the backward kernel, which writes the queries' gradient once for each block of
# keys: summing what it wrote takes a third of the kernel's own time for heads of 64 (docs/results.md). Inside of one
# block nothing is skipped, so that causal attention goes by rows of blocks, each with the keys it sees. Then the keys'
# gradients are to be summed instead, which are small where queries share keys.
MOST_KEYS = 2048
FILLED = -1  # Segment of what is added to fill the last block.
INTERPRET = False  # Runs the kernel as ordinary operations on any device, slowly.


def attend(
    queries: Float[Array, "b s h k"],
    keys: Float[Array, "b s g k"],
    values: Float[Array, "b s g w"],
    segments: Int[Array, "b s"] | None,
    *,
    causal: bool,
) -> Float[Array, "b s h w"]:
    """What ``attention.attend`` describes, for one source.

    Sequences are filled up to whole blocks with a segment of their own. On a mesh each device takes its rows, and its
    heads where ``tensor`` divides both kinds of them.
    """
    length, width = queries.shape[1], queries.shape[-1]
    filled = -(-length // LANES) * LANES
    if segments is None and filled > length:
        segments = jnp.zeros(queries.shape[:2], jnp.int32)
    q, k, v = (_fill(jnp.swapaxes(x, 1, 2), filled) for x in (queries * width**-0.5, keys, values))
    if segments is not None:
        segments = jnp.pad(segments, ((0, 0), (0, filled - length)), constant_values=FILLED)
    local = functools.partial(_local, causal=causal)
    if sharding.current_mesh() is not None:
        cut = keys.shape[2] % sharding.axis_size("tensor") == 0
        spec = sharding.activation_spec(q.shape, ("batch", "heads" if cut else None, None, None))
        rows = sharding.activation_spec(q.shape[:1] + q.shape[2:3], ("batch", None))
        # Without the check: the kernel does not say along which axes its outputs vary.
        local = jax.shard_map(local, in_specs=(spec, spec, spec, rows), out_specs=spec, check_vma=False)
    out = local(q, k, v, segments)
    return jnp.swapaxes(out[:, :, :length, : values.shape[-1]], 1, 2)


def _fill(x: Float[Array, "b h s k"], length: int) -> Float[Array, "b h s k"]:
    """Zeros behind the sequence, and behind a head's width: it lies along the lanes and must divide or fill them."""
    width = x.shape[-1]
    wanted = width if LANES % width == 0 else -(-width // LANES) * LANES
    return jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, wanted - width)))


def _local(q: Any, k: Any, v: Any, segments: Any, *, causal: bool) -> Any:
    """One device's part."""
    length = q.shape[2]
    block = max(size for size in range(LANES, LARGEST_BLOCK + 1, LANES) if length % size == 0)
    grouped = k.shape[1] < q.shape[1]
    rows = block if causal and grouped and length <= MOST_KEYS else length
    parts = []
    for start in range(0, length, rows):
        keys = start + rows if causal else length
        kernel = _kernel(q.shape[1], rows, keys, block, causal)
        part = [q[:, :, start : start + rows], k[:, :, :keys], v[:, :, :keys]]
        with jax.named_scope(_work(rows // block, keys // block, causal)):
            if segments is None:
                parts.append(jax.vmap(lambda *x, kernel=kernel: kernel(*x))(*part))
                continue
            seen = kernel_lib.SegmentIds(segments[:, start : start + rows], segments[:, :keys])
            parts.append(jax.vmap(lambda *x, kernel=kernel: kernel(*x))(*part, seen))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=2)


def _work(rows: int, keys: int, causal: bool) -> str:
    """Says which blocks of scores the mask leaves; ``plan/kernels.py`` finds it in the compiled program."""
    hidden = rows * (rows - 1) // 2 if causal else 0
    return f"blocks_{rows * keys - hidden}_of_{rows * keys}"


def _kernel(heads: int, rows: int, keys: int, block: int, causal: bool) -> Any:
    """The kernel of the last ``rows`` of ``keys`` positions."""
    forward: dict[str, Any] = dict.fromkeys(("block_q", "block_kv", "block_kv_compute"), block)
    backward: dict[str, Any] = dict.fromkeys(("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute"), block)
    if keys <= MOST_KEYS and (rows == block or not causal):
        backward["block_kv_dkv"] = keys
    mask = mask_lib.CausalMask((rows, keys), offset=keys - rows) if causal else mask_lib.FullMask((rows, keys))
    return kernel_lib.make_splash_mha(
        mask=mask_lib.MultiHeadMask([mask] * heads),
        block_sizes=kernel_lib.BlockSizes(**forward, **backward, use_fused_bwd_kernel=True),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name="attention",
        interpret=INTERPRET,
    )
