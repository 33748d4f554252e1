"""VLA-Adapter's own heads, all 24 blocks at full width, beside ours with the same random weights. Run by hand.

    git clone https://github.com/OpenHelix-Team/VLA-Adapter
    python -m tests.benchmarks.public_vla_adapter VLA-Adapter

Prints the largest error in units of the RMS of the actions, in float32 and bfloat16, and how far either is from
PyTorch in float64. Nothing of that repository is needed but ``prismatic/models/action_heads.py``, ``projectors.py`` and
``prismatic/vla/constants.py``.
"""

import argparse
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

from pokevla_jax.models import presets
from pokevla_jax.models import stacking
from pokevla_jax.models.action_head import ActionHead
from tests.benchmarks.public_code import bare
from tests.parity import mappings
from tests.parity.compare import error
from tests.parity.compare import randomise


def load(checkout):
    """The modules of heads and projectors, without importing the packages around them."""
    bare(checkout, "prismatic", "prismatic.vla", "prismatic.models")
    return (importlib.import_module(f"prismatic.models.{name}") for name in ("action_heads", "projectors"))


def theirs(head, proprio, states, state, dtype):
    """The public head's actions, computed in ``dtype``."""
    dtype, cast = getattr(torch, dtype), torch.Tensor.to
    if dtype != torch.bfloat16:
        # The head casts the state to bfloat16 whatever it computes in.
        torch.Tensor.to = lambda x, *args, **kwargs: x if args[:1] == (torch.bfloat16,) else cast(x, *args, **kwargs)
    try:
        x, r = torch.tensor(states, dtype=dtype), torch.tensor(state, dtype=dtype)
        return head.type(dtype).predict_action(x, r, proprio.type(dtype), phase="Inference").double().numpy()
    finally:
        torch.Tensor.to = cast


def compare(preset, heads, projectors, logit_gain):
    """Prints one line per dtype."""
    config = presets.get_preset(preset)
    width, pro = config.language.width, config.action_head.block == "pro"
    head = heads.L1RegressionActionHead(input_dim=width, hidden_dim=width, use_pro_version=pro)
    randomise(head.model, logit_gain=logit_gain)
    proprio = randomise(projectors.ProprioProjector(width, config.proprio_dim), seed=1)
    params = jax.tree.map(jnp.array, mappings.action_head(head.model, proprio, config))
    rng = np.random.default_rng(0)
    n = config.num_vision_tokens
    states = rng.normal(size=(2, config.language.num_layers + 1, n + 64, width)).astype(np.float32)
    state = rng.uniform(-1, 1, (2, config.proprio_dim)).astype(np.float32)
    run = jax.jit(lambda params, x: stacking.fill(ActionHead(config), params)(x[:, :, :n], None, x[:, :, n:], state))
    exact = theirs(head, proprio, states, state, "float64")
    for dtype in ("float32", "bfloat16"):
        public = theirs(head, proprio, states, state, dtype)
        ours = run(params, jnp.asarray(states[:, 1:].swapaxes(0, 1), dtype))
        print(
            f"{preset} {dtype}: ours to the public code {error(ours, public):.2g}, "
            f"to float64: ours {error(ours, exact):.2g}, the public code {error(public, exact):.2g}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a copy of the VLA-Adapter repository")
    parser.add_argument("--logit-gain", type=float, default=1.0, help="how much larger query and key weights are drawn")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    heads, projectors = load(arguments.checkout)
    for preset in ("vla_adapter", "vla_adapter_pro"):
        compare(preset, heads, projectors, arguments.logit_gain)


if __name__ == "__main__":
    main()
