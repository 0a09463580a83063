"""Keeping the policy's entropy up: a bonus in the loss, and the controller of its coefficient."""

from __future__ import annotations

import math

from torch import Tensor

from align.objectives.checks import check
from align.types import Average, LossOutput


def entropy_bonus(entropy_BL: Tensor, *, coefficient: float, normalizer: float | None = None) -> LossOutput:
    """-coefficient times the mean token entropy, to be added to an objective's loss.

    Args:
        entropy_BL: entropy of each position's distribution, nats, with gradient.
        normalizer: rows of the whole optimiser step; the rows given if None.

    Raises:
        ValueError: a negative coefficient.
    """
    check(coefficient=(coefficient, coefficient >= 0, "at least 0"))
    rows, length = entropy_BL.shape
    mean = entropy_BL.sum() / ((rows if normalizer is None else normalizer) * length)
    return LossOutput(-coefficient * mean, {"entropy": Average.of(entropy_BL)})


def entropy_coefficient(
    normalized_entropy: float,
    *,
    base: float,
    target: float = 0.78,
    band: float = 0.015,
    gain: float = 3.0,
    minimum: float = 7e-5,
    maximum: float = 4e-3,
) -> float:
    """The bonus's coefficient for the entropy last seen: base within the band around the target, else
    base * exp(gain * (target - normalized_entropy)); always within [minimum, maximum].

    The form and the defaults are those of the released code of leave-one-out FID rewards (arXiv 2603.23086).

    Args:
        normalized_entropy: mean token entropy over log V, in [0, 1].
        base: coefficient on target.
    """
    deviation = target - normalized_entropy
    coefficient = base if abs(deviation) <= band else base * math.exp(gain * deviation)
    return min(max(coefficient, minimum), maximum)
