"""Price of Pallas kernels: the program's text has no estimate of theirs, and zero would flatter most of all."""

import re
from collections.abc import Sequence

from pokevla_jax.plan import hlo
from pokevla_jax.plan.topologies import Chip

# Splash attention at head_dim 128, in FLOPs of the blocks it computes, as a part of the chip's peak. Measured on v6e at
# 8,192 tokens: 30 % forward, 34 % backward, from the profile of an 8B decoder at 6,376 tokens/s per chip
# (github.com/vlasenkoalexey/tpu_performance_autoresearch_wiki, qwen3 experiment v107: forward 11.2 % and backward
# 12.5 % of the step). A quarter is counted, for shorter sequences; narrower heads fill the matrix unit in proportion:
# 12.5 % for heads of 64, of which v4 reached 13.0 % at 2,048 tokens in blocks of 512, forward and in the whole gradient
# (an older kernel with a bias; github.com/apple/axlearn, flash_attention/tpu_attention_benchmark.py, 1.2 and 5.4 ms).
SPLASH_EFFICIENCY = 0.25
SPLASH_HEAD_DIM = 128
# Matrix products of each kernel: scores and their sum; gradients by queries; by keys and values (counted as if the
# queries' gradient were fused into it, which it may be).
SPLASH_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 5}
# A kernel that is not known: its operands and results at a quarter of the memory bandwidth.
UNKNOWN_BANDWIDTH = 0.25

ASSUMPTION = (
    f"Pallas kernels have no estimate of the compiler's: splash attention is priced at {SPLASH_EFFICIENCY:.0%} of peak "
    f"at head_dim {SPLASH_HEAD_DIM} and in proportion below, any other kernel at {UNKNOWN_BANDWIDTH:.0%} of the memory "
    "bandwidth"
)


def is_kernel(instruction: hlo.Instruction) -> bool:
    """Whether a custom call computes something."""
    return instruction.custom_call_target in ("tpu_custom_call", "mosaic_tpu") or "pallas" in instruction.op_name


def seconds(instruction: hlo.Instruction, operands: Sequence[hlo.Instruction], chip: Chip) -> float:
    """Pessimistic time of one execution.

    Args:
        instruction: a custom call for which ``is_kernel`` holds.
        operands: the instructions that produce its operands.
        chip: where it runs.
    """
    moved = instruction.bytes + sum(operand.bytes for operand in operands)
    floor = moved / (chip.hbm_bytes_per_second * UNKNOWN_BANDWIDTH)
    named = re.search(r"splash_m[hq]a_(fwd|dq|dkv)", instruction.op_name + instruction.name)
    tensors = [
        dims
        for operand in operands
        for dtype, dims in hlo.arrays(operand.shape)
        if dtype in ("bf16", "f32") and len(dims) >= 3
    ]
    if named is None or len(tensors) < 2:
        return floor
    # Queries [..., heads, tokens, head_dim], then keys.
    *lead, length, head_dim = tensors[0]
    rows = 1
    for size in lead:
        rows *= size
    keys = tensors[1][-2]
    flops = SPLASH_PRODUCTS[named[1]] * 2.0 * rows * length * keys * head_dim * _executed(instruction.op_name)
    efficiency = SPLASH_EFFICIENCY * min(head_dim, SPLASH_HEAD_DIM) / SPLASH_HEAD_DIM
    return max(flops / (chip.peak_flops * efficiency), floor)


def _executed(op_name: str) -> float:
    """The part of the score blocks that the mask leaves, as the kernel's caller names it (``models/splash.py``)."""
    named = re.search(r"\bblocks_(\d+)_of_(\d+)\b", op_name)
    return int(named[1]) / int(named[2]) if named else 1.0
