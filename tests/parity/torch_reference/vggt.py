"""VGGT's aggregator and Spatial Forcing's targets in PyTorch, written from their description, with upstream's names.

``wrong`` names one deliberate mistake, for tests that must be able to fail.
"""

import math

import torch
from torch import nn
from torch.nn import functional

MISTAKES = ("axes_swapped", "no_offset", "key_value_swapped", "first_view_slot", "global_first", "joined_swapped")


class Mlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(functional.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * self.gamma


def turn(x, position, base=100.0):
    """Rotates the pairs (i, i + n/2) of the last axis by position * base^(-2i/n)."""
    n = x.shape[-1]
    angle = position[:, None] * torch.tensor([base ** (-2 * i / n) for i in range(n // 2)])
    z = torch.complex(x[..., : n // 2], x[..., n // 2 :]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], dim=-1)


class Attention(nn.Module):
    def __init__(self, width, heads, *, qk_norm, wrong=None):
        super().__init__()
        self.heads, self.wrong = heads, wrong
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        if qk_norm:
            self.q_norm = nn.LayerNorm(width // heads, eps=1e-5)
            self.k_norm = nn.LayerNorm(width // heads, eps=1e-5)

    def forward(self, x, places=None):
        b, n, width = x.shape
        q, k, v = (
            y.reshape(b, n, self.heads, width // self.heads).transpose(1, 2) for y in self.qkv(x).split(width, dim=-1)
        )
        if self.wrong == "key_value_swapped":
            k, v = v, k
        if places is not None:
            q, k = self.q_norm(q), self.k_norm(k)
            half = q.shape[-1] // 2
            first, second = places.T.flip(0) if self.wrong == "axes_swapped" else places.T
            q, k = (torch.cat([turn(y[..., :half], first), turn(y[..., half:], second)], dim=-1) for y in (q, k))
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        self.spread = logits.std(-1).mean().item()
        return self.proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(b, n, width))


class Block(nn.Module):
    def __init__(self, width, heads, hidden, *, qk_norm, eps, wrong=None):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, qk_norm=qk_norm, wrong=wrong)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, hidden)
        self.ls2 = LayerScale(width)

    def forward(self, x, places=None):
        x = x + self.ls1(self.attn(self.norm1(x), places))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchProjection(nn.Module):
    def __init__(self, width, patch):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class DinoVisionTransformer(nn.Module):
    """DINOv2 with registers at the size it was trained at: no interpolation of positions."""

    def __init__(self, *, width, heads, hidden, depth, grid, patch, registers):
        super().__init__()
        self.skip = 1 + registers
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, width))
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.patch_embed = PatchProjection(width, patch)
        self.blocks = nn.ModuleList([Block(width, heads, hidden, qk_norm=False, eps=1e-6) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, images):
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        x = torch.cat([x[:, :1], self.register_tokens.expand(len(x), -1, -1), x[:, 1:]], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, self.skip :]


def within(block, x, places):
    """``block`` over the tokens of each view."""
    return block(x.flatten(0, 1), places).unflatten(0, x.shape[:2])


def across(block, x, places):
    """``block`` over the tokens of all views."""
    return block(x.flatten(1, 2), places.repeat(x.shape[1], 1)).unflatten(1, x.shape[1:3])


class Aggregator(nn.Module):
    def __init__(self, *, width, heads, hidden, depth, embed_depth, image_size, patch, registers, wrong=None):
        super().__init__()
        self.wrong, self.grid = wrong, image_size // patch
        self.patch_start = 1 + registers
        self.patch_embed = DinoVisionTransformer(
            width=width,
            heads=heads,
            hidden=hidden,
            depth=embed_depth,
            grid=self.grid,
            patch=patch,
            registers=registers,
        )
        self.frame_blocks, self.global_blocks = (
            nn.ModuleList([Block(width, heads, hidden, qk_norm=True, eps=1e-5, wrong=wrong) for _ in range(depth)])
            for _ in range(2)
        )
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, width))
        self.register_token = nn.Parameter(torch.zeros(1, 2, registers, width))

    @classmethod
    def of(cls, config, *, wrong=None):
        """The aggregator with the sizes of a ``VggtConfig``."""
        return cls(
            width=config.width,
            heads=config.num_heads,
            hidden=config.mlp_dim,
            depth=config.depth,
            embed_depth=config.embed_depth,
            image_size=config.image_size,
            patch=config.patch_size,
            registers=config.num_registers,
            wrong=wrong,
        )

    def forward(self, images):
        """Images [b, s, 3, h, w] in [0, 1] to a list of [b, s, tokens, 2 * width], one per pair of blocks."""
        b, s = images.shape[:2]
        mean, std = (torch.tensor(x).reshape(3, 1, 1) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        patches = self.patch_embed(((images - mean) / std).flatten(0, 1)).unflatten(0, (b, s))
        views = []
        for i in range(s):
            slot = 0 if i == 0 or self.wrong == "first_view_slot" else 1
            special = torch.cat([self.camera_token[:, slot], self.register_token[:, slot]], dim=1).expand(b, -1, -1)
            views.append(torch.cat([special, patches[:, i]], dim=1))
        x = torch.stack(views, dim=1)
        offset = 0 if self.wrong == "no_offset" else 1
        places = torch.zeros(x.shape[2], 2)
        for row in range(self.grid):
            for column in range(self.grid):
                places[self.patch_start + row * self.grid + column] = torch.tensor([row + offset, column + offset])
        outputs = []
        for frame_block, global_block in zip(self.frame_blocks, self.global_blocks, strict=True):
            if self.wrong == "global_first":
                a = across(global_block, x, places)
                x = within(frame_block, a, places)
            else:
                a = within(frame_block, x, places)
                x = across(global_block, a, places)
            outputs.append(torch.cat([x, a] if self.wrong == "joined_swapped" else [a, x], dim=-1))
        return outputs


def sine_cosine(values, dimensions, base=100.0):
    angles = values[:, None] * torch.tensor([base ** (-i / (dimensions / 2)) for i in range(dimensions // 2)])
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def position_embedding(grid, channels):
    """[channels, grid, grid]: sines and cosines of the patches' u and v, which the view's diagonal normalises."""
    span = (1 / math.sqrt(2)) * (grid - 1) / grid
    line = torch.linspace(-span, span, grid)
    v, u = torch.meshgrid(line, line, indexing="ij")
    flat = torch.cat([sine_cosine(u.flatten(), channels // 2), sine_cosine(v.flatten(), channels // 2)], dim=-1)
    return flat.T.reshape(channels, grid, grid)


def teacher_features(aggregator, images, *, image_size, grid, layer=-1, add_positions=True):
    """Targets of Spatial Forcing from uint8 images [b, s, h, w, 3]: [b, s * grid * grid, 2 * width]."""
    b, s = images.shape[:2]
    x = images.permute(0, 1, 4, 2, 3).flatten(0, 1).float() / 255
    x = functional.interpolate(x, (image_size, image_size), mode="bicubic", align_corners=False)
    tokens = aggregator(x.unflatten(0, (b, s)))[layer][:, :, aggregator.patch_start :]
    side = aggregator.grid
    maps = tokens.flatten(0, 1).transpose(1, 2).unflatten(2, (side, side))
    if add_positions:
        maps = maps + 0.1 * position_embedding(side, maps.shape[1])
    maps = functional.interpolate(maps, (grid, grid), mode="bilinear", align_corners=True)
    return maps.flatten(2).transpose(1, 2).reshape(b, s * grid * grid, -1)


class AlignProjector(nn.Module):
    def __init__(self, width, outputs):
        super().__init__()
        self.vlm_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, outputs)
        self.fc2 = nn.Linear(outputs, outputs)

    def forward(self, x):
        return self.fc2(functional.gelu(self.fc1(self.vlm_norm(x))))
