"""Mesh construction, the rules, and what follows a parameter."""

import logging

import jax
import jax.numpy as jnp
import pytest

from pokevla_jax import sharding
from pokevla_jax.config import ConfigError
from pokevla_jax.config import MeshConfig

FSDP_MESH = MeshConfig(data=2, fsdp=4)


def struct(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (1, 8, 1, 1)),
        (MeshConfig(data=2, fsdp=-1, tensor=2), (1, 2, 2, 2)),
        (MeshConfig(replica=2, data=1, fsdp=2, tensor=2), (2, 1, 2, 2)),
    ],
)
def test_mesh_fills_the_open_axis(config, shape):
    assert tuple(sharding.make_mesh(config).shape.values()) == shape


@pytest.mark.parametrize(
    "config", [MeshConfig(fsdp=3), MeshConfig(data=4), MeshConfig(data=-1, fsdp=-1), MeshConfig(data=0)]
)
def test_a_mesh_that_does_not_fit_is_refused_in_one_sentence(config):
    with pytest.raises(ConfigError, match=r"config\.mesh replica 1 x data") as error:
        sharding.make_mesh(config)
    assert "\n" not in str(error.value)


def test_batch_size_error_names_the_nearest_valid_ones():
    mesh = sharding.make_mesh(FSDP_MESH)
    sharding.check_batch_size(32, 2, mesh)
    with pytest.raises(ConfigError, match="nearest: 240 or 256"):
        sharding.check_batch_size(250, 2, mesh)


def test_rules_place_each_axis_once_and_only_where_it_divides():
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    shapes = {
        "mlp": struct(24, 128, 512),
        "square": struct(128, 128),
        "kv": struct(128, 2, 64),
        "bias": struct(512),
    }
    axes = {
        "mlp": ("layers", "embed", "mlp"),
        "square": ("embed", "embed"),
        "kv": ("embed", "kv_heads", "head_dim"),
        "bias": ("mlp",),
    }
    specs = {name: s.spec for name, s in sharding.param_shardings(shapes, axes, mesh).items()}
    assert specs["mlp"] == jax.P(None, "fsdp", "tensor")
    assert specs["square"] == jax.P("fsdp", None)
    assert specs["kv"] == jax.P("fsdp", None, None)  # two heads over four devices: left whole
    assert specs["bias"] == jax.P("tensor")


def test_nothing_large_stays_replicated(caplog):
    mesh = sharding.make_mesh(FSDP_MESH)
    shapes = {"positions": struct(1024, 1152), "odd": struct(1027, 1025), "stacked": struct(4, 1027, 1028)}
    axes = {"positions": ("head_dim", None), "odd": (None, None), "stacked": ("layers", None, None)}
    with caplog.at_level(logging.WARNING):
        placed = sharding.param_shardings(shapes, axes, mesh)
    assert placed["positions"].spec == jax.P(None, "fsdp")
    assert placed["stacked"].spec == jax.P(None, None, "fsdp")
    assert "odd" in caplog.text  # what cannot be cut is said, never silent
    assert "odd" in sharding.explain(shapes, placed)
    assert sharding.explain(shapes, placed).count("whole on every device") == 1


def test_unknown_or_missing_axis_names_the_parameter():
    mesh = sharding.make_mesh(FSDP_MESH)
    with pytest.raises(ValueError, match="'embd' of parameter a/kernel"):
        sharding.param_shardings({"a": {"kernel": struct(4, 4)}}, {"a": {"kernel": ("embd", None)}}, mesh)
    with pytest.raises(ValueError, match="a/kernel of shape"):
        sharding.param_shardings({"a": {"kernel": struct(4, 4)}}, {"a": {"kernel": ("embed",)}}, mesh)
    with pytest.raises(ValueError, match="a/kernel has no logical axes"):
        sharding.param_shardings({"a": {"kernel": struct(4, 4)}}, {}, mesh)


def test_a_large_array_that_follows_no_parameter_is_an_error():
    mesh = sharding.make_mesh(FSDP_MESH)
    placed = sharding.param_shardings({"w": struct(2048, 2048)}, {"w": ("embed", "mlp")}, mesh)
    follower = sharding.follow(({"mu": {"w": struct(2048, 2048)}, "count": struct()},), placed, mesh)
    assert follower[0]["mu"]["w"].spec == jax.P("fsdp", None)
    assert follower[0]["count"].spec == jax.P()
    with pytest.raises(ValueError, match="would be replicated"):
        sharding.follow({"other": struct(2048, 2048)}, placed, mesh)


def test_explain_lists_every_parameter_and_the_total():
    mesh = sharding.make_mesh(FSDP_MESH)
    shapes = {"a": {"kernel": struct(1024, 1024)}, "b": struct(3)}
    axes = {"a": {"kernel": ("embed", "mlp")}, "b": (None,)}
    table = sharding.explain(shapes, sharding.param_shardings(shapes, axes, mesh))
    rows = table.splitlines()
    assert len(rows) == 4
    assert rows[1].split() == ["a/kernel", "1024x1024", "float32", "fsdp,", "-", "1.000"]
    assert "of 4.0 MiB" in rows[-1]


def test_without_a_mesh_nothing_is_placed():
    x = jnp.ones((8, 3, 4))
    assert sharding.constrain(x, "batch", None, "embed") is x
    assert sharding.gather(x, ("embed", None, None), jnp.bfloat16).dtype == jnp.bfloat16
    assert sharding.axis_size("tensor") == 1
    assert "sharding_constraint" not in str(jax.make_jaxpr(lambda x: sharding.constrain(x, "batch", None, "mlp"))(x))


def test_on_a_mesh_activations_are_cut_by_name_where_it_divides():
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        assert sharding.activation_spec((8, 5, 6), ("batch", None, "mlp")) == jax.P(sharding.BATCH_AXES, None, "tensor")
        # six rows over four devices, three heads over two: whole
        assert sharding.activation_spec((6, 3, 4), ("batch", "heads", "head_dim")) == jax.P(None, None, None)
        out = jax.jit(lambda x: sharding.constrain(x, "batch", "heads"))(jnp.ones((8, 4)))
        expected = jax.sharding.NamedSharding(mesh, jax.P(sharding.BATCH_AXES, "tensor"))
        assert out.sharding.is_equivalent_to(expected, 2)
        with pytest.raises(ValueError, match="'head' of an activation has no rule"):
            sharding.constrain(out, "batch", "head")
        with pytest.raises(ValueError, match=r"An activation of shape \(8, 4\) has 1 logical axes"):
            sharding.constrain(out, "batch")


def test_a_gathered_parameter_is_whole_along_fsdp_and_its_gradient_is_cut_again():
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    axes = ("embed", "mlp")
    placed = sharding.param_shardings({"w": struct(16, 8)}, {"w": axes}, mesh)["w"]
    w = jax.device_put(jnp.arange(128, dtype=jnp.float32).reshape(16, 8), placed)

    def use(w):
        whole = sharding.gather(w, axes, jnp.bfloat16)
        return jnp.sum(whole.astype(jnp.float32) ** 2), whole

    with jax.set_mesh(mesh):
        gradient, whole = jax.jit(jax.grad(use, has_aux=True))(w)
    assert whole.sharding.is_equivalent_to(jax.sharding.NamedSharding(mesh, jax.P(None, "tensor")), 2)
    assert gradient.sharding.is_equivalent_to(placed, 2)
    assert gradient.dtype == jnp.float32
    assert jnp.array_equal(gradient, 2 * w)  # whole numbers below 256 are exact in bfloat16
