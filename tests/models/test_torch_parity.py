"""The same network as the public PyTorch code: tiny random models of ``transformers``, weights carried over, compared.

The names here are those of ``transformers``; released checkpoints of other projects are the converter's business.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from pokevla_jax.config import LanguageConfig
from pokevla_jax.config import SegmentationConfig
from pokevla_jax.config import TowerConfig
from pokevla_jax.config import VisionConfig
from pokevla_jax.models import attention
from pokevla_jax.models import mask_decoder
from pokevla_jax.models import stacking
from pokevla_jax.models.image_encoders import SamSize
from pokevla_jax.models.image_encoders import SamViT
from pokevla_jax.models.language import Decoder
from pokevla_jax.models.vision import Tower

TOLERANCE = 1e-4


def randomised(model, seed=0):
    """Every parameter off its special start (zeros, ones), so that none can be ignored unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


class Weights:
    """A torch state dict read by prefix."""

    def __init__(self, model):
        self.state = {name: value.detach().numpy() for name, value in model.state_dict().items()}

    def __getitem__(self, name):
        return self.state[name]

    def linear(self, name, inputs=None, outputs=None):
        """Kernel (and bias) with the output or input axis split into ``outputs`` or ``inputs``."""
        kernel = self[f"{name}.weight"].T
        kernel = kernel.reshape(*(inputs or kernel.shape[:1]), *(outputs or kernel.shape[1:]))
        if f"{name}.bias" not in self.state:
            return {"kernel": kernel}
        return {"kernel": kernel, "bias": self[f"{name}.bias"].reshape(outputs or (-1,))}

    def norm(self, name):
        scale = {"scale": self[f"{name}.weight"]}
        return {**scale, "bias": self[f"{name}.bias"]} if f"{name}.bias" in self.state else scale

    def qkv(self, names, heads):
        parts = [self.linear(name, outputs=heads) for name in names]
        return {key: np.stack([part[key] for part in parts], axis=parts[0][key].ndim - 2) for key in parts[0]}

    def patch(self, name):
        """A convolution with stride = kernel, as a matrix over (row, column, channel)."""
        kernel = self[f"{name}.weight"]
        return {"kernel": kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel)), "bias": self[f"{name}.bias"]}


def filled(module, params):
    return stacking.fill(module, jax.tree.map(jnp.asarray, params))


def stack(layers):
    return jax.tree.map(lambda *x: np.stack(x), *layers)


def assert_close(ours, theirs):
    theirs = theirs.detach().numpy()
    assert np.abs(theirs).max() > 0.1  # a comparison of zeros would prove nothing
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE * np.abs(theirs).max())


def test_qwen2_decoder_with_grouped_heads_and_padding():
    model = randomised(
        transformers.Qwen2Model(
            transformers.Qwen2Config(
                hidden_size=24,
                intermediate_size=40,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=6,
                vocab_size=30,
                rope_parameters={"rope_type": "default", "rope_theta": 1e6},
                rms_norm_eps=1e-6,
                attn_implementation="eager",
            )
        )
    )
    w = Weights(model)

    def layer(i):
        name = f"layers.{i}"
        attn = {
            "q_proj": w.linear(f"{name}.self_attn.q_proj", outputs=(4, 6)),
            "k_proj": w.linear(f"{name}.self_attn.k_proj", outputs=(2, 6)),
            "v_proj": w.linear(f"{name}.self_attn.v_proj", outputs=(2, 6)),
            "o_proj": w.linear(f"{name}.self_attn.o_proj", inputs=(4, 6)),
        }
        mlp = {part: w.linear(f"{name}.mlp.{part}") for part in ("gate_proj", "up_proj", "down_proj")}
        norms = {part: w.norm(f"{name}.{part}") for part in ("input_layernorm", "post_attention_layernorm")}
        return {"attention": attn, "mlp": mlp, **norms}

    params = {
        "embed_tokens": w["embed_tokens.weight"],
        "layers": stack([layer(i) for i in range(3)]),
        "norm": w.norm("norm"),
    }
    config = LanguageConfig(
        vocab_size=30, width=24, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6, mlp_dim=40, rope_theta=1e6
    )
    tokens = np.random.default_rng(0).integers(0, 30, (2, 9))
    valid = np.ones((2, 9), bool)
    valid[1, 6:] = False
    decoder = filled(Decoder(config), params)
    last, states = jax.jit(
        lambda tokens, valid: decoder(
            decoder.embed(tokens, jnp.float32),
            attention.positions(valid),
            attention.causal_mask(valid),
            all_layers=True,
        )
    )(tokens, valid)
    out = model(
        input_ids=torch.tensor(tokens), attention_mask=torch.tensor(valid.astype(np.int64)), output_hidden_states=True
    )
    assert_close(np.asarray(last)[valid], out.last_hidden_state[torch.tensor(valid)])
    for ours, theirs in zip(states, out.hidden_states[1:], strict=True):
        assert_close(np.asarray(ours)[valid], theirs[torch.tensor(valid)])
    head = torch.nn.functional.linear(out.last_hidden_state, model.embed_tokens.weight)
    assert_close(np.asarray(decoder.logits(last))[valid], head[torch.tensor(valid)])


