"""Mean and covariance of features that arrive in batches, in memory that does not grow with their number.

Shapes: B batch, D feature dim.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


class RunningMoments:
    """Streaming float64 mean and unbiased covariance by pairwise merging.

    The sums are kept around the running mean, so features with a large offset lose no digits; plain sums of squares do.
    Source: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".

    Args:
        dim: D, the feature dimension.
    """

    def __init__(self, dim: int) -> None:
        self.n = 0
        self._mean_D = np.zeros(dim)
        self._scatter_DD = np.zeros((dim, dim))  # sum over the samples of (x - mean)(x - mean)^T

    def update(self, features_BD: Floats) -> None:
        """Add a batch [B, D] of any float dtype; an empty batch changes nothing.

        Raises:
            ValueError: wrong shape, or a NaN or infinite feature (nothing is added then).
        """
        batch_BD = np.asarray(features_BD, dtype=np.float64)
        dim = len(self._mean_D)
        if batch_BD.ndim != 2 or batch_BD.shape[1] != dim:
            raise ValueError(f"features must have shape [B, {dim}], got {list(batch_BD.shape)}")
        finite_B = np.isfinite(batch_BD).all(axis=1)
        if not finite_B.all():
            raise ValueError(
                f"features hold NaN or infinity in {int((~finite_B).sum())} of {len(batch_BD)} rows, "
                f"first in row {int(np.argmin(finite_B))}; check the extractor and its input"
            )
        if len(batch_BD) == 0:
            return
        mean_D = batch_BD.mean(axis=0)
        centred_BD = batch_BD - mean_D
        self._combine(len(batch_BD), mean_D, centred_BD.T @ centred_BD)

    def merge(self, other: "RunningMoments") -> None:
        """Add everything `other` has seen, as if it had been seen here.

        Raises:
            ValueError: different feature dimensions.
        """
        if len(other._mean_D) != len(self._mean_D):
            raise ValueError(f"cannot merge moments of {len(other._mean_D)} features into {len(self._mean_D)}")
        self._combine(other.n, other._mean_D, other._scatter_DD)

    def _combine(self, n: int, mean_D: NDArray[np.float64], scatter_DD: NDArray[np.float64]) -> None:
        if n == 0:
            return
        total = self.n + n
        delta_D = mean_D - self._mean_D
        self._scatter_DD = self._scatter_DD + scatter_DD + np.outer(delta_D, delta_D) * (self.n * n / total)
        self._mean_D = self._mean_D + delta_D * (n / total)
        self.n = total

    @property
    def mean(self) -> NDArray[np.float64]:
        """[D]. Raises ValueError before the first sample."""
        self._require(1, "mean")
        return self._mean_D

    @property
    def covariance(self) -> NDArray[np.float64]:
        """[D, D], divided by n - 1 as `numpy.cov` does. Raises ValueError for fewer than two samples."""
        self._require(2, "covariance")
        return self._scatter_DD / (self.n - 1)

    def _require(self, samples: int, what: str) -> None:
        if self.n < samples:
            raise ValueError(f"a {what} needs at least {samples} samples, got {self.n}; call update first")
