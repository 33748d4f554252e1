"""Leaf layers: linear maps, norms, MLPs and rotary positions.

A module declares its parameters (shape, logical axes, initial distribution) and holds no arrays: ``stacking.py`` draws
the values and binds them. The activations carry the compute dtype: a layer casts its float32 parameters to the dtype
of what it is given, and norms compute in float32 whatever that is. ``Linear`` is where weights meet activations, and
therefore where both are placed on a mesh.
"""

import math
from collections.abc import Callable
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from pokevla_jax import sharding
from pokevla_jax.typing import Array
from pokevla_jax.typing import Float

Axes = Sequence[str | None]


class Init(NamedTuple):
    """The distribution of a fresh parameter: normal, or a constant where ``std`` is 0."""

    mean: float = 0.0
    std: float = 0.0


ZEROS = Init()
ONES = Init(mean=1.0)
TOKEN = Init(std=0.02)  # embeddings and learned tokens, as in Qwen2 and the ViTs


class Buffer(nnx.Param):
    """An array that belongs to the checkpoint and is never trained."""


def parameter(init: Init, shape: Sequence[int], axes: Axes, kind: type[nnx.Param] = nnx.Param) -> nnx.Param:
    """Declares a float32 parameter, its initial distribution and its logical axes."""
    # The axes go under a key of our own: Flax's would demand a mesh at creation ("eager sharding").
    return kind(jax.ShapeDtypeStruct(tuple(shape), jnp.float32), axes=tuple(axes), init=init)


@jax.custom_vjp
def add_bias(x: Array, bias: Array) -> Array:
    """``x + bias``, where ``bias`` has the trailing axes of ``x``.

    Its gradient is written as a matrix product with ones: XLA's CPU backend sums over leading axes many times slower
    than it multiplies matrices, and elsewhere the two cost the same.
    """
    return x + bias.astype(x.dtype)


def _sum_leading(x: Array, ndim: int) -> Array:
    if sharding.current_mesh() is not None:  # Flattening would mix cut dimensions with whole ones.
        return jnp.sum(x, axis=tuple(range(x.ndim - ndim)), dtype=jnp.float32)
    matrix = x.reshape(-1, math.prod(x.shape[x.ndim - ndim :]))
    total = jnp.matmul(jnp.ones(matrix.shape[0], x.dtype), matrix, preferred_element_type=jnp.float32)
    return total.reshape(x.shape[x.ndim - ndim :])


def _add_bias_forward(x: Array, bias: Array) -> tuple[Array, Array]:
    return add_bias(x, bias), bias


def _add_bias_backward(bias: Array, grad: Array) -> tuple[Array, Array]:
    return grad, _sum_leading(grad, bias.ndim).astype(bias.dtype)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


@jax.custom_vjp
def multiply(x: Array, scale: Array) -> Array:
    """``x * scale``, where ``scale`` has the trailing axes of ``x``; its gradient as in ``add_bias``."""
    return x * scale.astype(x.dtype)


def _multiply_forward(x: Array, scale: Array) -> tuple[Array, tuple[Array, Array]]:
    return multiply(x, scale), (x, scale)


def _multiply_backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, scale = saved
    return grad * scale.astype(grad.dtype), _sum_leading(grad * x, scale.ndim).astype(scale.dtype)


multiply.defvjp(_multiply_forward, _multiply_backward)


def summed_in_float32(product: Callable[..., Array], x: Array, y: Array) -> Array:
    """``product(x, y)``, a matrix product such as ``jnp.matmul``, summed in float32 and rounded to the dtype of ``x``.

    Accelerators sum so anyway. XLA's CPU backend uses the processor's bfloat16 instructions only where the sum is
    wanted in float32; else it converts both factors to float32 first, which takes twice as long. On a mesh the product
    stays as it is: wanting float32 there would keep XLA for TPUs from fusing what follows.
    """
    plain = x.dtype == jnp.float32 or sharding.current_mesh() is not None
    return product(x, y) if plain else _rounded_once(product, x, y)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rounded_once(product: Callable[..., Array], x: Array, y: Array) -> Array:
    return product(x, y, preferred_element_type=jnp.float32).astype(x.dtype)


