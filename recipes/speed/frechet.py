"""Features that stand for Inception's, and the Fréchet distance by the square root of a matrix product."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.linalg

from evaluation import RunningMoments

BATCH = 500


def batches(n: int, seed: int, dim: int) -> Iterator[Any]:
    """float32 [BATCH, dim] of n images: rectified, of variances over three orders, correlated by a fixed mixing."""
    mixing_DD = np.random.default_rng(99).normal(size=(dim, dim)).astype(np.float32) / np.sqrt(dim)
    mixing_DD *= np.logspace(0, -1.5, dim, dtype=np.float32)[:, None]
    rng = np.random.default_rng(seed)
    for start in range(0, n, BATCH):
        noise_BD = rng.standard_normal((min(BATCH, n - start), dim), dtype=np.float32)
        yield np.maximum(noise_BD @ mixing_DD + 0.02 * seed, 0)


def moments(n: int, seed: int, dim: int) -> tuple[Any, Any]:
    """Mean [dim] and covariance [dim, dim] of n images."""
    found = RunningMoments(dim)
    for batch_BD in batches(n, seed, dim):
        found.update(batch_BD)
    return found.mean, found.covariance


def sqrtm_distance(mean1: Any, cov1: Any, mean2: Any, cov2: Any) -> float:
    root = scipy.linalg.sqrtm(cov1 @ cov2)
    return float(np.square(mean1 - mean2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * np.trace(root.real))
