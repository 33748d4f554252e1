"""The parts that only training's losses need, built where they were exported: masks, geometry alignment, keypoints.

Parameter names are those of segment-anything (image encoder, prompt encoder, mask decoder), LISA (``text_hidden_fcs``)
and Spatial Forcing (``align_projector``).
"""

import math
from types import SimpleNamespace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import nn

from .backbone_pokevla import MLP

NUM_MASK_TOKENS = 4
SAM_MEAN = (123.675, 116.28, 103.53)
SAM_STD = (58.395, 57.12, 57.375)


class SamSize(NamedTuple):
    """A SAM image encoder; every ``period``-th block sees the whole map, the others windows of it."""

    width: int
    depth: int
    num_heads: int
    period: int
    window: int = 14
    patch_size: int = 16


SAM_SIZES = {"vit_b": SamSize(768, 12, 12, 3), "vit_h": SamSize(1280, 32, 16, 8)}


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the channels of a map [b, c, h, w]."""

    def __init__(self, width: int):
        super().__init__(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SmallEncoder(nn.Module):
    """Two strided convolutions down to the feature grid, then a residual 3 x 3 one."""

    def __init__(self, network: SimpleNamespace):
        super().__init__()
        seg, dim = network.segmentation, network.segmentation.decoder_dim
        stride = network.vision.image_size // seg.feature_grid // 2
        self.conv1 = nn.Conv2d(3, dim // 2, stride, stride)
        self.norm1 = LayerNorm2d(dim // 2)
        self.conv2 = nn.Conv2d(dim // 2, dim, 2, 2)
        self.norm2 = LayerNorm2d(dim)
        self.conv3 = nn.Conv2d(dim, dim, 3, padding=1)
        self.norm3 = LayerNorm2d(dim)

    def forward(self, images: Tensor) -> Tensor:
        """Features [n, c, g, g] of images uint8 [n, h, w, 3]."""
        x = images.permute(0, 3, 1, 2).to(self.conv1.weight.dtype) / 127.5 - 1
        x = F.gelu(self.norm1(self.conv1(x)))
        x = self.norm2(self.conv2(x))
        return self.norm3(x + self.conv3(F.gelu(x)))


class SamAttention(nn.Module):
    """Self-attention over a square map with decomposed relative positions."""

    def __init__(self, width: int, num_heads: int, side: int):
        super().__init__()
        self.num_heads, self.side = num_heads, side
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, width // num_heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, width // num_heads))

    def forward(self, x: Tensor) -> Tensor:
        side = self.side
        q, k, v = self.qkv(x).flatten(1, 2).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        index = torch.arange(side, device=x.device)
        offsets = index[:, None] - index[None, :] + side - 1
        grid = q.unflatten(2, (side, side))
        rows = torch.einsum("bhyxk,yzk->bhyxz", grid, self.rel_pos_h[offsets])
        columns = torch.einsum("bhyxk,xzk->bhyxz", grid, self.rel_pos_w[offsets])
        bias = (rows[..., :, None] + columns[..., None, :]).flatten(4).flatten(2, 3)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(y.transpose(1, 2).flatten(2)).view(x.shape)


class SamMLP(nn.Module):
    """Linear, activation, Linear."""

    def __init__(self, width: int, hidden: int, activation: type[nn.Module]):
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(self.act(self.lin1(x)))


class SamBlock(nn.Module):
    """A pre-norm block over the whole map, or over windows of it (``window`` 0: the whole)."""

    def __init__(self, size: SamSize, grid: int, window: int):
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(size.width, eps=1e-6)
        self.attn = SamAttention(size.width, size.num_heads, window or grid)
        self.norm2 = nn.LayerNorm(size.width, eps=1e-6)
        self.mlp = SamMLP(size.width, 4 * size.width, nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + (self._in_windows(y) if self.window else self.attn(y))
        return x + self.mlp(self.norm2(x))

    def _in_windows(self, x: Tensor) -> Tensor:
        (b, grid, _, d), w = x.shape, self.window
        pad = -grid % w
        count = (grid + pad) // w
        x = F.pad(x, (0, 0, 0, pad, 0, pad)).view(b, count, w, count, w, d).transpose(2, 3)
        x = self.attn(x.reshape(-1, w, w, d)).view(b, count, count, w, w, d).transpose(2, 3)
        return x.reshape(b, count * w, count * w, d)[:, :grid, :grid]


class PatchEmbed(nn.Module):
    """Patches to vectors, channels last."""

    def __init__(self, size: SamSize):
        super().__init__()
        self.proj = nn.Conv2d(3, size.width, size.patch_size, size.patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).permute(0, 2, 3, 1)


class SamEncoder(nn.Module):
    """SAM's ViT and neck on the network's images, scaled up to the size whose patches make the feature grid."""

    def __init__(self, network: SimpleNamespace):
        super().__init__()
        seg = network.segmentation
        size, grid = SAM_SIZES[seg.sam_variant], seg.feature_grid
        self.image_size = grid * size.patch_size
        self.patch_embed = PatchEmbed(size)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, size.width))
        windows = [size.window if (index + 1) % size.period else 0 for index in range(size.depth)]
        self.blocks = nn.ModuleList(SamBlock(size, grid, window) for window in windows)
        self.neck = nn.Sequential(
            nn.Conv2d(size.width, seg.decoder_dim, 1, bias=False),
            LayerNorm2d(seg.decoder_dim),
            nn.Conv2d(seg.decoder_dim, seg.decoder_dim, 3, padding=1, bias=False),
            LayerNorm2d(seg.decoder_dim),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Features [n, c, g, g] of images uint8 [n, h, w, 3]."""
        x = images.permute(0, 3, 1, 2).float()
        x = F.interpolate(x, (self.image_size, self.image_size), mode="bilinear", antialias=True)
        mean, std = (x.new_tensor(values)[:, None, None] for values in (SAM_MEAN, SAM_STD))
        x = self.patch_embed(((x - mean) / std).to(self.pos_embed.dtype)) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.neck(x.permute(0, 3, 1, 2))


