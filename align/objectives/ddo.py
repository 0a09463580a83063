"""Direct discriminative optimisation: the policy against its reference is the discriminator of real and sampled images."""

from __future__ import annotations

import torch
from torch import Tensor

from align.objectives.checks import check
from align.objectives.unpaired import unpaired_logistic
from align.types import Average, LossOutput


def ddo(
    policy_positive_B: Tensor,
    policy_fake_B: Tensor,
    reference_positive_B: Tensor,
    reference_fake_B: Tensor,
    dropped_B: Tensor,
    *,
    beta: float,
    alpha: float,
    normalizer: float | None = None,
) -> LossOutput:
    """DDO (Zheng et al. 2025, arXiv 2503.01103): a GAN whose discriminator is a likelihood ratio.

    Each row has a real image x and a sample y of the reference, both given the row's condition. With gaps
    g = log p_policy - log p_reference and l = log sigmoid,

        loss = -1/N sum_i [ l(beta g(x_i)) + alpha l(-beta g(y_i)) ] / max(alpha, 1)

    The pointwise optimum is beta g = log p_data / (alpha p_reference). With alpha = beta = 1 that is p_data. With
    another beta it is p_reference (p_data / p_reference)^(1/beta), normalised, where alpha is the normaliser to the
    power beta: beta < 1 moves past the data, as guidance does. Any other alpha asks for a factor that a normalised
    policy cannot have. At policy = reference the fake half's expected gradient is zero, so that the first step is SFT's.

    All of this holds for fakes drawn from the very distribution that the reference gives them: no guidance, no top-k,
    no top-p, temperature 1. Self-play makes the policy the next round's reference and draws new fakes. A round trained
    to its optimum multiplies log p_reference - log p_data by 1 - 1/beta, so that a small beta needs short rounds.

    Args:
        policy_positive_B, policy_fake_B: log p of the whole real and sampled image, nats, with gradient.
        reference_positive_B, reference_fake_B: the same under the frozen reference.
        dropped_B: bool, rows whose condition was replaced by the null condition. They count like all others (their
            fakes were drawn without a condition), and keep guidance working.
        beta: in 1/nats, positive; 0.02 for VAR's 680 tokens (the paper). Express it against the sequence's likelihood.
        alpha: weight of the fakes, at least 0; the paper searches 10 to 100 anew in each round.
        normalizer: rows of the whole optimiser step, over accumulation and ranks; the rows given if None.

    Raises:
        ValueError: a hyper-parameter out of its range.

    Metrics: gap_real and gap_fake (conditional rows), gap_null_real and gap_null_fake (dropped rows), abs_gap (real
    images, the distance from the reference), all in nats per image; accuracy of the implicit discriminator over all
    images, where a gap of exactly zero counts as wrong. Accuracy near 1 with worsening samples means that it has found
    something that tells tokens apart but not images.
    """
    check(beta=(beta, beta > 0, "positive"), alpha=(alpha, alpha >= 0, "at least 0"))
    gap_real_B = policy_positive_B - reference_positive_B
    gap_fake_B = policy_fake_B - reference_fake_B
    sign_B = torch.ones_like(gap_real_B)
    real_B = unpaired_logistic(gap_real_B, sign_B, 1.0, beta=beta)
    fake_B = unpaired_logistic(gap_fake_B, -sign_B, alpha, beta=beta)
    rows = len(gap_real_B) if normalizer is None else normalizer
    loss = (real_B + fake_B).sum() / (rows * max(alpha, 1.0))
    return LossOutput(
        loss,
        {
            "gap_real": Average.of(gap_real_B, ~dropped_B),
            "gap_fake": Average.of(gap_fake_B, ~dropped_B),
            "gap_null_real": Average.of(gap_real_B, dropped_B),
            "gap_null_fake": Average.of(gap_fake_B, dropped_B),
            "accuracy": Average.of(torch.cat([gap_real_B > 0, gap_fake_B < 0])),
            "abs_gap": Average.of(gap_real_B.abs()),
        },
    )
