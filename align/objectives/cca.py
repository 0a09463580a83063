"""Condition contrastive alignment: what classifier-free guidance does at sampling time, learnt into the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from align.objectives.unpaired import unpaired_logistic
from align.types import Average, LossOutput


def cca(
    policy_positive_B: Tensor,
    policy_negative_B: Tensor,
    reference_positive_B: Tensor,
    reference_negative_B: Tensor,
    dropped_B: Tensor,
    collision_B: Tensor,
    *,
    beta: float,
    lambda_: float,
    normalizer: float | None = None,
) -> LossOutput:
    """CCA (Chen et al. 2024, arXiv 2410.09347), in the form with label drop that its authors train with.

    Each image x has its own condition c (positive) and one of another image c' (negative). With gaps
    g = log p_policy(x|.) - log p_reference(x|.) and l = log sigmoid,

        loss = -1/N sum_i [ l(beta g(x_i, c_i)) + w_i l(s_i beta g(x_i, c'_i)) ] / max(lambda, 1)

    where s = -1, w = lambda for real negatives, and s = +1, w = 1 where the label was dropped (one mask for both halves:
    the row then trains the unconditional model) or c' happens to equal c. The optimum is
    p(x|c) (p(x|c) / p(x))^(1/beta) up to a constant that lambda moves: the form of guidance, with scale 1 + 1/beta.

    Args:
        policy_positive_B, policy_negative_B: log p of the whole image given c and given c', nats, with gradient.
        reference_positive_B, reference_negative_B: the same under the frozen reference.
        dropped_B: bool, rows whose conditions were both replaced by the null condition.
        collision_B: bool, rows whose c' equals c.
        beta: in 1/nats; small beta pushes further. Express it against the sequence's likelihood: 0.02 for 576 tokens
            of a 16k codebook (the paper), about 0.2 for the shipped 49-token generator.
        lambda_: weight of the negatives; larger is more fidelity and less diversity.
        normalizer: rows of the whole optimiser step, over accumulation and ranks; the rows given if None.

    Metrics: gap_positive, gap_negative (conditional rows only), gap_null, margin, accuracy (share of conditional rows
    with g+ > g-) and abs_gap (distance from the reference), all in nats per image but accuracy.
    """
    gap_positive_B = policy_positive_B - reference_positive_B
    gap_negative_B = policy_negative_B - reference_negative_B
    as_positive_B = dropped_B | collision_B
    sign_B = torch.where(as_positive_B, 1.0, -1.0)
    weight_B = torch.where(as_positive_B, 1.0, lambda_)
    positive_B = unpaired_logistic(gap_positive_B, torch.ones_like(sign_B), 1.0, beta=beta)
    negative_B = unpaired_logistic(gap_negative_B, sign_B, weight_B, beta=beta)
    rows = len(gap_positive_B) if normalizer is None else normalizer
    loss = (positive_B + negative_B).sum() / (rows * max(lambda_, 1.0))

    contrast_B = ~as_positive_B
    margin_B = gap_positive_B - gap_negative_B
    return LossOutput(
        loss,
        {
            "gap_positive": Average.of(gap_positive_B, ~dropped_B),
            "gap_negative": Average.of(gap_negative_B, contrast_B),
            "gap_null": Average.of(gap_positive_B, dropped_B),
            "margin": Average.of(margin_B, contrast_B),
            "accuracy": Average.of(margin_B > 0, contrast_B),
            "abs_gap": Average.of(gap_positive_B.abs()),
        },
    )
