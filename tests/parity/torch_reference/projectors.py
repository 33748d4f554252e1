"""Prismatic's fused projector in PyTorch."""

import torch
from torch import nn


class FusedProjector(nn.Module):
    """Three linear layers with GELUs between."""

    def __init__(self, inputs, hidden, outputs):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
        self.fc3 = nn.Linear(outputs, outputs)

    def forward(self, x, approximate="none"):
        for layer in (self.fc1, self.fc2):
            x = torch.nn.functional.gelu(layer(x), approximate=approximate)
        return self.fc3(x)
