"""How far the log-probs that a policy is trained with are from those that it sampled with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from align.training.inputs import EXCLUDED
from align.types import Average


def mismatch(
    policy_BL: Tensor, behaviour_BL: Tensor, spans: Sequence[tuple[int, int]], epsilon: float | None
) -> dict[str, Average]:
    """Metrics of a gap that should be rounding alone, nats a token; along the image too, by the layout's spans.

    Args:
        epsilon: the clip range that ratios of the two will meet; None where they will not.

    Raises:
        FloatingPointError: the clip range is narrower than this noise, so that clipping would act on nothing else.
    """
    excluded_BL = policy_BL <= EXCLUDED
    gap_BL = (policy_BL - behaviour_BL).abs().masked_fill(excluded_BL, 0.0)
    floor = gap_BL.quantile(0.95).item()
    if epsilon is not None and floor > math.log1p(epsilon):
        raise FloatingPointError(
            f"log-probs at sampling and at training differ by {floor:.3g} nats (95th percentile), more than the clip "
            f"range log(1 + epsilon) = {math.log1p(epsilon):.3g}: clipping would act on noise alone. Raise "
            "objective.epsilon, use trainer.precision=fp32, or rollout.num_iterations=1"
        )
    metrics = {
        "mismatch": Average.of(gap_BL),
        "mismatch_max": Average.of(gap_BL.amax(dim=1)),
        "excluded": Average.of(excluded_BL),  # drawn within a filter, outside of it when scored
    }
    # by scale, or along a raster in eighths: a wrong position or cache shows where it begins
    for part in np.array_split(np.arange(len(spans)), min(8, len(spans))):
        name = f"block{part[0]}" if len(part) == 1 else f"blocks{part[0]}-{part[-1]}"
        metrics[f"mismatch/{name}"] = Average.of(gap_BL[:, spans[part[0]][0] : spans[part[-1]][1]])
    return metrics
