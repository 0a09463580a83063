"""Kahneman-Tversky optimisation: images that are good or bad by themselves, each judged against a common zero point."""

from __future__ import annotations

import torch
from torch import Tensor

from align.objectives.checks import check
from align.objectives.preference import gap_metrics, nll_metrics
from align.types import Average, LossOutput


def kto(
    policy_chosen_B: Tensor,
    policy_rejected_B: Tensor,
    reference_chosen_B: Tensor,
    reference_rejected_B: Tensor,
    mismatched_gap: Tensor,
    dropped_B: Tensor,
    num_tokens: int,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    null_weight: float = 1.0,
    normalizer: float | None = None,
) -> LossOutput:
    """KTO (Ethayarajh et al. 2024, arXiv 2402.01306): each row holds one desirable and one undesirable example.

    With gaps g = log p_policy - log p_reference of whole images and z = max(0, beta mismatched_gap),

        loss = 1/N sum_i [ desirable_weight (1 - sigmoid(beta g(chosen_i) - z))
                           + undesirable_weight (1 - sigmoid(z - beta g(rejected_i))) ] / 2

    The half makes it the mean over examples, as TRL's KTOTrainer has it. The two examples of a row are not compared
    with each other. The loss is bounded: examples far on either side of z no longer pull, the wrong side included.

    Args:
        policy_chosen_B, policy_rejected_B: log p of the whole image, nats, with gradient.
        reference_chosen_B, reference_rejected_B: the same under the frozen reference.
        mismatched_gap: 0-dim, without gradient: mean gap of pairs of an image and another image's condition, over the
            whole optimiser step. It estimates the policy's KL from the reference.
        dropped_B: bool, rows whose condition was replaced by the null condition: null_weight times the negative
            log-likelihood of a token of the chosen image, and nothing else.
        num_tokens: tokens in an image.
        beta: in 1/nats, positive.
        desirable_weight, undesirable_weight, null_weight: at least 0.
        normalizer: rows of the whole optimiser step, over accumulation and ranks; the rows given if None.

    Raises:
        ValueError: a hyper-parameter out of its range.

    Metrics: those of `dpo`, and gap_mismatched, nats per image.
    """
    check(
        beta=(beta, beta > 0, "positive"),
        desirable_weight=(desirable_weight, desirable_weight >= 0, "at least 0"),
        undesirable_weight=(undesirable_weight, undesirable_weight >= 0, "at least 0"),
        null_weight=(null_weight, null_weight >= 0, "at least 0"),
    )
    gap_chosen_B = policy_chosen_B - reference_chosen_B
    gap_rejected_B = policy_rejected_B - reference_rejected_B
    zero_point = (beta * mismatched_gap.detach()).clamp(min=0)
    # 1 - sigmoid(x) = sigmoid(-x)
    desirable_B = desirable_weight * torch.sigmoid(zero_point - beta * gap_chosen_B)
    undesirable_B = undesirable_weight * torch.sigmoid(beta * gap_rejected_B - zero_point)

    nll_B = -policy_chosen_B / num_tokens
    loss_B = torch.where(dropped_B, null_weight * nll_B, (desirable_B + undesirable_B) / 2)
    rows = len(loss_B) if normalizer is None else normalizer
    return LossOutput(
        loss_B.sum() / rows,
        {
            **gap_metrics(gap_chosen_B, gap_rejected_B, dropped_B),
            **nll_metrics(nll_B, dropped_B),
            "gap_mismatched": Average.of(mismatched_gap),
        },
    )
