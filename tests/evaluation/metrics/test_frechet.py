"""The Fréchet distance against values by hand and scipy's matrix square root; its error bar against draws of its own."""

import numpy as np
import pytest
import scipy.linalg

from evaluation.metrics import frechet_distance, frechet_influence, frechet_stderr


def moments(features_nd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return features_nd.mean(axis=0), np.atleast_2d(np.cov(features_nd, rowvar=False))


def test_in_one_dimension():
    """(m1 - m2)^2 + (s1 - s2)^2 = (1 - 4)^2 + (2 - 5)^2 = 18."""
    one, two = (np.array([1.0]), np.array([[4.0]])), (np.array([4.0]), np.array([[25.0]]))
    assert frechet_distance(*one, *two) == pytest.approx(18)


def test_diagonal_covariances():
    """Commuting covariances: the sum of the one-dimensional distances, (1 - 2)^2 + (3 - 0)^2 + 0 = 10."""
    zero = np.zeros(3)
    assert frechet_distance(zero, np.diag([1.0, 9, 4]), zero, np.diag([4.0, 0, 4])) == pytest.approx(10)


def test_a_point_is_as_far_as_the_other_s_variance():
    zero = np.zeros(3)
    assert frechet_distance(zero, np.zeros((3, 3)), zero, np.diag([1.0, 2, 3])) == pytest.approx(6)


@pytest.mark.parametrize("n", [300, 8], ids=["full rank", "rank-deficient"])
def test_agrees_with_scipy_sqrtm(n):
    rng = np.random.default_rng(0)
    mean1, cov1 = moments(rng.normal(size=(n, 12)) @ rng.normal(size=(12, 12)))
    mean2, cov2 = moments(rng.normal(size=(300, 12)) @ rng.normal(size=(12, 12)))
    # One factor is regular, so the square root is well defined up to scipy's own precision.
    root2 = scipy.linalg.sqrtm(cov2).real
    cross = scipy.linalg.sqrtm(root2 @ (cov1 + 1e-14 * np.eye(12)) @ root2).real.trace()
    expected = np.square(mean1 - mean2).sum() + cov1.trace() + cov2.trace() - 2 * cross
    assert frechet_distance(mean1, cov1, mean2, cov2) == pytest.approx(expected, rel=1e-6)


def test_both_rank_deficient_are_exact():
    """Then it is also |m1 - m2|^2 + tr + tr - 2 |X Y^T|_* of the centred features over n - 1: no covariance, no root."""
    rng = np.random.default_rng(2)
    one, two = rng.normal(size=(20, 64)), rng.normal(size=(30, 64)) + 0.2
    (mean1, cov1), (mean2, cov2) = moments(one), moments(two)
    nuclear = np.linalg.svd((one - mean1) @ (two - mean2).T, compute_uv=False).sum() / np.sqrt(19 * 29)
    expected = np.square(mean1 - mean2).sum() + cov1.trace() + cov2.trace() - 2 * nuclear
    assert frechet_distance(mean1, cov1, mean2, cov2) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [200, 20], ids=["full rank", "rank-deficient"])
def test_identical_moments_are_at_zero_and_it_is_symmetric(n):
    rng = np.random.default_rng(1)
    one, two = (moments(30 * np.maximum(rng.normal(size=(n, 64)), 0) * (np.arange(64) > 9)) for _ in range(2))
    assert frechet_distance(*one, *one) < 1e-6
    assert frechet_distance(*one, *two) == pytest.approx(frechet_distance(*two, *one), rel=1e-9)


@pytest.mark.parametrize("smallest", [1.0, 1e-6], ids=["by the square", "by singular values"])
def test_identical_moments_are_at_zero_whatever_their_condition(smallest):
    """Standard deviations that rise from `smallest` to 10 by feature: the order in which a square loses the most."""
    rng = np.random.default_rng(4)
    mixed = rng.normal(size=(600, 128)) @ rng.normal(size=(128, 128)) / 11
    mean, cov = moments(mixed * np.geomspace(smallest, 10, 128))
    assert frechet_distance(mean, cov, mean, cov) < 1e-9
    root = scipy.linalg.cholesky(cov, lower=True)
    exact = mean.size - 2 * np.linalg.svd(root, compute_uv=False).sum() + cov.trace()  # against N(mean, 1)
    assert frechet_distance(mean, cov, mean, np.eye(128)) == pytest.approx(exact, rel=1e-9)


