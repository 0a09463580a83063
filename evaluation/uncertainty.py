"""Standard errors of one evaluation: how far its numbers would move had other images been drawn from the same model.

They cover the sampling of the images only: not the training seed, and not the choice of the reference images. Images are
resampled whatever their class; with a fixed number per class the true spread is a little smaller (5 to 25 % for the
Fréchet distance of digits), so the error is on the careful side.

Shapes: N images, M reference images, D feature dim, K classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from evaluation.metrics import class_probabilities, frechet_distance
from evaluation.moments import Floats

RESAMPLES = 100  # a standard deviation from 100 resamples is itself good to about 7 %
INTERVAL_RESAMPLES = 2000  # the ends of an interval need more: 50 of 2000 lie beyond either one


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


def mean_stderr(hits_N: NDArray[np.bool_]) -> float:
    """Standard error of a share of generated images, such as precision or accuracy, from one indicator per image.

    The bootstrap of a mean has a closed form, the limit of infinitely many resamples: std(hits) / sqrt(N).

    Raises:
        ValueError: fewer than two images.
    """
    _require_two(len(hits_N))
    return float(np.std(hits_N) / np.sqrt(len(hits_N)))


def recall_stderr(covered_M: NDArray[np.bool_], num_generated: int) -> float:
    """Standard error of recall from one indicator per reference image; an approximation.

    Reference images under the same generated image's ball gain and lose their cover together, so M indicators hold no
    more than N independent ones: std(covered) / sqrt(min(M, N)). With Gaussian features this was 0.8 to 1.6 times the
    spread over independent draws for N/M from 0.1 to 3; std / sqrt(M) was as little as 0.4 times.

    Raises:
        ValueError: fewer than two images on either side.
    """
    independent = min(len(covered_M), num_generated)
    _require_two(independent)
    return float(np.std(covered_M) / np.sqrt(independent))


def frechet_stderr(
    features_ND: Floats,
    reference_mean_D: Floats,
    reference_cov_DD: Floats,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> float:
    """Bootstrap standard error of the Fréchet distance between the features and fixed reference moments.

    Only the spread of the resampled distances is used: their mean is biased upwards (resampled images repeat, so the
    estimated covariance errs once more in the same direction), hence no confidence interval may be read from it.
    Costs `resamples` covariances and Fréchet distances.

    Raises:
        ValueError: fewer than two images, or shapes that do not fit.
    """
    features_ND = np.asarray(features_ND, np.float64)
    distances = []
    for index_N in _resample_indices(len(features_ND), resamples, seed):
        sample_ND = features_ND[index_N]
        mean_D = sample_ND.mean(axis=0)
        centred_ND = sample_ND - mean_D
        cov_DD = centred_ND.T @ centred_ND / (len(sample_ND) - 1)
        distances.append(frechet_distance(mean_D, cov_DD, reference_mean_D, reference_cov_DD))
    return float(np.std(distances, ddof=1))


def inception_score_stderr(logits_NK: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Bootstrap standard error of `metrics.inception_score`.

    Raises:
        ValueError: fewer than two images, a wrong shape, NaN or infinity.
    """
    probs_NK = class_probabilities(logits_NK)
    entropy_N = entr(probs_NK).sum(axis=1)  # once per image: a resample only averages it again
    scores = [
        np.exp(entr(probs_NK[index_N].mean(axis=0)).sum() - entropy_N[index_N].mean())
        for index_N in _resample_indices(len(probs_NK), resamples, seed)
    ]
    return float(np.std(scores, ddof=1))


def _resample_indices(n: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """`resamples` draws of n indices with replacement. Source: Efron 1979, "Bootstrap methods"."""
    _require_two(n)
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield rng.integers(n, size=n)


def _require_two(n: int) -> None:
    if n < 2:
        raise ValueError(f"a standard error needs at least 2 images, got {n}")
