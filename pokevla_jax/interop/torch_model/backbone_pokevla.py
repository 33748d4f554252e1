"""The vision towers, the projector and the language model, with the parameter names of timm, Prismatic and Qwen2."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import nn

Rotary = tuple[Tensor, Tensor]


class SelfAttention(nn.Module):
    """Multi-head self-attention with a fused projection to queries, keys and values."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, width: int):
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale_factor


class ViTBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, tower: SimpleNamespace):
        super().__init__()
        self.norm1 = nn.LayerNorm(tower.width, eps=1e-6)
        self.attn = SelfAttention(tower.width, tower.num_heads)
        self.ls1 = LayerScale(tower.width) if tower.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(tower.width, eps=1e-6)
        self.mlp = MLP(tower.width, tower.mlp_dim, tower.width)
        self.ls2 = LayerScale(tower.width) if tower.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Patches to vectors."""

    def __init__(self, width: int, patch_size: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Tower(nn.Module):
    """A vision transformer up to its feature block: raw patch features, no final norm, no prefix tokens."""

    def __init__(self, tower: SimpleNamespace, vision: SimpleNamespace):
        super().__init__()
        self.mean, self.std = tower.image_mean, tower.image_std
        self.num_prefix = int(tower.class_token) + tower.num_registers
        num_patches = (vision.image_size // vision.patch_size) ** 2
        self.patch_embed = PatchEmbed(tower.width, vision.patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, num_patches, tower.width))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, tower.width)) if tower.class_token else None
        registers = torch.zeros(1, tower.num_registers, tower.width)
        self.reg_token = nn.Parameter(registers) if tower.num_registers else None
        self.blocks = nn.ModuleList(ViTBlock(tower) for _ in range(tower.feature_block % tower.depth + 1))

    def forward(self, images: Tensor) -> Tensor:
        """Features [n, p, d] of images uint8 [n, h, w, 3]."""
        mean, std = (torch.tensor(x, device=images.device, dtype=torch.float32) for x in (self.mean, self.std))
        pixels = ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)
        x = self.patch_embed(pixels.to(self.pos_embed.dtype)) + self.pos_embed
        prefix = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        x = torch.cat([*prefix, x], dim=1)
        for block in self.blocks:
            x = block(x)
        return x[:, self.num_prefix :]


class VisionBackbone(nn.Module):
    """DINOv2 (``featurizer``) and SigLIP (``fused_featurizer``) side by side."""

    def __init__(self, vision: SimpleNamespace):
        super().__init__()
        self.featurizer = Tower(vision.dinov2, vision)
        self.fused_featurizer = Tower(vision.siglip, vision)


class Projector(nn.Module):
    """Prismatic's fused MLP."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, outputs)
        self.fc3 = nn.Linear(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(x)))))


class RMSNorm(nn.Module):
    """Root-mean-square normalisation in float32."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return (y * self.weight.float()).to(x.dtype)


def half_split_rotary(positions: Tensor, head_dim: int, theta: float) -> Rotary:
    """Cosines and sines, float32 [..., s, k/2]."""
    powers = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions.float()[..., None] * theta**-powers
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotates ``x`` [b, h, s, k], dimension i with dimension i + k/2."""
    cos, sin = rotary
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


class LanguageAttention(nn.Module):
    """Grouped-query causal self-attention."""

    def __init__(self, language: SimpleNamespace):
        super().__init__()
        width, self.head_dim = language.width, language.head_dim
        queries, keys = language.num_heads * self.head_dim, language.num_kv_heads * self.head_dim
        self.groups = language.num_heads // language.num_kv_heads
        self.q_proj = nn.Linear(width, queries)
        self.k_proj = nn.Linear(width, keys)
        self.v_proj = nn.Linear(width, keys)
        self.o_proj = nn.Linear(queries, width, bias=False)

    def forward(self, x: Tensor, rotary: Rotary, mask: Tensor | None) -> Tensor:
        heads = (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        q, k, v = (t.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for t in heads)
        q, k = rotate(q, rotary), rotate(k, rotary)
        k, v = (t.repeat_interleave(self.groups, dim=1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """Qwen2's MLP."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LanguageLayer(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, language: SimpleNamespace):
        super().__init__()
        self.input_layernorm = RMSNorm(language.width, language.norm_eps)
        self.self_attn = LanguageAttention(language)
        self.post_attention_layernorm = RMSNorm(language.width, language.norm_eps)
        self.mlp = SwiGLU(language.width, language.mlp_dim)

    def forward(self, x: Tensor, rotary: Rotary, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class LanguageModel(nn.Module):
    """Qwen2's decoder: embeddings in, the hidden states after every layer out; the last ones are normed."""

    def __init__(self, language: SimpleNamespace):
        super().__init__()
        self.config = language
        self.embed_tokens = nn.Embedding(language.vocab_size, language.width)
        self.layers = nn.ModuleList(LanguageLayer(language) for _ in range(language.num_layers))
        self.norm = RMSNorm(language.width, language.norm_eps)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> list[Tensor]:
        cos, sin = half_split_rotary(positions, self.config.head_dim, self.config.rope_theta)
        rotary, states = (cos[:, None], sin[:, None]), []
        for layer in self.layers:
            x = layer(x, rotary, mask)
            states.append(x)
        return [*states[:-1], self.norm(x)]
