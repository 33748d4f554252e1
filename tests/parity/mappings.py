"""Weights of the PyTorch references as this project's parameters, part by part.

Written apart from the converter's tables, so that each checks the other.
"""

from tests.parity.compare import Weights
from tests.parity.compare import stack

# The action head's sources, ours -> the reference's.
SOURCES = {"latents": "self", "query": "adapter", "vision": "task", "seg": "seg"}
# config.model.action_head.gate -> the reference's gated sources.
GATED = {"vision": ("task",), "vision_and_seg": ("task", "seg"), "none": ()}


def qwen2(model, config):
    """``transformers``' Qwen2Model as the decoder that ``config`` (a ``LanguageConfig``) describes."""
    w = Weights(model)
    queries, keys = (config.num_heads, config.head_dim), (config.num_kv_heads, config.head_dim)

    def layer(name):
        attention = {
            "q_proj": w.linear(f"{name}.self_attn.q_proj", outputs=queries),
            "k_proj": w.linear(f"{name}.self_attn.k_proj", outputs=keys),
            "v_proj": w.linear(f"{name}.self_attn.v_proj", outputs=keys),
            "o_proj": w.linear(f"{name}.self_attn.o_proj", inputs=queries),
        }
        mlp = {part: w.linear(f"{name}.mlp.{part}") for part in ("gate_proj", "up_proj", "down_proj")}
        norms = {part: w.norm(f"{name}.{part}") for part in ("input_layernorm", "post_attention_layernorm")}
        return {"attention": attention, "mlp": mlp, **norms}

    return {
        "embed_tokens": w["embed_tokens.weight"],
        "layers": stack([layer(f"layers.{i}") for i in range(config.num_layers)]),
        "norm": w.norm("norm"),
    }


def dinov2(model, config):
    """``transformers``' Dinov2WithRegistersModel as a tower, up to its feature block."""
    w = Weights(model)
    position = w["embeddings.position_embeddings"][0]
    return {
        "patch_embed": w.patch("embeddings.patch_embeddings.projection"),
        "pos_embed": position[1:],
        # Here the class token has a position too; in timm's version, whose layout this is, that is folded into it.
        "cls_token": w["embeddings.cls_token"][0] + position[:1],
        "reg_token": w["embeddings.register_tokens"][0],
        "blocks": _vit_blocks(
            w,
            config,
            "encoder.layer",
            attention="attention",
            output="o_proj",
            norms=("norm1", "norm2"),
            scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
        ),
    }


def siglip(model, config):
    """``transformers``' SiglipVisionModel as a tower, up to its feature block."""
    w = Weights(model)
    return {
        "patch_embed": w.patch("embeddings.patch_embedding"),
        "pos_embed": w["embeddings.position_embedding.weight"],
        "blocks": _vit_blocks(
            w,
            config,
            "encoder.layers",
            attention="self_attn",
            output="out_proj",
            norms=("layer_norm1", "layer_norm2"),
        ),
    }


def _vit_blocks(w, config, prefix, *, attention, output, norms, scales=None):
    heads = (config.num_heads, config.width // config.num_heads)

    def block(name):
        params = {
            "norm1": w.norm(f"{name}.{norms[0]}"),
            "norm2": w.norm(f"{name}.{norms[1]}"),
            "attention": {
                "qkv": w.qkv([f"{name}.{attention}.{part}" for part in ("q_proj", "k_proj", "v_proj")], heads),
                "proj": w.linear(f"{name}.{attention}.{output}", inputs=heads),
            },
            "mlp": {part: w.linear(f"{name}.mlp.{part}") for part in ("fc1", "fc2")},
        }
        if scales:
            params |= {"ls1": w[f"{name}.{scales[0]}"], "ls2": w[f"{name}.{scales[1]}"]}
        return params

    return stack([block(f"{prefix}.{i}") for i in range(config.feature_block % config.depth + 1)])


def mlp(model):
    """A reference with ``fc1``, ``fc2`` and perhaps more of them."""
    w = Weights(model)
    return {
        name.removesuffix(".weight"): w.linear(name.removesuffix(".weight")) for name in w.state if "weight" in name
    }


def action_head(model, proprio, config):
    """``torch_reference.action_head``'s head and proprio projector as ours (``config`` is a ``ModelConfig``)."""
    w, head = Weights(model), config.action_head
    heads = (head.num_heads, head.width // head.num_heads)
    names = {ours: theirs for ours, theirs in SOURCES.items() if ours != "seg" or head.inject_seg}

    def key_value(k, v):
        return {"k_proj": w.linear(k, outputs=heads), "v_proj": w.linear(v, outputs=heads)}

    def block(name):
        joint = head.concat == "joint_softmax"
        params = {
            "q_proj": w.linear(f"{name}.q_proj", outputs=heads),
            "o_proj": w.linear(f"{name}.o_proj", inputs=heads if joint else (len(names), *heads)),
            "norm": w.norm(f"{name}.ffn.0"),
            "ffn": w.linear(f"{name}.ffn.1"),
        }
        if head.block == "pro":
            pairs = names.items()
            params["sources"] = {ours: key_value(f"{name}.k_{theirs}", f"{name}.v_{theirs}") for ours, theirs in pairs}
        else:
            params["shared"] = key_value(f"{name}.k_proj", f"{name}.v_proj")
        gates = {"vision": "gating_factor", "seg": "gating_factor_seg"}
        gates = {ours: w[f"{name}.{theirs}"][0] for ours, theirs in gates.items() if SOURCES[ours] in GATED[head.gate]}
        return params | ({"gates": gates} if gates else {})

    projected = head.latents == "projected"
    return {
        "latents": {"norm": w.norm("layer_norm1"), "fc1": w.linear("fc1")} if projected else w["latents"],
        "proprio": mlp(proprio),
        "blocks": stack([block(f"mlp_resnet_blocks.{i}") for i in range(head.num_layers)]),
        "norm": w.norm("layer_norm2"),
        "out": w.linear("fc2"),
    }
