"""Layers that the next-scale transformers share, VAR and Infinity: norms without parameters of their own, scaled and
shifted by the condition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6


def normalize(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The norm, scaled by 1 + scale and shifted, in one pass."""
    return torch.addcmul(shift, normalize(x), 1 + scale)


class AdaptiveNorm(nn.Module):
    """The norm before the output layer, scaled and shifted by the condition."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: Tensor, condition_BC: Tensor) -> Tensor:
        scale, shift = self.ada_lin(condition_BC).unsqueeze(1).chunk(2, dim=-1)
        return modulate(x, scale, shift)


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(F.gelu(self.fc1(x), approximate="tanh")))


class DropPath(nn.Dropout):
    """Leaves out the branch of whole rows, in train mode (stochastic depth)."""

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return branch
        keep = 1 - self.p
        return branch * torch.empty(len(branch), 1, 1, device=branch.device).bernoulli_(keep).div_(keep)
