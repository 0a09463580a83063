"""The unpaired logistic core that CCA, DDO and NCA share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def unpaired_logistic(gap_N: Tensor, sign_N: Tensor, weight_N: Tensor | float, *, beta: float) -> Tensor:
    """[N]: -w log sigmoid(s beta g), the loss of classifying by a log-ratio alone.

    Args:
        gap_N: log p_policy - log p_reference of whole sequences, nats.
        sign_N: +1 to raise the likelihood, -1 to lower it.
        weight_N: weight of each row.
        beta: turns nats into logits; 1/beta is the gap at which the loss saturates.
    """
    return -weight_N * F.logsigmoid(sign_N * beta * gap_N)
