"""Distances and scores of generated images: pure float64 functions on moments, features and logits.

Shapes: N generated images, M real images, D feature dim, K classes.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr, softmax

from evaluation.moments import Floats

NEIGHBOURS = 3
CHUNK_ROWS = 512  # rows of a distance matrix held at once: 20 MB against 5,000 points, 200 MB against 50,000


def frechet_distance(mean1: Floats, cov1: Floats, mean2: Floats, cov2: Floats) -> float:
    """Squared Fréchet (2-Wasserstein) distance between two Gaussians; >= 0, lower is better.

    |mean1 - mean2|^2 + tr(cov1) + tr(cov2) - 2 tr((cov1^1/2 cov2 cov1^1/2)^1/2)

    With cov = F F^T for each, the last trace is the sum of the singular values of F1^T F2. Unlike the usual square root
    of a matrix product this stays real, accepts singular covariances, and never takes the root of a rounding error.
    Source: Dowson and Landau 1982; as an image metric (FID): Heusel et al. 2017, arXiv:1706.08500.

    Args:
        mean1, mean2: [D].
        cov1, cov2: [D, D], symmetric, positive semi-definite; singular ones are fine.

    Raises:
        ValueError: shapes that do not fit, NaN or infinity, or a matrix with a negative eigenvalue.
    """
    mean1_D, mean2_D = np.asarray(mean1, np.float64), np.asarray(mean2, np.float64)
    cov1_DD, cov2_DD = np.asarray(cov1, np.float64), np.asarray(cov2, np.float64)
    dim = len(mean1_D)
    shapes = [list(array.shape) for array in (mean1_D, cov1_DD, mean2_D, cov2_DD)]
    if shapes != [[dim], [dim, dim], [dim], [dim, dim]]:
        raise ValueError(f"mean1, cov1, mean2, cov2 must be [D], [D, D], [D], [D, D] with one D, got {shapes}")
    if not all(np.isfinite(array).all() for array in (mean1_D, cov1_DD, mean2_D, cov2_DD)):
        raise ValueError("means and covariances must be finite, got NaN or infinity; check the features")
    cross = np.linalg.svd(_factor(cov1_DD).T @ _factor(cov2_DD), compute_uv=False).sum()
    distance = np.square(mean1_D - mean2_D).sum() + np.trace(cov1_DD) + np.trace(cov2_DD) - 2 * cross
    return max(float(distance), 0.0)  # rounding can end a hair below zero


def _factor(cov_DD: Floats) -> Floats:
    """Some F with F F^T = cov. Cholesky is several times cheaper; the eigenvectors serve a singular matrix."""
    try:
        return np.linalg.cholesky(cov_DD)
    except np.linalg.LinAlgError:
        values_D, vectors_DD = np.linalg.eigh(cov_DD)
        if values_D[0] < -1e-6 * np.abs(values_D).max():
            raise ValueError(f"not a covariance: its smallest eigenvalue is {values_D[0]:.3g}, must be >= 0") from None
        return vectors_DD * np.sqrt(values_D.clip(min=0))


def inception_score(logits_NK: Floats) -> float:
    """exp(mean_i KL(p(y|x_i) || p(y))), between 1 and K; higher is better.

    One split over all images. The customary ten splits average over consecutive files: on images stored in class order
    every split then sees few classes and the score collapses, and a shorter split is biased further downwards. Numbers
    are therefore not interchangeable with published ones over splits of 5,000.
    Source: Salimans et al. 2016, arXiv:1606.03498.

    Args:
        logits_NK: unnormalised log-probabilities of any classifier, N >= 1.

    Raises:
        ValueError: wrong shape, no image, NaN or infinity.
    """
    probs_NK = class_probabilities(logits_NK)
    # The mean divergence is the mutual information H(y) - H(y|x); entr(p) = -p log p is 0 at p = 0.
    return float(np.exp(entr(probs_NK.mean(axis=0)).sum() - entr(probs_NK).sum(axis=1).mean()))


def class_probabilities(logits_NK: Floats) -> NDArray[np.float64]:
    """Softmax in float64. Raises ValueError for a wrong shape, no image, NaN or infinity."""
    logits_NK = np.asarray(logits_NK, np.float64)
    if logits_NK.ndim != 2 or len(logits_NK) == 0:
        raise ValueError(f"logits must have shape [N, K] with N >= 1, got {list(logits_NK.shape)}")
    if not np.isfinite(logits_NK).all():
        raise ValueError("logits must be finite, got NaN or infinity; check the classifier and its input")
    return softmax(logits_NK, axis=1)


def class_accuracy(logits_NK: Floats, labels_N: NDArray[np.integer]) -> float:
    """Share of images whose top class is the requested one, in [0, 1].

    Source: "GAN-test" of Shmelkov et al. 2018, arXiv:1807.09499: a classifier of real images judges generated ones.

    Raises:
        ValueError: shapes that do not fit, no image, NaN or infinity.
    """
    return float(class_hits(logits_NK, labels_N).mean())


def class_hits(logits_NK: Floats, labels_N: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Per image, whether the top class is the requested one: the indicators behind `class_accuracy`. bool [N]."""
    predicted_N = class_probabilities(logits_NK).argmax(axis=1)
    if labels_N.shape != predicted_N.shape:
        raise ValueError(
            f"labels must have shape [{len(predicted_N)}], one per row of logits, got {list(labels_N.shape)}"
        )
    return predicted_N == labels_N


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
    real_MD, generated_ND = np.asarray(real_MD, np.float64), np.asarray(generated_ND, np.float64)
    if real_MD.ndim != 2 or generated_ND.ndim != 2 or real_MD.shape[1] != generated_ND.shape[1]:
        raise ValueError(
            f"features must be [M, D] and [N, D] with one D, got {list(real_MD.shape)} and {list(generated_ND.shape)}"
        )
    if k < 1 or min(len(real_MD), len(generated_ND)) <= k:
        raise ValueError(
            f"k must be at least 1 and both sets larger than k, got k={k} with {len(real_MD)} real and "
            f"{len(generated_ND)} generated"
        )
    if not (np.isfinite(real_MD).all() and np.isfinite(generated_ND).all()):
        raise ValueError("features must be finite, got NaN or infinity; check the extractor and its input")
    # Distances do not see a common shift, but their rounding does.
    centre_D = real_MD.mean(axis=0)
    real_MD, generated_ND = real_MD - centre_D, generated_ND - centre_D
    reach_M, reach_N = _squared_reach(real_MD, k), _squared_reach(generated_ND, k)
    precise_N = np.zeros(len(generated_ND), dtype=bool)
    covered_M = np.zeros(len(real_MD), dtype=bool)
    for start in range(0, len(generated_ND), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        squared_BM = _squared_distances(generated_ND[rows], real_MD)
        precise_N[rows] = (squared_BM <= reach_M).any(axis=1)
        covered_M |= (squared_BM <= reach_N[rows, None]).any(axis=0)
    return precise_N, covered_M


def _squared_reach(points_ND: Floats, k: int) -> Floats:
    """Squared distance of each point to its k-th nearest other point."""
    reach_N = np.empty(len(points_ND))
    for start in range(0, len(points_ND), CHUNK_ROWS):
        squared_BN = _squared_distances(points_ND[start : start + CHUNK_ROWS], points_ND)
        rows = np.arange(len(squared_BN))
        squared_BN[rows, start + rows] = np.inf  # not its own neighbour
        reach_N[start : start + CHUNK_ROWS] = np.partition(squared_BN, k - 1, axis=1)[:, k - 1]
    return reach_N


def _squared_distances(a_BD: Floats, b_ND: Floats) -> Floats:
    """[B, N] by |a|^2 + |b|^2 - 2ab: one matrix product, many times faster than differences in high dimensions."""
    scale_BN = np.square(a_BD).sum(axis=1)[:, None] + np.square(b_ND).sum(axis=1)
    squared_BN = scale_BN - 2 * (a_BD @ b_ND.T)
    # Copies of one image differ by rounding, here or in the float32 features of another batch; zeros compare equal.
    squared_BN[squared_BN < 1e-12 * scale_BN] = 0.0
    return squared_BN
