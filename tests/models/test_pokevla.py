"""The assembled network: shapes, what may depend on what, and that nothing in it is dead."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pokevla_jax.config import Config
from pokevla_jax.config import ConfigError
from pokevla_jax.data.schema import fake_batch
from pokevla_jax.models import stacking

# SAM's weights beside the first mask: its IoU head and the hypernetworks of the other three masks.
UNREAD = ("iou_head", "gaussian_matrix")


@pytest.fixture(scope="module")
def gradients(micro):
    """Outputs of the training pass, and the gradients of their sum of squares."""

    def loss(params, batch):
        outputs = stacking.bind(micro.config, params)(batch, train=True)
        read = (outputs.actions, outputs.mask_logits, outputs.aligned, outputs.keypoints)
        return sum(jnp.square(x).mean() for x in read), outputs

    # Gates start at 0, where the gated keys have no gradient: open them.
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: x + 0.5 if "gates" in jax.tree_util.keystr(path) else x, micro.params
    )
    lowered = jax.jit(jax.grad(loss, has_aux=True)).lower(params, micro.batch)
    # Run once: what the optimiser of the compiler would save is less than what it costs.
    compiled = lowered.compile({"xla_backend_optimization_level": 0})
    grads, outputs = jax.device_get(compiled(params, micro.batch))
    return outputs, grads


def encode(micro, **changes):
    batch = {**micro.batch, **changes}
    return micro.encode(micro.params, batch["images"], batch["tokens"], batch["token_mask"])


def test_training_returns_every_part_in_float32(micro, gradients):
    outputs, _ = gradients
    shapes = {
        "actions": (3, 8, 7),
        "coarse_logits": (3, 2, 16, 16),
        "mask_logits": (3, 2, 16, 16),
        "aligned": (3, 8, 12),
        "keypoints": (3, 2, 3),
    }
    assert {name: getattr(outputs, name).shape for name in shapes} == shapes
    assert {x.dtype for x in jax.tree.leaves(outputs)} == {jnp.dtype("float32")}


def test_gradients_reach_every_layer_of_every_parameter(gradients):
    _, grads = gradients
    dead = []
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        stacked = any(part in name for part in ("/blocks/", "/layers/"))
        for i, slice_ in enumerate(grad if stacked else [grad]):
            if not np.any(slice_) and not any(part in name for part in UNREAD):
                dead.append(f"{name}[{i}]")
    assert dead == []


def test_the_parts_named_unread_are_unread(gradients):
    _, grads = gradients
    for stage in ("coarse_decoder", "fine_decoder"):
        decoder = grads["segmentation"][stage]
        assert not any(np.any(x) for x in jax.tree.leaves(decoder["iou_head"]))
        assert not any(np.any(x[1:]) for x in jax.tree.leaves(decoder["hypernetworks"]))


def lower(config, micro):
    batch = fake_batch(Config(model=config), 3, train=False)
    return jax.jit(lambda params, batch: stacking.bind(config, params)(batch, train=False)).lower(micro.params, batch)


@pytest.fixture(scope="module")
def inference(micro):
    """The lowered inference pass and its outputs, with parameters of the mask branch that would spoil any result."""
    lowered = lower(micro.config, micro)
    params = {**micro.params, "segmentation": jax.tree.map(lambda x: x * jnp.nan, micro.params["segmentation"])}
    return lowered, lowered.compile()(params, fake_batch(Config(model=micro.config), 3, train=False))


def test_inference_computes_the_actions_alone(inference):
    lowered, outputs = inference
    assert outputs.mask_logits is None and outputs.aligned is None and outputs.keypoints is None
    assert np.all(np.isfinite(outputs.actions))
    text = lowered.as_text(debug_info=True)
    assert "action_head" in text  # the names of the parts are in the text
    assert "segmentation" not in text


def test_vision_does_not_see_the_prompt_but_seg_and_queries_do(micro):
    base = encode(micro)
    tokens = micro.batch["tokens"].copy()
    tokens[:, 3] = (tokens[:, 3] + 1) % micro.config.language.vocab_size
    changed = encode(micro, tokens=tokens)
    np.testing.assert_allclose(changed.vision, base.vision, atol=1e-6)
    assert np.abs(changed.seg - base.seg).max() > 1e-4
    assert np.abs(changed.queries - base.queries).max() > 1e-4


def test_a_later_view_does_not_change_an_earlier_one_but_seg_sees_both(micro):
    base = encode(micro)
    images = micro.batch["images"].copy()
    images[:, 1] = 255 - images[:, 1]
    changed = encode(micro, images=images)
    patches = micro.config.vision.num_patches
    np.testing.assert_allclose(changed.vision[:, :patches], base.vision[:, :patches], atol=1e-6)
    assert np.abs(changed.vision[:, patches:] - base.vision[:, patches:]).max() > 1e-3
    assert np.abs(changed.seg - base.seg).max() > 1e-4


def test_what_stands_in_the_padding_does_not_matter(micro):
    tokens = micro.batch["tokens"].copy()
    tokens[:, 4:] = 7
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), encode(micro, tokens=tokens), encode(micro))


def test_the_result_does_not_depend_on_how_much_padding_there_is(micro):
    length = 9
    tokens, mask = np.zeros((3, length), np.int32), np.zeros((3, length), bool)
    tokens[:, :4], mask[:, :4] = micro.batch["tokens"][:, :4], True
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        encode(micro, tokens=tokens, token_mask=mask),
        encode(micro),
    )


def test_samples_of_a_batch_do_not_touch(micro):
    order = [2, 0, 1]
    permuted = encode(micro, **{name: micro.batch[name][order] for name in ("images", "tokens", "token_mask")})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[order, ...], atol=1e-5), permuted, encode(micro))


def test_bfloat16_is_close_to_float32_and_its_actions_are_float32(micro, inference):
    config = dataclasses.replace(micro.config, dtype="bfloat16")
    batch = fake_batch(Config(model=config), 3, train=False)
    low, high = lower(config, micro).compile()(micro.params, batch).actions, inference[1].actions
    assert low.dtype == jnp.float32
    assert 0 < np.abs(low - high).max() < 0.1 * np.abs(high).max()


@pytest.mark.parametrize("part", ["segmentation", "geometry", "keypoint"])
def test_a_part_without_weight_has_no_parameters_and_says_so(micro, part):
    config = dataclasses.replace(micro.config, **{part: dataclasses.replace(getattr(micro.config, part), weight=0.0)})
    params = stacking.abstract_params(config)
    names = {"segmentation": "segmentation", "geometry": "align_projector", "keypoint": "keypoint_head"}
    assert set(stacking.abstract_params(micro.config)) - set(params) == {names[part]}
    states = jax.ShapeDtypeStruct((3, 32), jnp.float32)
    images = jax.ShapeDtypeStruct(micro.batch["images"].shape, jnp.uint8)
    arguments = {
        "segmentation": ("segment", states, images),
        "geometry": ("align", jax.ShapeDtypeStruct((3, 8, 32), jnp.float32)),
        "keypoint": ("keypoints", states),
    }
    method, *inputs = arguments[part]
    with pytest.raises(ConfigError, match=f"no {part} part"):
        jax.eval_shape(lambda p, *x: getattr(stacking.bind(config, p), method)(*x), params, *inputs)


@pytest.mark.parametrize("remat", ["dots", "layers", "full"])
def test_remat_reaches_the_compiled_training_step(micro, remat):
    def count(remat):
        config = dataclasses.replace(micro.config, remat=remat)

        def loss(params):
            outputs = stacking.bind(config, params)(micro.batch, train=True)
            return outputs.actions.sum() + outputs.mask_logits.sum()

        return str(jax.make_jaxpr(loss)(micro.params)).count("remat")

    assert count("none") == 0
    assert 0 < count("layers") == count("dots") < count("full")
    assert count(remat) > 0
