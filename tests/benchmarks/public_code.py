"""What the comparisons with public code share: its modules, and its weights by way of the importer."""

import sys
import types

import jax.numpy as jnp
import torch

from pokevla_jax.interop import dialects
from pokevla_jax.interop.plan_import import plan
from pokevla_jax.interop.readers import Stored
from pokevla_jax.sharding import unflatten
from tests.parity.compare import error
from tests.parity.compare import randomise


def bare(folder, *packages):
    """Makes the modules of ``packages`` below ``folder`` importable without what their ``__init__`` would import."""
    for name in packages:
        package = types.ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = package


def randomise_vit(model, patches, *, seed, logit_gain):
    """``randomise`` for a ViT whose patch projection must keep the size of what it sees, as its blocks do."""
    randomise(model, seed, logit_gain=logit_gain)
    with torch.no_grad():
        patches.weight.mul_(patches.weight[0].numel() ** -0.5)
    return model


class StateDict:
    """A module's state dict as a file that the importer reads."""

    def __init__(self, model):
        self.path, self._state = type(model).__name__, model.state_dict()
        self.tensors = {name: Stored(tuple(x.shape), str(x.dtype).split(".")[-1]) for name, x in self._state.items()}

    def read(self, name):
        return self._state[name].numpy()


def imported(model, config):
    """The parameters that ``pokevla-convert from-torch`` makes of the module: a nested dict of what it holds."""
    _, tensors, _ = dialects.translate(StateDict(model))
    params = {
        entry.path: jnp.asarray(entry.from_torch((tensor.read() for tensor in found), "float32"))
        for entry, found in plan(config, tensors).imported
    }
    return unflatten(params)


def report(ours, public, exact):
    """Prints a line per output: errors in units of the RMS, also to the public code in float64 where there is that."""
    for name in ours:
        line = f"{name}: ours to the public code {error(ours[name], public[name]):.2g}"
        if name in exact:
            to_exact = (error(x[name], exact[name]) for x in (ours, public))
            line += ", to float64: ours {:.2g}, the public code {:.2g}".format(*to_exact)
        print(line)
