"""From logits to the log-probabilities and entropies that objectives and their logs are made of."""

from __future__ import annotations

import torch
from torch import Tensor


def token_logprobs(logits_BLV: Tensor, tokens_BL: Tensor) -> Tensor:
    """float32 [B, L]: log-probability (nats) of each token under its logits."""
    logits_BLV = logits_BLV.float()
    chosen_BL = logits_BLV.gather(-1, tokens_BL.unsqueeze(-1)).squeeze(-1)
    return chosen_BL - logits_BLV.logsumexp(dim=-1)


def token_entropy(logits_BLV: Tensor) -> Tensor:
    """float32 [B, L]: entropy (nats) of each position's distribution, between 0 and log V; excluded tokens (-inf) add 0."""
    logprobs_BLV = logits_BLV.float().log_softmax(dim=-1)
    finite_BLV = logprobs_BLV.masked_fill(logprobs_BLV == -torch.inf, 0.0)
    return -(logprobs_BLV.exp() * finite_BLV).sum(dim=-1)
