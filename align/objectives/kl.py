"""How far the policy is from the reference: estimators from sampled tokens, the exact sum over the vocabulary, and the
penalties that keep it near."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from align.objectives.checks import check
from align.types import Average, LossOutput

ESTIMATORS = ("k1", "k2", "k3")


def kl_estimate(policy_BL: Tensor, reference_BL: Tensor, estimator: str) -> Tensor:
    """[B, L]: estimate of KL(policy || reference) at each token, nats, from tokens that the policy sampled.

    With d = log p_reference - log p_policy: k1 = -d (unbiased, of either sign), k2 = d^2 / 2 (biased),
    k3 = e^d - d - 1 (unbiased, never negative).

    Raises:
        ValueError: an unknown estimator.
    """
    d_BL = reference_BL - policy_BL
    if estimator == "k1":
        return -d_BL
    if estimator == "k2":
        return d_BL.square() / 2
    if estimator == "k3":
        return torch.expm1(d_BL) - d_BL
    raise ValueError(f"unknown estimator {estimator!r}; known: {', '.join(ESTIMATORS)}")


def exact_kl(policy_BLV: Tensor, reference_BLV: Tensor) -> Tensor:
    """[B, L]: KL(policy || reference) of each position's distribution, nats, from finite logits; at least float32."""
    policy_BLV, reference_BLV = (
        logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
        for logits in (policy_BLV, reference_BLV)
    )
    return (policy_BLV.exp() * (policy_BLV - reference_BLV)).sum(dim=-1)


def kl_penalty(
    policy_BL: Tensor,
    reference_BL: Tensor,
    old_BL: Tensor | None = None,
    *,
    coefficient: float,
    estimator: str = "k3",
    importance: bool = False,
    normalizer: float | None = None,
) -> LossOutput:
    """coefficient times the mean over rows and tokens of a KL estimate, to be added to an objective's loss.

    What a penalty does is decided by the expectation of its gradient over tokens drawn from the policy, which differs
    from what its value estimates:

    estimator   importance=False                       importance=True
    k1          0: nothing but noise; refused          gradient of KL(policy || reference)
    k2          gradient of KL(policy || reference)    gradient of E[k2], another divergence
    k3          gradient of KL(reference || policy)    gradient of KL(policy || reference)

    importance multiplies by p_policy / p_old (TRL's use_bias_correction_kl): the gradient gets the term by which the
    sampling depends on the policy, and stays right when the tokens were drawn some updates ago.

    The gradients are those of each token's divergence given the prefix it was drawn after. What a token does to later
    ones is not in them; for the divergence of whole images subtract coefficient * sum_t k1 from the reward instead.

    Args:
        policy_BL: log p of sampled tokens, nats, with gradient.
        reference_BL: the same under the reference.
        normalizer: rows of the whole optimiser step; the rows given if None.

    Raises:
        ValueError: an unknown estimator, k1 without importance, or a negative coefficient.
    """
    check(coefficient=(coefficient, coefficient >= 0, "at least 0"))
    if estimator == "k1" and not importance:
        raise ValueError("k1 in the loss has a gradient of mean zero; use estimator=k2, or importance=true")
    kl_BL = kl_estimate(policy_BL, reference_BL, estimator)
    metrics = {"kl": Average.of(kl_BL)}
    if importance:
        kl_BL = kl_BL * (policy_BL - (policy_BL.detach() if old_BL is None else old_BL)).exp()
    return LossOutput(coefficient * _mean(kl_BL, normalizer), metrics)


def exact_kl_penalty(
    policy_BLV: Tensor, reference_BLV: Tensor, *, coefficient: float, normalizer: float | None = None
) -> LossOutput:
    """coefficient times the mean over rows and positions of the exact KL(policy || reference): no sampling noise, at
    the cost of the reference's logits. Its gradient is that of `kl_penalty` with k2, in expectation.

    Args:
        policy_BLV, reference_BLV: raw logits.
        normalizer: rows of the whole optimiser step; the rows given if None.

    Raises:
        ValueError: a negative coefficient.
    """
    check(coefficient=(coefficient, coefficient >= 0, "at least 0"))
    kl_BL = exact_kl(policy_BLV, reference_BLV)
    return LossOutput(coefficient * _mean(kl_BL, normalizer), {"kl": Average.of(kl_BL)})


def adapt_coefficient(
    coefficient: float,
    value: float,
    target: float,
    *,
    gain: float = 0.1,
    minimum: float = 0.0,
    maximum: float = math.inf,
) -> float:
    """The next coefficient of a penalty that is to settle at `target` (Ziegler et al. 2019, arXiv 1909.08593):
    coefficient * (1 + gain * clip(value / target - 1, -0.2, 0.2)), kept within [minimum, maximum].

    Raises:
        ValueError: a target or a gain that is not positive.
    """
    check(target=(target, target > 0, "positive"), gain=(gain, gain > 0, "positive"))
    error = min(max(value / target - 1, -0.2), 0.2)
    return min(max(coefficient * (1 + gain * error), minimum), maximum)


def _mean(values_BL: Tensor, normalizer: float | None) -> Tensor:
    rows, length = values_BL.shape
    return values_BL.sum() / ((rows if normalizer is None else normalizer) * length)
