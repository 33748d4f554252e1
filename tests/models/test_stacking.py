"""Stacks of layers and the bridge to plain parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pokevla_jax.models import layers
from pokevla_jax.models import presets
from pokevla_jax.models import stacking
from pokevla_jax.models.vision import SelfAttention
from pokevla_jax.sharding import flatten


class Step(nnx.Module):
    """A layer that does not commute with itself."""

    def __init__(self):
        self.linear = layers.Linear(4, 4, axes=("embed", "mlp"))

    def __call__(self, x):
        return jnp.tanh(self.linear(x)) + x


@pytest.fixture(params=[3, 6], ids=["unrolled", "looped"])
def stack(request, random_params):
    stacked = stacking.stack(Step, request.param)
    return request.param, stacking.fill(stacked, random_params(stacked))


def test_scan_applies_the_layers_in_turn(stack):
    count, stacked = stack
    x = jnp.ones((2, 4))
    carries = []
    for i in range(count):
        x = stacking.layer(stacked, i)(x)
        carries.append(x)
    out, collected = stacking.scan(stacked, jnp.ones((2, 4)), collect=True)
    np.testing.assert_allclose(out, x, atol=1e-6)
    np.testing.assert_allclose(collected, jnp.stack(carries), atol=1e-6)


def test_scan_hands_each_layer_its_slice(stack):
    count, stacked = stack
    extra = jnp.arange(count, dtype=jnp.float32)
    out, _ = stacking.scan(stacked, jnp.zeros(()), step=lambda _, x, e: 10 * x + e, per_layer=extra)
    assert float(out) == float("".join(str(i) for i in range(count)))


def test_bits_of_bfloat16_layers_give_the_same_and_are_never_converted_as_a_stack():
    config = dataclasses.replace(presets.tiny(), dtype="bfloat16")
    tower = dataclasses.replace(config.vision.dinov2, depth=stacking.UNROLL_UP_TO + 2, feature_block=-2)
    config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, dinov2=tower))
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), stacking.initialize(config, jax.random.key(0)))
    bits = stacking.as_bits(config, params)
    kernel = "vision/dinov2/blocks/mlp/fc1/kernel"
    assert flatten(bits)[kernel].dtype == np.uint16 and flatten(params)[kernel].shape[0] > stacking.UNROLL_UP_TO
    assert flatten(bits)["vision/dinov2/patch_embed/kernel"].dtype == jnp.bfloat16
    assert flatten(bits)["language/embed_tokens"].dtype == np.uint16
    images = np.random.default_rng(0).integers(0, 256, (1, len(config.views), *[config.vision.image_size] * 2, 3))

    def see(params):
        return stacking.bind(config, params).vision(jnp.asarray(images, jnp.uint8))

    np.testing.assert_array_equal(jax.jit(see)(bits), jax.jit(see)(params))
    tokens = jnp.array([[3, 1, 4]])
    rows = [stacking.bind(config, p).language.embed(tokens, jnp.bfloat16) for p in (bits, params)]
    np.testing.assert_array_equal(*rows)
    whole = f"f32[{','.join(map(str, flatten(params)[kernel].shape))}]"
    assert whole in jax.jit(see).lower(params).compile().as_text()
    assert whole not in jax.jit(see).lower(bits).compile().as_text()


@pytest.mark.parametrize("remat", ["dots", "layers", "full"])
def test_remat_changes_memory_not_gradients(remat, random_params):
    stacked = stacking.stack(Step, 6)
    stacked = stacking.fill(stacked, random_params(stacked))
    graphdef, state = nnx.split(stacked)

    def loss(params, remat):
        return stacking.scan(nnx.merge(graphdef, params), jnp.ones((2, 4)), remat=remat)[0].sum()

    gradient = jax.grad(loss)
    plain, recomputed = (gradient(nnx.to_pure_dict(state), r) for r in ("none", remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, recomputed)
    assert "remat" in str(jax.make_jaxpr(lambda p: loss(p, remat))(nnx.to_pure_dict(state)))


class AttentionLayer(nnx.Module):
    """Linear maps and attention as in the towers and the decoder."""

    def __init__(self):
        self.attention = SelfAttention(8, 2, "xla")
        self.mlp = layers.MLP(8, 16, 8)

    def __call__(self, x):
        x = x + self.attention(jnp.sin(x))
        return x + self.mlp(jnp.sin(x))


def test_each_level_of_remat_recomputes_more_matrix_products(random_params):
    stacked = stacking.stack(AttentionLayer, 6)
    stacked = stacking.fill(stacked, random_params(stacked))
    graphdef, state = nnx.split(stacked)

    def products(remat):
        def loss(params):
            return stacking.scan(nnx.merge(graphdef, params), jnp.ones((2, 4, 8)), remat=remat)[0].sum()

        return str(jax.make_jaxpr(jax.grad(loss))(nnx.to_pure_dict(state))).count("dot_general")

    counts = [products(remat) for remat in ("none", "dots", "layers", "full")]
    # Beyond the 6 forward and 16 backward ones (4 are of biases): the logits again; also qkv, proj, fc1; also the sum.
    assert counts == [22, 23, 26, 27]


def test_initialize_gives_what_abstract_params_promises(micro):
    expected = jax.tree.map(lambda x: (x.shape, x.dtype), stacking.abstract_params(micro.config))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), micro.params) == expected
    assert {x.dtype for x in jax.tree.leaves(micro.params)} == {jnp.dtype("float32")}
    kernel = micro.params["vision"]["dinov2"]["blocks"]["attention"]["qkv"]["kernel"]
    assert kernel.shape == (2, 16, 3, 2, 8)
    assert not np.array_equal(kernel[0], kernel[1])  # every layer its own start
    assert abs(kernel.std() - 16**-0.5) < 0.02  # inputs ** -0.5
    assert np.all(micro.params["language"]["norm"]["scale"] == 1)


def test_initialize_follows_the_key(micro):
    config = micro.config
    same, other = (stacking.initialize(config, jax.random.key(seed)) for seed in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, same, micro.params)
    assert not np.array_equal(other["action_queries"], micro.params["action_queries"])


def test_switching_a_part_off_leaves_the_start_of_the_others(micro):
    config = dataclasses.replace(micro.config, segmentation=dataclasses.replace(micro.config.segmentation, weight=0.0))
    without = stacking.initialize(config, jax.random.key(0))
    assert "segmentation" not in without
    kept = {name: part for name, part in micro.params.items() if name in without}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), kept, without)


def test_every_parameter_names_one_axis_per_dimension(micro):
    axes = stacking.logical_axes(micro.config)
    jax.tree.map(lambda x, names: _check_axes(x, names), micro.params, axes, is_leaf=lambda x: isinstance(x, tuple))
    assert axes["language"]["layers"]["attention"]["q_proj"]["kernel"] == ("layers", "embed", "heads", "head_dim")
    assert axes["language"]["embed_tokens"] == ("vocab", "embed")


def _check_axes(x, names):
    known = {"embed", "mlp", "heads", "kv_heads", "head_dim", "vocab", "layers", None}
    assert len(names) == x.ndim
    assert set(names) <= known
    own = [name for name in names if name not in (None, "layers")]
    assert len(own) == len(set(own))  # a mesh axis cannot split two dimensions of one array


def test_only_buffers_are_not_trainable(micro):
    leaves = jax.tree_util.tree_leaves_with_path(stacking.trainable(micro.config))
    frozen = {jax.tree_util.keystr(path, simple=True, separator="/") for path, value in leaves if not value}
    assert frozen == {f"segmentation/{stage}_prompt/gaussian_matrix" for stage in ("coarse", "fine")}
