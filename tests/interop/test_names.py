"""The table of names: one-to-one, complete, inverted exactly, and the published names and shapes."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pokevla_jax.config import ActionHeadConfig
from pokevla_jax.interop import layouts
from pokevla_jax.interop import names
from pokevla_jax.interop.table import Row
from pokevla_jax.interop.table import Table
from pokevla_jax.models import presets
from pokevla_jax.models import stacking
from pokevla_jax.models.convolution import Conv3x3
from pokevla_jax.models.convolution import PatchConv
from pokevla_jax.models.convolution import UpConv
from pokevla_jax.models.convolution import space_to_depth
from pokevla_jax.models.layers import Linear
from pokevla_jax.sharding import flatten
from tests.interop import published

COUNTS = {
    "DINOv2": (published.dinov2(), 303_230_976, 343),
    "SigLIP": (published.siglip(), 427_680_704, 342),
    "projector": (published.projector(), 27_552_000, 6),
    "Qwen2.5": (published.qwen(), 494_032_768, 290),
    "original head": (published.action_head(pro=False), 102_129_695, 320),
    "Pro head": (published.action_head(pro=True), 217_864_223, 560),
    "proprio projector": (published.proprio_projector(), 811_776, 4),
    "SAM mask decoder": (published.sam_mask_decoder(), 4_058_340, 120),
    "align projector": (published.align_projector(), 6_035_200, 6),
    "VGGT aggregator": (published.vggt(), 909_112_320, 1_210),
}


@pytest.mark.parametrize("part", COUNTS)
def test_the_published_lists_have_the_published_sizes(part):
    shapes, parameters, tensors = COUNTS[part]
    assert sum(map(math.prod, shapes.values())) == parameters
    assert len(shapes) == tensors


def expected_names(pro: bool) -> published.Shapes:
    """What a checkpoint of the full network holds, whichever head."""
    sam = published.sam()
    coarse_and_fine = {name: shape for name, shape in sam.items() if not name.startswith("image_encoder.")}
    return {
        **published.under("vision_backbone.featurizer.", published.dinov2(scale="scale_factor")),
        **published.under("vision_backbone.fused_featurizer.", published.siglip()),
        **published.under("projector.", published.projector()),
        **published.under("language_model.", published.qwen()),
        "action_queries.weight": (64, 896),
        **published.under("action_head.", published.action_head(pro=pro)),
        **published.under("proprio_projector.", published.proprio_projector()),
        **{name: shape for name, shape in sam.items() if name.startswith("image_encoder.")},
        **published.under("coarse.", coarse_and_fine),
        **published.under("fine.", coarse_and_fine),
        **published.under("align_projector.", published.align_projector()),
        **published.under("vggt.", published.vggt()),
    }


@pytest.mark.parametrize("preset", sorted(set(presets.PRESETS) - {"tiny"}))
def test_full_presets_have_the_published_names_and_shapes(preset):
    config = presets.get_preset(preset)
    ours, theirs = names.table(config).torch_shapes(), expected_names(pro=config.action_head.block == "pro")
    own = ("seg_token.", "text_hidden_fcs.", "action_head.model.latents", "keypoint_head.")
    shared = {name for name in ours if not name.startswith(own) and "_seg." not in name}
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}
    # What is left over is exactly what the network is known not to use, or a part it does not have.
    parts, unused = {names.part_of(name) for name in ours}, names.unused(config)
    left = {name for name in theirs if name not in shared and names.part_of(name) in parts}
    assert left == {name for name in left if unused.match(name)}


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_every_parameter_has_names_of_its_own_and_comes_back(preset):
    """Through names and layouts and back, for each parameter of each preset, on arrays of which no two are alike."""
    config = presets.get_preset(preset)
    table = names.table(config)
    shapes = {path: leaf.shape for path, leaf in flatten(stacking.abstract_params(config)).items()}
    assert {entry.path: entry.shape for entry in table.entries} == shapes
    assert len(set(table.names)) == len(table.names) == sum(len(entry.names) for entry in table.entries)
    elements = sum(math.prod(shape) for shape in shapes.values())
    assert sum(map(math.prod, table.torch_shapes().values())) == elements
    for entry in table.entries:
        if math.prod(entry.shape) > 2e6:  # the same rows at tiny sizes do for these
            continue
        array = np.arange(math.prod(entry.shape), dtype=np.int32).reshape(entry.shape)
        tensors = dict(entry.to_torch(array))
        assert tuple(tensors) == entry.names
        assert {tensor.shape for tensor in tensors.values()} == {entry.torch_shape}
        np.testing.assert_array_equal(entry.from_torch(tensors.values(), array.dtype), array)


@pytest.mark.parametrize(
    "head",
    [
        ActionHeadConfig(num_layers=2, width=128, num_heads=4, block="original", gate="vision_and_seg"),
        ActionHeadConfig(num_layers=2, width=128, num_heads=4, concat="outputs"),
    ],
    ids=["original block", "attention per source"],
)
def test_other_heads_are_named_too(head):
    config = dataclasses.replace(presets.tiny(), action_head=head)
    for entry in names.table(config).entries:
        array = np.arange(math.prod(entry.shape)).reshape(entry.shape)
        tensors = dict(entry.to_torch(array)).values()
        np.testing.assert_array_equal(entry.from_torch(tensors, array.dtype), array)


def test_sam_blocks_are_numbered_through_groups():
    table = names.table(presets.get_preset("pokevla"))
    entries = {entry.path: entry for entry in table.entries}
    base = "segmentation/image_encoder/vit/groups"
    numbers = [
        [name.split(".")[2] for name in entries[f"{base}/{kind}/norm1/scale"].names] for kind in ("windowed", "full")
    ]
    assert numbers == [["0", "1", "3", "4", "6", "7", "9", "10"], ["2", "5", "8", "11"]]


def test_a_table_that_is_not_one_to_one_or_complete_is_refused():
    rows = (Row("a", "x", layouts.SAME), Row("b", "x", layouts.SAME))
    with pytest.raises(ValueError, match="share a PyTorch name"):
        Table(rows, {"a": (2,), "b": (2,)})
    with pytest.raises(ValueError, match="Parameter c has no PyTorch name"):
        Table(rows, {"c": (2,)})


def _draw(module, seed=0):
    """A module of ours with random values, and those values."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), stacking.shapes(module))
    return stacking.fill(module, params), params


