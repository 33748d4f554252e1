"""Low-rank adapters: beside the frozen kernel of a linear map, two thin matrices whose product is learned.

``y = x W + (x A) B alpha / rank``. The adapters are leaves ``lora_a`` and ``lora_b`` next to ``kernel`` in the tree of
parameters, named by the kernel's logical axes and so cut as it is; training, checkpoints and shardings treat them like
any other leaf. ``merge`` folds them into the kernels; what inference and export read is merged.

Source: LoRA (Hu et al. 2021); start values as PEFT's "gaussian", which VLA-Adapter uses.
"""

import math
import re
from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx

from pokevla_jax.config import ConfigError
from pokevla_jax.config import OptimizerConfig
from pokevla_jax.models.layers import ZEROS
from pokevla_jax.models.layers import Init
from pokevla_jax.models.layers import Linear
from pokevla_jax.models.layers import parameter
from pokevla_jax.sharding import flatten
from pokevla_jax.sharding import unflatten
from pokevla_jax.typing import Array
from pokevla_jax.typing import Params

ADAPTER = re.compile(r"(^|/)lora_[ab]$")
"""Paths of adapters."""


@dataclass(frozen=True)
class Lora:
    """Which linear maps are adapted (regular expressions on their whole paths), and how."""

    rank: int
    alpha: float
    targets: tuple[str, ...]

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied by."""
        return self.alpha / self.rank


def from_config(config: OptimizerConfig) -> Lora | None:
    """The adapters of a run; None without."""
    return Lora(config.lora_rank, config.lora_alpha, config.lora_targets) if config.lora_rank else None


def adapt(module: nnx.Module, lora: Lora) -> None:
    """Puts adapters into the linear maps of ``module`` whose paths match.

    Raises:
        ConfigError: for a pattern that matches no linear map, which is always a typing error.
    """
    linears = {"/".join(map(str, path)): m for path, m in nnx.iter_modules(module) if isinstance(m, Linear)}
    for pattern in lora.targets:
        if not any(re.fullmatch(pattern, name) for name in linears):
            raise ConfigError(
                f"config.optimizer.lora_targets {pattern!r} matches no linear map; paths look like: "
                f"{', '.join(sorted(linears)[:3])}"
            )
    for name, linear in linears.items():
        if any(re.fullmatch(pattern, name) for pattern in lora.targets):
            _adapt_one(linear, lora)


def _adapt_one(linear: Linear, lora: Lora) -> None:
    shape, axes = linear.kernel.shape, linear.axes
    # A stack's kernel has its layers in front.
    first = len(shape) - len(axes)
    split = first + linear.num_inputs
    inputs, outputs = axes[: linear.num_inputs], axes[linear.num_inputs :]
    a = parameter(Init(std=1 / lora.rank), (*shape[:split], lora.rank), (*inputs, None))
    b = parameter(ZEROS, (*shape[:first], lora.rank, *shape[split:]), (None, *outputs))
    linear.lora_a, linear.lora_b = nnx.data(a), nnx.data(b)
    linear.lora_scale = lora.scale


def adapted(names: set[str]) -> set[str]:
    """Of the paths ``names``, those that stand beside an adapter: frozen kernels and biases."""
    parents = {name.rpartition("/")[0] for name in names if ADAPTER.search(name)}
    return {name for name in names if name.rpartition("/")[0] in parents and not ADAPTER.search(name)}


def merge(params: Params, lora: Lora) -> Params:
    """The same network without adapters: each adapted kernel, in float32, plus the product of its two matrices."""
    leaves = flatten(params)
    merged = {name: leaf for name, leaf in leaves.items() if not ADAPTER.search(name)}
    for name, a in leaves.items():
        if name.endswith("lora_a"):
            parent = name.removesuffix("lora_a")
            merged[f"{parent}kernel"] = _merge_one(merged[f"{parent}kernel"], a, leaves[f"{parent}lora_b"], lora.scale)
    return unflatten(merged)


def _merge_one(kernel: Array, a: Array, b: Array, scale: float) -> Array:
    # a: layers, inputs, rank; b: layers, rank, outputs; kernel: layers, inputs, outputs
    stacked = a.ndim + b.ndim - 2 - kernel.ndim
    layers, rank = kernel.shape[:stacked], a.shape[-1]
    inputs, outputs = math.prod(a.shape[stacked:-1]), math.prod(b.shape[stacked + 1 :])
    a, b = (jnp.asarray(x, jnp.float32) for x in (a, b))
    product = jnp.matmul(
        a.reshape(*layers, inputs, rank), b.reshape(*layers, rank, outputs), precision="highest"
    ).reshape(kernel.shape)
    return jnp.asarray(kernel, jnp.float32) + scale * product
