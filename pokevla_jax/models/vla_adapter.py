"""What the released VLA-Adapter heads compute otherwise than PokeVLA's: how the latents start, how keys are turned.

Source: VLA-Adapter's L1 regression head. Both are artefacts of its code that its weights were trained with.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pokevla_jax.config import ModelConfig
from pokevla_jax.models.layers import LayerNorm
from pokevla_jax.models.layers import Linear
from pokevla_jax.typing import Array
from pokevla_jax.typing import Float

ROPE_THETA = 10_000.0
EPS = 1e-5  # torch's default, which the released heads use
NOISE = 0.02


class ProjectedLatents(nnx.Module):
    """Latents as ``relu(linear(norm(zeros)))``, one constant for every step; in training ``norm`` sees noise.

    The norm brings the noise to unit variance, so its size hardly matters. It is drawn anew in every step and never
    learned.
    """

    def __init__(self, config: ModelConfig):
        width = config.action_dim * config.language.width
        self.shape = (config.action_horizon, width)
        self.norm = LayerNorm(width, eps=EPS)
        self.fc1 = Linear(width, config.action_head.width, axes=(None, "embed"))

    def __call__(self, dtype: jnp.dtype, key: Array | None) -> Float[Array, "t d"]:
        x = jnp.zeros(self.shape) if key is None else NOISE * jax.random.normal(key, self.shape)
        return jax.nn.relu(self.fc1(self.norm(x.astype(dtype))))


def rotate(x: Float[Array, "b z h k"]) -> Float[Array, "b z h k"]:
    """``x`` times cosines plus its swapped neighbours times sines, at positions 0, 1, ...; no rotation.

    Dimensions 2i and 2i + 1 are mixed, but the angles are laid out for mixing i with i + k/2: the two of a pair get
    different angles. Positions, frequencies and angles are rounded to the dtype of ``x``, as the reference's head is
    cast as a whole: in bfloat16, positions above 256 fall together.
    """
    size = x.shape[-1]
    # By numpy, while tracing: compilers keep more precision than bfloat16 asks for, and the rounding is the point.
    positions = _rounded(np.arange(x.shape[1], dtype=np.float32), x.dtype)
    frequencies = _rounded(1.0 / np.float32(ROPE_THETA) ** (np.arange(0, size, 2, dtype=np.float32) / size), x.dtype)
    angles = np.tile(_rounded(positions[:, None] * frequencies, x.dtype), 2)
    cos, sin = (jnp.asarray(f(angles)[:, None], x.dtype) for f in (np.cos, np.sin))
    pairs = x.reshape(*x.shape[:-1], size // 2, 2)
    swapped = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(x.shape)
    return x * cos + swapped * sin


def _rounded(x: np.ndarray, dtype: jnp.dtype) -> np.ndarray:
    return x.astype(dtype).astype(np.float32)
