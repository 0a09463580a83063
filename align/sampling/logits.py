"""Pure functions from raw logits to the distribution that tokens are drawn from. Never in place."""

from __future__ import annotations

import torch
from torch import Tensor

from align.types import SamplingConfig


def guide(cond_logits: Tensor, null_logits: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance on logits (Ho & Salimans 2022; LlamaGen's convention): 1 gives the conditional ones."""
    return null_logits + scale * (cond_logits - null_logits)


def top_k_filter(logits: Tensor, top_k: int) -> Tensor:
    """-inf below the k-th largest logit [..., V]; ties at the boundary all stay. 0 is off."""
    if top_k == 0 or top_k >= logits.shape[-1]:
        return logits
    boundary = logits.topk(top_k, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
    return logits.masked_fill(logits < boundary, -torch.inf)


def top_p_filter(logits: Tensor, top_p: float, top_k: int = 0) -> Tensor:
    """-inf outside of the nucleus [..., V] (Holtzman et al. 2020): the most likely tokens up to and including the one
    whose cumulative probability exceeds `top_p`; of tied tokens the first ones, on every device. 1.0 is off.

    top_k: take the nucleus of what `top_k_filter` leaves, which is quicker than one after the other.
    """
    if top_p >= 1.0:
        return top_k_filter(logits, top_k)
    size = logits.shape[-1]
    # sorting takes the time: no indices, and no more values than can stay
    ordered = logits.detach().topk(min(top_k or size, size), dim=-1).values
    weights = (ordered - ordered[..., :1]).exp()
    more = (logits >= ordered[..., -1:]).sum(dim=-1, keepdim=True) - ordered.shape[-1]  # tied with the k-th, and stay
    most = top_p * (weights.sum(dim=-1, keepdim=True) + more * weights[..., -1:])
    before = weights.cumsum(dim=-1) - weights
    # the first token stays whatever top_p is, as nothing comes before it; NaN is not for a filter to report
    last = (torch.searchsorted(before, most, right=True) - 1).clamp_min(0)
    smallest = ordered.gather(-1, last)
    larger = (ordered > smallest).sum(dim=-1, keepdim=True)
    room = ((most - before.gather(-1, larger)) / weights.gather(-1, last)).floor() + 1  # for how many as small as that
    tied = logits == smallest
    outside = (logits < smallest) | (tied & (tied.cumsum(dim=-1, dtype=torch.int32) > room))
    return logits.masked_fill(outside, -torch.inf)


def filter_logits(logits: Tensor, config: SamplingConfig) -> Tensor:
    """float32 logits [..., V], not normalised, of the distribution sampled from, given already guided ones.

    Temperature, then top-k, then top-p; -inf for excluded tokens. Temperature 0 is a point mass.
    """
    logits = logits.float()
    if config.temperature == 0:
        best = logits.argmax(dim=-1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter(-1, best, 0.0)
    if config.temperature != 1.0:
        logits = logits / config.temperature
    return top_p_filter(logits, config.top_p, config.top_k)


def sampling_logprobs(logits: Tensor, config: SamplingConfig) -> Tensor:
    """float32 log-probabilities [..., V] of the distribution sampled from, given already guided logits."""
    return filter_logits(logits, config).log_softmax(dim=-1)


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens by inverting the cumulative distribution: logits [..., V], normalised or not, and uniforms in [0, 1) [...]
    to int64 [...].

    One number a token, so that a sample's randomness does not depend on the vocabulary's size or on its batch.
    """
    return draw_weighted(logits.softmax(dim=-1), uniforms)


def draw_weighted(weights: Tensor, uniforms: Tensor) -> Tensor:
    """As `draw`, from weights [..., V] of which the sum is any positive number."""
    # summed in float64: in float32 the cumulative sum over 16k tokens would lose the rare ones
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[..., -1:].contiguous()
    tokens = torch.searchsorted(cumulative, uniforms.double().unsqueeze(-1) * total, right=True)
    # uniform * total can round up to the total; the last token that has any mass is then meant
    last = torch.searchsorted(cumulative, total)
    return torch.minimum(tokens, last).squeeze(-1)
