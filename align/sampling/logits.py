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
    boundary = logits.topk(top_k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < boundary, -torch.inf)


def top_p_filter(logits: Tensor, top_p: float) -> Tensor:
    """-inf outside of the nucleus [..., V] (Holtzman et al. 2020): the most likely tokens up to and including the one
    whose cumulative probability exceeds `top_p`. 1.0 is off."""
    if top_p >= 1.0:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    # the first token stays whatever top_p is: nothing comes before it
    outside = (before > top_p).scatter(-1, order, before > top_p)
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
    return top_p_filter(top_k_filter(logits, config.top_k), config.top_p)


def sampling_logprobs(logits: Tensor, config: SamplingConfig) -> Tensor:
    """float32 log-probabilities [..., V] of the distribution sampled from, given already guided logits."""
    return filter_logits(logits, config).log_softmax(dim=-1)


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens by inverting the cumulative distribution: logits [..., V], normalised or not, and uniforms in [0, 1) [...]
    to int64 [...].

    One number a token, so that a sample's randomness does not depend on the vocabulary's size or on its batch.
    """
    # summed in float64: in float32 the cumulative sum over 16k tokens would lose the rare ones
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[..., -1:].contiguous()
    tokens = torch.searchsorted(cumulative, uniforms.double().unsqueeze(-1) * total, right=True)
    # uniform * total can round up to the total; the last token that has any mass is then meant
    last = torch.searchsorted(cumulative, total)
    return torch.minimum(tokens, last).squeeze(-1)
