"""Manifolds of nearest neighbours: precision and recall, density and coverage.

Shapes: N generated images, M real images, D feature dim, A and B rows of a block.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.rows import check_both, chunks
from evaluation.moments import Floats

NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5


def precision_recall(real_MD: Floats, generated_ND: Floats, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Share of generated images inside the real manifold, and of real images inside the generated one; both in [0, 1].

    A set's manifold is the union of balls around its points, each reaching the k-th nearest other point of that set.
    Both shares move with M and N, so compare only equal counts.
    Source: Kynkäänniemi et al. 2019, arXiv:1904.06991, algorithm 1.

    Raises:
        ValueError: shapes that do not fit, a set of k points or fewer, NaN or infinity.
    """
    precise_N, covered_M = manifold_hits(real_MD, generated_ND, k)
    return float(precise_N.mean()), float(covered_M.mean())


def manifold_hits(
    real_MD: Floats, generated_ND: Floats, k: int = NEIGHBOURS
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Per image, whether it lies in the other set's manifold: the indicators behind `precision_recall`.

    Returns:
        bool [N] for the generated images, bool [M] for the real ones.
    """
    real_MD, generated_ND, centre_D = _checked(real_MD, generated_ND, k)
    reach_M, reach_N = _squared_reach(real_MD, centre_D, k), _squared_reach(generated_ND, centre_D, k)
    precise_N, covered_M = np.zeros(len(generated_ND), dtype=bool), np.zeros(len(real_MD), dtype=bool)
    for rows, columns, squared_AB in _squared_blocks(generated_ND, real_MD, centre_D):
        precise_N[rows] |= (squared_AB <= reach_M[columns]).any(axis=1)
        covered_M[columns] |= (squared_AB <= reach_N[rows, None]).any(axis=0)
    return precise_N, covered_M


def density_coverage(real_MD: Floats, generated_ND: Floats, k: int = DENSITY_NEIGHBOURS) -> tuple[float, float]:
    """How many real balls a generated image lies in, over k, and the share of real balls that hold a generated image.

    Density is about 1 for equal distributions and may exceed it; coverage is in [0, 1]. Balls are drawn around real
    images alone, so that outliers among the generated ones cannot widen the manifold, as they do for recall.
    Source: Naeem et al. 2020, arXiv:2002.09797; here an image on the rim of a ball is inside, as for recall.

    Raises:
        ValueError: shapes that do not fit, a set of k points or fewer, NaN or infinity.
    """
    density_N, covered_M = density_coverage_hits(real_MD, generated_ND, k)
    return float(density_N.mean()), float(covered_M.mean())


def density_coverage_hits(
    real_MD: Floats, generated_ND: Floats, k: int = DENSITY_NEIGHBOURS
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Per image, what `density_coverage` averages.

    Returns:
        float [N], the real balls around each generated image over k; bool [M], whether each real ball holds any.
    """
    real_MD, generated_ND, centre_D = _checked(real_MD, generated_ND, k)
    reach_M = _squared_reach(real_MD, centre_D, k)
    density_N, covered_M = np.zeros(len(generated_ND)), np.zeros(len(real_MD), dtype=bool)
    for rows, columns, squared_AB in _squared_blocks(generated_ND, real_MD, centre_D):
        inside_AB = squared_AB <= reach_M[columns]
        density_N[rows] += inside_AB.sum(axis=1) / k
        covered_M[columns] |= inside_AB.any(axis=0)
    return density_N, covered_M


def _checked(real_MD: Floats, generated_ND: Floats, k: int) -> tuple[NDArray[Any], NDArray[Any], Floats]:
    real_MD, generated_ND = check_both(real_MD, generated_ND)
    if k < 1 or min(len(real_MD), len(generated_ND)) <= k:
        raise ValueError(
            f"k must be at least 1 and both sets larger than k, got k={k} with {len(real_MD)} real and "
            f"{len(generated_ND)} generated"
        )
    # Distances do not see a common shift, but their rounding does.
    return real_MD, generated_ND, real_MD.mean(axis=0, dtype=np.float64)


def _squared_reach(points_ND: NDArray[Any], centre_D: Floats, k: int) -> Floats:
    """Squared distance of each point to its k-th nearest other point."""
    nearest_NK = np.full((len(points_ND), k), np.inf)
    for rows, columns, squared_AB in _squared_blocks(points_ND, points_ND, centre_D):
        if rows == columns:
            np.fill_diagonal(squared_AB, np.inf)  # not its own neighbour
        squared_AB.partition(min(k, squared_AB.shape[1]) - 1, axis=1)
        nearer_AK = np.concatenate([nearest_NK[rows], squared_AB[:, :k]], axis=1)
        nearest_NK[rows] = np.partition(nearer_AK, k - 1, axis=1)[:, :k]
    return nearest_NK.max(axis=1)


def _squared_blocks(a_ND: NDArray[Any], b_MD: NDArray[Any], centre_D: Floats) -> Iterator[tuple[slice, slice, Floats]]:
    """The distance matrix in blocks, with their rows and columns."""
    for rows in chunks(len(a_ND)):
        a_AD = a_ND[rows] - centre_D
        for columns in chunks(len(b_MD)):
            yield rows, columns, _squared_distances(a_AD, b_MD[columns] - centre_D)


def _squared_distances(a_AD: Floats, b_BD: Floats) -> Floats:
    """[A, B] by |a|^2 + |b|^2 - 2ab: one matrix product, many times faster than differences in high dimensions."""
    scale_AB = np.add.outer(np.square(a_AD).sum(axis=1), np.square(b_BD).sum(axis=1))
    squared_AB = a_AD @ b_BD.T
    squared_AB *= -2  # in place, here and below: fresh blocks of this size cost more than the sums
    squared_AB += scale_AB
    # Copies of one image differ by rounding, here or in the float32 features of another batch; zeros compare equal.
    scale_AB *= 1e-12
    squared_AB[squared_AB < scale_AB] = 0.0
    return squared_AB