class RandomPositions(nn.Module):
    """Random Fourier features of the cell centres."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.zeros(2, dim // 2))

    def forward(self, grid: int) -> Tensor:
        """Features [g * g, d], row-major, float32."""
        matrix = self.positional_encoding_gaussian_matrix.float()
        centers = (torch.arange(grid, device=matrix.device, dtype=torch.float32) + 0.5) / grid
        y, x = torch.meshgrid(centers, centers, indexing="ij")
        angles = 2 * math.pi * (2 * torch.stack([x, y], dim=-1).flatten(0, 1) - 1) @ matrix
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class PromptEncoder(nn.Module):
    """The dense prompt: a learned "no mask" embedding, or a mask of logits scaled down to the grid."""

    def __init__(self, seg: SimpleNamespace, *, mask_prompt: bool):
        super().__init__()
        dim = seg.decoder_dim
        self.pe_layer = RandomPositions(dim)
        if mask_prompt:
            self.mask_downscaling = nn.Sequential(
                nn.Conv2d(1, 4, 2, 2), LayerNorm2d(4), nn.GELU(),
                nn.Conv2d(4, 16, 2, 2), LayerNorm2d(16), nn.GELU(),
                nn.Conv2d(16, dim, 1),
            )  # fmt: skip
        else:
            self.no_mask_embed = nn.Embedding(1, dim)

    def forward(self, features: Tensor, logits: Tensor | None) -> Tensor:
        """``features`` [n, c, g, g] plus the dense prompt."""
        if logits is None:
            return features + self.no_mask_embed.weight[0][:, None, None]
        return features + self.mask_downscaling(logits[:, None].to(features.dtype))


class Attention(nn.Module):
    """Multi-head attention whose inner width may be smaller than the model's."""

    def __init__(self, dim: int, inner: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = (self.q_proj(q), self.k_proj(k), self.v_proj(v))
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in heads)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TwoWayLayer(nn.Module):
    """Tokens attend to themselves, then to the image; an MLP; the image attends to the tokens."""

    def __init__(self, seg: SimpleNamespace, *, first: bool):
        super().__init__()
        dim, heads = seg.decoder_dim, seg.decoder_heads
        self.first = first
        self.self_attn = Attention(dim, dim, heads)
        self.cross_attn_token_to_image = Attention(dim, dim // 2, heads)
        self.cross_attn_image_to_token = Attention(dim, dim // 2, heads)
        self.mlp = SamMLP(dim, seg.decoder_mlp_dim, nn.ReLU)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(dim, eps=1e-5) for _ in range(4))

    def forward(self, tokens: Tensor, image: Tensor, prompt: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            tokens = tokens + self.self_attn(tokens + prompt, tokens + prompt, tokens)
        tokens = self.norm1(tokens)
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + prompt, image + position, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token(image + position, tokens + prompt, tokens))
        return tokens, image


class TwoWayTransformer(nn.Module):
    """Two-way layers, then a last look of the tokens at the image."""

    def __init__(self, seg: SimpleNamespace):
        super().__init__()
        dim = seg.decoder_dim
        self.layers = nn.ModuleList(TwoWayLayer(seg, first=index == 0) for index in range(seg.decoder_depth))
        self.final_attn_token_to_image = Attention(dim, dim // 2, seg.decoder_heads)
        self.norm_final_attn = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, prompt: Tensor, image: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        tokens = prompt
        for layer in self.layers:
            tokens, image = layer(tokens, image, prompt, position)
        tokens = tokens + self.final_attn_token_to_image(tokens + prompt, image + position, image)
        return self.norm_final_attn(tokens), image


class ThreeLayers(nn.Module):
    """SAM's small ReLU heads."""

    def __init__(self, dim: int, outputs: int):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, outputs)])

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.layers
        return third(F.relu(second(F.relu(first(x)))))


