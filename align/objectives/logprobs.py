"""From logits to the log-probabilities and entropies that objectives and their logs are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def token_logprobs(logits_BLV: Tensor, tokens_BL: Tensor) -> Tensor:
    """float32 [B, L]: log-probability (nats) of each token under its logits."""
    return _Chosen.apply(logits_BLV.float(), tokens_BL)


class _Chosen(torch.autograd.Function):
    """logits of the tokens - logsumexp(logits). Its gradient is made in one tensor of the logits' size, where autograd's
    own, of the same bits, takes five."""

    @staticmethod
    def forward(context: Any, logits_BLV: Tensor, tokens_BL: Tensor) -> Tensor:
        total_BL = logits_BLV.logsumexp(dim=-1)
        context.save_for_backward(logits_BLV, tokens_BL, total_BL)
        return logits_BLV.gather(-1, tokens_BL.unsqueeze(-1)).squeeze(-1) - total_BL

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient_BL: Tensor) -> tuple[Tensor, None]:
        logits_BLV, tokens_BL, total_BL = context.saved_tensors
        gradient_BL1 = gradient_BL.unsqueeze(-1)
        of_logits_BLV = (logits_BLV - total_BL.unsqueeze(-1)).exp_().mul_(-gradient_BL1)
        return of_logits_BLV.scatter_add_(-1, tokens_BL.unsqueeze(-1), gradient_BL1), None


def token_entropy(logits_BLV: Tensor) -> Tensor:
    """float32 [B, L]: entropy (nats) of each position's distribution, between 0 and log V; excluded tokens (-inf) add 0."""
    logprobs_BLV = logits_BLV.float().log_softmax(dim=-1)
    finite_BLV = logprobs_BLV.masked_fill(logprobs_BLV == -torch.inf, 0.0)
    return -(logprobs_BLV.exp() * finite_BLV).sum(dim=-1)
