"""What every parity test shares: weights that matter, read by their PyTorch names, and one measure of difference.

A test compares one part with a PyTorch reference to ``TOLERANCE`` of the output's RMS, and then shows that it can fail:
a reference that is wrong on purpose must differ by far more.
"""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import torch

from pokevla_jax.models import stacking

TOLERANCE = 1e-4
# What a reference that is wrong on purpose must exceed.
FAR = 100 * TOLERANCE


def randomise(model, seed=0, *, logit_gain=1.5):
    """Draws every parameter so that none can be ignored: norms, gates and biases of order one, matrices that keep size.

    Projections to queries and keys are drawn larger by ``logit_gain``, so that attention is far from even;
    ``logit_spread`` measures it.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            layer = name.removesuffix(".weight").split(".")[-1]
            if name.endswith("bias"):
                parameter.copy_(0.5 * noise)
            elif parameter.ndim == 1:  # scales of norms, LayerScale, gates
                parameter.copy_(1 + 0.3 * noise)
            elif (
                parameter.ndim == 3
                or "token" in layer
                or any(part in name for part in ("embed.", "embeddings.", "latents"))
            ):
                parameter.copy_(noise)
            else:
                attention = layer.startswith(("q_proj", "k_", "query", "key", "qkv"))
                fan_in = parameter[0].numel()
                parameter.copy_((logit_gain if attention else 1.0) * fan_in**-0.5 * noise)
    return model.eval()


def logit_spread(weights):
    """The standard deviation of attention logits over the keys that a query sees, averaged; from softmax weights."""
    weights = torch.as_tensor(weights)
    seen = weights > 0
    logits = torch.where(seen, weights.clamp_min(1e-38).log(), torch.zeros(()))
    count = seen.sum(-1)
    mean = logits.sum(-1) / count
    variance = (torch.where(seen, logits - mean[..., None], torch.zeros(())) ** 2).sum(-1) / count
    return variance[count > 2].sqrt().mean().item()


def error(ours, theirs):
    """The largest absolute difference, in units of the RMS of ``theirs``."""
    theirs = theirs.detach().float().numpy() if isinstance(theirs, torch.Tensor) else np.asarray(theirs)
    ours = np.asarray(ours, np.float32)
    assert ours.shape == theirs.shape
    rms = np.sqrt(np.mean(np.square(theirs, dtype=np.float64)))
    assert rms > 1e-3  # a comparison of zeros would prove nothing
    return np.abs(ours - theirs).max() / rms


def assert_same(ours, theirs):
    """Fails beyond ``TOLERANCE``; ``--log-cli-level=INFO`` shows the error."""
    difference = error(ours, theirs)
    logging.getLogger(__name__).info("largest error %.1e of the RMS", difference)
    assert difference < TOLERANCE


def assert_far(ours, theirs):
    assert error(ours, theirs) > FAR


def filled(module, params):
    """The JAX module over numpy parameters; a missing, surplus or mis-shaped one raises."""
    expected = stacking.shapes(module)
    assert jax.tree.structure(expected) == jax.tree.structure(params)
    jax.tree.map(lambda x, p: np.testing.assert_equal(p.shape, x.shape), expected, params)
    return stacking.fill(module, jax.tree.map(jnp.asarray, params))


def run_once(function, *inputs):
    """The result of ``function``, compiled without optimisation, which would cost more than it saves."""
    return jax.jit(function).lower(*inputs).compile({"xla_backend_optimization_level": 0})(*inputs)


def stack(layers):
    return jax.tree.map(lambda *x: np.stack(x), *layers)


class Weights:
    """A PyTorch state dict as this project's parameters, read by prefix."""

    def __init__(self, model):
        state = model if isinstance(model, dict) else model.state_dict()
        self.state = {name: value.detach().numpy() for name, value in state.items()}

    def __getitem__(self, name):
        return self.state[name]

    def linear(self, name, inputs=None, outputs=None):
        """Kernel (and bias) with the output or input axis split into ``outputs`` or ``inputs``."""
        kernel = self[f"{name}.weight"].T
        kernel = kernel.reshape(*(inputs or kernel.shape[:1]), *(outputs or kernel.shape[1:]))
        if f"{name}.bias" not in self.state:
            return {"kernel": kernel}
        return {"kernel": kernel, "bias": self[f"{name}.bias"].reshape(outputs or (-1,))}

    def norm(self, name):
        scale = {"scale": self[f"{name}.weight"]}
        return {**scale, "bias": self[f"{name}.bias"]} if f"{name}.bias" in self.state else scale

    def qkv(self, names, heads):
        parts = [self.linear(name, outputs=heads) for name in names]
        return {key: np.stack([part[key] for part in parts], axis=parts[0][key].ndim - 2) for key in parts[0]}

    def patch(self, name):
        """A convolution with stride = kernel, as a matrix over (row, column, channel)."""
        kernel = self[f"{name}.weight"]
        return {"kernel": kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel)), "bias": self[f"{name}.bias"]}
