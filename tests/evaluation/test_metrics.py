"""Metrics against values derived by hand, scipy's matrix square root, and their own limits; then their error bars."""

import numpy as np
import pytest
import scipy.linalg

from evaluation import class_accuracy, frechet_distance, inception_score, precision_recall
from evaluation.metrics import CHUNK_ROWS, manifold_hits
from evaluation.uncertainty import frechet_stderr, inception_score_stderr, mean_stderr, recall_stderr


def moments(features_nd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return features_nd.mean(axis=0), np.atleast_2d(np.cov(features_nd, rowvar=False))


# Fréchet distance


def test_frechet_in_one_dimension():
    """(m1 - m2)^2 + (s1 - s2)^2 = (1 - 4)^2 + (2 - 5)^2 = 18."""
    one, two = (np.array([1.0]), np.array([[4.0]])), (np.array([4.0]), np.array([[25.0]]))
    assert frechet_distance(*one, *two) == pytest.approx(18)


def test_frechet_of_diagonal_covariances():
    """Commuting covariances: the sum of the one-dimensional distances, (1 - 2)^2 + (3 - 0)^2 + 0 = 10."""
    zero = np.zeros(3)
    assert frechet_distance(zero, np.diag([1.0, 9, 4]), zero, np.diag([4.0, 0, 4])) == pytest.approx(10)


@pytest.mark.parametrize("n", [300, 8], ids=["full rank", "rank-deficient"])
def test_frechet_agrees_with_scipy_sqrtm(n):
    rng = np.random.default_rng(0)
    mean1, cov1 = moments(rng.normal(size=(n, 12)) @ rng.normal(size=(12, 12)))
    mean2, cov2 = moments(rng.normal(size=(300, 12)) @ rng.normal(size=(12, 12)))
    # One factor is regular, so the square root is well defined up to scipy's own precision.
    root2 = scipy.linalg.sqrtm(cov2).real
    cross = scipy.linalg.sqrtm(root2 @ (cov1 + 1e-14 * np.eye(12)) @ root2).real.trace()
    expected = np.square(mean1 - mean2).sum() + cov1.trace() + cov2.trace() - 2 * cross
    assert frechet_distance(mean1, cov1, mean2, cov2) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("n", [200, 20], ids=["full rank", "rank-deficient"])
def test_frechet_of_identical_moments_is_zero_and_it_is_symmetric(n):
    rng = np.random.default_rng(1)
    one, two = (moments(30 * np.maximum(rng.normal(size=(n, 64)), 0) * (np.arange(64) > 9)) for _ in range(2))
    assert frechet_distance(*one, *one) < 1e-6
    assert frechet_distance(*one, *two) == pytest.approx(frechet_distance(*two, *one), rel=1e-9)


def test_frechet_refuses_what_are_no_moments():
    mean, cov = np.zeros(2), np.eye(2)
    with pytest.raises(ValueError, match=r"with one D, got \[\[2\], \[2, 2\], \[3\], \[3, 3\]\]"):
        frechet_distance(mean, cov, np.zeros(3), np.eye(3))
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(np.array([0, np.nan]), cov, mean, cov)
    with pytest.raises(ValueError, match="smallest eigenvalue is -1"):
        frechet_distance(mean, np.diag([1.0, -1.0]), mean, cov)


# Inception score


def test_inception_score_extremes():
    one_hot = 1000 * np.tile(np.eye(5), (4, 1))
    assert inception_score(one_hot) == pytest.approx(5)
    assert inception_score(np.ones((7, 5))) == pytest.approx(1)
    assert inception_score(one_hot[[0, 0, 5]]) == pytest.approx(1)  # sure, but always of the same class


def test_inception_score_by_hand_and_in_any_order():
    """p = (.9, .1) and (.1, .9): marginal (.5, .5), so KL = .9 ln 1.8 + .1 ln .2 for both."""
    logits = np.log([[0.9, 0.1], [0.1, 0.9]])
    assert inception_score(logits) == pytest.approx(np.exp(0.9 * np.log(1.8) + 0.1 * np.log(0.2)))
    by_class = np.random.default_rng(0).normal(size=(60, 4)).repeat(2, axis=0)
    assert inception_score(by_class) == pytest.approx(inception_score(by_class[::-1]))


@pytest.mark.parametrize("logits", [np.ones(3), np.ones((0, 3)), np.array([[0, np.nan]])])
def test_inception_score_refuses_bad_logits(logits):
    with pytest.raises(ValueError, match="logits must"):
        inception_score(logits)


# Precision and recall


def test_precision_recall_by_hand():
    """k = 1. Real 0, 1, 10: radii 1, 1, 9. Generated .5, 30, 31: radii 29.5, 1, 1.

    .5 is within 1 of 0 and the others are out of reach: precision 1/3. All real points are within 29.5 of .5: recall 1.
    """
    real, generated = np.array([[0.0], [1.0], [10.0]]), np.array([[0.5], [30.0], [31.0]])
    assert precision_recall(real, generated, k=1) == pytest.approx((1 / 3, 1))


def test_a_collapsed_generator_has_precision_without_recall():
    real = np.random.default_rng(0).normal(size=(50, 3))
    precision, recall = precision_recall(real, np.tile(real[:1], (20, 1)))
    assert precision == 1
    assert recall == 1 / 50  # its balls have radius 0: only the copied image itself


def test_copies_are_at_distance_zero_despite_rounding():
    """Every ball has radius 0: only copies are inside, up to the last bit of a float32 feature."""
    points = np.random.default_rng(0).normal(size=(20, 64))
    copies = np.nextafter(np.tile(points[:7], (4, 1)), np.inf, dtype=np.float32)
    assert precision_recall(np.repeat(points, 5, axis=0), copies) == (1, 7 / 20)


def test_distant_sets_miss_each_other():
    points = np.random.default_rng(0).normal(size=(30, 2))
    assert precision_recall(points, points + 100) == (0, 0)


def test_neither_chunks_nor_an_offset_show():
    rng = np.random.default_rng(0)
    real, generated = rng.normal(1e6, size=(CHUNK_ROWS + 40, 2)), rng.normal(1e6 + 1, size=(CHUNK_ROWS + 90, 2))

    def reach(points: np.ndarray) -> np.ndarray:
        return np.sort(np.linalg.norm(points[:, None] - points, axis=2), axis=1)[:, 3]  # column 0 is the point itself

    distances = np.linalg.norm(generated[:, None] - real, axis=2)
    precise, covered = manifold_hits(real, generated)
    np.testing.assert_array_equal(precise, (distances <= reach(real)).any(axis=1))
    np.testing.assert_array_equal(covered, (distances <= reach(generated)[:, None]).any(axis=0))


def test_precision_recall_refuses_bad_sets():
    points = np.zeros((4, 2))
    with pytest.raises(ValueError, match="k=3 with 3 real and 4 generated"):
        precision_recall(points[:3], points)
    with pytest.raises(ValueError, match="one D"):
        precision_recall(points, np.zeros((4, 3)))
    with pytest.raises(ValueError, match="finite"):
        precision_recall(points, points + np.nan)


def test_accuracy():
    logits = np.array([[1.0, 0], [0, 1], [3, 2], [2, 3]])
    assert class_accuracy(logits, np.array([0, 1, 0, 0])) == 0.75
    with pytest.raises(ValueError, match=r"labels must have shape \[4\]"):
        class_accuracy(logits, np.array([0, 1]))


# Standard errors: of one evaluation, against the spread over evaluations of independent draws. The tolerance of 35 %
# is three standard deviations of a spread estimated from 40 draws.

DRAWS = 40


def test_frechet_stderr_is_the_spread_over_draws():
    rng = np.random.default_rng(0)
    draws = [rng.normal(1, 1, size=(400, 3)) for _ in range(DRAWS)]
    spread = np.std([frechet_distance(*moments(draw), np.zeros(3), np.eye(3)) for draw in draws], ddof=1)
    assert frechet_stderr(draws[0], np.zeros(3), np.eye(3)) == pytest.approx(spread, rel=0.35)


def test_frechet_stderr_equals_the_delta_method():
    """In one dimension d = (m - 0)^2 + (s - 1)^2, and the errors of m and s are s / sqrt(n) and s / sqrt(2 n)."""
    features = np.random.default_rng(0).normal(0.5, 3, size=(1000, 1))
    m, s = features.mean(), features.std()
    expected = np.hypot(2 * m * s, 2 * (s - 1) * s / np.sqrt(2)) / np.sqrt(1000)
    assert frechet_stderr(features, np.zeros(1), np.eye(1), resamples=2000) == pytest.approx(expected, rel=0.08)


def test_inception_score_stderr_is_the_spread_over_draws():
    rng = np.random.default_rng(0)
    draws = [2 * rng.normal(size=(300, 4)) for _ in range(DRAWS)]
    spread = np.std([inception_score(draw) for draw in draws], ddof=1)
    assert inception_score_stderr(draws[0]) == pytest.approx(spread, rel=0.35)


def test_precision_and_recall_stderr_are_the_spread_over_draws():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(600, 8))
    hits = [manifold_hits(real, 0.8 * rng.normal(size=(200, 8)) + 0.3) for _ in range(DRAWS)]
    precision_spread, recall_spread = (np.std([hit[side].mean() for hit in hits], ddof=1) for side in (0, 1))
    assert mean_stderr(hits[0][0]) == pytest.approx(precision_spread, rel=0.35)
    assert recall_stderr(hits[0][1], 200) == pytest.approx(recall_spread, rel=0.6)  # stated as an approximation


def test_stderr_of_a_share_by_hand():
    """p = 1/4 of 100: sqrt(p (1 - p) / n) = sqrt(3) / 40. As recall, 16 generated images make n = 16: sqrt(3) / 16."""
    hits = np.arange(100) < 25
    assert mean_stderr(hits) == recall_stderr(hits, 1000) == pytest.approx(np.sqrt(3) / 40)
    assert recall_stderr(hits, 16) == pytest.approx(np.sqrt(3) / 16)


def test_bootstrap_is_seeded_and_needs_two_images():
    logits = np.random.default_rng(0).normal(size=(20, 3))
    assert inception_score_stderr(logits) == inception_score_stderr(logits)
    assert inception_score_stderr(logits) != inception_score_stderr(logits, seed=1)
    for too_few in (
        lambda: inception_score_stderr(logits[:1]),
        lambda: frechet_stderr(logits[:1], np.zeros(3), np.eye(3)),
        lambda: mean_stderr(np.array([True])),
        lambda: recall_stderr(np.array([True, False]), 1),
    ):
        with pytest.raises(ValueError, match="at least 2 images, got 1"):
            too_few()
