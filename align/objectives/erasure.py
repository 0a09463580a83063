"""Concept erasure: a condition is made to mean something else, while the other conditions stay as they are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from align.objectives.checks import check
from align.types import Average, LossOutput


def erasure(
    policy_positive_BLV: Tensor,
    policy_negative_BLV: Tensor,
    reference_positive_BLV: Tensor,
    reference_negative_BLV: Tensor,
    reference_null_BLV: Tensor,
    collision_B: Tensor,
    dropped_B: Tensor,
    *,
    eta: float = 1.0,
    keep_weight: float = 1.0,
    window: int | None = None,
    threshold: float = 0.0,
    normalizer: float | None = None,
) -> LossOutput:
    """Erasure after EAR (Fan et al. 2025, arXiv 2506.20151), on logits and with each token given its true context.

    The negative condition e of every row is the one to erase, its own condition k one to keep. On the row's image x,

        target = softmax( l_ref(x|k) - eta (l_ref(x|e) - l_ref(x|k)) )
        loss   = 1/N sum_i mean over tokens of [ KL(target || policy(x|e)) + keep_weight KL(ref(x|k) || policy(x|k)) ]

    so that e comes to draw what k would, and eta steps further away from e. EAR matches hidden states by squared error
    and has no keep term: it trains a few layers only. Its two devices are here: token losses of the first term are
    summed in windows, and a window whose sum is at or below the threshold is left out.

    A row whose own condition is e (a collision) takes the null condition for k in the target and has no keep term. A
    row whose conditions were dropped has the keep term only, which holds the unconditional model.

    Args:
        policy_positive_BLV, policy_negative_BLV: logits of the real image given k and given e, float32, with gradient.
        reference_positive_BLV, reference_negative_BLV: the same under the frozen reference.
        reference_null_BLV: under the reference, given the null condition.
        collision_B: bool, rows whose own condition is e.
        dropped_B: bool, rows whose conditions were all replaced by the null condition.
        eta: at least 0; 0 makes e draw exactly what k does.
        keep_weight: at least 0.
        window: tokens in a window, at least 1; None is the whole image. A last, shorter window counts like any other.
        threshold: in nats per window, at least 0. (EAR's 0.05 is a squared error of hidden states, another unit.)
        normalizer: rows of the whole optimiser step, over accumulation and ranks; the rows given if None.

    Raises:
        ValueError: a hyper-parameter out of its range.

    Metrics: erase_kl (rows that are not dropped, windows below the threshold included) and keep_kl (rows with a keep
    term), nats per token; active_windows, the share of windows above the threshold.
    """
    check(
        eta=(eta, eta >= 0, "at least 0"),
        keep_weight=(keep_weight, keep_weight >= 0, "at least 0"),
        window=(window, window is None or window >= 1, "None (the whole image) or at least 1 token"),
        threshold=(threshold, threshold >= 0, "at least 0"),
    )
    to_erase_B, to_keep_B = ~dropped_B, dropped_B | ~collision_B
    kept_BLV = torch.where(collision_B[:, None, None], reference_null_BLV, reference_positive_BLV)
    erase_BL = _kl(kept_BLV - eta * (reference_negative_BLV - kept_BLV), policy_negative_BLV)
    keep_B = _kl(reference_positive_BLV, policy_positive_BLV).mean(dim=1)

    length = erase_BL.shape[1]
    size = length if window is None else window
    window_BW = F.pad(erase_BL, (0, -length % size)).unflatten(1, (-1, size)).sum(dim=-1)
    active_BW = window_BW > threshold
    erase_B = window_BW.masked_fill(~active_BW, 0.0).sum(dim=1) / length

    loss = (erase_B * to_erase_B + keep_weight * keep_B * to_keep_B).sum()
    rows = len(keep_B) if normalizer is None else normalizer
    return LossOutput(
        loss / rows,
        {
            "erase_kl": Average.of(erase_BL.mean(dim=1), to_erase_B),
            "keep_kl": Average.of(keep_B, to_keep_B),
            "active_windows": Average.of(active_BW, to_erase_B[:, None].expand_as(active_BW)),
        },
    )


def _kl(target_BLV: Tensor, policy_BLV: Tensor) -> Tensor:
    """[B, L]: KL(softmax(target) || softmax(policy)) of each position's distribution, nats."""
    logprobs_BLV = policy_BLV.log_softmax(dim=-1)
    return F.kl_div(logprobs_BLV, target_BLV.log_softmax(dim=-1), reduction="none", log_target=True).sum(dim=-1)
