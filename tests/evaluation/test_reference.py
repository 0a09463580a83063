"""References: made of images, checked, written and read in our format and ADM's."""

import dataclasses

import numpy as np
import pytest
import torch
from channel_means import ChannelMeans, images_and_labels

from evaluation import DigitClassifier, Reference, RunningMoments, make_reference, self_check
from evaluation.features.make import extract
from evaluation.reference import is_kept


@pytest.fixture
def reference() -> Reference:
    return make_reference(ChannelMeans(), images_and_labels(80, seed=0)[0], name="fields")


def test_statistics_are_numpys(reference):
    features = extract(ChannelMeans(), images_and_labels(80, seed=0)[0])["features"].astype(np.float64)
    np.testing.assert_allclose(reference.mu, features.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(reference.sigma, np.cov(features, rowvar=False), rtol=1e-10)
    np.testing.assert_array_equal(reference.features, features)
    np.testing.assert_allclose(reference.sigma_s, reference.sigma, rtol=1e-5)


def test_batches_do_not_matter_and_kept_images_are_spread_evenly(reference):
    images = images_and_labels(80, seed=0)[0]
    batches = make_reference(ChannelMeans(), iter(images.split(7)), name="fields", total=80, keep=8)
    np.testing.assert_allclose(batches.sigma, reference.sigma, rtol=1e-10)
    np.testing.assert_array_equal(batches.features, reference.features[9::10])
    assert [sum(is_kept(index, 7, 3) for index in range(stop)) for stop in (2, 3, 5, 7)] == [0, 1, 2, 3]
    assert make_reference(ChannelMeans(), images, name="fields", keep=0).features is None
    with pytest.raises(ValueError, match="number of images is not known; give it as total="):
        make_reference(ChannelMeans(), iter(images.split(7)), name="fields")
    with pytest.raises(ValueError, match="statistics need at least 2 images, got 1"):
        make_reference(ChannelMeans(), images[:1], name="one")


def test_the_hash_is_of_the_numbers(reference, tmp_path):
    reference.save(tmp_path / "a.npz")
    assert Reference.load(tmp_path / "a.npz").hash == reference.hash
    assert dataclasses.replace(reference, name="other").hash == reference.hash
    assert dataclasses.replace(reference, mu=reference.mu + 1e-9).hash != reference.hash
    assert reference.moments.hash != reference.hash


def test_reference_save_and_load(reference, tmp_path):
    path = tmp_path / "reference.npz"
    reference.save(path)
    loaded = Reference.load(path)
    assert (loaded.name, loaded.extractor_fingerprint, loaded.n) == ("fields", ChannelMeans.fingerprint, 80)
    for field in ("mu", "sigma", "features"):
        saved, original = getattr(loaded, field), getattr(reference, field)
        assert saved.dtype == original.dtype
        np.testing.assert_array_equal(saved, original)
    assert list(tmp_path.iterdir()) == [path]


def test_moments_go_without_the_features(reference, tmp_path):
    path = tmp_path / "moments.npz"
    for written in (reference, reference.moments):
        written.save(path)
        moments = Reference.load(path)
        assert (moments.name, moments.extractor_fingerprint, moments.n) == ("fields", ChannelMeans.fingerprint, 80)
        np.testing.assert_array_equal(moments.mu, reference.mu)
        np.testing.assert_array_equal(moments.sigma, reference.sigma)
    assert Reference.load(path).features is None
    dataclasses.replace(reference.moments, sigma=np.eye(4)).save(path)
    with pytest.raises(
        ValueError, match=r"damaged reference: mu, sigma, mu_s, sigma_s have shapes \[\[3\], \[4, 4\], .*expected"
    ):
        Reference.load(path)


def test_files_that_are_no_references_are_refused(reference, tmp_path):
    path = tmp_path / "reference.npz"
    with pytest.raises(FileNotFoundError):
        Reference.load(path)
    reference.save(path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[100] ^= 0xFF
    single = tmp_path / "single.npy"
    np.save(single, np.zeros(3))
    for content in (b"", b"not an npz file", whole[:-50], bytes(flipped), single.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a readable npz file"):
            Reference.load(path)

    np.savez(path, arr_0=np.zeros((3, 2, 2, 3), np.uint8), sigma=np.eye(3))
    with pytest.raises(
        ValueError, match=r"entries \['mu'\] are missing, found \['sigma'\]; make one with .align data stats"
    ):
        Reference.load(path)
    dataclasses.replace(reference, sigma=np.eye(4)).save(path)
    with pytest.raises(ValueError, match=r"damaged reference: .* \[4, 4\]"):
        Reference.load(path)


def test_adms_format(tmp_path, reference):
    """mu, sigma, mu_s, sigma_s and arr_0 by these names, whoever wrote them."""
    path, images = tmp_path / "VIRTUAL.npz", images_and_labels(80, seed=0)[0].numpy()
    np.savez(path, arr_0=images, mu=reference.mu, sigma=reference.sigma, mu_s=reference.mu_s, sigma_s=reference.sigma_s)
    read = Reference.load(path)
    assert (read.name, read.extractor_fingerprint, read.n, read.features) == ("VIRTUAL", None, None, None)
    for field in ("mu", "sigma", "mu_s", "sigma_s"):
        np.testing.assert_array_equal(getattr(read, field), getattr(reference, field))
    reference.save(path, images=images)
    with np.load(path) as archive:
        assert {"mu", "sigma", "mu_s", "sigma_s", "arr_0"} <= set(archive.files)
        np.testing.assert_array_equal(archive["arr_0"], images)


def test_self_check(reference):
    assert self_check(reference) < 1e-6
    with pytest.raises(ValueError, match=r"'fields' fails its self-check: .* is 0\.03, must be below 1e-06"):
        self_check(dataclasses.replace(reference, mu=reference.mu + 0.1))
    with pytest.raises(ValueError, match="does not keep the features of all images"):
        self_check(reference.moments)


def test_a_digit_classifier_is_an_extractor():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (70, 28, 28, 3), dtype=torch.uint8, generator=generator)
    classifier = DigitClassifier("strided5x5")
    reference = make_reference(classifier, images, name="noise", batch_size=32)
    moments = RunningMoments(64)
    with torch.no_grad():
        moments.update(classifier(images).features_BD.numpy())
    np.testing.assert_allclose(reference.sigma, moments.covariance, atol=1e-6)
    assert self_check(reference) < 1e-6
