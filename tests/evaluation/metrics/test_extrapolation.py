"""FID-infinity: what the line through distances says of sizes it has not seen, and of Gaussians of known distance.

To second order in the errors, n images of N(0, 1) in D dimensions are at a distance c / n from it on average, with
c = D + D (D + 1) / 4: D / n from the mean, and |S - 1|^2 / 4 from the covariance, whose D (D + 1) / 2 free entries have
variances that sum to D (D + 1) / n. For D = 8, c = 26.
"""

import numpy as np
import pytest

from evaluation.metrics import FrechetExtrapolation, frechet_distance, frechet_infinity
from evaluation.metrics.extrapolation import _line

DIM, C = 8, 26.0


def moments(features_nd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return features_nd.mean(axis=0), np.cov(features_nd, rowvar=False)


def test_a_line_is_found_with_its_error():
    """Distances 2 + 300 / n are on it, and moving them by (1, -2, 1) at evenly spaced 1 / n turns and lifts nothing."""
    sizes = np.array([100, 150, 300])
    exact = _line(sizes, 2 + 300 / sizes)
    assert (exact.value, exact.slope, exact.at(600)) == pytest.approx((2, 300, 2.5))
    assert exact.stderr == pytest.approx(0, abs=1e-9)
    # 1 / n is 3, 2, 1 over 300, residuals 1, -2, 1: noise 6 on 1 degree of freedom, times 1/3 + 2^2 / 2.
    noisy = _line(sizes, 2 + 300 / sizes + np.array([1, -2, 1]))
    assert (noisy.value, noisy.slope) == pytest.approx((2, 300))
    assert noisy.stderr == pytest.approx(np.sqrt(6 * (1 / 3 + 2)))


def test_half_against_half_is_what_the_line_of_a_part_predicts():
    """The reference's own c / N stays in the intercept, so N against N are at 2 c / N.

    That distance is a sum of 44 squares, 8 of the mean and 36 of the covariance, and scatters by about sqrt(2 / 44) of
    itself: 0.0055 for N = 2000. A line through a half of them, extrapolated to N, is twice as uncertain: 0.011. Over 30
    draws that leaves 0.002; the tolerance is three of those.
    """
    rng = np.random.default_rng(0)
    predicted, measured = [], []
    for _ in range(30):
        one, two = rng.normal(size=(2, 2000, DIM))
        fit = frechet_infinity(one[:1000], *moments(two), smallest=100)
        predicted.append(fit.at(2000))
        measured.append(frechet_distance(*moments(one), *moments(two)))
    assert np.mean(predicted) == pytest.approx(np.mean(measured), abs=0.006)
    assert np.mean(predicted) == pytest.approx(2 * C / 2000, abs=0.006)


def test_the_intercept_is_nearer_to_the_truth_than_the_distance_itself():
    """Against N(m, 1) itself the truth is |m|^2 = 0.5 and 600 images are at 0.5 + 26 / 600 on average."""
    rng = np.random.default_rng(0)
    reference = np.full(DIM, 0.25), np.eye(DIM)
    fits = [frechet_infinity(rng.normal(size=(600, DIM)), *reference, smallest=100) for _ in range(30)]
    plain, extrapolated = np.mean([fit.distances[-1] for fit in fits]), np.mean([fit.value for fit in fits])
    # The mean over 30 draws scatters by 2 |m| / sqrt(600 * 30) = 0.011.
    assert plain == pytest.approx(0.5 + C / 600, abs=0.033)
    assert extrapolated == pytest.approx(0.5, abs=0.033)
    assert abs(extrapolated - 0.5) < abs(plain - 0.5) / 2


def test_sizes_end_at_all_images_and_a_seed_makes_it_repeatable():
    features = np.random.default_rng(0).normal(size=(300, 3))
    reference = np.zeros(3), np.eye(3)
    fit = frechet_infinity(features, *reference, smallest=100, points=5)
    assert fit.sizes == (100, 150, 200, 250, 300)
    assert fit.distances[-1] == pytest.approx(frechet_distance(*moments(features), *reference))
    assert fit == frechet_infinity(features, *reference, smallest=100, points=5)
    assert fit != frechet_infinity(features, *reference, smallest=100, points=5, seed=1)
    assert isinstance(fit, FrechetExtrapolation)


@pytest.mark.parametrize("options", [{}, {"smallest": 3}, {"smallest": 100, "points": 2}, {"smallest": 290}])
def test_refuses_sizes_that_cannot_be(options):
    features = np.random.default_rng(0).normal(size=(300, 3))
    with pytest.raises(ValueError, match="from more than the 3 features up to the 300 images; got .* Set smallest"):
        frechet_infinity(features, np.zeros(3), np.eye(3), **options)
