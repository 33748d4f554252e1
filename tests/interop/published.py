"""Names and shapes of published PyTorch checkpoints, at any size, written from their descriptions.

Independent of the tables of names that they are compared with: a published file's tensors are listed as PyTorch code
creates them, whole towers with last blocks and pooling included.
"""

Shapes = dict[str, tuple[int, ...]]


def under(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def conv(name: str, inputs: int, outputs: int, size: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, size, size), f"{name}.bias": (outputs,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def vit_block(width: int, mlp: int, *, scale: str | None = None, lin: str = "fc") -> Shapes:
    block = norm("norm1", width) | linear("attn.qkv", width, 3 * width) | linear("attn.proj", width, width)
    block |= norm("norm2", width) | linear(f"mlp.{lin}1", width, mlp) | linear(f"mlp.{lin}2", mlp, width)
    return block if scale is None else block | {f"ls1.{scale}": (width,), f"ls2.{scale}": (width,)}


def layers(prefix: str, count: int, one: Shapes) -> Shapes:
    return {name: shape for i in range(count) for name, shape in under(f"{prefix}.{i}.", one).items()}


def dinov2(width=1024, depth=24, mlp=4096, patch=14, patches=256, *, scale="gamma") -> Shapes:
    """timm's ``vit_large_patch14_reg4_dinov2``."""
    return {
        "cls_token": (1, 1, width),
        "reg_token": (1, 4, width),
        "pos_embed": (1, patches, width),
        **conv("patch_embed.proj", 3, width, patch),
        **layers("blocks", depth, vit_block(width, mlp, scale=scale)),
        **norm("norm", width),
    }


def siglip(width=1152, depth=27, mlp=4304, patch=14, patches=256) -> Shapes:
    """timm's ``vit_so400m_patch14_siglip_224``."""
    pool = {"latent": (1, 1, width)} | linear("q", width, width) | linear("kv", width, 2 * width)
    pool |= linear("proj", width, width) | norm("norm", width) | linear("mlp.fc1", width, mlp)
    return {
        "pos_embed": (1, patches, width),
        **conv("patch_embed.proj", 3, width, patch),
        **layers("blocks", depth, vit_block(width, mlp)),
        **norm("norm", width),
        **under("attn_pool.", pool | linear("mlp.fc2", mlp, width)),
    }


def projector(inputs=2176, hidden=8704, width=896) -> Shapes:
    return linear("fc1", inputs, hidden) | linear("fc2", hidden, width) | linear("fc3", width, width)


def qwen(vocab=151_936, width=896, depth=24, queries=896, keys=128, mlp=4864) -> Shapes:
    """Qwen2.5-0.5B, embeddings tied."""
    layer = linear("self_attn.q_proj", width, queries) | linear("self_attn.k_proj", width, keys)
    layer |= linear("self_attn.v_proj", width, keys) | {"self_attn.o_proj.weight": (width, queries)}
    layer |= {"mlp.gate_proj.weight": (mlp, width), "mlp.up_proj.weight": (mlp, width)}
    layer |= {"mlp.down_proj.weight": (width, mlp)}
    layer |= {"input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,)}
    return {
        "model.embed_tokens.weight": (vocab, width),
        **layers("model.layers", depth, layer),
        "model.norm.weight": (width,),
    }


PRO = ("q_proj", "k_self", "v_self", "k_adapter", "v_adapter", "k_task", "v_task", "o_proj")
ORIGINAL = ("q_proj", "k_proj", "v_proj", "o_proj")


def action_head(depth=24, width=896, action_dim=7, *, pro: bool) -> Shapes:
    """VLA-Adapter's ``L1RegressionActionHead``."""
    block: Shapes = {"gating_factor": (1,), **norm("ffn.0", width), **linear("ffn.1", width, width)}
    for name in PRO if pro else ORIGINAL:
        block |= linear(name, width, width)
    if pro:
        block |= linear("film_gen.0", width, 2 * width)
    return {
        **norm("model.layer_norm1", action_dim * width),
        **linear("model.fc1", action_dim * width, width),
        **layers("model.mlp_resnet_blocks", depth, block),
        **norm("model.layer_norm2", width),
        **linear("model.fc2", width, action_dim),
    }


def proprio_projector(proprio=8, width=896) -> Shapes:
    return linear("fc1", proprio, width) | linear("fc2", width, width)


def sam_image_encoder(
    width=768, depth=12, global_blocks=(2, 5, 8, 11), head_dim=64, grid=64, outputs=256, window=14
) -> Shapes:
    shapes: Shapes = {"pos_embed": (1, grid, grid, width), **conv("patch_embed.proj", 3, width, 16)}
    for i in range(depth):
        side = grid if i in global_blocks else window
        block = vit_block(width, 4 * width, lin="lin")
        block |= {f"attn.rel_pos_{axis}": (2 * side - 1, head_dim) for axis in "hw"}
        shapes |= under(f"blocks.{i}.", block)
    shapes |= {"neck.0.weight": (outputs, width, 1, 1), "neck.2.weight": (outputs, outputs, 3, 3)}
    return shapes | norm("neck.1", outputs) | norm("neck.3", outputs)


def sam_prompt_encoder(dim=256) -> Shapes:
    return {
        "pe_layer.positional_encoding_gaussian_matrix": (2, dim // 2),
        **{f"point_embeddings.{i}.weight": (1, dim) for i in range(4)},
        "not_a_point_embed.weight": (1, dim),
        "no_mask_embed.weight": (1, dim),
        **conv("mask_downscaling.0", 1, 4, 2),
        **norm("mask_downscaling.1", 4),
        **conv("mask_downscaling.3", 4, 16, 2),
        **norm("mask_downscaling.4", 16),
        **conv("mask_downscaling.6", 16, dim, 1),
    }


def sam_mask_decoder(dim=256, depth=2, mlp=2048) -> Shapes:
    def attention(name: str, inner: int) -> Shapes:
        inputs = {k: v for p in "qkv" for k, v in linear(f"{name}.{p}_proj", dim, inner).items()}
        return inputs | linear(f"{name}.out_proj", inner, dim)

    def mlp3(name: str, outputs: int) -> Shapes:
        first = linear(f"{name}.layers.0", dim, dim) | linear(f"{name}.layers.1", dim, dim)
        return first | linear(f"{name}.layers.2", dim, outputs)

    layer = attention("self_attn", dim) | linear("mlp.lin1", dim, mlp) | linear("mlp.lin2", mlp, dim)
    for direction in ("token_to_image", "image_to_token"):
        layer |= attention(f"cross_attn_{direction}", dim // 2)
    for i in range(1, 5):
        layer |= norm(f"norm{i}", dim)
    shapes: Shapes = {
        "iou_token.weight": (1, dim),
        "mask_tokens.weight": (4, dim),
        **layers("transformer.layers", depth, layer),
        **attention("transformer.final_attn_token_to_image", dim // 2),
        **norm("transformer.norm_final_attn", dim),
        "output_upscaling.0.weight": (dim, dim // 4, 2, 2),
        "output_upscaling.0.bias": (dim // 4,),
        **norm("output_upscaling.1", dim // 4),
        "output_upscaling.3.weight": (dim // 4, dim // 8, 2, 2),
        "output_upscaling.3.bias": (dim // 8,),
        **mlp3("iou_prediction_head", 4),
    }
    for i in range(4):
        shapes |= mlp3(f"output_hypernetworks_mlps.{i}", dim // 8)
    return shapes


def sam() -> Shapes:
    """segment-anything's ViT-B file."""
    return {
        **under("image_encoder.", sam_image_encoder()),
        **under("prompt_encoder.", sam_prompt_encoder()),
        **under("mask_decoder.", sam_mask_decoder()),
    }


def align_projector(width=896, features=2048) -> Shapes:
    return norm("vlm_norm", width) | linear("fc1", width, features) | linear("fc2", features, features)


def vggt(width=1024, depth=24, mlp=4096, head_dim=64, positions=1370) -> Shapes:
    """VGGT's aggregator."""
    block = vit_block(width, mlp, scale="gamma") | norm("attn.q_norm", head_dim) | norm("attn.k_norm", head_dim)
    vit = {"cls_token": (1, 1, width), "pos_embed": (1, positions, width), "register_tokens": (1, 4, width)}
    vit |= {"mask_token": (1, width)} | conv("patch_embed.proj", 3, width, 14) | norm("norm", width)
    return {
        "aggregator.camera_token": (1, 2, 1, width),
        "aggregator.register_token": (1, 2, 4, width),
        **under("aggregator.patch_embed.", vit | layers("blocks", depth, vit_block(width, mlp, scale="gamma"))),
        **layers("aggregator.frame_blocks", depth, block),
        **layers("aggregator.global_blocks", depth, block),
    }