class MaskDecoder(nn.Module):
    """Image features and one prompt embedding to mask logits four times as fine as the features."""

    def __init__(self, seg: SimpleNamespace):
        super().__init__()
        dim = seg.decoder_dim
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(NUM_MASK_TOKENS, dim)
        self.transformer = TwoWayTransformer(seg)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, 2, 2), LayerNorm2d(dim // 4), nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, 2, 2), nn.GELU(),
        )  # fmt: skip
        self.output_hypernetworks_mlps = nn.ModuleList(ThreeLayers(dim, dim // 8) for _ in range(NUM_MASK_TOKENS))
        self.iou_prediction_head = ThreeLayers(dim, NUM_MASK_TOKENS)

    def forward(self, image: Tensor, position: Tensor, embedding: Tensor) -> Tensor:
        """Logits of the first mask [n, m, m], float32."""
        grid = image.shape[2:]
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(len(image), -1, -1)
        tokens = torch.cat([own, embedding[:, None]], dim=1)
        tokens, flat = self.transformer(tokens, image.flatten(2).transpose(1, 2), position.to(image.dtype))
        fine = self.output_upscaling(flat.transpose(1, 2).unflatten(2, grid))
        weights = self.output_hypernetworks_mlps[0](tokens[:, 1])
        return torch.einsum("nchw,nc->nhw", fine.float(), weights.float())


class MaskStage(nn.Module):
    """A prompt encoder and a mask decoder: the coarse stage, or the fine one, prompted with the coarse logits."""

    def __init__(self, seg: SimpleNamespace, *, mask_prompt: bool):
        super().__init__()
        self.prompt_encoder = PromptEncoder(seg, mask_prompt=mask_prompt)
        self.mask_decoder = MaskDecoder(seg)

    def forward(self, features: Tensor, embedding: Tensor, logits: Tensor | None = None) -> Tensor:
        position = self.prompt_encoder.pe_layer(features.shape[-1])
        return self.mask_decoder(self.prompt_encoder(features, logits), position, embedding)


class AlignProjector(nn.Module):
    """Vision states into the geometry teacher's feature space."""

    def __init__(self, network: SimpleNamespace):
        super().__init__()
        width, dim = network.language.width, network.geometry.feature_dim
        self.vlm_norm = nn.LayerNorm(width, eps=1e-5)
        self.fc1 = nn.Linear(width, dim)
        self.fc2 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.vlm_norm(x))))


class KeypointHead(MLP):
    """Positions of target and goal from the ``<SEG>`` state."""

    def __init__(self, network: SimpleNamespace):
        width = network.language.width
        super().__init__(width, width, 3 * network.keypoint.num_keypoints)


def seg_projection(network: SimpleNamespace) -> nn.ModuleList:
    """The ``<SEG>`` state into the mask decoder's width."""
    width, dim = network.language.width, network.segmentation.decoder_dim
    return nn.ModuleList([nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim))])


def image_encoder(network: SimpleNamespace) -> nn.Module:
    """The mask branch's own view of the images."""
    return (SamEncoder if network.segmentation.image_encoder == "sam" else SmallEncoder)(network)
