"""The action head: latents attend to themselves and to what the language model made of the scene.

Parameter names are those of VLA-Adapter, original and Pro; ``latents``, ``k_seg``, ``v_seg`` and ``gating_factor_seg``
are PokeVLA's own.
"""

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import nn

from .backbone_pokevla import MLP
from .backbone_pokevla import Rotary
from .backbone_pokevla import half_split_rotary
from .backbone_pokevla import rotate

ROPE_THETA = 10_000.0
SUFFIXES = {"latents": "self", "query": "adapter", "vision": "task", "seg": "seg"}
GATES = {"vision": {"vision": ""}, "vision_and_seg": {"vision": "", "seg": "_seg"}, "none": {}}

Context = dict[str, Tensor]
"""States [b, z, d] by source: ``query`` (queries, then the robot's state), ``vision`` and, if it is read, ``seg``."""


def vla_adapter_rotary(positions: Tensor, head_dim: int, dtype: torch.dtype) -> Rotary:
    """Cosines and sines [z, k] as the released VLA-Adapter-Pro weights know them.

    Frequencies, positions and angles are rounded to ``dtype``: in bfloat16, positions above 256 fall together.
    """

    def rounded(x: Tensor) -> Tensor:
        return x.to(dtype).float()

    powers = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = rounded(rounded(positions.float())[:, None] * rounded(1.0 / ROPE_THETA**powers)).repeat(1, 2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def vla_adapter_turn(x: Tensor, rotary: Rotary) -> Tensor:
    """``x`` [b, h, z, k] times cosines plus its swapped neighbours times sines; the angles fit other pairs."""
    cos, sin = rotary
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos + torch.stack([-odd, even], dim=-1).flatten(-2) * sin


class Block(nn.Module):
    """Attention to all sources, then ``relu(linear(norm(x)))`` without a residual."""

    def __init__(self, network: SimpleNamespace):
        super().__init__()
        head, context_width = network.action_head, network.language.width
        width, self.num_heads = head.width, head.num_heads
        self.pro, self.joint, self.rotary = head.block == "pro", head.concat == "joint_softmax", head.rotary
        self.names = ["latents", "query", "vision", *(["seg"] if head.inject_seg else [])]
        self.q_proj = nn.Linear(width, width)
        if self.pro:
            for name in self.names:
                inputs = width if name == "latents" else context_width
                setattr(self, f"k_{SUFFIXES[name]}", nn.Linear(inputs, width))
                setattr(self, f"v_{SUFFIXES[name]}", nn.Linear(inputs, width))
        else:
            self.k_proj = nn.Linear(width, width)
            self.v_proj = nn.Linear(width, width)
        self.gates = {name: f"gating_factor{end}" for name, end in GATES[head.gate].items() if name in self.names}
        for gate in self.gates.values():
            setattr(self, gate, nn.Parameter(torch.zeros(1)))
        self.o_proj = nn.Linear(width if self.joint else width * len(self.names), width)
        self.ffn = nn.Sequential(nn.LayerNorm(width, eps=1e-5), nn.Linear(width, width))

    def forward(self, x: Tensor, context: Context, rotary: dict[str, Rotary]) -> Tensor:
        queries = self._heads(self.q_proj(x), rotary.get("latents"))
        keys, values = zip(
            *(self._source(name, x if name == "latents" else context[name], rotary) for name in self.names), strict=True
        )
        if self.joint:
            attended = [F.scaled_dot_product_attention(queries, torch.cat(keys, dim=2), torch.cat(values, dim=2))]
        else:
            attended = [F.scaled_dot_product_attention(queries, k, v) for k, v in zip(keys, values, strict=True)]
        y = torch.cat([a.transpose(1, 2).flatten(2) for a in attended], dim=-1)
        return F.relu(self.ffn(x + self.o_proj(y)))

    def _source(self, name: str, tokens: Tensor, rotary: dict[str, Rotary]) -> tuple[Tensor, Tensor]:
        suffix = SUFFIXES[name] if self.pro else "proj"
        project_k, project_v = getattr(self, f"k_{suffix}"), getattr(self, f"v_{suffix}")
        keys = self._heads(project_k(tokens), rotary.get(name))
        if name in self.gates:
            # tanh(g) belongs to the logits of this source; a factor of its keys is the same.
            keys = keys * getattr(self, self.gates[name]).float().tanh().to(keys.dtype)
        return keys, self._heads(project_v(tokens), None)

    def _heads(self, x: Tensor, rotary: Rotary | None) -> Tensor:
        x = x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        if rotary is None:
            return x
        return rotate(x, rotary) if self.rotary == "half_split" else vla_adapter_turn(x, rotary)


class Network(nn.Module):
    """Latents through the blocks; VLA-Adapter calls it ``model``."""

    def __init__(self, network: SimpleNamespace):
        super().__init__()
        head = network.action_head
        self.head, self.horizon = head, network.action_horizon
        if head.latents == "learned":
            self.latents = nn.Parameter(torch.zeros(self.horizon, head.width))
        else:
            inputs = network.action_dim * network.language.width
            self.layer_norm1 = nn.LayerNorm(inputs, eps=1e-5)
            self.fc1 = nn.Linear(inputs, head.width)
        self.mlp_resnet_blocks = nn.ModuleList(Block(network) for _ in range(head.num_layers))
        self.layer_norm2 = nn.LayerNorm(head.width, eps=1e-5)
        self.fc2 = nn.Linear(head.width, network.action_dim)

    def forward(self, contexts: list[Context], record: dict[str, Tensor] | None = None) -> Tensor:
        """Normalised actions [b, t, a]; one context per block, or one for all."""
        batch = contexts[0]["query"].shape[0]
        x = self._start().expand(batch, -1, -1)
        rotary = self._rotary({"latents": x, **contexts[0]})
        for index, block in enumerate(self.mlp_resnet_blocks):
            x = block(x, contexts[index % len(contexts)], rotary)
            if record is not None:
                record[f"action head block {index}"] = x
        return self.fc2(self.layer_norm2(x))

    def _start(self) -> Tensor:
        if self.head.latents == "learned":
            return self.latents
        # The norm of zeros is its bias.
        return F.relu(self.fc1(self.layer_norm1.bias)).expand(self.horizon, -1)

    def _rotary(self, tokens: Context) -> dict[str, Rotary]:
        """One table per source: positions restart at 0 in each."""
        head_dim = self.head.width // self.head.num_heads
        tables: dict[str, Rotary] = {}
        if self.head.block != "pro":
            return tables
        for name, states in tokens.items():
            positions = torch.arange(states.shape[1], device=states.device)
            if self.head.rotary == "half_split":
                tables[name] = half_split_rotary(positions, head_dim, ROPE_THETA)
            else:
                tables[name] = vla_adapter_rotary(positions, head_dim, states.dtype)
        return tables


class ActionHead(nn.Module):
    """Wraps the network in the name that VLA-Adapter's checkpoints have."""

    def __init__(self, network: SimpleNamespace):
        super().__init__()
        self.model = Network(network)

    def forward(self, contexts: list[Context], **options: Any) -> Tensor:
        return self.model(contexts, **options)


def proprio_projector(network: SimpleNamespace) -> MLP:
    """The robot's state as one token."""
    return MLP(network.proprio_dim, network.language.width, network.language.width)
