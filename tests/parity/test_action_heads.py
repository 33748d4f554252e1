"""The action heads of VLA-Adapter, VLA-Adapter-Pro and PokeVLA, and every switch between them, against PyTorch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pokevla_jax.config import ActionHeadConfig
from pokevla_jax.models import presets
from pokevla_jax.models import vla_adapter
from pokevla_jax.models.action_head import ROTARY
from pokevla_jax.models.action_head import ActionHead
from pokevla_jax.models.layers import MLP
from tests.parity import mappings
from tests.parity import references
from tests.parity.compare import assert_far
from tests.parity.compare import assert_same
from tests.parity.compare import filled
from tests.parity.compare import logit_spread
from tests.parity.compare import randomise
from tests.parity.compare import run_once
from tests.parity.torch_reference import action_head as reference

RELEASED = dict(inject_seg=False, context="layerwise", latents="projected", rotary="vla_adapter")
HEADS = {
    "vla_adapter": dict(RELEASED, block="original"),
    "vla_adapter_pro": RELEASED,
    "pokevla": {},
    "original_with_seg": dict(block="original"),
}


def configured(*, width=32, num_heads=2, num_layers=2, language_width=32, **changes):
    base = presets.tiny()
    head = ActionHeadConfig(num_layers=num_layers, width=width, num_heads=num_heads, **changes)
    language = dataclasses.replace(base.language, width=language_width, num_layers=num_layers)
    return dataclasses.replace(base, action_head=head, language=language)


def inputs(config, *, num_vision=6, num_queries=4, batch=2, seed=0):
    """What the head reads, with a leading axis of blocks; equal along it where the head reads the last layer."""
    rng, layers = np.random.default_rng(seed), config.action_head.num_layers
    layerwise = config.action_head.context == "layerwise"
    shapes = {"vision": (num_vision,), "seg": (), "queries": (num_queries,)}
    draw = {}
    for name, shape in shapes.items():
        x = rng.normal(size=(layers if layerwise else 1, batch, *shape, config.language.width)).astype(np.float32)
        draw[name] = np.broadcast_to(x, (layers, *x.shape[1:]))
    return draw, rng.normal(size=(batch, config.proprio_dim)).astype(np.float32)


class Pair:
    """Our head and the reference with the same weights; ``wrong`` runs another reference over them."""

    def __init__(self, config, key=None, **sizes):
        self.config, self.key = config, key
        self.model = randomise(references.action_head(config), logit_gain=3.0)
        self.proprio = randomise(reference.ProprioProjector(config.proprio_dim, config.language.width), seed=1)
        self.context, self.state = inputs(config, **sizes)

    def ours(self):
        head = filled(ActionHead(self.config), mappings.action_head(self.model, self.proprio, self.config))
        layerwise = self.config.action_head.context == "layerwise"
        read = {name: x if layerwise else x[0] for name, x in self.context.items()}
        seg = read["seg"] if self.config.action_head.inject_seg else None
        return run_once(lambda *x: head(*x, key=self.key), read["vision"], seg, read["queries"], self.state)

    def theirs(self, model=None, key=None, **context):
        x = {name: torch.tensor(value) for name, value in (self.context | context).items()}
        key = self.key if key is None else key
        noise = None
        if key is not None:
            shape = (self.config.action_horizon, self.config.action_dim * self.config.language.width)
            noise = torch.tensor(np.asarray(0.02 * jax.random.normal(key, shape)))
        seg = x["seg"] if self.config.action_head.inject_seg else None
        with torch.no_grad():
            return (model or self.model)(x["queries"], self.proprio(torch.tensor(self.state)), x["vision"], seg, noise)

    def wrong(self, exchange=(), **changes):
        """The reference with one option changed, or with two groups of weights exchanged."""
        model = references.action_head(self.config, **changes)
        state = dict(self.model.state_dict())
        if exchange:
            first, second = (f".{part}." for part in exchange)
            exchanged = {name: name.replace(first, second) for name in state if first in name}
            for a, b in exchanged.items():
                state[a], state[b] = state[b], state[a]
        model.load_state_dict(state, strict=False)
        return self.theirs(model.eval())


@pytest.mark.parametrize("name", HEADS)
def test_the_head_is_the_reference(name):
    pair = Pair(configured(**HEADS[name]))
    theirs = pair.theirs()
    assert min(logit_spread(block.weights) for block in pair.model.mlp_resnet_blocks) > 1
    ours = pair.ours()
    assert_same(ours, theirs)
    pro = pair.config.action_head.block == "pro"
    assert_far(ours, pair.wrong(exchange=("k_task", "v_task") if pro else ("k_proj", "v_proj")))
    assert_far(ours, pair.wrong(gated=()))
    if pro:
        released = pair.config.action_head.rotary == "vla_adapter"
        assert_far(ours, pair.wrong(rotary="half_split" if released else "vla_adapter"))
        assert_far(ours, pair.wrong(exchange=("k_adapter", "k_task")))
    assert_far(ours, pair.theirs(vision=pair.context["queries"], queries=pair.context["vision"]))
    if pair.config.action_head.context == "layerwise":
        assert_far(ours, pair.theirs(vision=np.roll(pair.context["vision"], 1, axis=0)))


@pytest.mark.parametrize(
    "changes",
    [
        dict(gate="vision_and_seg"),
        dict(gate="none"),
        dict(concat="outputs"),
        dict(inject_seg=False),
        dict(rotary="vla_adapter"),
        dict(latents="projected"),
        dict(context="layerwise"),
        dict(width=16),
    ],
    ids=lambda changes: "-".join(f"{name}={value}" for name, value in changes.items()),
)
def test_every_switch_of_pokevlas_head_is_the_reference_and_matters(changes):
    pair = Pair(configured(**changes))
    ours = pair.ours()
    assert_same(ours, pair.theirs())
    if "gate" in changes:
        assert_far(ours, pair.wrong(gated=("task",)))


@pytest.mark.parametrize("name", ["vla_adapter", "vla_adapter_pro"])
def test_training_noise_is_one_sample_for_the_batch_and_norm_makes_it_matter(name):
    pair = Pair(configured(**HEADS[name]), key=jax.random.key(3))
    ours = pair.ours()
    assert_same(ours, pair.theirs())
    assert_far(ours, pair.theirs(key=jax.random.key(4)))
    pair.key = None
    assert_far(ours, pair.theirs())


def test_without_noise_and_positions_the_original_head_repeats_its_first_action():
    """A property of VLA-Adapter's original block, whose latents all start as the same constant."""
    actions = np.asarray(Pair(configured(**HEADS["vla_adapter"])).ours())
    np.testing.assert_allclose(actions, np.broadcast_to(actions[:, :1], actions.shape), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_released_positions_are_counted_in_the_heads_dtype(dtype):
    length, size = 512, 112
    x = jnp.broadcast_to(jnp.eye(size, dtype=dtype), (1, length, size, size))
    ours = np.asarray(vla_adapter.rotate(x)[0].astype(jnp.float32)).swapaxes(1, 2)
    expected = reference.turning_matrices(length, size, released=True, dtype=getattr(torch, dtype)).float().numpy()
    # Cosines of equal angles differ in the last bit between libraries; a wrong angle differs by order one.
    np.testing.assert_allclose(ours, expected, atol=3e-5 if dtype == "float32" else 2**-8)
    exact = reference.turning_matrices(length, size, released=True, exact=True).numpy()
    wrong = np.abs(ours - exact).max(axis=(1, 2))
    assert (wrong[257] > 0.5) == (dtype == "bfloat16")  # 257 is counted as 256


def test_half_split_positions_are_exact_in_bfloat16():
    """PokeVLA's own rotation takes its angles in float32 whatever the network computes in."""
    x = np.random.default_rng(0).normal(size=(1, 512, 1, 16)).astype(np.float32)
    low = np.asarray(ROTARY["half_split"](jnp.asarray(x, jnp.bfloat16)).astype(jnp.float32))
    matrices = reference.turning_matrices(512, 16, released=False).numpy()
    np.testing.assert_allclose(low, np.einsum("zij,bzhj->bzhi", matrices, x), atol=0.05)


def test_the_proprio_projector_is_the_reference():
    model = randomise(reference.ProprioProjector(8, 24))
    x = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    ours = filled(MLP(8, 24, 24), mappings.mlp(model))(jnp.asarray(x))
    assert_same(ours, model(torch.tensor(x)))
    tanh = model.fc2(torch.nn.functional.gelu(model.fc1(torch.tensor(x)), approximate="tanh"))
    with pytest.raises(AssertionError):
        assert_same(ours, tanh)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("quiet", [1e-3])
def test_the_epsilon_of_the_norms_is_torchs(name, quiet):
    """With latents and attention so small that the norms' epsilon decides the scale."""
    pair = Pair(configured(num_layers=1, **HEADS[name]))
    with torch.no_grad():
        for part in ("o_proj", "fc1"):
            for parameter in [p for n, p in pair.model.named_parameters() if f"{part}." in n]:
                parameter.mul_(quiet)
        if hasattr(pair.model, "latents"):
            pair.model.latents.mul_(quiet)
    ours = pair.ours()
    assert_same(ours, pair.theirs())
    for block in pair.model.mlp_resnet_blocks:
        block.ffn[0].eps = 1e-6
    assert_far(ours, pair.theirs())


@pytest.mark.full_size
@pytest.mark.parametrize("name", HEADS)
def test_the_head_at_full_width_is_the_reference(name):
    """896 wide, 8 heads, 512 patches and 64 queries, three of the 24 blocks."""
    config = configured(width=896, num_heads=8, num_layers=3, language_width=896, **HEADS[name])
    pair = Pair(config, num_vision=512, num_queries=64)
    theirs = pair.theirs()
    assert min(logit_spread(block.weights) for block in pair.model.mlp_resnet_blocks) > 1
    assert_same(pair.ours(), theirs)
