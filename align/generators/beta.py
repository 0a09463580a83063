"""The extra input of guidance-free training with a sampled temperature: beta, embedded and added to the condition."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FREQUENCIES = 32
PREFIX = "beta_embedding."


class BetaEmbedding(nn.Module):
    """beta in (0, 1] to a vector of the condition's width (Chen et al. 2025, arXiv 2501.15420): a sinusoidal embedding
    and a small network whose last layer starts at zero, so that adding it changes nothing before training.

    sampling_beta: what conditions carry unless told otherwise; 1 / beta is the guidance scale that the sample looks like.
    """

    sampling_beta: Tensor

    def __init__(self, dim: int, sampling_beta: float) -> None:
        super().__init__()
        if not 0 < sampling_beta <= 1:
            raise ValueError(f"sampling_beta is {sampling_beta}; it must be in (0, 1], 1 / guidance scale")
        self.inner = nn.Linear(2 * FREQUENCIES, dim)
        self.outer = nn.Linear(dim, dim)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)
        self.register_buffer("sampling_beta", torch.tensor(float(sampling_beta)))

    def forward(self, beta_B: Tensor) -> Tensor:
        frequencies = torch.exp(-math.log(1e4) * torch.arange(FREQUENCIES, device=beta_B.device) / FREQUENCIES)
        angles = 1000.0 * beta_B.float().unsqueeze(-1) * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.inner.weight.dtype)
        return self.outer(F.silu(self.inner(waves)))