def _rounded_once_forward(product: Callable[..., Array], x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    return _rounded_once(product, x, y), (x, y)


def _rounded_once_backward(
    product: Callable[..., Array], factors: tuple[Array, Array], grad: Array
) -> tuple[Array, Array]:
    # Differentiated as it stands, the rounding would hand the products a float32 gradient: slower ones on a TPU.
    return jax.vjp(product, *factors)[1](grad)


_rounded_once.defvjp(_rounded_once_forward, _rounded_once_backward)


def repeat(x: Array, batch: int) -> Array:
    """``x`` once per batch element, in front."""
    return add_bias(jnp.zeros((batch, *x.shape), jnp.float32), x)


class Linear(nnx.Module):
    """A linear map from the trailing axes ``inputs`` to the axes ``outputs``, such as ``d -> (heads, head_dim)``.

    Its input's first axis is the batch. ``models/lora.py`` may put a low-rank adapter beside the kernel.
    """

    def __init__(
        self,
        inputs: int | tuple[int, ...],
        outputs: int | tuple[int, ...],
        *,
        axes: Axes,
        use_bias: bool = True,
    ):
        inputs = (inputs,) if isinstance(inputs, int) else inputs
        outputs = (outputs,) if isinstance(outputs, int) else outputs
        self.num_inputs, self.axes = len(inputs), tuple(axes)
        self.kernel = parameter(Init(std=math.prod(inputs) ** -0.5), inputs + outputs, axes)
        self.bias = parameter(ZEROS, outputs, axes[len(inputs) :]) if use_bias else None
        self.lora_a: nnx.Param | None = None
        self.lora_b: nnx.Param | None = None
        self.lora_scale = 0.0

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        return self._apply(x, self.axes, lambda p, _: p)

    def parts(self, x: Float[Array, "... i"]) -> list[Float[Array, "... o"]]:
        """The output, cut along the first of its axes: by one product for each part.

        For a TPU, on which cutting the output, and joining the parts' gradients, takes as long as a product.
        """
        axes = (*self.axes[: self.num_inputs], *self.axes[self.num_inputs + 1 :])

        def part(index: int) -> Array:
            return self._apply(x, axes, lambda p, axis: jax.lax.index_in_dim(p, index, axis, keepdims=False))

        return [part(index) for index in range(self.kernel[...].shape[self.num_inputs])]

    def _apply(self, x: Array, axes: Axes, cut: Callable[[Array, int], Array]) -> Array:
        """The map of some of the outputs, whose axes are ``axes``; ``cut`` takes them from a parameter's outputs."""
        inputs, outputs = tuple(axes[: self.num_inputs]), tuple(axes[self.num_inputs :])
        y = _product(x, cut(self.kernel[...], self.num_inputs), (*inputs, *outputs), self.num_inputs)
        if self.lora_a is not None and self.lora_b is not None:
            low = _product(x, self.lora_a[...], (*inputs, None), self.num_inputs) * self.lora_scale
            y = y + _product(low, cut(self.lora_b[...], 1), (None, *outputs), 1)
        if self.bias is not None:
            y = add_bias(y, sharding.gather(cut(self.bias[...], 0), outputs, jnp.float32))
        return checkpoint_name(y, "linear")


def _product(x: Array, kernel: Array, axes: tuple[str | None, ...], num_inputs: int) -> Array:
    """``x`` times ``kernel`` over the trailing ``num_inputs`` axes, in the dtype of ``x``, placed by ``axes``."""
    lead = x.shape[: x.ndim - num_inputs]
    kernel = sharding.gather(kernel, axes, x.dtype)
    if sharding.axis_size("tensor") > 1:
        # Flattened, a dimension cut inside a group of axes (qkv's heads) could not stay cut.
        contracted = (tuple(range(len(lead), x.ndim)), tuple(range(num_inputs)))
        y = jax.lax.dot_general(x, kernel, (contracted, ((), ())))
    else:
        # As matrices: with several contracted axes XLA would transpose a copy of the activations for the gradient.
        inputs, outputs = math.prod(kernel.shape[:num_inputs]), kernel.shape[num_inputs:]
        matrix = kernel.reshape(inputs, math.prod(outputs))
        y = summed_in_float32(jnp.matmul, x.reshape(-1, inputs), matrix).reshape(*lead, *outputs)
    # Between blocks, where a sequence of states is carried on, positions are cut.
    length = "length" if len(lead) == 2 and axes[num_inputs:] == ("embed",) else None
    return sharding.constrain(y, "batch", *(length,) * (len(lead) - 1), *axes[num_inputs:])


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, in float32."""

    def __init__(self, width: int, *, eps: float = 1e-6):
        self.eps = eps
        self.scale = parameter(ONES, (width,), (None,))
        self.bias = parameter(ZEROS, (width,), (None,))

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return add_bias(multiply(y, self.scale[...]), self.bias[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation over the last axis, in float32."""

    def __init__(self, width: int, *, eps: float = 1e-6):
        self.eps = eps
        self.scale = parameter(ONES, (width,), (None,))

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return multiply(y, self.scale[...]).astype(x.dtype)


def gelu(x: Array) -> Array:
    """The exact GELU, as every network here was trained with; by ``erf``, cheaper than jax.nn's ``erfc``."""
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


class MLP(nnx.Module):
    """Linear, activation, Linear."""

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        *,
        activation: Callable[[Array], Array] = gelu,
        axes: Axes = ("embed", "mlp", "embed"),
    ):
        self.activation = activation
        self.fc1 = Linear(inputs, hidden, axes=axes[:2])
        self.fc2 = Linear(hidden, outputs, axes=axes[1:])

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        return self.fc2(self.activation(self.fc1(x)))


