"""Supervised fine-tuning: maximum likelihood on real images, or on the best of own ones. Pretraining, and the controls."""

from __future__ import annotations

from torch import Tensor

from align.types import Average, LossOutput


def sft(
    policy_positive_B: Tensor, dropped_B: Tensor, num_tokens: int, *, normalizer: float | None = None
) -> LossOutput:
    """-1/N sum_i log p_policy(x_i|c_i) / L: the mean negative log-likelihood of a token.

    Args:
        policy_positive_B: log p of the whole image given its condition, nats, with gradient.
        dropped_B: bool, rows whose condition was replaced by the null condition (they train the unconditional model).
        num_tokens: L.
        normalizer: rows of the whole optimiser step, over accumulation and ranks; the rows given if None.

    Metrics: nll_per_token (conditional rows) and nll_null_per_token, nats.
    """
    nll_B = -policy_positive_B / num_tokens
    rows = len(nll_B) if normalizer is None else normalizer
    return LossOutput(
        nll_B.sum() / rows,
        {"nll_per_token": Average.of(nll_B, ~dropped_B), "nll_null_per_token": Average.of(nll_B, dropped_B)},
    )


def best_of_n(
    policy_chosen_B: Tensor, dropped_B: Tensor, num_tokens: int, *, normalizer: float | None = None
) -> LossOutput:
    """Maximum likelihood on the chosen images of preference pairs: fine-tuning on the best of N own samples.

    The control of the preference objectives, on the same pairs: what they gain above it is the preference's own share.
    Arguments and metrics are those of `sft`.
    """
    return sft(policy_chosen_B, dropped_B, num_tokens, normalizer=normalizer)
