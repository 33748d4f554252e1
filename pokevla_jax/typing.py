"""Array aliases and the glossary of shape letters used in every signature.

Shapes are jaxtyping strings such as ``Float[Array, "b n d"]``. The letters are the same everywhere:

====  =================================================================
b     batch
v     camera views (2 in the paper: third person, then wrist)
h w   image height and width, in pixels
p     patches of one view (``grid * grid``, row-major)
n     vision tokens of all views, ``v * p``
l     prompt tokens (padded)
s     sequence length inside the language model
q     learned action queries
t     action horizon: the steps of one chunk
a     action dimension
r     robot state (proprio) dimension
d     model width
k     keypoints (target, goal), 3-D, metres
====  =================================================================
"""

from typing import TYPE_CHECKING
from typing import Any

import numpy as np
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int
from jaxtyping import UInt8

if TYPE_CHECKING:
    from jaxtyping import Array

Params = dict[str, Any]
"""A plain nested dict of arrays: what is trained, sharded and checkpointed."""

Batch = dict[str, Any]
"""One batch; its keys, shapes and dtypes are those of ``data.schema.batch_spec``."""

__all__ = ["Array", "Batch", "Bool", "Float", "Int", "Params", "UInt8", "np"]


def __getattr__(name: str) -> Any:
    # Loader workers and simulators import this module for its numpy shapes; only `Array` brings in JAX.
    if name == "Array":
        from jaxtyping import Array

        return Array
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
