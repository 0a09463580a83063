"""Which tokens of an image its advantage belongs to: weights of mean 1, to multiply the advantages by.

None of them carries a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from align.objectives.checks import check
from align.objectives.kl import kl_estimate


@torch.no_grad()
def guidance_contrastive_weights(cond_BL: Tensor, null_BL: Tensor, *, power: float = 2.15) -> Tensor:
    """[B, L]: more credit to tokens that the condition decides (arXiv 2605.29198).

    k3 between the log-probs with and without the condition, as a rank percentile within the image (lowest 1/L, highest
    1; equal values share their mean rank), to a power. At 2.15 the top 40 % of the tokens carry 80 % of the mass.

    Args:
        cond_BL, null_BL: log p of the same tokens given the condition and the null condition, nats.

    Raises:
        ValueError: a power that is not positive.
    """
    check(power=(power, power > 0, "positive"))
    contrast_BL = kl_estimate(cond_BL, null_BL, "k3").contiguous()
    ordered_BL = contrast_BL.sort(dim=1).values
    below_BL = torch.searchsorted(ordered_BL, contrast_BL)
    up_to_BL = torch.searchsorted(ordered_BL, contrast_BL, right=True)
    percentile_BL = (below_BL + up_to_BL + 1).to(cond_BL.dtype) / (2 * cond_BL.shape[1])
    return _mean_one(percentile_BL**power)


def raster_grid(block_sizes: Sequence[int]) -> tuple[int, int]:
    """(height, width) of a square raster of tokens.

    Raises:
        ValueError: tokens that do not form one (a next-scale generator, or a count that is not a square).
    """
    side = math.isqrt(len(block_sizes))
    if set(block_sizes) != {1} or side * side != len(block_sizes):
        raise ValueError(
            f"{sum(block_sizes)} tokens in {len(block_sizes)} blocks are no square raster; critical-token credit needs "
            "a 2-D grid of tokens drawn one by one; for next-scale generators use block_area or prefix weights"
        )
    return side, side


@torch.no_grad()
def critical_token_weights(
    entropy_BL: Tensor,
    embeddings_BLC: Tensor,
    *,
    grid: tuple[int, int],
    num_generations: int,
    share: float = 0.1,
) -> Tensor:
    """[B, L]: credit to the critical tokens only (GCPO, arXiv 2509.22485; the selection follows its released code).

    Three disjoint sets of share * L tokens (rounded down) each: the first of the raster; those between the first and
    the last such set where the entropy map's gradient is largest (the map smoothed by the mean over a token and its
    neighbours already drawn: west, north-west, north, north-east; central differences, one-sided at the border); and,
    of the rest, the positions where a group's tokens are least alike (mean pairwise cosine; the same for the group).

    Args:
        entropy_BL: entropy of each position's distribution; groups are num_generations consecutive rows.
        embeddings_BLC: codebook vectors of the sampled tokens.
        grid: (height, width) of the raster.
        share: of the tokens, for each of the three sets.

    Raises:
        ValueError: a grid that is not the tokens', a group of one, or a share that leaves no token or too many.
    """
    rows, length = entropy_BL.shape
    height, width = grid
    if height * width != length:
        raise ValueError(f"a grid of {height}x{width} does not hold {length} tokens; critical tokens need a 2-D raster")
    if num_generations < 2 or rows % num_generations:
        raise ValueError(f"num_generations is {num_generations}; it must be at least 2 and divide the {rows} rows")
    count = int(share * length)
    if not 0 < count <= length // 3:
        raise ValueError(
            f"share={share} of {length} tokens is {count}; each third of the choice needs 1 to {length // 3}"
        )

    chosen_BL = torch.zeros_like(entropy_BL, dtype=torch.bool)
    chosen_BL[:, :count] = True
    slope_BL = _slope(_smooth(entropy_BL.view(-1, height, width))).view(rows, length)
    slope_BL = slope_BL.masked_fill(chosen_BL, -torch.inf)
    slope_BL[:, length - count :] = -torch.inf
    chosen_BL.scatter_(1, slope_BL.topk(count, dim=1).indices, True)

    unit_PGLC = F.normalize(embeddings_BLC, dim=-1).view(-1, num_generations, *embeddings_BLC.shape[1:])
    # |sum of unit vectors|^2 is the sum of all pairs' cosines, plus a constant
    alike_BL = unit_PGLC.sum(dim=1).square().sum(dim=-1).repeat_interleave(num_generations, dim=0)
    alike_BL = alike_BL.masked_fill(chosen_BL, torch.inf)
    chosen_BL.scatter_(1, alike_BL.topk(count, dim=1, largest=False).indices, True)
    return _mean_one(chosen_BL.to(entropy_BL.dtype))


def block_area_weights(block_sizes: Sequence[int], *, alpha: float) -> Tensor:
    """float32 [L]: 1 / (h w)^alpha for the tokens of a scale of h x w, of mean 1: VAR-RL's weights (arXiv 2601.02256,
    alpha 0.6 to 0.8), which keep the large scales from ruling by their number."""
    sizes_L = _block_of_each(block_sizes, [float(size) for size in block_sizes])
    return _mean_one(sizes_L**-alpha)


def prefix_weights(block_sizes: Sequence[int], *, blocks: int) -> Tensor:
    """float32 [L]: credit to the first `blocks` blocks only, of mean 1. VAR-RL found training the prefix of the scales
    better than training all.

    Raises:
        ValueError: fewer than one block, or more than there are.
    """
    if not 1 <= blocks <= len(block_sizes):
        raise ValueError(f"blocks is {blocks}; it must be 1 to {len(block_sizes)}, the blocks of an image")
    return _mean_one(_block_of_each(block_sizes, [float(index < blocks) for index in range(len(block_sizes))]))


def _block_of_each(block_sizes: Sequence[int], values: Sequence[float]) -> Tensor:
    return torch.tensor(values).repeat_interleave(torch.tensor(list(block_sizes)))


def _mean_one(weights: Tensor) -> Tensor:
    return weights / weights.mean(dim=-1, keepdim=True)


def _smooth(map_BHW: Tensor) -> Tensor:
    """Mean over each position and its neighbours that come before it in raster order."""
    kernel = map_BHW.new_tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]])[None, None]
    total = F.conv2d(map_BHW[:, None], kernel, padding=1)
    return (total / F.conv2d(torch.ones_like(map_BHW[:1, None]), kernel, padding=1)).squeeze(1)


def _slope(map_BHW: Tensor) -> Tensor:
    vertical, horizontal = torch.gradient(map_BHW, dim=(1, 2))
    return (vertical.square() + horizontal.square()).sqrt()