def _torch_layer(layer, weight, bias):
    layer.load_state_dict({"weight": torch.from_numpy(np.ascontiguousarray(weight)), "bias": torch.from_numpy(bias)})
    return layer


def _agree(ours, theirs):
    np.testing.assert_allclose(np.asarray(ours), theirs.detach().numpy(), rtol=1e-5, atol=1e-5)


def test_linear_layouts_against_torch():
    x = np.random.default_rng(1).standard_normal((2, 5, 12)).astype(np.float32)
    module, params = _draw(Linear(12, (3, 2, 4), axes=("embed", None, None, None)))
    layer = _torch_layer(torch.nn.Linear(12, 24), layouts.LINEAR.to_torch(params["kernel"]), params["bias"].reshape(-1))
    # torch: q, k, v in this order, then heads.
    _agree(module(jnp.asarray(x)), layer(torch.from_numpy(x)).reshape(2, 5, 3, 2, 4))
    module, params = _draw(Linear((3, 4), 7, axes=(None, None, None)))
    layer = _torch_layer(torch.nn.Linear(12, 7), layouts.LINEAR_FROM_HEADS.to_torch(params["kernel"]), params["bias"])
    _agree(module(jnp.asarray(x.reshape(2, 5, 3, 4))), layer(torch.from_numpy(x)))


def test_convolution_layouts_against_torch():
    x = np.random.default_rng(1).standard_normal((2, 8, 8, 3)).astype(np.float32)
    channels_first = torch.from_numpy(x).permute(0, 3, 1, 2)
    cases = [
        (PatchConv(3, 5, 4), torch.nn.Conv2d(3, 5, 4, stride=4), layouts.patches(3)),
        (Conv3x3(3, 5), torch.nn.Conv2d(3, 5, 3, padding=1), layouts.CONV),
        (UpConv(3, 5), torch.nn.ConvTranspose2d(3, 5, 2, stride=2), layouts.CONV_TRANSPOSED),
        (Linear(3, 5, axes=(None, None)), torch.nn.Conv2d(3, 5, 1), layouts.CONV_1X1),
    ]
    for module, layer, layout in cases:
        module, params = _draw(module)
        flat = flatten(params)
        kernel, bias = (next(v for k, v in flat.items() if k.endswith(name)) for name in ("kernel", "bias"))
        layer = _torch_layer(layer, layout.to_torch(kernel), bias)
        expected = layer(channels_first).permute(0, 2, 3, 1)
        if isinstance(module, UpConv):  # leaves the new cells of a cell side by side
            expected = torch.from_numpy(space_to_depth(expected.detach().numpy(), 2))
        _agree(module(jnp.asarray(x)), expected)
