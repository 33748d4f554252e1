"""The action expert and every switch of its configuration."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pokevla_jax.config import ConfigError
from pokevla_jax.models import stacking
from pokevla_jax.models.action_head import ActionHead


def configured(micro, **changes):
    return dataclasses.replace(micro.config, action_head=dataclasses.replace(micro.config.action_head, **changes))


def inputs(layers=None, seed=0):
    lead = () if layers is None else (layers,)
    keys = jax.random.split(jax.random.key(seed), 4)
    shapes = [(*lead, 2, 6, 32), (*lead, 2, 32), (*lead, 2, 4, 32), (2, 8)]
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


@pytest.fixture(scope="module")
def build(micro, random_params):
    """``build(**changes)``: parameters, gates open, and the head, run operation by operation (no compilation)."""

    def build(**changes):
        head = ActionHead(configured(micro, **changes))
        params = random_params(head)
        params["blocks"]["gates"] = jax.tree.map(lambda x: np.float32([0.3, 0.4]), params["blocks"].get("gates", {}))

        def run(params, *x):
            with jax.disable_jit():
                return np.asarray(stacking.fill(head, jax.tree.map(jnp.asarray, params))(*x))

        return params, run

    return build


@pytest.fixture(scope="module")
def default(build):
    params, run = build()
    return params, run, run(params, *inputs())


def test_it_returns_a_chunk_of_actions_and_reads_every_input(default):
    params, run, actions = default
    assert actions.shape == (2, 8, 7)
    assert actions.dtype == jnp.float32
    assert not np.allclose(actions[:, 0], actions[:, 1])  # the steps of a chunk differ
    for i in range(4):
        changed = inputs()
        changed[i] = changed[i] + 1.0 * jax.random.normal(jax.random.key(9), changed[i].shape)
        assert np.abs(run(params, *changed) - actions).max() > 1e-3


def test_a_closed_gate_spreads_attention_evenly_over_the_vision_tokens(default):
    params, run, _ = default
    closed = {**params, "blocks": {**params["blocks"], "gates": {"vision": jnp.zeros(2)}}}
    vision, *rest = inputs()
    permuted_values = run(closed, vision[:, ::-1], *rest)
    # Even attention does not know the order of the tokens; an open gate does, through the keys' rotary positions.
    np.testing.assert_allclose(permuted_values, run(closed, vision, *rest), atol=1e-5)
    assert np.abs(run(params, vision[:, ::-1], *rest) - run(params, vision, *rest)).max() > 1e-4
    keys = closed["blocks"]["sources"]["vision"]["k_proj"]
    louder = jax.tree.map(lambda x: 3 * x, keys)
    sources = {**closed["blocks"]["sources"], "vision": {**closed["blocks"]["sources"]["vision"], "k_proj": louder}}
    louder_keys = {**closed, "blocks": {**closed["blocks"], "sources": sources}}
    np.testing.assert_allclose(run(louder_keys, vision, *rest), run(closed, vision, *rest), atol=1e-5)


def test_gates_start_closed(micro):
    gates = micro.params["action_head"]["blocks"]["gates"]
    assert list(gates) == ["vision"]
    assert not np.any(gates["vision"])


@pytest.mark.parametrize(
    ("gate", "names"), [("vision", {"vision"}), ("vision_and_seg", {"vision", "seg"}), ("none", set())]
)
def test_the_gate_is_chosen(build, default, gate, names):
    params, run = build(gate=gate)
    assert set(params["blocks"].get("gates", {})) == names
    shared = {**default[0], "blocks": {**default[0]["blocks"], "gates": params["blocks"]["gates"]}}
    if not names:
        del shared["blocks"]["gates"]
    actions = run(shared, *inputs())
    assert (np.abs(actions - default[2]).max() < 1e-6) == (gate == "vision")


def test_the_original_block_shares_one_projection_and_has_no_positions(micro, build):
    params, run = build(block="original")
    assert "sources" not in params["blocks"]
    vision, *rest = inputs()
    # Without positions the order of the tokens cannot matter.
    np.testing.assert_allclose(run(params, vision[:, ::-1], *rest), run(params, vision, *rest), atol=1e-5)
    with pytest.raises(ConfigError, match=r"action_head.width 16 must equal language.width 32"):
        ActionHead(configured(micro, block="original", width=16, num_heads=2))


def test_a_narrower_pro_head_projects_the_language_states(build):
    params, run = build(width=16, num_heads=2)
    assert params["blocks"]["sources"]["vision"]["k_proj"]["kernel"].shape == (2, 32, 2, 8)
    assert run(params, *inputs()).shape == (2, 8, 7)


def test_concat_of_outputs_attends_to_each_source_by_itself(build, default):
    params, run = build(concat="outputs")
    assert params["blocks"]["o_proj"]["kernel"].shape == (2, 4, 4, 8, 32)
    base = run(params, *inputs())
    # A single <SEG> token then always has weight 1: its key cannot matter. In one joint softmax it does.
    for (p, f, expected), matters in [((params, run, base), False), (default, True)]:
        sources = dict(p["blocks"]["sources"])
        sources["seg"] = {**sources["seg"], "k_proj": jax.tree.map(lambda x: 3 * x, sources["seg"]["k_proj"])}
        changed = f({**p, "blocks": {**p["blocks"], "sources": sources}}, *inputs())
        assert (np.abs(changed - expected).max() > 1e-5) == matters


def test_seg_is_injected_or_not(build):
    params, run = build(inject_seg=False)
    vision, seg, *rest = inputs()
    np.testing.assert_array_equal(run(params, vision, seg + 1, *rest), run(params, vision, seg, *rest))
    assert set(params["blocks"]["sources"]) == {"latents", "query", "vision"}


def test_layerwise_context_gives_block_i_the_states_of_layer_i(build, default):
    _, run = build(context="layerwise")
    params = default[0]
    per_layer = inputs(layers=2)
    repeated = [jnp.stack([x, x]) for x in inputs()[:3]]
    np.testing.assert_allclose(run(params, *repeated, inputs()[3]), default[2], atol=1e-5)
    first = [x.at[0].add(1.0) for x in per_layer[:3]]
    assert np.abs(run(params, *first, per_layer[3]) - run(params, *per_layer)).max() > 1e-3


def test_layerwise_network_reads_every_layer(micro):
    config = configured(micro, context="layerwise")
    batch = micro.batch
    encode = jax.jit(lambda params, *inputs: stacking.bind(config, params).encode(*inputs))
    hidden = encode(micro.params, batch["images"], batch["tokens"], batch["token_mask"])
    assert hidden.context.vision.shape == (2, 3, 8, 32)
    # The last of the layers is what the other parts read, after the final norm.
    np.testing.assert_array_equal(hidden.context.seg[-1], hidden.seg)
    assert not np.allclose(hidden.context.seg[0], hidden.seg)
