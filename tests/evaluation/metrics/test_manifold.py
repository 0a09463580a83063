"""Precision and recall, density and coverage: by hand, at their limits, and against all distances written out."""

import numpy as np
import pytest

from evaluation.metrics import (
    CHUNK_ROWS,
    density_coverage,
    density_coverage_hits,
    manifold_hits,
    precision_recall,
)

REAL, GENERATED = np.array([[0.0], [1.0], [10.0]]), np.array([[0.5], [30.0], [31.0]])


def test_precision_recall_by_hand():
    """k = 1. Real 0, 1, 10: radii 1, 1, 9. Generated .5, 30, 31: radii 29.5, 1, 1.

    .5 is within 1 of 0 and the others are out of reach: precision 1/3. All real points are within 29.5 of .5: recall 1.
    """
    assert precision_recall(REAL, GENERATED, k=1) == pytest.approx((1 / 3, 1))


def test_density_coverage_by_hand():
    """The same: .5 is in the balls of 0 and of 1, but 9.5 from 10: density (2 + 0 + 0) / 3, coverage 2/3.

    With k = 2 the radii are 10, 9, 10, and .5 is in all three balls: density (3 / 2 + 0 + 0) / 3, coverage 1.
    """
    assert density_coverage(REAL, GENERATED, k=1) == pytest.approx((2 / 3, 2 / 3))
    assert density_coverage(REAL, GENERATED, k=2) == pytest.approx((1 / 2, 1))


def test_density_of_equal_distributions_is_one():
    """Each real ball holds k of M - 1 other real points, hence about k N / M generated ones: density k / k."""
    rng = np.random.default_rng(0)
    density, coverage = density_coverage(rng.normal(size=(1000, 4)), rng.normal(size=(1000, 4)))
    assert density == pytest.approx(1, abs=0.05)
    # A real ball is empty where the 5 nearest of both sets are all real: 1/2^5 of them for N = M.
    assert coverage == pytest.approx(1 - 2**-5, abs=0.02)


def test_a_collapsed_generator_has_precision_without_recall():
    real = np.random.default_rng(0).normal(size=(50, 3))
    precision, recall = precision_recall(real, np.tile(real[:1], (20, 1)))
    assert precision == 1
    assert recall == 1 / 50  # its balls have radius 0: only the copied image itself
    density, coverage = density_coverage(real, np.tile(real[:1], (20, 1)))
    assert density >= 1 / 5
    assert coverage < 1 / 2


def test_copies_are_at_distance_zero_despite_rounding():
    """Every ball has radius 0: only copies are inside, up to the last bit of a float32 feature."""
    points = np.random.default_rng(0).normal(size=(20, 64))
    copies = np.nextafter(np.tile(points[:7], (4, 1)), np.inf, dtype=np.float32)
    assert precision_recall(np.repeat(points, 5, axis=0), copies) == (1, 7 / 20)


def test_distant_sets_miss_each_other():
    points = np.random.default_rng(0).normal(size=(30, 2))
    assert precision_recall(points, points + 100) == density_coverage(points, points + 100) == (0, 0)


def test_neither_chunks_nor_an_offset_show():
    rng = np.random.default_rng(0)
    real, generated = rng.normal(1e6, size=(CHUNK_ROWS + 40, 2)), rng.normal(1e6 + 1, size=(CHUNK_ROWS + 90, 2))

    def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.hypot(a[:, None, 0] - b[:, 0], a[:, None, 1] - b[:, 1])

    def reach(points: np.ndarray, k: int) -> np.ndarray:
        return np.partition(distances(points, points), k, axis=1)[:, k]  # the nearest is the point itself

    across = distances(generated, real)
    precise, covered = manifold_hits(real, generated)
    np.testing.assert_array_equal(precise, (across <= reach(real, 3)).any(axis=1))
    np.testing.assert_array_equal(covered, (across <= reach(generated, 3)[:, None]).any(axis=0))
    density, covered = density_coverage_hits(real, generated)
    np.testing.assert_allclose(density, (across <= reach(real, 5)).sum(axis=1) / 5)
    np.testing.assert_array_equal(covered, across.min(axis=0) <= reach(real, 5))


@pytest.mark.parametrize("metric", [precision_recall, density_coverage])
def test_refuses_sets_that_do_not_fit(metric):
    points = np.zeros((4, 2))
    with pytest.raises(ValueError, match="k=3 with 3 real and 4 generated"):
        metric(points[:3], points, k=3)
    with pytest.raises(ValueError, match="one D"):
        metric(points, np.zeros((4, 3)), k=3)