class SwiGLU(nnx.Module):
    """``down(silu(gate(x)) * up(x))``, Qwen2's MLP."""

    def __init__(self, width: int, hidden: int):
        self.gate_proj = Linear(width, hidden, axes=("embed", "mlp"), use_bias=False)
        self.up_proj = Linear(width, hidden, axes=("embed", "mlp"), use_bias=False)
        self.down_proj = Linear(hidden, width, axes=("mlp", "embed"), use_bias=False)

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


RotaryTable = tuple[Float[Array, "... s 1 k/2"], Float[Array, "... s 1 k/2"]]


def rotary_table(positions: Float[Array, "... s"], head_dim: int, theta: float) -> RotaryTable:
    """Cosines and sines of the rotary angles of ``positions``, float32, ready for ``rotate``."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions.astype(jnp.float32)[..., None, None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "b s h k"], table: RotaryTable) -> Float[Array, "b s h k"]:
    """Rotary position embedding in the half-split layout of Qwen2: dimension i turns with dimension i + k/2."""
    cos, sin = table
    if sharding.current_mesh() is not None:
        return _rotate_by_product(x, cos, sin)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def _rotate_by_product(x: Array, cos: Array, sin: Array) -> Array:
    """``rotate``, halves exchanged by a matrix: a TPU moves half a head along its lanes in more time."""
    one = np.eye(x.shape[-1] // 2)
    exchange = jnp.asarray(np.block([[0 * one, one], [-one, 0 * one]]), x.dtype)  # (a, b) -> (-b, a), exactly
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    turned = jnp.matmul(x, exchange, precision=precision, preferred_element_type=jnp.float32)
    cos, sin = (jnp.concatenate([half, half], axis=-1) for half in (cos, sin))
    return (x.astype(jnp.float32) * cos + turned * sin).astype(x.dtype)