def test_refuses_what_are_no_moments():
    mean, cov = np.zeros(2), np.eye(2)
    with pytest.raises(ValueError, match=r"with one D, got \[\[2\], \[2, 2\], \[3\], \[3, 3\]\]"):
        frechet_distance(mean, cov, np.zeros(3), np.eye(3))
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(np.array([0, np.nan]), cov, mean, cov)
    with pytest.raises(ValueError, match="smallest eigenvalue is -1"):
        frechet_distance(mean, np.diag([1.0, -1.0]), mean, cov)


# Influence and standard error


def test_influence_in_one_dimension():
    """d = (m - 1)^2 + (s - 3)^2 at m = 0, s = 2: T = 3 / 2, so x moves it by -2 x - x^2 / 2 + 2."""
    features = np.array([[-2.0], [2.0], [-2.0], [2.0]])
    influence = frechet_influence(features, np.zeros(1), np.array([[4.0]]), np.ones(1), np.array([[9.0]]))
    np.testing.assert_allclose(influence, [4, -4, 4, -4])


@pytest.mark.parametrize("n", [40, 6], ids=["full rank", "rank-deficient"])
def test_influence_is_the_derivative_by_the_weight_of_an_image(n):
    """Weight 1 + N e on one image and 1 - e' on the rest is the mixture (1 - e) P + e x, whose derivative it is."""
    rng = np.random.default_rng(3)
    features = rng.normal(size=(n, 8)) @ rng.normal(size=(8, 8))
    reference = moments(rng.normal(size=(50, 8)) + 0.5)

    def distance(weights: np.ndarray) -> float:
        mean = weights @ features
        return frechet_distance(mean, (features - mean).T @ (weights[:, None] * (features - mean)), *reference)

    uniform, step = np.full(n, 1 / n), 1e-4
    towards = (1 - step) * uniform + step * np.eye(n)
    away = (1 + step) * uniform - step * np.eye(n)
    slopes = [(distance(towards[i]) - distance(away[i])) / (2 * step) for i in range(n)]
    mean, cov = features.mean(axis=0), np.cov(features, rowvar=False, bias=True)
    influence = frechet_influence(features, mean, cov, *reference)
    np.testing.assert_allclose(influence, slopes, rtol=1e-5, atol=1e-5)
    assert abs(influence.mean()) < 1e-9


def test_stderr_equals_the_delta_method_by_hand():
    """In one dimension d = m^2 + (s - 1)^2, and the errors of m and s are s / sqrt(n) and s / sqrt(2 n)."""
    features = np.random.default_rng(0).normal(0.5, 3, size=(20000, 1))
    m, s = features.mean(), features.std()
    expected = np.hypot(2 * m * s, 2 * (s - 1) * s / np.sqrt(2)) / np.sqrt(20000)
    assert frechet_stderr(features, *moments(features), np.zeros(1), np.eye(1)) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("n", [400, 12], ids=["full rank", "rank-deficient"])
def test_stderr_is_the_spread_over_draws(n):
    """A spread from 100 draws is itself good to 7 %; 21 % are three of those."""
    rng = np.random.default_rng(0)
    draws = [rng.normal(1, 1.2, size=(n, 16)) for _ in range(100)]
    reference = np.zeros(16), np.eye(16)
    spread = np.std([frechet_distance(*moments(draw), *reference) for draw in draws], ddof=1)
    errors = [frechet_stderr(draw, *moments(draw), *reference) for draw in draws[:20]]
    assert np.mean(errors) == pytest.approx(spread, rel=0.21)


def test_stderr_refuses_features_of_another_size():
    with pytest.raises(ValueError, match="features have 3 dimensions and the moments 2"):
        frechet_stderr(np.ones((4, 3)), np.zeros(2), np.eye(2), np.zeros(2), np.eye(2))
