"""Rollouts: guided, tempered, filtered sampling, with log-probs under the very distribution sampled from; and searches."""

from align.sampling.engine import sample
from align.sampling.generate import balanced_labels, generate
from align.sampling.logits import draw, guide, sampling_logprobs, top_k_filter, top_p_filter
from align.sampling.loop import block_scales, distribution, is_guided, score
from align.sampling.search import SearchPlan, Selection, best_of_n, guided_search

__all__ = [
    "SearchPlan",
    "Selection",
    "balanced_labels",
    "best_of_n",
    "block_scales",
    "distribution",
    "draw",
    "generate",
    "guide",
    "guided_search",
    "is_guided",
    "sample",
    "sampling_logprobs",
    "score",
    "top_k_filter",
    "top_p_filter",
]
