"""SAM's image encoder, prompt encoder and mask decoder in PyTorch, written from their description, with SAM's names."""

import math

import torch
from torch import nn
from torch.nn import functional


class LayerNorm2d(nn.Module):
    """Over the channels of [b, c, h, w]."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        x = x - x.mean(1, keepdim=True)
        x = x / (x.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class EncoderAttention(nn.Module):
    def __init__(self, width, heads, side):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, width // heads))

    def forward(self, x):
        b, h, w, width = x.shape
        q, k, v = self.qkv(x).reshape(b, h * w, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        for i in range(h * w):  # query at row i // w, column i % w
            for j in range(h * w):
                down, right = i // w - j // w + h - 1, i % w - j % w + w - 1
                logits[:, :, i, j] += (q[:, :, i] * (self.rel_pos_h[down] + self.rel_pos_w[right])).sum(-1)
        self.spread = logits.std(-1).mean().item()
        y = (logits.softmax(-1) @ v).transpose(1, 2).reshape(b, h, w, width)
        return self.proj(y)


class Mlp(nn.Module):
    def __init__(self, width, hidden, activation):
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)
        self.activation = activation

    def forward(self, x):
        return self.lin2(self.activation(self.lin1(x)))


class EncoderBlock(nn.Module):
    def __init__(self, width, heads, side, window):
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = EncoderAttention(width, heads, window or side)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width, functional.gelu)

    def forward(self, x):
        y = self.norm1(x)
        if self.window:
            side, window = y.shape[1], self.window
            whole = math.ceil(side / window) * window
            padded = functional.pad(y, (0, 0, 0, whole - side, 0, whole - side))
            y = torch.zeros_like(padded)
            for top in range(0, whole, window):
                for left in range(0, whole, window):
                    here = (slice(None), slice(top, top + window), slice(left, left + window))
                    y[here] = self.attn(padded[here])
            y = y[:, :side, :side]
        else:
            y = self.attn(y)
        x = x + y
        return x + self.mlp(self.norm2(x))


class PatchProjection(nn.Module):
    def __init__(self, width, patch):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, x):
        return self.proj(x).permute(0, 2, 3, 1)


class ImageEncoder(nn.Module):
    """Normalised images [b, 3, h, w] to features [b, outputs, grid, grid]."""

    def __init__(self, *, width, heads, depth, global_blocks, window, grid, patch, outputs):
        super().__init__()
        self.patch_embed = PatchProjection(width, patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, width))
        windows = [0 if i in global_blocks else window for i in range(depth)]
        self.blocks = nn.ModuleList([EncoderBlock(width, heads, grid, w) for w in windows])
        self.neck = nn.Sequential(
            nn.Conv2d(width, outputs, 1, bias=False),
            LayerNorm2d(outputs),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            LayerNorm2d(outputs),
        )

    def forward(self, images):
        x = self.patch_embed(images) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.neck(x.permute(0, 3, 1, 2))


class PositionEncoding(nn.Module):
    def __init__(self, half):
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.zeros(2, half))

    def forward(self, grid):
        """[2 * half, grid, grid]."""
        line = (torch.arange(grid) + 0.5) / grid
        places = torch.stack([line[None, :].expand(grid, grid), line[:, None].expand(grid, grid)], dim=-1)
        angles = 2 * math.pi * ((2 * places - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat([angles.sin(), angles.cos()], dim=-1).permute(2, 0, 1)


class PromptEncoder(nn.Module):
    """The dense prompt alone: points and boxes are never given."""

    def __init__(self, dim, grid, *, mask_prompt):
        super().__init__()
        self.grid = grid
        self.pe_layer = PositionEncoding(dim // 2)
        if mask_prompt:
            self.mask_downscaling = nn.Sequential(
                nn.Conv2d(1, 4, 2, stride=2),
                LayerNorm2d(4),
                nn.GELU(),
                nn.Conv2d(4, 16, 2, stride=2),
                LayerNorm2d(16),
                nn.GELU(),
                nn.Conv2d(16, dim, 1),
            )
        else:
            self.no_mask_embed = nn.Embedding(1, dim)

    def forward(self, logits=None):
        if logits is None:
            return self.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(-1, -1, self.grid, self.grid)
        return self.mask_downscaling(logits[:, None])


class Attention(nn.Module):
    def __init__(self, dim, inner, heads):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, q, k, v):
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        return self.out_proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))


class TwoWayBlock(nn.Module):
    def __init__(self, dim, heads, hidden, *, first):
        super().__init__()
        self.first = first
        self.self_attn = Attention(dim, dim, heads)
        self.cross_attn_token_to_image = Attention(dim, dim // 2, heads)
        self.cross_attn_image_to_token = Attention(dim, dim // 2, heads)
        self.mlp = Mlp(dim, hidden, functional.relu)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(dim) for _ in range(4))

    def forward(self, tokens, image, token_place, image_place):
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + token_place
            tokens = tokens + self.self_attn(placed, placed, tokens)
        tokens = self.norm1(tokens)
        tokens = tokens + self.cross_attn_token_to_image(tokens + token_place, image + image_place, image)
        tokens = self.norm2(tokens)
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = image + self.cross_attn_image_to_token(image + image_place, tokens + token_place, tokens)
        return tokens, self.norm4(image)


class TwoWayTransformer(nn.Module):
    def __init__(self, dim, heads, hidden, depth):
        super().__init__()
        self.layers = nn.ModuleList([TwoWayBlock(dim, heads, hidden, first=i == 0) for i in range(depth)])
        self.final_attn_token_to_image = Attention(dim, dim // 2, heads)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, tokens, image, image_place):
        prompt = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, prompt, image_place)
        tokens = tokens + self.final_attn_token_to_image(tokens + prompt, image + image_place, image)
        return self.norm_final_attn(tokens), image


class Head(nn.Module):
    def __init__(self, dim, outputs):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, outputs)])

    def forward(self, x):
        return self.layers[2](self.layers[1](self.layers[0](x).relu()).relu())


class MaskDecoder(nn.Module):
    """The first mask's logits [b, 4 * grid, 4 * grid] from one prompt embedding per image."""

    def __init__(self, dim, heads, hidden, depth, num_masks=4):
        super().__init__()
        self.transformer = TwoWayTransformer(dim, heads, hidden, depth)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(num_masks, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, 2, stride=2),
            LayerNorm2d(dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, 2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList([Head(dim, dim // 8) for _ in range(num_masks)])
        self.iou_prediction_head = Head(dim, num_masks)

    def forward(self, features, place, dense, embedding):
        b, _, h, w = features.shape
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(b, -1, -1), embedding[:, None]], dim=1)
        image = (features + dense).flatten(2).transpose(1, 2)
        tokens, image = self.transformer(tokens, image, place.flatten(1).T)
        fine = self.output_upscaling(image.transpose(1, 2).reshape(b, -1, h, w))
        weights = self.output_hypernetworks_mlps[0](tokens[:, 1])
        return (fine * weights[:, :, None, None]).sum(1)
