"""The Fréchet distance at infinitely many images. Shapes: N images, D feature dim, P sizes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.frechet import frechet_distance
from evaluation.metrics.rows import check_features, chunks
from evaluation.moments import Floats, RunningMoments


@dataclass(frozen=True)
class FrechetExtrapolation:
    """A line through distances against 1 / n.

    value: where it meets 1 / n = 0: FID-infinity. Near 0 it may come out slightly negative.
    stderr: of value, from how far the distances lie from the line. All are of the same N images: how far those might
        have been others is told by `frechet_stderr`.
    slope: the bias of a distance from n images is about slope / n.
    sizes, distances: the points.
    """

    value: float
    stderr: float
    slope: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]

    def at(self, n: int) -> float:
        """What n images would measure."""
        return self.value + self.slope / n


def frechet_infinity(
    features_ND: Floats,
    reference_mean_D: Floats,
    reference_cov_DD: Floats,
    *,
    smallest: int = 5000,
    points: int = 15,
    seed: int = 0,
) -> FrechetExtrapolation:
    """Extrapolate the squared Fréchet distance to infinitely many generated images.

    The distance from n images is too large by about c / n, and c differs between generators. Distances of random
    subsets, `points` sizes evenly from `smallest` to N, give c and what is left without it. The reference stays as it
    is: its own images, if few, leave a bias of their own.
    Source: Chong and Forsyth 2020, arXiv:1911.07023 (its quasi-random sampling aside).

    Args:
        smallest: more than D, since with fewer the covariance is singular and the line bends; better several times D.

    Raises:
        ValueError: shapes that do not fit, sizes that cannot be, NaN or infinity.
    """
    features_ND = check_features(features_ND)
    n, dim = features_ND.shape
    if not dim < smallest <= n - points + 1 or points < 3:
        raise ValueError(
            f"a line through distances needs at least 3 sizes, from more than the {dim} features up to the {n} images; got "
            f"{points} from {smallest}. Set smallest, or use more images"
        )
    rng = np.random.default_rng(seed)
    sizes_P = np.linspace(smallest, n, points).astype(int)
    distances_P = np.empty(points)
    for point, size in enumerate(sizes_P):
        index = np.sort(rng.permutation(n)[:size])
        moments = RunningMoments(dim)
        for rows in chunks(int(size)):
            moments.update(features_ND[index[rows]])
        distances_P[point] = frechet_distance(moments.mean, moments.covariance, reference_mean_D, reference_cov_DD)
    return _line(sizes_P, distances_P)


def _line(sizes_P: NDArray[np.int64], distances_P: Floats) -> FrechetExtrapolation:
    """Least squares, and the usual standard error of the intercept."""
    inverse_P = 1 / sizes_P
    centred_P = inverse_P - inverse_P.mean()
    spread = np.square(centred_P).sum()
    slope = centred_P @ distances_P / spread
    value = distances_P.mean() - slope * inverse_P.mean()
    noise = np.square(distances_P - value - slope * inverse_P).sum() / (len(sizes_P) - 2)
    stderr = np.sqrt(noise * (1 / len(sizes_P) + inverse_P.mean() ** 2 / spread))
    return FrechetExtrapolation(
        float(value), float(stderr), float(slope), tuple(map(int, sizes_P)), tuple(map(float, distances_P))
    )