def tower_params(w, blocks, *, attention, names, norms, scales=None):
    def block(name):
        params = {
            "norm1": w.norm(f"{name}.{norms[0]}"),
            "norm2": w.norm(f"{name}.{norms[1]}"),
            "attention": {
                "qkv": w.qkv([f"{name}.{attention}.{part}" for part in ("q_proj", "k_proj", "v_proj")], (2, 8)),
                "proj": w.linear(f"{name}.{attention}.{names}", inputs=(2, 8)),
            },
            "mlp": {part: w.linear(f"{name}.mlp.{part}") for part in ("fc1", "fc2")},
        }
        if scales:
            params |= {"ls1": w[f"{name}.{scales[0]}"], "ls2": w[f"{name}.{scales[1]}"]}
        return params

    return stack([block(name) for name in blocks])


def pixels(config, images):
    x = (images / 255 - np.array(config.image_mean)) / np.array(config.image_std)
    return torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float32)


def run_tower(config, params, images):
    vision = VisionConfig(image_size=16, patch_size=4, dinov2=config, siglip=config)
    tower = filled(Tower(config, vision), params)
    return jax.jit(lambda images: tower(images, dtype=jnp.float32, remat="none"))(images)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)


def test_dinov2_with_registers_at_its_second_to_last_block(images):
    model = randomised(
        transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(
                hidden_size=16, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=2, image_size=16, patch_size=4
            )
        )
    )
    config = TowerConfig(
        width=16,
        depth=3,
        num_heads=2,
        mlp_dim=32,
        class_token=True,
        num_registers=4,
        layer_scale=True,
        image_mean=(0.485, 0.456, 0.406),
        image_std=(0.229, 0.224, 0.225),
    )
    w = Weights(model)
    position = w["embeddings.position_embeddings"][0]
    params = {
        "patch_embed": w.patch("embeddings.patch_embeddings.projection"),
        "pos_embed": position[1:],
        # Here the class token has a position too; in timm's version, whose layout this is, that is folded into it.
        "cls_token": w["embeddings.cls_token"][0] + position[:1],
        "reg_token": w["embeddings.register_tokens"][0],
        "blocks": tower_params(
            w,
            [f"encoder.layer.{i}" for i in range(2)],
            attention="attention",
            names="o_proj",
            norms=("norm1", "norm2"),
            scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
        ),
    }
    out = model(pixel_values=pixels(config, images), output_hidden_states=True)
    assert_close(run_tower(config, params, images), out.hidden_states[2][:, 5:])


def test_siglip_at_its_second_to_last_block(images):
    model = randomised(
        transformers.SiglipVisionModel(
            transformers.SiglipVisionConfig(
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=3,
                num_attention_heads=2,
                image_size=16,
                patch_size=4,
                hidden_act="gelu",  # as timm's, which Prismatic loads
            )
        )
    )
    config = TowerConfig(width=16, depth=3, num_heads=2, mlp_dim=24)
    w = Weights(model)
    params = {
        "patch_embed": w.patch("embeddings.patch_embedding"),
        "pos_embed": w["embeddings.position_embedding.weight"],
        "blocks": tower_params(
            w,
            [f"encoder.layers.{i}" for i in range(2)],
            attention="self_attn",
            names="out_proj",
            norms=("layer_norm1", "layer_norm2"),
        ),
    }
    out = model(pixel_values=pixels(config, images), output_hidden_states=True)
    assert_close(run_tower(config, params, images), out.hidden_states[2])


def sam_encoder_params(w):
    def block(i):
        name = f"layers.{i}"
        return {
            "norm1": w.norm(f"{name}.layer_norm1"),
            "norm2": w.norm(f"{name}.layer_norm2"),
            "attention": {
                "qkv": w.linear(f"{name}.attn.qkv", outputs=(3, 2, 8)),
                "proj": w.linear(f"{name}.attn.proj", inputs=(2, 8)),
                "rel_pos_h": w[f"{name}.attn.rel_pos_h"],
                "rel_pos_w": w[f"{name}.attn.rel_pos_w"],
            },
            "mlp": {"fc1": w.linear(f"{name}.mlp.lin1"), "fc2": w.linear(f"{name}.mlp.lin2")},
        }

    return {
        "patch_embed": {"linear": w.patch("patch_embed.projection")},
        "pos_embed": w["pos_embed"][0],
        "groups": stack([{"windowed": stack([block(i)]), "full": block(i + 1)} for i in (0, 2)]),
        "neck1": {"kernel": w["neck.conv1.weight"][:, :, 0, 0].T},
        "neck_norm1": w.norm("neck.layer_norm1"),
        "neck2": {"kernel": w["neck.conv2.weight"].transpose(2, 3, 1, 0)},
        "neck_norm2": w.norm("neck.layer_norm2"),
    }


