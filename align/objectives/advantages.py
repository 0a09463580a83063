"""From rewards to advantages: how much better than its peers each image of a group is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from align.objectives.checks import check
from align.types import Average

# estimator -> how its advantages are scaled unless told otherwise
ESTIMATORS = {"grpo": "group", "rloo": "none", "reinforce_pp": "batch"}
SCALES = ("group", "batch", "none")
AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")
STD_FLOOR = 1e-4  # added to a standard deviation before dividing by it, as TRL does
ZERO_STD = 1e-8  # rewards that spread no more than this are equal


@dataclass(frozen=True)
class Advantages:
    """One number for each image.

    advantages_N: float32, 0 in rows that are not kept.
    kept_N: bool, whether the row carries a signal: a reward applies to it, and the rewards that it is compared with differ.
    rewards_N: float32, weighted sum of the rewards; NaN where none applies.
    metrics: zero_variance, the share of groups whose rewards are all equal, and group_std, the mean standard deviation
        within a group; both over the groups that have at least two rows with a reward.
    """

    advantages_N: Tensor
    kept_N: Tensor
    rewards_N: Tensor
    metrics: dict[str, Average]


def group_advantages(
    rewards_NR: Tensor,
    *,
    num_generations: int,
    reward_weights: Sequence[float] | None = None,
    estimator: str = "grpo",
    scale_rewards: str | None = None,
    multi_objective_aggregation: str = "sum_then_normalize",
    clip: float | None = None,
) -> Advantages:
    """Advantages as TRL's GRPOTrainer defines them (unbiased standard deviations, + 1e-4), and unscaled as RLOOTrainer does.

    With r the weighted sum of a row's rewards:

    estimator      baseline                              scaled by default with
    grpo           mean of the group                     std of the group; "none" is Dr.GRPO
    rloo           mean of the group's other rows        nothing
    reinforce_pp   mean of the batch (REINFORCE++)       std of the batch

    `multi_objective_aggregation="normalize_then_sum"` (GRPO only) standardises each reward within its group, sums by
    weight, and standardises the sums over the batch, so that no reward rules by its variance.

    A NaN reward does not apply: its term is left out of the row's sum. A row to which no reward applies enters no mean
    and no standard deviation, gets advantage 0 and is not kept; nor are rows of a group whose rewards are all equal,
    or of which only one has a reward. Without a group baseline (reinforce_pp) such groups still count.

    Args:
        rewards_NR: [N, R], all rows of the collection, over ranks; groups are num_generations consecutive rows.
        num_generations: rows in a group.
        reward_weights: R numbers; ones if None.
        scale_rewards: group, batch or none; the estimator's own if None.
        clip: advantages are cut to [-clip, clip] (VA-π: 5).

    Raises:
        ValueError: an unknown name, shapes that do not fit, or options that exclude each other.
    """
    rows, num_rewards = rewards_NR.shape
    _check(rows, num_generations, estimator, scale_rewards, multi_objective_aggregation)
    if reward_weights is not None and len(reward_weights) != num_rewards:
        raise ValueError(f"reward_weights has {len(reward_weights)} numbers for {num_rewards} rewards")
    check(clip=(clip, clip is None or clip > 0, "positive, or None to leave advantages as they are"))

    rewards_NR = rewards_NR.detach().double()
    weights_R = torch.tensor([1.0] * num_rewards if reward_weights is None else list(reward_weights)).to(rewards_NR)
    applicable_N = ~rewards_NR.isnan().all(dim=1)
    rewards_N = (rewards_NR * weights_R).nansum(dim=1).masked_fill(~applicable_N, torch.nan)
    rewards_BG = rewards_N.view(-1, num_generations)
    std_B1 = _std(rewards_BG, dim=1)
    comparable_B1 = (~rewards_BG.isnan()).sum(dim=1, keepdim=True) > 1
    varies_B1 = std_B1 > ZERO_STD

    if multi_objective_aggregation == "normalize_then_sum":
        rewards_BGR = rewards_NR.view(-1, num_generations, num_rewards)
        std_B1R = _std(rewards_BGR, dim=1)
        varies_B1 = ((std_B1R > ZERO_STD) & (weights_R != 0)).any(dim=-1)
        standard_BGR = (rewards_BGR - rewards_BGR.nanmean(dim=1, keepdim=True)) / (std_B1R + STD_FLOOR)
        sums_N = (standard_BGR * weights_R).nansum(dim=-1).flatten().masked_fill(~applicable_N, torch.nan)
        advantages_N = (sums_N - sums_N.nanmean()) / (_std(sums_N, dim=0) + STD_FLOOR)
    else:
        advantages_BG = rewards_BG - _baseline(rewards_BG, estimator)
        scale = scale_rewards or ESTIMATORS[estimator]
        if scale == "group":
            advantages_BG = advantages_BG / (std_B1 + STD_FLOOR)
        elif scale == "batch":
            advantages_BG = advantages_BG / (_std(rewards_N, dim=0) + STD_FLOOR)
        advantages_N = advantages_BG.flatten()

    if estimator == "reinforce_pp":
        kept_N = applicable_N & (_std(rewards_N, dim=0) > ZERO_STD)
    else:
        kept_N = applicable_N & varies_B1.expand(-1, num_generations).flatten()
    advantages_N = torch.where(kept_N, advantages_N, 0.0)
    if clip is not None:
        advantages_N = advantages_N.clamp(-clip, clip)
    return Advantages(
        advantages_N.float(),
        kept_N,
        rewards_N.float(),
        {"zero_variance": Average.of(~varies_B1, comparable_B1), "group_std": Average.of(std_B1, comparable_B1)},
    )


def _baseline(rewards_BG: Tensor, estimator: str) -> Tensor:
    if estimator == "reinforce_pp":
        return rewards_BG.nanmean()
    if estimator == "grpo":
        return rewards_BG.nanmean(dim=1, keepdim=True)
    others = (~rewards_BG.isnan()).sum(dim=1, keepdim=True) - 1
    return (rewards_BG.nansum(dim=1, keepdim=True) - rewards_BG) / others


def _std(values: Tensor, dim: int) -> Tensor:
    """Unbiased standard deviation of what is not NaN, the dimension kept; NaN over fewer than two values."""
    count = (~values.isnan()).sum(dim=dim, keepdim=True)
    squares = (values - values.nanmean(dim=dim, keepdim=True)).square().nansum(dim=dim, keepdim=True)
    return torch.where(count > 1, (squares / (count - 1)).sqrt(), torch.nan)


def _check(rows: int, num_generations: int, estimator: str, scale: str | None, aggregation: str) -> None:
    for name, value, known in (
        ("estimator", estimator, tuple(ESTIMATORS)),
        ("scale_rewards", scale, (*SCALES, None)),
        ("multi_objective_aggregation", aggregation, AGGREGATIONS),
    ):
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}; known: {', '.join(map(str, known))}")
    if num_generations < 1 or rows % num_generations:
        raise ValueError(f"{rows} rows do not divide into groups of num_generations={num_generations}")
    if estimator == "reinforce_pp":
        if scale == "group":
            raise ValueError("reinforce_pp has no groups to scale by; use scale_rewards=batch or none")
    elif num_generations == 1:
        raise ValueError(
            f"a group of one has no baseline for estimator {estimator!r}; "
            "use num_generations of 2 or more, or estimator=reinforce_pp"
        )
    if aggregation == "normalize_then_sum" and (estimator != "grpo" or scale is not None):
        raise ValueError(
            "normalize_then_sum scales each reward by its group and the sum by the batch; "
            f"it goes with estimator=grpo and scale_rewards=null, not {estimator} and {scale}"
        )
