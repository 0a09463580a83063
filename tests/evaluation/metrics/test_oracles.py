"""The numbers of torch-fidelity and numpy on the same features: a known name means what others mean by it."""

import numpy as np
import pytest

from evaluation import RunningMoments
from evaluation.metrics import frechet_distance, inception_score, kernel_distance, precision_recall

pytest.importorskip("torch_fidelity", reason="needs torch-fidelity, of the extra `fid`")

import torch
from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

RELATIVE = 1e-6


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.maximum(rng.normal(size=(500, 32)) @ rng.normal(size=(32, 32)), 0)


@pytest.fixture(scope="module")
def generated() -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.maximum(rng.normal(0.1, 1.2, size=(403, 32)) @ np.random.default_rng(2).normal(size=(32, 32)), 0)


def streamed(features_nd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    moments = RunningMoments(features_nd.shape[1])
    for start in range(0, len(features_nd), 64):
        moments.update(features_nd[start : start + 64])
    return moments.mean, moments.covariance


def test_moments(real):
    mean, covariance = streamed(real)
    np.testing.assert_allclose(mean, np.mean(real, axis=0), rtol=RELATIVE)
    np.testing.assert_allclose(covariance, np.cov(real, rowvar=False), rtol=RELATIVE, atol=1e-12)


def test_frechet_distance(real, generated):
    both = [metric_fid.fid_features_to_statistics(torch.from_numpy(features)) for features in (generated, real)]
    expected = metric_fid.fid_statistics_to_metric(*both, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(*streamed(generated), *streamed(real)) == pytest.approx(expected, rel=RELATIVE)


@pytest.mark.parametrize("shuffle", [True, False])
def test_inception_score(generated, shuffle):
    """403 images in ten splits: of 40 and of 41."""
    found = metric_isc.isc_features_to_metric(torch.from_numpy(generated), splits=10, shuffle=shuffle, rng_seed=2020)
    ours = inception_score(generated, splits=10, shuffle_seed=2020 if shuffle else None)
    assert ours == pytest.approx(found["inception_score_mean"], rel=RELATIVE)


def test_inception_score_of_whole_splits(generated):
    """The two ways to ask for them are one where the size divides."""
    found = metric_isc.isc_features_to_metric(torch.from_numpy(generated[:400]), splits=10, shuffle=True, rng_seed=2020)
    assert inception_score(generated[:400], split_size=40, shuffle_seed=2020) == pytest.approx(
        found["inception_score_mean"], rel=RELATIVE
    )


def test_kernel_distance(real, generated):
    found = metric_kid.kid_features_to_metric(
        torch.from_numpy(generated), torch.from_numpy(real), kid_subsets=20, kid_subset_size=100, verbose=False
    )
    ours = kernel_distance(real, generated, subsets=20, subset_size=100)
    assert ours.value == pytest.approx(found["kernel_inception_distance_mean"], rel=RELATIVE)
    assert ours.spread == pytest.approx(found["kernel_inception_distance_std"], rel=RELATIVE)


def test_precision_recall(real, generated):
    found = metric_prc.prc_features_to_metric(torch.from_numpy(generated), torch.from_numpy(real), verbose=False)
    ours = precision_recall(real, generated)
    assert ours == pytest.approx((found["precision"], found["recall"]), rel=RELATIVE)
    assert 0.05 < ours[0] < 0.95 or 0.05 < ours[1] < 0.95  # a comparison of all or nothing would prove little
