"""Rollouts: guided, tempered, filtered sampling, with log-probs under the very distribution sampled from."""

from align.sampling.generate import balanced_labels, generate
from align.sampling.logits import draw, guide, sampling_logprobs, top_k_filter, top_p_filter
from align.sampling.loop import block_scales, distribution, is_guided, sample, score

__all__ = [
    "balanced_labels",
    "block_scales",
    "distribution",
    "draw",
    "generate",
    "guide",
    "is_guided",
    "sample",
    "sampling_logprobs",
    "score",
    "top_k_filter",
    "top_p_filter",
]
