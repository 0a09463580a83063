"""From logits to the log-probabilities and entropies that objectives and their logs are made of."""

from __future__ import annotations

from torch import Tensor


def token_logprobs(logits_BLV: Tensor, tokens_BL: Tensor) -> Tensor:
    """float32 [B, L]: log-probability (nats) of each token under its logits."""
    logits_BLV = logits_BLV.float()
    chosen_BL = logits_BLV.gather(-1, tokens_BL.unsqueeze(-1)).squeeze(-1)
    return chosen_BL - logits_BLV.logsumexp(dim=-1)


def token_entropy(logits_BLV: Tensor) -> Tensor:
    """float32 [B, L]: entropy (nats) of each position's distribution, between 0 and log V."""
    logprobs_BLV = logits_BLV.float().log_softmax(dim=-1)
    return -(logprobs_BLV.exp() * logprobs_BLV).sum(dim=-1)
