"""A small regression problem with the shape of the real one: stacked layers, masked loss, noise from the step's key."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from pokevla_jax import config as config_lib
from pokevla_jax.config import Config
from pokevla_jax.models import presets
from pokevla_jax.training.objective import Objective
from pokevla_jax.training.objective import TrainData

WIDTH = 16
LAYERS = 2
BATCH = 16

AXES = {
    "embed": {"kernel": (None, "embed"), "bias": ("embed",)},
    "blocks": {
        "up": {"kernel": ("layers", "embed", "mlp"), "bias": ("layers", "mlp")},
        "down": {"kernel": ("layers", "mlp", "embed")},
    },
    "head": {"kernel": ("embed", None)},
}


SHAPES = {
    "embed": {"kernel": (4, WIDTH), "bias": (WIDTH,)},
    "blocks": {
        "up": {"kernel": (LAYERS, WIDTH, 2 * WIDTH), "bias": (LAYERS, 2 * WIDTH)},
        "down": {"kernel": (LAYERS, 2 * WIDTH, WIDTH)},
    },
    "head": {"kernel": (WIDTH, 3)},
}


def initialize(key):
    """Parameters of a two-layer residual network, cut from one draw because that compiles fastest."""
    shapes, structure = jax.tree.flatten(SHAPES, is_leaf=lambda x: isinstance(x, tuple))
    sizes = [math.prod(shape) for shape in shapes]
    draw = 0.2 * jax.random.normal(key, (sum(sizes),))
    parts = jnp.split(draw, list(itertools.accumulate(sizes))[:-1])
    return structure.unflatten([part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)])


def predict(params, x):
    """float[b, 4] -> float[b, 3]."""
    x = x @ params["embed"]["kernel"] + params["embed"]["bias"]

    def block(x, layer):
        hidden = jnp.tanh(x @ layer["up"]["kernel"] + layer["up"]["bias"])
        return x + hidden @ layer["down"]["kernel"], None

    return jax.lax.scan(block, x, params["blocks"])[0] @ params["head"]["kernel"]


def objective(noise=0.0):
    """Masked mean squared error; ``noise`` perturbs the inputs with the step's key."""

    def count(batch):
        return {"fit": jnp.maximum(jnp.sum(batch["mask"]).astype(jnp.float32), 1.0)}

    def loss(params, batch, key, counts):
        x = batch["x"] + noise * jax.random.normal(key, batch["x"].shape) if noise else batch["x"]
        error = jnp.sum((predict(params, x) - batch["y"]) ** 2, -1) * batch["mask"]
        total = jnp.sum(error) / counts["fit"]
        return total, {"fit": total}

    def measure(params, batch):
        error = jnp.sum(jnp.abs(predict(params, batch["x"]) - batch["y"]), -1)
        return {"action_error": (jnp.sum(error), jnp.float32(error.size))}

    return Objective(
        initialize=initialize,
        abstract_params=jax.eval_shape(initialize, jax.random.key(0)),
        logical_axes=AXES,
        trainable=jax.tree.map(lambda _: True, jax.eval_shape(initialize, jax.random.key(0))),
        count=count,
        loss=loss,
        measure=measure,
    )


def batch(step, rows=BATCH):
    """Row counts of valid entries differ between micro-batches, so a mean of means would be seen."""
    rng = np.random.default_rng((7, step % 1000))
    x = rng.normal(size=(rows, 4)).astype(np.float32)
    mask = (rng.random(rows) < np.linspace(0.2, 1.0, rows)).astype(np.float32)
    return {"x": x, "y": np.sin(x[:, :3]).astype(np.float32), "mask": mask}


SPEC = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in batch(0).items()}


class Batches:
    """``batch(step)`` for step = start, start + 1, …; the position is the step."""

    def __init__(self, start):
        self.step = start

    def __next__(self):
        self.step += 1
        return batch(self.step - 1)

    def get_state(self):
        return {"step": self.step, "seed": 7}

    def set_state(self, state):
        if state["seed"] != 7:
            raise ValueError(f"The saved data position has seed {state['seed']}, this run has 7")
        self.step = state["step"]

    def close(self):
        pass


def data(iterate=Batches):
    """The toy problem's batches; two held-out ones."""
    return TrainData(
        spec=SPEC, iterate=iterate, holdout=lambda: [batch(-1), batch(-2)], assets={"statistics": {"mean": 0.5}}
    )


def config(**changes):
    """A run of 12 steps; dotted keys are written with two underscores."""
    values = config_lib.to_dict(Config(model=presets.tiny()))
    defaults = {
        "batch_size": BATCH,
        "num_steps": 12,
        "log_every": 2,
        "eval_every": 4,
        "mesh__data": 1,
        "optimizer__warmup_steps": 2,
        "optimizer__learning_rate": 0.01,
        "checkpoint__every_steps": 3,
    }
    for key, value in (defaults | changes).items():
        *groups, last = key.split("__")
        group = values
        for name in groups:
            group = group[name]
        group[last] = value
    return config_lib.from_dict(Config, values)
