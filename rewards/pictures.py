"""Images to try a reward on, the same on every machine.

Shapes: N images, S pixels a side. All are uint8 [N, S, S, 3].
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate


def noise(number: int, size: int, *, seed: int = 0) -> Tensor:
    """Every channel of every pixel drawn by itself."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (number, size, size, 3), dtype=np.uint8))


def smooth(number: int, size: int, *, seed: int = 0) -> Tensor:
    """Random colours at four scales, the coarse ones strongest, as in photographs."""
    draw = np.random.default_rng(seed)
    total_N3SS = torch.zeros(number, 3, size, size)
    for cells in (2, 4, 8, 16):
        field = torch.from_numpy(draw.normal(size=(number, 3, cells, cells)).astype(np.float32)) / cells
        total_N3SS += interpolate(field, (size, size), mode="bilinear")
    return (127.5 + 255 * total_N3SS).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def flat(value: int, size: int) -> Tensor:
    """One image of one grey: 0 is black, 255 white."""
    return torch.full((1, size, size, 3), value, dtype=torch.uint8)


def assorted(number: int, size: int) -> Tensor:
    """Smooth pictures and noise in turn."""
    pairs = torch.stack([smooth((number + 1) // 2, size), noise((number + 1) // 2, size)], dim=1)
    return pairs.flatten(0, 1)[:number]
