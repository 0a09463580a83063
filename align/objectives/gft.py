"""Guidance-free training: the conditional model becomes the guided sampler, by maximum likelihood of a mixture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from align.objectives.checks import check
from align.objectives.logprobs import token_logprobs
from align.types import Average, LossOutput


def gft(
    policy_positive_BLV: Tensor,
    policy_null_BLV: Tensor,
    tokens_BL: Tensor,
    dropped_B: Tensor,
    *,
    beta: float,
    normalizer: float | None = None,
) -> LossOutput:
    """GFT (Chen et al. 2025, arXiv 2501.15420) with one beta for all rows: `gft_sampled` without the extra input.

    Args:
        beta: in (0, 1]. The conditional model learns guidance of scale 1/beta; 1 is plain likelihood.

    Raises:
        ValueError: beta out of its range.
    """
    check(beta=(beta, 0 < beta <= 1, "in (0, 1]; to learn guidance of scale s, set it to 1/s"))
    beta_B = torch.full_like(policy_positive_BLV[:, 0, 0], beta)
    return gft_sampled(policy_positive_BLV, policy_null_BLV, tokens_BL, beta_B, dropped_B, normalizer=normalizer)


def gft_sampled(
    policy_positive_BLV: Tensor,
    policy_null_BLV: Tensor,
    tokens_BL: Tensor,
    beta_B: Tensor,
    dropped_B: Tensor,
    *,
    normalizer: float | None = None,
) -> LossOutput:
    """GFT (Chen et al. 2025, arXiv 2501.15420) with a beta per row, for a generator that has beta as an input.

    Cross-entropy of the real tokens under the mixture of logits

        beta l(x|c) + (1 - beta) stopgrad l(x|null)

    averaged over tokens and rows. Where the null model is p(x), the mixture fits the data when
    l(x|c) = log p(x) + (log p(x|c) - log p(x)) / beta: the conditional model by itself is then what guidance of scale
    s = 1/beta would sample from (null + s (conditional - null), 1 is off). No reference and no negatives.

    Args:
        policy_positive_BLV: logits of the real image given its own condition, float32, with gradient.
        policy_null_BLV: the same given the null condition. No gradient flows through it, so it may be computed without
            one; the authors compute it in eval mode and with beta = 1 as the generator's input.
        tokens_BL: the real tokens.
        beta_B: in (0, 1]; the authors draw it uniformly and sample with a fixed one. It must be what the generator got.
        dropped_B: bool, rows whose condition was replaced by the null condition. They train the unconditional model by
            plain cross-entropy: beta = 1, whatever beta_B says, and the generator must be told so.
        normalizer: rows of the whole optimiser step, over accumulation and ranks; the rows given if None.

    Metrics, in nats per token: nll_mixture (what is minimised) and nll_conditional (the model that is sampled from, which
    rises as it leaves the data for the guided distribution), both over conditional rows; nll_null over all rows.
    """
    beta_B = torch.where(dropped_B, 1.0, beta_B).to(policy_positive_BLV.dtype)
    mixture_BLV = torch.lerp(policy_null_BLV.detach(), policy_positive_BLV, beta_B[:, None, None])
    nll_B = F.cross_entropy(mixture_BLV.transpose(1, 2), tokens_BL, reduction="none").mean(dim=1)
    rows = len(nll_B) if normalizer is None else normalizer
    with torch.no_grad():
        nll_conditional_B = -token_logprobs(policy_positive_BLV, tokens_BL).mean(dim=1)
        nll_null_B = -token_logprobs(policy_null_BLV, tokens_BL).mean(dim=1)
    return LossOutput(
        nll_B.sum() / rows,
        {
            "nll_mixture": Average.of(nll_B, ~dropped_B),
            "nll_conditional": Average.of(nll_conditional_B, ~dropped_B),
            "nll_null": Average.of(nll_null_B),
        },
    )
