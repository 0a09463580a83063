"""Policy gradients on the tokens of rolled-out images: the GRPO family and REINFORCE."""

from __future__ import annotations

import torch
from torch import Tensor

from align.objectives.checks import check
from align.objectives.kl import kl_estimate
from align.types import Average, LossOutput

LOSS_TYPES = ("bnpo", "cispo", "dapo", "dr_grpo", "grpo", "gspo", "reinforce")


def policy_gradient(
    policy_rollout_BL: Tensor,
    old_rollout_BL: Tensor,
    advantages_BL: Tensor,
    kept_B: Tensor,
    num_kept: float | Tensor,
    *,
    loss_type: str = "grpo",
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    normalizer: float | None = None,
) -> LossOutput:
    """A loss whose gradient raises the probability of tokens in proportion to their advantage.

    With rho = p_policy / p_old of a token, A its advantage, N = normalizer and the clipped surrogate (PPO)
    S = -min(rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A):

    loss_type   loss                                                               named after
    grpo        mean over N rows of the row's token mean of S                      GRPO
    bnpo        sum of S / (N L), the number of tokens                             TRL
    dr_grpo     sum of S / (N L), L standing for the greatest length               Dr.GRPO
    dapo        sum of S over kept rows / (num_kept L), 0 where none is kept       DAPO
    gspo        as grpo, with one ratio for the image, exp(mean_t log rho_t)       GSPO (arXiv 2507.18071)
    cispo       sum of -min(rho, epsilon_high) A log p_policy / (N L), the         CISPO, as TRL defines it
                weight without gradient
    reinforce   sum of -A log p_policy / (N L)                                     REINFORCE

    Images all have L tokens, so that grpo, bnpo and dr_grpo are the same number; the names are kept for their
    recipes, which differ in how advantages are scaled (`group_advantages(scale_rewards=...)`).

    gspo takes the token form of its paper: each token's ratio has the image's value and the gradient of the token's own
    log-probability, so that token credit counts. With one advantage for the whole image this is exactly the gradient
    of the sequence form.

    Args:
        policy_rollout_BL: log p of the sampled tokens, nats, with gradient.
        old_rollout_BL: the same when the rollout was collected, without gradient and under the same distribution
            (guidance, temperature, filters). With one update for each rollout pass the detached policy: ratios are
            then exactly 1 and no clip acts.
        advantages_BL: advantages, already times token credit and truncated importance weights (both not negative).
        kept_B: bool, rows that carry a signal.
        num_kept: how many rows are kept in the whole optimiser step, over accumulation and ranks.
        epsilon: how far below 1 a ratio may go (all but cispo and reinforce).
        epsilon_high: how far above 1; epsilon if None. DAPO sets it higher than epsilon. For cispo the greatest weight
            itself, and required.
        delta: two-sided clip, the greatest ratio where the advantage is negative, above 1 + epsilon_high; off if None.
        normalizer: rows of the whole optimiser step; the rows given if None. dapo divides by num_kept instead.

    Raises:
        ValueError: an unknown loss_type, cispo without epsilon_high, delta where nothing reads it, or a clip range that is
            not positive.

    Metrics: ratio_mean, ratio_max (mean over images of the largest), clip_low and clip_high (share of tokens whose
    gradient the clip removes: below and A < 0, above and A > 0; cispo: weight capped and A > 0), advantage_abs,
    approx_kl (k3 of old against policy, nats per token) and kept (share of rows).
    """
    token_loss_BL, metrics = surrogate(
        policy_rollout_BL,
        old_rollout_BL,
        advantages_BL,
        loss_type=loss_type,
        epsilon=epsilon,
        epsilon_high=epsilon_high,
        delta=delta,
    )
    rows, length = token_loss_BL.shape
    if loss_type == "dapo":
        loss = token_loss_BL.masked_fill(~kept_B[:, None], 0.0).sum() / (
            torch.as_tensor(num_kept).clamp(min=1.0) * length
        )
    else:
        loss = token_loss_BL.sum() / ((rows if normalizer is None else normalizer) * length)
    return LossOutput(loss, {**metrics, "kept": Average.of(kept_B)})


def surrogate(
    policy_BL: Tensor,
    old_BL: Tensor,
    advantages_BL: Tensor,
    *,
    loss_type: str,
    epsilon: float,
    epsilon_high: float | None = None,
    delta: float | None = None,
) -> tuple[Tensor, dict[str, Average]]:
    """[B, L]: each token's loss before it is averaged, and the metrics; `policy_gradient` explains both."""
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"unknown loss_type {loss_type!r}; known: {', '.join(LOSS_TYPES)}")
    if loss_type in ("cispo", "reinforce") and delta is not None:
        raise ValueError(f"delta={delta} has no effect on loss_type={loss_type}, which does not clip; set it to null")
    check(
        epsilon=(epsilon, epsilon > 0, "positive"),
        epsilon_high=(epsilon_high, epsilon_high is None or epsilon_high > 0, "positive, or None"),
        delta=(delta, delta is None or delta > 1, "above 1, or None for no second clip"),
    )

    log_ratio_BL = policy_BL - old_BL
    if loss_type == "gspo":
        image_B1 = log_ratio_BL.detach().mean(dim=1, keepdim=True)
        ratio_BL = (image_B1 + (policy_BL - policy_BL.detach())).exp()
    else:
        ratio_BL = log_ratio_BL.exp()

    seen_BL = ratio_BL.detach()
    metrics = {
        "ratio_mean": Average.of(seen_BL),
        "ratio_max": Average.of(seen_BL.amax(dim=1)),
        "advantage_abs": Average.of(advantages_BL.abs()),
        # the tokens are old's samples, so that this estimates KL(old || policy)
        "approx_kl": Average.of(kl_estimate(old_BL, policy_BL, "k3")),
    }
    if loss_type == "reinforce":
        return -advantages_BL * policy_BL, metrics
    if loss_type == "cispo":
        if epsilon_high is None:
            raise ValueError("loss_type=cispo needs epsilon_high, the greatest importance weight; TRL recommends 5.0")
        metrics["clip_high"] = Average.of((seen_BL > epsilon_high) & (advantages_BL > 0))
        return -seen_BL.clamp(max=epsilon_high) * advantages_BL * policy_BL, metrics

    low, high = 1 - epsilon, 1 + (epsilon if epsilon_high is None else epsilon_high)
    metrics["clip_low"] = Average.of((seen_BL < low) & (advantages_BL < 0))
    metrics["clip_high"] = Average.of((seen_BL > high) & (advantages_BL > 0))
    clipped_BL = ratio_BL.clamp(low, high)
    if delta is not None:
        ratio_BL = ratio_BL.clamp(max=delta)
    return -torch.minimum(ratio_BL * advantages_BL, clipped_BL * advantages_BL), metrics
