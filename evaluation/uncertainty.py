"""Standard errors of shares and of means over prompts: how far they would move had other images been drawn.

They cover the sampling of the images only: not the training seed, and not the choice of the reference images. Those of
distances and scores stand beside them in `evaluation.metrics`.

Shapes: N images, M reference images, P prompts, R resamples.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.moments import Floats

INTERVAL_RESAMPLES = 2000  # 50 of 2000 lie beyond either end of an interval


@dataclass(frozen=True)
class Estimate:
    """A number, its standard error, and the ends of its 95 % interval; with fewer than two prompts the latter are absent."""

    value: float
    stderr: float | None
    interval: tuple[float, float] | None


def estimate_over_prompts(
    sum_P: Floats, count_P: Floats, *, resamples: int = INTERVAL_RESAMPLES, seed: int = 0
) -> Estimate:
    """sum(sum_P) / sum(count_P), with a percentile bootstrap over prompts: each is drawn with all that belongs to it.

    Args:
        sum_P, count_P: of each prompt, what was summed and how many numbers that were; prompts of count 0 do not take part.

    Raises:
        ValueError: no prompt has a number.
    """
    sum_P, count_P = np.asarray(sum_P, np.float64), np.asarray(count_P, np.float64)
    sum_P, count_P = sum_P[count_P > 0], count_P[count_P > 0]
    prompts = len(count_P)
    if prompts == 0:
        raise ValueError("no prompt has a number, so that there is no mean")
    value = float(sum_P.sum() / count_P.sum())
    if prompts == 1:
        return Estimate(value, None, None)
    times_RP = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    value_R = (times_RP @ sum_P) / (times_RP @ count_P)
    low, high = np.quantile(value_R, [0.025, 0.975])
    return Estimate(value, float(np.std(value_R, ddof=1)), (float(low), float(high)))


def mean_stderr(values_N: Floats | NDArray[np.bool_]) -> float:
    """Standard error of a mean over generated images, such as precision, density or accuracy, from one number per image.

    The bootstrap of a mean has a closed form, the limit of infinitely many resamples: std(values) / sqrt(N).

    Raises:
        ValueError: fewer than two images.
    """
    _require_two(len(values_N))
    return float(np.std(values_N) / np.sqrt(len(values_N)))


def recall_stderr(covered_M: NDArray[np.bool_], num_generated: int) -> float:
    """Standard error of recall or coverage from one indicator per reference image; an approximation.

    Reference images under the same generated image's ball gain and lose their cover together, so M indicators hold no
    more than N independent ones: std(covered) / sqrt(min(M, N)). With Gaussian features this was 0.8 to 1.6 times the
    spread over independent draws for N/M from 0.1 to 3; std / sqrt(M) was as little as 0.4 times.

    Raises:
        ValueError: fewer than two images on either side.
    """
    independent = min(len(covered_M), num_generated)
    _require_two(independent)
    return float(np.std(covered_M) / np.sqrt(independent))


def _require_two(n: int) -> None:
    if n < 2:
        raise ValueError(f"a standard error needs at least 2 images, got {n}")
