"""VLA-Adapter's action head and PokeVLA's, in PyTorch, written from their description.

Every way in which the two differ, and every quirk of the released heads, is an argument. Names are VLA-Adapter's, so
that a released state dict would load.
"""

import math

import torch
from torch import nn


def inverse_frequencies(size):
    return 10_000.0 ** -(torch.arange(size // 2) * 2 / size)


def turning_matrices(length, size, *, released, dtype=torch.float32, exact=False):
    """One [size, size] matrix per position that turns queries and keys.

    The released heads mix neighbours (2i, 2i + 1) with angles laid out for halves (i, i + size/2). Cast to bfloat16 as
    a whole, they count positions and multiply frequencies in bfloat16; ``exact`` leaves that out.
    """
    if released and not exact:
        angles = torch.arange(length, dtype=dtype)[:, None] * inverse_frequencies(size).to(dtype)
    else:
        angles = torch.arange(length)[:, None] * inverse_frequencies(size)
    cos, sin = (torch.cat([f(angles)] * 2, dim=1).to(dtype) for f in (torch.cos, torch.sin))
    matrices = torch.zeros(length, size, size, dtype=dtype)
    for row in range(size):
        if released:
            other = row + 1 if row % 2 == 0 else row - 1
            sign = -1 if row % 2 == 0 else 1
        else:
            other = (row + size // 2) % size
            sign = -1 if row < size // 2 else 1
        matrices[:, row, row] = cos[:, row]
        matrices[:, row, other] = sign * sin[:, row]
    return matrices


class Block(nn.Module):
    """Attention over latents, query states (with proprio), vision states and optionally <SEG>, then the FFN."""

    def __init__(self, width, heads, *, pro, seg, gated, rotary, outputs, context_width=None, exact=False):
        super().__init__()
        self.heads, self.pro, self.rotary, self.outputs, self.exact = heads, pro, rotary, outputs, exact
        self.sources = ["self", "adapter", "task"] + (["seg"] if seg else [])
        self.gated = gated
        context_width = context_width or width
        self.q_proj = nn.Linear(width, width)
        if pro:
            for source in self.sources:
                inputs = width if source == "self" else context_width
                setattr(self, f"k_{source}", nn.Linear(inputs, width))
                setattr(self, f"v_{source}", nn.Linear(inputs, width))
        else:
            self.k_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.o_proj = nn.Linear(width * (len(self.sources) if outputs else 1), width)
        self.gating_factor = nn.Parameter(torch.zeros(1))
        if "seg" in gated:
            self.gating_factor_seg = nn.Parameter(torch.zeros(1))
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def split(self, x):
        return x.unflatten(-1, (self.heads, -1))

    def turned(self, x):
        if not self.pro:
            return x
        matrices = turning_matrices(
            x.shape[1], x.shape[-1], released=self.rotary == "vla_adapter", dtype=x.dtype, exact=self.exact
        )
        return torch.einsum("zij,bzhj->bzhi", matrices, x)

    def gain(self, source):
        if source not in self.gated:
            return 1.0
        return torch.tanh(self.gating_factor_seg if source == "seg" else self.gating_factor)

    def forward(self, x, context):
        context = {"self": x, **context}
        queries = self.turned(self.split(self.q_proj(x)))
        logits, values = [], []
        for source in self.sources:
            k_proj = getattr(self, f"k_{source}") if self.pro else self.k_proj
            v_proj = getattr(self, f"v_{source}") if self.pro else self.v_proj
            keys = self.turned(self.split(k_proj(context[source])))
            logits.append(
                torch.einsum("bthk,bzhk->bhtz", queries, keys) / math.sqrt(keys.shape[-1]) * self.gain(source)
            )
            values.append(self.split(v_proj(context[source])))
        self.weights = torch.cat(logits, -1).softmax(-1)
        if self.outputs:
            parts = [torch.einsum("bhtz,bzhk->bthk", a.softmax(-1), v) for a, v in zip(logits, values, strict=True)]
            read = torch.cat([part.flatten(-2) for part in parts], -1)
        else:
            read = torch.einsum("bhtz,bzhk->bthk", self.weights, torch.cat(values, 1)).flatten(-2)
        return self.ffn(self.o_proj(read) + x)


class Head(nn.Module):
    """Context and projected proprio to a chunk of normalised actions."""

    def __init__(
        self,
        *,
        width,
        heads,
        blocks,
        actions=7,
        horizon=8,
        context_width=None,
        pro=True,
        seg=False,
        gated=("task",),
        rotary="vla_adapter",
        latents="projected",
        outputs=False,
        exact=False,
    ):
        super().__init__()
        options = dict(pro=pro, seg=seg, gated=gated, rotary=rotary, outputs=outputs, exact=exact)
        self.mlp_resnet_blocks = nn.ModuleList(
            Block(width, heads, context_width=context_width, **options) for _ in range(blocks)
        )
        self.horizon = horizon
        if latents == "projected":
            inputs = actions * (context_width or width)
            self.layer_norm1, self.fc1 = nn.LayerNorm(inputs), nn.Linear(inputs, width)
        else:
            self.latents = nn.Parameter(torch.zeros(horizon, width))
        self.layer_norm2, self.fc2 = nn.LayerNorm(width), nn.Linear(width, actions)

    def forward(self, queries, proprio, vision, seg=None, noise=None):
        """``queries``, ``vision`` and ``seg`` carry a leading axis of blocks; ``noise`` [horizon, inputs] or None."""
        batch = proprio.shape[0]
        if hasattr(self, "latents"):
            x = self.latents.expand(batch, -1, -1)
        else:
            start = torch.zeros(batch, self.horizon, self.fc1.in_features, dtype=self.fc1.weight.dtype)
            x = self.fc1(self.layer_norm1(start if noise is None else start + noise)).relu()
        for i, block in enumerate(self.mlp_resnet_blocks):
            context = {"adapter": torch.cat([queries[i], proprio[:, None]], 1), "task": vision[i]}
            if seg is not None:
                context["seg"] = seg[i][:, None]
            x = block(x, context)
        return self.fc2(self.layer_norm2(x))


class ProprioProjector(nn.Module):
    """Robot state into the language model's width."""

    def __init__(self, inputs, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(inputs, width), nn.Linear(width, width)

    def forward(self, x):
        return self.fc2(nn.functional.gelu(self.fc1(x)))