def test_sam_image_encoder_with_windows_that_do_not_fit():
    config = transformers.SamVisionConfig(
        hidden_size=16,
        output_channels=12,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        window_size=3,  # of a grid of 4: padded to 6
        global_attn_indexes=[1, 3],
        mlp_dim=64,
        attn_implementation="eager",
    )
    model = randomised(transformers.models.sam.modeling_sam.SamVisionEncoder(config))
    size = SamSize(width=16, num_heads=2, num_groups=2, num_windowed=1, window=3, patch_size=8)
    vit = filled(SamViT(size, grid=4, outputs=12), sam_encoder_params(Weights(model)))
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    out = model(torch.tensor(x.transpose(0, 3, 1, 2))).last_hidden_state
    assert_close(jax.jit(lambda x: vit(x))(x), out.permute(0, 2, 3, 1))


def decoder_params(w):
    def attend(name, inner):
        parts = {part: w.linear(f"{name}.{part}", outputs=(2, inner // 2)) for part in ("q_proj", "k_proj", "v_proj")}
        return {**parts, "out_proj": w.linear(f"{name}.out_proj", inputs=(2, inner // 2))}

    def layer(i):
        name = f"transformer.layers.{i}"
        return {
            "self_attn": attend(f"{name}.self_attn", 16),
            "cross_attn_token_to_image": attend(f"{name}.cross_attn_token_to_image", 8),
            "cross_attn_image_to_token": attend(f"{name}.cross_attn_image_to_token", 8),
            "mlp": {"fc1": w.linear(f"{name}.mlp.lin1"), "fc2": w.linear(f"{name}.mlp.lin2")},
            **{f"norm{k}": w.norm(f"{name}.layer_norm{k}") for k in (1, 2, 3, 4)},
        }

    def head(name):
        return {
            "fc1": w.linear(f"{name}.proj_in"),
            "fc2": w.linear(f"{name}.layers.0"),
            "fc3": w.linear(f"{name}.proj_out"),
        }

    def up(name):
        return {"linear": {"kernel": w[f"{name}.weight"].transpose(0, 2, 3, 1)}, "bias": w[f"{name}.bias"]}

    return {
        "iou_token": w["iou_token.weight"],
        "mask_tokens": w["mask_tokens.weight"],
        "transformer": {
            "layers": stack([layer(i) for i in range(2)]),
            "final_attn_token_to_image": attend("transformer.final_attn_token_to_image", 8),
            "norm_final_attn": w.norm("transformer.layer_norm_final_attn"),
        },
        "upscale1": up("upscale_conv1"),
        "upscale_norm": w.norm("upscale_layer_norm"),
        "upscale2": up("upscale_conv2"),
        "hypernetworks": stack([head(f"output_hypernetworks_mlps.{i}") for i in range(4)]),
        "iou_head": head("iou_prediction_head"),
    }


def test_sam_mask_decoder_and_mask_prompt():
    config = transformers.SamMaskDecoderConfig(
        hidden_size=16, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16, layer_norm_eps=mask_decoder.EPS
    )
    model = randomised(transformers.models.sam.modeling_sam.SamMaskDecoder(config))
    # The released code norms the upscaled map with 1e-6 and the transformer with 1e-5; transformers has one constant.
    model.upscale_layer_norm.eps = 1e-6
    embed = randomised(
        transformers.models.sam.modeling_sam.SamMaskEmbedding(
            transformers.SamPromptEncoderConfig(hidden_size=16, mask_input_channels=16)
        )
    )
    seg = SegmentationConfig(
        image_encoder="small", feature_grid=4, decoder_dim=16, decoder_depth=2, decoder_heads=2, decoder_mlp_dim=32
    )
    decoder = filled(mask_decoder.MaskDecoder(seg), decoder_params(Weights(model)))
    w = Weights(embed)
    prompt = {f"conv{i}": {"linear": w.patch(f"conv{i}")} for i in (1, 2, 3)}
    prompt |= {f"norm{i}": w.norm(f"layer_norm{i}") for i in (1, 2)}
    gaussian = np.zeros((2, 8), np.float32)
    encoder = filled(mask_decoder.PromptEncoder(seg, mask_prompt=True), {**prompt, "gaussian_matrix": gaussian})
    rng = np.random.default_rng(0)
    image, position, token, logits = (
        rng.normal(size=shape).astype(np.float32) for shape in [(2, 16, 16), (16, 16), (2, 16), (2, 16, 16)]
    )

    def to_map(x):
        return torch.tensor(x.reshape(-1, 4, 4, 16).transpose(0, 3, 1, 2))

    dense = embed(torch.tensor(logits)[:, None])
    masks, _ = model(
        image_embeddings=to_map(image),
        image_positional_embeddings=to_map(position).repeat(2, 1, 1, 1),
        sparse_prompt_embeddings=torch.tensor(token)[:, None, None],
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )
    ours = jax.jit(lambda image, logits, token: decoder(encoder.add_to(image, logits), position, token))(
        image, logits, token
    )
    assert_close(ours, masks[:, 0, 0])
