"""SAM's image encoder, prompt encoder and mask decoder against ``transformers``, and the convolutions they use."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.sam import modeling_sam

from pokevla_jax.config import SegmentationConfig
from pokevla_jax.models import convolution
from pokevla_jax.models import image_encoders
from pokevla_jax.models import mask_decoder
from pokevla_jax.models import presets
from pokevla_jax.models.image_encoders import SAM_SIZES
from pokevla_jax.models.image_encoders import SamSize
from pokevla_jax.models.image_encoders import SamViT
from tests.parity.compare import Weights
from tests.parity.compare import assert_far
from tests.parity.compare import assert_same
from tests.parity.compare import error
from tests.parity.compare import filled
from tests.parity.compare import randomise
from tests.parity.compare import stack

# Blocks with global attention in the released encoders.
GLOBAL = {"vit_b": (12, [2, 5, 8, 11]), "vit_h": (32, [7, 15, 23, 31])}
SEG = SegmentationConfig(
    image_encoder="small", feature_grid=4, decoder_dim=16, decoder_depth=2, decoder_heads=2, decoder_mlp_dim=32
)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def channels_first(x):
    return torch.tensor(x).permute(0, 3, 1, 2)


def encoder_params(model, size):
    w, heads = Weights(model), (size.num_heads, size.width // size.num_heads)

    def block(i):
        name = f"layers.{i}"
        return {
            "norm1": w.norm(f"{name}.layer_norm1"),
            "norm2": w.norm(f"{name}.layer_norm2"),
            "attention": {
                "qkv": w.linear(f"{name}.attn.qkv", outputs=(3, *heads)),
                "proj": w.linear(f"{name}.attn.proj", inputs=heads),
                "rel_pos_h": w[f"{name}.attn.rel_pos_h"],
                "rel_pos_w": w[f"{name}.attn.rel_pos_w"],
            },
            "mlp": {"fc1": w.linear(f"{name}.mlp.lin1"), "fc2": w.linear(f"{name}.mlp.lin2")},
        }

    length = size.num_windowed + 1
    starts = range(0, size.num_groups * length, length)
    groups = [
        {"windowed": stack([block(start + i) for i in range(size.num_windowed)]), "full": block(start + length - 1)}
        for start in starts
    ]
    return {
        "patch_embed": {"linear": w.patch("patch_embed.projection")},
        "pos_embed": w["pos_embed"][0],
        "groups": stack(groups),
        "neck1": {"kernel": w["neck.conv1.weight"][:, :, 0, 0].T},
        "neck_norm1": w.norm("neck.layer_norm1"),
        "neck2": {"kernel": w["neck.conv2.weight"].transpose(2, 3, 1, 0)},
        "neck_norm2": w.norm("neck.layer_norm2"),
    }


def encoder(size, grid, outputs, depth, global_blocks, seed=0):
    config = transformers.SamVisionConfig(
        hidden_size=size.width,
        output_channels=outputs,
        num_hidden_layers=depth,
        num_attention_heads=size.num_heads,
        image_size=grid * size.patch_size,
        patch_size=size.patch_size,
        window_size=size.window,
        global_attn_indexes=global_blocks,
        mlp_dim=4 * size.width,
        attn_implementation="eager",
    )
    model = randomise(modeling_sam.SamVisionEncoder(config), seed, logit_gain=2.5)
    with torch.no_grad():  # Relative positions in proportion to the content they are added to.
        for name, parameter in model.named_parameters():
            if "rel_pos" in name:
                parameter.mul_(2)
    return model


def encode(model, size, grid, outputs, images):
    vit = filled(SamViT(size, grid=grid, outputs=outputs), encoder_params(model, size))
    return jax.jit(lambda x: vit(x))(images)


def encoded(model, images):
    with torch.no_grad():
        return model(channels_first(images)).last_hidden_state.permute(0, 2, 3, 1)


@pytest.mark.parametrize("variant", ["vit_b", "vit_h"])
def test_the_image_encoder_as_the_variants_are_wired(variant):
    depth, global_blocks = GLOBAL[variant]
    assert SAM_SIZES[variant].num_groups * (SAM_SIZES[variant].num_windowed + 1) == depth
    # Few channels, and windows of 3 on a grid of 5, which is padded to 6.
    size = SAM_SIZES[variant]._replace(width=16, num_heads=2, window=3, patch_size=4)
    model, images = encoder(size, 5, 12, depth, global_blocks), normal(2, 20, 20, 3)
    assert_same(encode(model, size, 5, 12, images), encoded(model, images))


TWO_GROUPS = SamSize(width=16, num_heads=2, num_groups=2, num_windowed=1, window=3, patch_size=4)


def exchange(first, second):
    def change(state):
        for name in [name for name in state if first in name]:
            other = name.replace(first, second)
            state[name], state[other] = state[other], state[name]

    return change


def exchange_keys_and_values(state):
    for name in state:
        if "qkv" in name:
            q, k, v = state[name].chunk(3)
            state[name] = torch.cat([q, v, k])


@pytest.mark.parametrize("mistake", ["rel_pos", "key_value", "windows"])
def test_a_mistake_in_the_image_encoder_would_be_seen(mistake):
    model, images = encoder(TWO_GROUPS, 5, 12, 4, [1, 3]), normal(2, 20, 20, 3)
    right = encoded(model, images)
    if mistake == "windows":
        wrong = encoder(TWO_GROUPS._replace(window=5), 5, 12, 4, [1, 3])
        state = {name: x for name, x in model.state_dict().items() if "rel_pos" not in name}
        wrong.load_state_dict(state, strict=False)
    else:
        wrong = encoder(TWO_GROUPS, 5, 12, 4, [1, 3])
        state = model.state_dict()
        (exchange("rel_pos_h", "rel_pos_w") if mistake == "rel_pos" else exchange_keys_and_values)(state)
        wrong.load_state_dict(state)
    assert_far(encoded(wrong, images), right)


def test_queries_in_chunks_change_nothing(monkeypatch):
    model, images = encoder(TWO_GROUPS, 6, 12, 4, [1, 3]), normal(2, 24, 24, 3)
    whole = encode(model, TWO_GROUPS, 6, 12, images)
    monkeypatch.setattr(image_encoders, "QUERIES_AT_ONCE", 10)  # four chunks, the last not full
    assert_same(encode(model, TWO_GROUPS, 6, 12, images), whole)


@pytest.mark.parametrize("image_size", [24, 100])
def test_images_are_scaled_and_normalised_as_sam_does(image_size):
    preset = presets.tiny()
    segmentation = dataclasses.replace(preset.segmentation, image_encoder="sam", feature_grid=4)
    sam = image_encoders.SamEncoder(dataclasses.replace(preset, segmentation=segmentation))
    images = np.random.default_rng(0).integers(0, 256, (2, image_size, image_size, 3), dtype=np.uint8)

    def scaled(**options):
        x = channels_first(images).float()
        x = torch.nn.functional.interpolate(x, (64, 64), mode="bilinear", align_corners=False, **options)
        mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
        return (x.permute(0, 2, 3, 1) - mean) / std

    ours = sam.preprocess(images)
    assert_same(ours, scaled(antialias=True))
    # Enlarging, antialiasing makes no difference; shrinking, it does.
    (assert_same if image_size < 64 else assert_far)(ours, scaled())


def decoder_params(model, dim=16, heads=2):
    w = Weights(model)

    def attend(name, inner):
        split = (heads, inner // heads)
        parts = {part: w.linear(f"{name}.{part}", outputs=split) for part in ("q_proj", "k_proj", "v_proj")}
        return {**parts, "out_proj": w.linear(f"{name}.out_proj", inputs=split)}

    def layer(i):
        name = f"transformer.layers.{i}"
        return {
            "self_attn": attend(f"{name}.self_attn", dim),
            "cross_attn_token_to_image": attend(f"{name}.cross_attn_token_to_image", dim // 2),
            "cross_attn_image_to_token": attend(f"{name}.cross_attn_image_to_token", dim // 2),
            "mlp": {"fc1": w.linear(f"{name}.mlp.lin1"), "fc2": w.linear(f"{name}.mlp.lin2")},
            **{f"norm{k}": w.norm(f"{name}.layer_norm{k}") for k in (1, 2, 3, 4)},
        }

    def head(name):
        return {
            "fc1": w.linear(f"{name}.proj_in"),
            "fc2": w.linear(f"{name}.layers.0"),
            "fc3": w.linear(f"{name}.proj_out"),
        }

    return {
        "iou_token": w["iou_token.weight"],
        "mask_tokens": w["mask_tokens.weight"],
        "transformer": {
            "layers": stack([layer(i) for i in range(2)]),
            "final_attn_token_to_image": attend("transformer.final_attn_token_to_image", dim // 2),
            "norm_final_attn": w.norm("transformer.layer_norm_final_attn"),
        },
        "upscale1": up_params(w, "upscale_conv1"),
        "upscale_norm": w.norm("upscale_layer_norm"),
        "upscale2": up_params(w, "upscale_conv2"),
        "hypernetworks": stack([head(f"output_hypernetworks_mlps.{i}") for i in range(4)]),
        "iou_head": head("iou_prediction_head"),
    }


def up_params(w, name):
    return {"linear": {"kernel": w[f"{name}.weight"].transpose(0, 2, 3, 1)}, "bias": w[f"{name}.bias"]}


def decoder(seed=0, eps=mask_decoder.EPS):
    config = transformers.SamMaskDecoderConfig(
        hidden_size=16, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16, layer_norm_eps=eps
    )
    model = randomise(modeling_sam.SamMaskDecoder(config), seed, logit_gain=2.0)
    # The released code norms the upscaled map with 1e-6 and the transformer with 1e-5; transformers has one constant.
    model.upscale_layer_norm.eps = 1e-6
    return model


def prompt_encoder(seed=0):
    config = transformers.SamConfig(
        vision_config={"num_pos_feats": 8, "hidden_size": 16, "num_attention_heads": 2},
        prompt_encoder_config={"hidden_size": 16, "mask_input_channels": 16, "image_size": 16, "patch_size": 4},
    )
    model = randomise(modeling_sam.SamPromptEncoder(config), seed)
    with torch.no_grad():  # A buffer; large angles, as the released ones.
        model.shared_embedding.positional_embedding.normal_(generator=torch.Generator().manual_seed(1))
    return model


def prompt_params(model, *, mask_prompt):
    w = Weights(model)
    params = {"gaussian_matrix": w["shared_embedding.positional_embedding"]}
    if not mask_prompt:
        return params | {"no_mask_embed": w["no_mask_embed.weight"][0]}
    params |= {f"conv{i}": {"linear": w.patch(f"mask_embed.conv{i}")} for i in (1, 2, 3)}
    return params | {f"norm{i}": w.norm(f"mask_embed.layer_norm{i}") for i in (1, 2)}


def dense_prompt(model, logits=None):
    masks = None if logits is None else torch.tensor(logits)[:, None].to(model.no_mask_embed.weight.dtype)
    with torch.no_grad():
        _, dense = model(input_points=None, input_labels=None, input_boxes=None, input_masks=masks)
    return dense


def places(model, grid=4):
    """Positions of the whole map, as ``SamModel`` asks the shared embedding for them."""
    line = (torch.arange(grid, dtype=model.no_mask_embed.weight.dtype) + 0.5) / grid
    y, x = torch.meshgrid(line, line, indexing="ij")
    return model.shared_embedding(torch.stack([x, y], dim=-1)).permute(2, 0, 1)[None]


def test_the_prompt_encoder():
    model, features, logits = prompt_encoder(), normal(2, 16, 16), normal(2, 16, 16, seed=1)
    empty = filled(mask_decoder.PromptEncoder(SEG, mask_prompt=False), prompt_params(model, mask_prompt=False))
    masked = filled(mask_decoder.PromptEncoder(SEG, mask_prompt=True), prompt_params(model, mask_prompt=True))
    zeros = np.zeros_like(features)
    flat = dense_prompt(model).flatten(2).transpose(1, 2)
    assert_same(empty.add_to(zeros), flat.expand(2, -1, -1))
    expected = dense_prompt(model, logits).flatten(2).transpose(1, 2)
    assert_same(masked.add_to(zeros, logits), expected)
    assert_far(masked.add_to(zeros, logits.transpose(0, 2, 1)), expected)
    assert_same(masked.add_to(features, logits), expected + torch.tensor(features))
    expected = places(model)[0].flatten(1).T
    for encoder_ in (empty, masked):
        assert_same(encoder_.positions(), expected)
    assert_far(empty.positions().reshape(4, 4, -1).transpose(1, 0, 2).reshape(16, -1), expected)


def decode_both(change=lambda state: None, *, eps=mask_decoder.EPS):
    """Ours from the decoder as it is; theirs from one that ``change`` may have spoiled."""
    model, prompts = decoder(), prompt_encoder()
    image, token, logits = normal(2, 16, 16), normal(2, 16, seed=1), normal(2, 16, 16, seed=2)
    module = filled(mask_decoder.MaskDecoder(SEG), decoder_params(model))
    prompt = filled(mask_decoder.PromptEncoder(SEG, mask_prompt=True), prompt_params(prompts, mask_prompt=True))
    theirs = decoder(eps=eps)
    state = model.state_dict()
    change(state)
    theirs.load_state_dict(state)
    # In float64: the logits are small differences of large terms, and float32 on both sides would add up its rounding.
    theirs, exact = theirs.double(), copy.deepcopy(prompts).double()
    with torch.no_grad():
        masks, _ = theirs(
            image_embeddings=channels_first(image.reshape(2, 4, 4, 16)).double(),
            image_positional_embeddings=places(exact).repeat(2, 1, 1, 1),
            sparse_prompt_embeddings=torch.tensor(token)[:, None, None].double(),
            dense_prompt_embeddings=dense_prompt(exact, logits),
            multimask_output=False,
        )
    run = jax.jit(lambda image, logits, token: module(prompt.add_to(image, logits), prompt.positions(), token))
    return run(image, logits, token), masks[:, 0, 0]


def test_the_mask_decoder():
    assert_same(*decode_both())


def flip_kernels(state):
    for name in ("upscale_conv1.weight", "upscale_conv2.weight"):
        state[name] = state[name].flip(-1, -2)


def turn_kernels(state):
    for name in ("upscale_conv1.weight", "upscale_conv2.weight"):
        state[name] = state[name].transpose(-1, -2)


@pytest.mark.parametrize(
    "change",
    [
        exchange("cross_attn_token_to_image.k_proj", "cross_attn_token_to_image.v_proj"),
        exchange("transformer.layers.0", "transformer.layers.1"),
        exchange("output_hypernetworks_mlps.0", "output_hypernetworks_mlps.1"),
        flip_kernels,
        turn_kernels,
    ],
    ids=["key_value", "layers", "masks", "flipped", "transposed"],
)
def test_a_mistake_in_the_mask_decoder_would_be_seen(change):
    assert_far(*decode_both(change))


def test_the_norms_epsilon_matters():
    assert error(*decode_both(eps=1e-2)) > 1e-3


def test_a_transposed_convolution_is_torchs():
    theirs = randomise(torch.nn.ModuleDict({"up": torch.nn.ConvTranspose2d(6, 5, 2, stride=2)}))
    module = filled(convolution.UpConv(6, 5), up_params(Weights(theirs), "up"))
    x = normal(2, 3, 4, 6)
    with torch.no_grad():
        expected = convolution.space_to_depth(theirs["up"](channels_first(x)).permute(0, 2, 3, 1).numpy(), 2)
        theirs["up"].weight.copy_(theirs["up"].weight.transpose(-1, -2).clone())
        wrong = convolution.space_to_depth(theirs["up"](channels_first(x)).permute(0, 2, 3, 1).numpy(), 2)
    assert_same(module(x), expected)
    assert_far(module(x), wrong)


def test_convolutions_are_torchs():
    layers = {"patch": torch.nn.Conv2d(5, 3, 2, stride=2), "same": torch.nn.Conv2d(5, 3, 3, padding=1)}
    theirs, x = randomise(torch.nn.ModuleDict(layers)), normal(2, 6, 4, 5)
    w = Weights(theirs)
    wide = {"kernel": w["same.weight"].transpose(2, 3, 1, 0), "bias": w["same.bias"]}
    ours = {
        "patch": filled(convolution.PatchConv(5, 3, 2), {"linear": w.patch("patch")}),
        "same": filled(convolution.Conv3x3(5, 3), wide),
    }
    for name, module in ours.items():
        with torch.no_grad():
            expected = theirs[name](channels_first(x)).permute(0, 2, 3, 1)
        assert_same(module(jnp.asarray(x)), expected)


@pytest.mark.full_size
@pytest.mark.parametrize("variant", ["vit_b", "vit_h"])
def test_the_image_encoder_at_full_width(variant):
    # One windowed and one global block; the windows of 14 do not fit the grid of 20.
    size = SAM_SIZES[variant]._replace(num_groups=1, num_windowed=1)
    model, images = encoder(size, 20, 256, 2, [1]), normal(1, 320, 320, 3)
    assert_same(encode(model, size, 20, 256, images), encoded(model, images))


@pytest.mark.full_size
def test_the_mask_branch_at_full_width():
    seg = SegmentationConfig(feature_grid=64)
    config = transformers.SamMaskDecoderConfig(layer_norm_eps=mask_decoder.EPS)
    model = randomise(modeling_sam.SamMaskDecoder(config), logit_gain=1.0)
    model.upscale_layer_norm.eps = 1e-6
    assert sum(p.numel() for p in model.parameters()) == 4_058_340
    module = filled(mask_decoder.MaskDecoder(seg), decoder_params(model, dim=256, heads=8))
    image, token, place = normal(1, 4096, 256), normal(1, 256, seed=1), normal(4096, 256, seed=2)
    with torch.no_grad():
        masks, _ = model.double()(  # In float64, as above.
            image_embeddings=channels_first(image.reshape(1, 64, 64, 256)).double(),
            image_positional_embeddings=channels_first(place.reshape(1, 64, 64, 256)).double(),
            sparse_prompt_embeddings=torch.tensor(token)[:, None, None].double(),
            dense_prompt_embeddings=torch.zeros(1, 256, 64, 64).double(),
            multimask_output=False,
        )
    assert_same(jax.jit(lambda *x: module(*x))(image, place, token), masks[:, 0, 0])
