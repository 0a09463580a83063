"""The Fréchet distance between Gaussians, and its standard error. Shapes: N images, D feature dim, R and S ranks."""

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.rows import check_features, chunks
from evaluation.moments import Floats


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
    mean1_D, cov1_DD, mean2_D, cov2_DD = _check_moments(mean1, cov1, mean2, cov2)
    cross = _nuclear_norm(_factor(cov1_DD).T @ _factor(cov2_DD))
    distance = np.square(mean1_D - mean2_D).sum() + np.trace(cov1_DD) + np.trace(cov2_DD) - 2 * cross
    return max(float(distance), 0.0)  # rounding can end a hair below zero


def frechet_influence(
    features_ND: Floats, mean: Floats, cov: Floats, reference_mean: Floats, reference_cov: Floats
) -> NDArray[np.float64]:
    """How each image moves the squared Fréchet distance, to first order: N times what its removal undoes.

    2 (m1 - m2).(x - m1) + (x - m1)^T (1 - T) (x - m1) - tr((1 - T) cov1)

    T is the optimal transport map from the one Gaussian to the other (1 - T is the distance's gradient with respect to
    cov1): with cov1 = F F^T and the singular vectors of F^T F2 = U s V^T, T = A A^T for A = F^-T U s^1/2. Where cov1 is
    singular the images have no extent, and a pseudo-inverse serves.
    Source: Knott and Smith 1984, "On the optimal mapping of distributions", for T; Jaeckel 1972, "The infinitesimal
    jackknife".

    Args:
        mean, cov: [D] and [D, D], of these very features.
        reference_mean, reference_cov: [D] and [D, D], taken as fixed.

    Returns:
        float [N], of mean 0 up to the difference between N and N - 1.

    Raises:
        ValueError: shapes that do not fit, fewer than 2 images, NaN or infinity.
    """
    features_ND = check_features(features_ND)
    mean_D, cov_DD, reference_mean_D, reference_cov_DD = _check_moments(mean, cov, reference_mean, reference_cov)
    if features_ND.shape[1] != len(mean_D):
        raise ValueError(
            f"features have {features_ND.shape[1]} dimensions and the moments {len(mean_D)}; must be equal"
        )
    root_R, vectors_DR = _principal(cov_DD)
    left_RR, singular_R, _ = np.linalg.svd((vectors_DR * root_R).T @ _factor(reference_cov_DD), full_matrices=False)
    half_DR = (vectors_DR / root_R) @ (left_RR * np.sqrt(singular_R))
    gradient_DD = np.eye(len(mean_D)) - half_DR @ half_DR.T
    shift_D = 2 * (mean_D - reference_mean_D)
    influence_N = np.empty(len(features_ND))
    for rows in chunks(len(features_ND)):
        centred_BD = features_ND[rows] - mean_D
        influence_N[rows] = centred_BD @ shift_D + ((centred_BD @ gradient_DD) * centred_BD).sum(axis=1)
    return influence_N - (gradient_DD * cov_DD).sum()


def frechet_stderr(
    features_ND: Floats, mean: Floats, cov: Floats, reference_mean: Floats, reference_cov: Floats
) -> float:
    """Standard error of the squared Fréchet distance over the drawing of the images, by the delta method.

    Over 150 independent draws of 2,000 images with 64 features (Gaussian, rectified, Student-t with 5 degrees of
    freedom) it was on average 0.95 to 1.16 times the spread at distances from 0.1 to 7, and a bootstrap of 60 resamples
    0.84 to 1.14 times. Where the distance is mostly bias it is on the careful side: 1.0 to 1.4 times at a true distance
    of 0 (the bootstrap: 0.5 to 1.7), 1.3 times with 4 images for each feature. With tails as heavy as the Student's a
    single estimate may be off by half. Images are drawn whatever their class; with a fixed number of each the spread is
    a little smaller.

    Args, Raises:
        As `frechet_influence`.
    """
    influence_N = frechet_influence(features_ND, mean, cov, reference_mean, reference_cov)
    return float(np.std(influence_N) / np.sqrt(len(influence_N)))


def _check_moments(mean1: Floats, cov1: Floats, mean2: Floats, cov2: Floats) -> list[NDArray[np.float64]]:
    moments = [np.asarray(array, np.float64) for array in (mean1, cov1, mean2, cov2)]
    dim = moments[0].size
    shapes = [list(array.shape) for array in moments]
    if shapes != [[dim], [dim, dim], [dim], [dim, dim]]:
        raise ValueError(f"mean1, cov1, mean2, cov2 must be [D], [D, D], [D], [D, D] with one D, got {shapes}")
    if not all(np.isfinite(array).all() for array in moments):
        raise ValueError("means and covariances must be finite, got NaN or infinity; check the features")
    return moments


def _nuclear_norm(matrix_RS: Floats) -> float:
    """Sum of the singular values; where they serve, by the eigenvalues of its square in a third of the time.

    A square has half the digits: rounding moves its eigenvalues by about eps times the largest one, and so a singular
    value s by eps max^2 / (2 s). Where that adds up to more than 1e-9 of the sum the singular values are found
    themselves.
    """
    rows, columns = matrix_RS.shape
    squared = np.linalg.eigvalsh(matrix_RS @ matrix_RS.T if rows <= columns else matrix_RS.T @ matrix_RS)
    if squared.size and squared[0] > 0:
        singular = np.sqrt(squared)
        if np.finfo(np.float64).eps * squared[-1] * (0.5 / singular).sum() < 1e-9 * singular.sum():
            return float(singular.sum())
    return float(np.linalg.svd(matrix_RS, compute_uv=False).sum())


def _factor(cov_DD: Floats) -> Floats:
    """Some F with F F^T = cov. Cholesky is several times cheaper; the eigenvectors serve a singular matrix."""
    try:
        return np.linalg.cholesky(cov_DD)
    except np.linalg.LinAlgError:
        root_R, vectors_DR = _principal(cov_DD)
        return vectors_DR * root_R


def _principal(cov_DD: Floats) -> tuple[Floats, Floats]:
    """Standard deviations [R] along the principal axes [D, R], without those that are rounding of 0."""
    values_D, vectors_DD = np.linalg.eigh(cov_DD)
    if values_D[0] < -1e-6 * np.abs(values_D).max():
        raise ValueError(f"not a covariance: its smallest eigenvalue is {values_D[0]:.3g}, must be >= 0")
    kept_D = values_D > len(values_D) * np.finfo(np.float64).eps * values_D[-1]
    return np.sqrt(values_D[kept_D]), vectors_DD[:, kept_D]
