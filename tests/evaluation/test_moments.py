"""RunningMoments: streaming is numpy in one go, in any order and any split, and refuses what would poison it."""

import numpy as np
import pytest

from evaluation import RunningMoments


def moments_of(*batches: np.ndarray) -> RunningMoments:
    moments = RunningMoments(batches[0].shape[1])
    for batch in batches:
        moments.update(batch)
    return moments


@pytest.fixture
def features() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(100, 5)) @ rng.normal(size=(5, 5)) + 1e4  # the offset is what naive sums of squares lose


def test_two_points_by_hand():
    moments = moments_of(np.array([[0.0, 1.0]]), np.array([[2.0, 5.0]]))
    assert moments.n == 2
    np.testing.assert_allclose(moments.mean, [1, 3])
    np.testing.assert_allclose(moments.covariance, [[2, 4], [4, 8]])  # (x - mean)(x - mean)^T summed, over n - 1 = 1


def test_batches_equal_numpy_in_one_go(features):
    moments = moments_of(features[:1], features[1:40], features[40:40], features[40:])
    assert moments.n == 100
    np.testing.assert_allclose(moments.mean, features.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(moments.covariance, np.cov(features, rowvar=False), atol=1e-9)


def test_order_does_not_matter(features):
    forwards, backwards = moments_of(features[:30], features[30:]), moments_of(features[:29:-1], features[29::-1])
    np.testing.assert_allclose(forwards.mean, backwards.mean, rtol=1e-14)
    np.testing.assert_allclose(forwards.covariance, backwards.covariance, atol=1e-9)


def test_merge_equals_one_stream_and_leaves_the_other_alone(features):
    left, right = moments_of(features[:70]), moments_of(features[70:])
    before = right.covariance
    left.merge(right)
    left.merge(RunningMoments(5))
    assert left.n == 100
    np.testing.assert_allclose(left.covariance, np.cov(features, rowvar=False), atol=1e-9)
    np.testing.assert_array_equal(right.covariance, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_features_are_refused_and_not_added(features, bad):
    moments = moments_of(features)
    poisoned = features[:4].copy()
    poisoned[2, 1] = bad
    with pytest.raises(ValueError, match=r"NaN or infinity in 1 of 4 rows, first in row 2"):
        moments.update(poisoned)
    assert moments.n == 100


def test_too_few_samples_and_wrong_shapes():
    moments = RunningMoments(3)
    with pytest.raises(ValueError, match="mean needs at least 1 samples, got 0"):
        _ = moments.mean
    moments.update(np.ones((1, 3)))
    with pytest.raises(ValueError, match="covariance needs at least 2 samples, got 1"):
        _ = moments.covariance
    with pytest.raises(ValueError, match=r"\[B, 3\], got \[2, 4\]"):
        moments.update(np.ones((2, 4)))
    with pytest.raises(ValueError, match="4 features into 3"):
        moments.merge(RunningMoments(4))
