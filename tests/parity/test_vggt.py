"""The VGGT aggregator, its use as a teacher and the align projector against PyTorch references."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pokevla_jax.config import GeometryConfig
from pokevla_jax.config import VggtConfig
from pokevla_jax.models import stacking
from pokevla_jax.models import vggt
from pokevla_jax.models.geometry import AlignProjector
from tests.models.conftest import micro_config
from tests.parity.compare import Weights
from tests.parity.compare import assert_far
from tests.parity.compare import assert_same
from tests.parity.compare import filled
from tests.parity.compare import randomise
from tests.parity.compare import stack
from tests.parity.torch_reference import vggt as reference

SMALL = VggtConfig(
    image_size=20, patch_size=5, width=24, num_heads=3, mlp_dim=40, num_registers=3, embed_depth=2, depth=3
)


def build(config, *, wrong=None, seed=0, gain=1.5):
    model = reference.Aggregator.of(config, wrong=wrong)
    randomise(model, seed, logit_gain=gain)
    randomise(model.patch_embed, seed + 1, logit_gain=gain)  # by the names of a ViT of its own
    with torch.no_grad():  # Normed queries have unit variance; twice that makes attention choose.
        for block in [*model.frame_blocks, *model.global_blocks]:
            block.attn.q_norm.weight.mul_(2)
    return model


def vit_block(w, name, heads):
    return {
        "norm1": w.norm(f"{name}.norm1"),
        "attention": {
            "qkv": w.linear(f"{name}.attn.qkv", outputs=(3, *heads)),
            "proj": w.linear(f"{name}.attn.proj", inputs=heads),
        },
        "ls1": w[f"{name}.ls1.gamma"],
        "norm2": w.norm(f"{name}.norm2"),
        "mlp": {part: w.linear(f"{name}.mlp.{part}") for part in ("fc1", "fc2")},
        "ls2": w[f"{name}.ls2.gamma"],
    }


def pair_block(w, name, heads):
    params = vit_block(w, name, heads)
    params["attention"] |= {part: w.norm(f"{name}.attn.{part}") for part in ("q_norm", "k_norm")}
    return params


def aggregator_params(model, config, num_pairs):
    w, heads = Weights(model), (config.num_heads, config.width // config.num_heads)
    return {
        "camera_token": w["camera_token"][0],
        "register_token": w["register_token"][0],
        "patch_embed": {
            "patch_embed": w.patch("patch_embed.patch_embed.proj"),
            "cls_token": w["patch_embed.cls_token"][0],
            "register_tokens": w["patch_embed.register_tokens"][0],
            "pos_embed": w["patch_embed.pos_embed"][0],
            "blocks": stack([vit_block(w, f"patch_embed.blocks.{i}", heads) for i in range(config.embed_depth)]),
            "norm": w.norm("patch_embed.norm"),
        },
        "pairs": stack(
            [
                {f"{part}_block": pair_block(w, f"{part}_blocks.{i}", heads) for part in ("frame", "global")}
                for i in range(num_pairs)
            ]
        ),
    }


def ours(model, config, layer=-1):
    module = vggt.Aggregator(config, layer=layer)
    return filled(module, aggregator_params(model, config, layer % config.depth + 1))


def pictures(config, views=2, seed=0):
    shape = (2, views, config.image_size, config.image_size, 3)
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def run(aggregator, images):
    return jax.jit(lambda images: aggregator(images, dtype=jnp.float32))(images)


def theirs(model, images):
    with torch.no_grad():
        return model(torch.tensor(images).permute(0, 1, 4, 2, 3))


@pytest.mark.parametrize("layer", [-1, 1])
def test_the_aggregator_at_every_pair(layer):
    model, images = build(SMALL), pictures(SMALL, views=3)
    assert_same(run(ours(model, SMALL, layer), images), theirs(model, images)[layer])
    blocks = [*model.patch_embed.blocks, *model.frame_blocks, *model.global_blocks]
    assert min(block.attn.spread for block in blocks) > 1


@pytest.mark.parametrize("mistake", reference.MISTAKES)
def test_a_mistake_in_the_reference_would_be_seen(mistake):
    model, images = build(SMALL), pictures(SMALL)
    right = theirs(model, images)[-1]
    wrong = theirs(build(SMALL, wrong=mistake), images)[-1]
    assert_far(right, wrong)


def test_queries_in_chunks_change_nothing(monkeypatch):
    model, images = build(SMALL), pictures(SMALL)
    whole = run(ours(model, SMALL), images)
    monkeypatch.setattr(vggt, "QUERY_CHUNK", 12)  # of 20 tokens a view and 40 in all
    chunked = run(ours(model, SMALL), images)
    np.testing.assert_allclose(whole, chunked, atol=1e-5)
    assert not np.array_equal(whole, chunked) or "while" in str(
        jax.make_jaxpr(lambda x: ours(model, SMALL)(x, dtype=jnp.float32))(images)
    )


@pytest.mark.parametrize(("add_positions", "layer"), [(True, -1), (False, 0)])
def test_the_targets_are_spatial_forcings(add_positions, layer):
    model = build(SMALL)
    config = GeometryConfig(vggt=SMALL, feature_dim=48, layer=layer, position_embedding=add_positions)
    images = np.random.default_rng(1).integers(0, 256, (2, 2, 12, 12, 3), dtype=np.uint8)
    aggregator = ours(model, SMALL, layer)
    result = jax.jit(lambda x: vggt.teacher_features(aggregator, x, config, grid=3, dtype=jnp.float32))(images)
    with torch.no_grad():
        options = {"image_size": 20, "grid": 3, "layer": layer}
        expected = reference.teacher_features(model, torch.tensor(images), add_positions=add_positions, **options)
        other = reference.teacher_features(model, torch.tensor(images), add_positions=not add_positions, **options)
    assert_same(result, expected)
    assert_far(other, expected)


def test_the_position_embedding_at_full_size():
    theirs = reference.position_embedding(37, 2048).permute(1, 2, 0)
    assert_same(vggt.position_embedding(37, 2048), theirs)


def test_the_align_projector():
    model = randomise(reference.AlignProjector(32, 12))
    w, config = Weights(model), micro_config()
    mlp = {part: w.linear(part) for part in ("fc1", "fc2")}
    projector = filled(AlignProjector(config), {"norm": w.norm("vlm_norm"), "mlp": mlp})
    # Small inputs: here the epsilon of the norm matters.
    x = 0.01 * np.random.default_rng(0).normal(size=(2, 8, 32)).astype(np.float32)
    with torch.no_grad():
        assert_same(projector(x), model(torch.tensor(x)))
        model.vlm_norm.eps = 1e-6
        assert_far(projector(x), model(torch.tensor(x)))


def test_the_full_size_is_the_published_one():
    module = vggt.Aggregator(VggtConfig())
    count = {
        part: sum(math.prod(x.shape) for x in jax.tree.leaves(tree)) for part, tree in stacking.shapes(module).items()
    }
    mask_token = 1024  # carried by the released file, read by nothing
    assert count["patch_embed"] + mask_token == 304_372_736
    assert sum(count.values()) + mask_token == 909_112_320
    model_shapes = reference_shapes(VggtConfig())
    assert sum(math.prod(shape) for shape in model_shapes.values()) == 909_112_320


def reference_shapes(config):
    with torch.device("meta"):
        model = reference.Aggregator.of(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@pytest.mark.full_size
def test_two_pairs_at_full_width():
    # 14 x 14 patches a view; the reference in float64, whose attention over 518 pixels would not fit.
    config = dataclasses.replace(VggtConfig(), embed_depth=2, depth=2, image_size=196)
    model, images = build(config), pictures(config)[:1]
    result = run(ours(model, config), images)
    assert_same(result, theirs(model.double(), images.astype(np.float64))[-1])
    assert all(
        block.attn.spread > 1 for block in [*model.patch_embed.blocks, *model.frame_blocks, *model.global_blocks]
    )
