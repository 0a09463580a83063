"""Where a step's keys and values go in a cache, and what it sees there."""

from __future__ import annotations

import torch
from torch import Tensor


def seen_from(cells_Bn: Tensor, length: int) -> Tensor:
    """bool [B, 1, n, length]: of the first cells those up to each of these, int64 [B, n]."""
    return (torch.arange(length, device=cells_Bn.device) <= cells_Bn.unsqueeze(-1)).unsqueeze(1)


def store(kv: Tensor, cells: slice | Tensor, k: Tensor, v: Tensor) -> None:
    """Write k and v [B, heads, n, C] to these cells of kv [2, B, heads, S, C]: a slice, or int64 [B, n] or [1, n]."""
    if isinstance(cells, Tensor):
        index = cells[:, None, :, None].expand_as(k)
        kv[0].scatter_(2, index, k)
        kv[1].scatter_(2, index, v)
    else:
        kv[0, :, :, cells], kv[1, :, :, cells] = k, v
