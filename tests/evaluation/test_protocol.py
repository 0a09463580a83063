"""References, protocols and the evaluator, with an extractor so small that every feature is known."""

import dataclasses

import numpy as np
import pytest
import torch

from evaluation import (
    ClassifierOutput,
    DigitClassifier,
    Evaluator,
    Protocol,
    Reference,
    ReferenceMoments,
    RunningMoments,
    count_suffix,
    frechet_distance,
    make_reference,
    self_check,
)

KEYS = {"fid", "is", "precision", "recall", "accuracy"}


class ChannelMeans:
    """Features: the mean of each channel, in [0, 1]. Logits: the same, so that the class is the strongest channel."""

    name = "channel-means"
    fingerprint = "0123456789abcdef"

    def __call__(self, images_bhw3: torch.Tensor) -> ClassifierOutput:
        features_bd = images_bhw3.float().mean(dim=(1, 2)) / 255
        return ClassifierOutput(features_bd, 10 * features_bd)


def images_and_labels(num_images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat colour fields, labelled by their strongest channel."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(0, 256, (num_images, 1, 1, 3), dtype=torch.uint8, generator=generator)
    return colours.repeat(1, 2, 2, 1), colours.flatten(1).long().argmax(dim=1)


@pytest.fixture
def protocol() -> Protocol:
    extractor = ChannelMeans()
    return Protocol("rgb-means", extractor, make_reference(extractor, images_and_labels(80, seed=0)[0], name="fields"))


def test_evaluation_end_to_end(protocol):
    images, labels = images_and_labels(50, seed=1)
    evaluator = Evaluator(protocol)
    for start in (0, 20, 40):
        evaluator.update(images[start : start + 20], labels[start : start + 20])
    result = evaluator.compute()

    assert set(result.metrics) == set(result.stderr) == {f"{key}_rgb-means_50" for key in KEYS}
    assert (result.n, result.reference_n) == (50, 80)
    assert (result.protocol, result.extractor_fingerprint) == ("rgb-means", ChannelMeans.fingerprint)
    assert result.metrics["accuracy_rgb-means_50"] == 1
    assert all(np.isfinite(value) and value >= 0 for value in [*result.metrics.values(), *result.stderr.values()])

    features = ChannelMeans()(images).features_BD.numpy().astype(np.float64)
    expected = frechet_distance(
        features.mean(axis=0), np.cov(features, rowvar=False), protocol.reference.mu, protocol.reference.sigma
    )
    assert result.metrics["fid_rgb-means_50"] == pytest.approx(expected, rel=1e-9)


def test_batch_sizes_do_not_matter_and_compute_repeats(protocol):
    images, labels = images_and_labels(30, seed=2)
    whole, pieces = Evaluator(protocol), Evaluator(protocol)
    whole.update(images, labels)
    for index in range(30):
        pieces.update(images[index : index + 1], labels[index : index + 1])
    assert whole.compute() == whole.compute()
    assert pieces.compute().metrics == pytest.approx(whole.compute().metrics, rel=1e-9)


def test_too_few_images_are_refused(protocol):
    evaluator = Evaluator(protocol)
    with pytest.raises(ValueError, match="3 features needs at least 4 images, got 0"):
        evaluator.compute()
    evaluator.update(*images_and_labels(3, seed=0))
    with pytest.raises(ValueError, match="got 3: the covariance of fewer is rank-deficient"):
        evaluator.compute()
    evaluator.update(*images_and_labels(1, seed=1))
    assert evaluator.compute().n == 4
    with pytest.raises(ValueError, match="got 3"):
        make_reference(ChannelMeans(), images_and_labels(3, seed=0)[0], name="few")


@pytest.mark.parametrize(
    ("spoil_images", "spoil_labels", "error", "message"),
    [
        (lambda x: x.float(), lambda y: y, TypeError, "must be uint8 in 0..255, got torch.float32"),
        (lambda x: x.permute(0, 3, 1, 2), lambda y: y, ValueError, r"\[B, H, W, 3\], got \[6, 3, 2, 2\]"),
        (lambda x: x, lambda y: y[:5], ValueError, r"shape \[6\], got \[5\]"),
        (lambda x: x, lambda y: y + 3, ValueError, r"allowed 0\.\.2"),
        (lambda x: x, lambda y: y - 3, ValueError, r"allowed 0\.\.2"),
        (lambda x: x, lambda y: y.float(), TypeError, "labels must be integer"),
    ],
)
def test_wrong_batches_are_refused_and_leave_no_trace(protocol, spoil_images, spoil_labels, error, message):
    images, labels = images_and_labels(6, seed=3)
    evaluator = Evaluator(protocol)
    evaluator.update(images, labels)
    before = evaluator.compute()
    with pytest.raises(error, match=message):
        evaluator.update(spoil_images(images), spoil_labels(labels))
    assert evaluator.compute() == before


def test_nan_features_are_refused(protocol):
    class Broken(ChannelMeans):
        def __call__(self, images_bhw3: torch.Tensor) -> ClassifierOutput:
            features_bd, logits_bk = super().__call__(images_bhw3)
            return ClassifierOutput(features_bd * torch.nan, logits_bk)

    with pytest.raises(ValueError, match="NaN or infinity in 6 of 6 rows"):
        Evaluator(dataclasses.replace(protocol, extractor=Broken())).update(*images_and_labels(6, seed=0))


def test_a_reference_of_another_extractor_is_refused(protocol):
    class Other(ChannelMeans):
        fingerprint = "fedcba9876543210"

    with pytest.raises(ValueError, match=r"'fields' was made by extractor 0123456789abcdef.* is fedcba9876543210"):
        Protocol("rgb-means", Other(), protocol.reference)


@pytest.mark.parametrize("name", ["", "mnist_cnn", "MNIST", "a b"])
def test_protocol_names_fit_metric_keys(protocol, name):
    with pytest.raises(ValueError, match="protocol name"):
        dataclasses.replace(protocol, name=name)


def test_reference_save_and_load(protocol, tmp_path):
    path = tmp_path / "reference.npz"
    protocol.reference.save(path)
    loaded = Reference.load(path)
    assert (loaded.name, loaded.extractor_fingerprint, loaded.n) == ("fields", ChannelMeans.fingerprint, 80)
    for field in ("mu", "sigma", "features"):
        saved, original = getattr(loaded, field), getattr(protocol.reference, field)
        assert saved.dtype == original.dtype
        np.testing.assert_array_equal(saved, original)
    assert list(tmp_path.iterdir()) == [path]


def test_moments_go_without_the_features(protocol, tmp_path):
    path, reference = tmp_path / "moments.npz", protocol.reference
    for written in (reference, reference.moments):
        written.save(path)
        moments = ReferenceMoments.load(path)
        assert (moments.name, moments.extractor_fingerprint, moments.n) == ("fields", ChannelMeans.fingerprint, 80)
        np.testing.assert_array_equal(moments.mu, reference.mu)
        np.testing.assert_array_equal(moments.sigma, reference.sigma)
    with pytest.raises(ValueError, match=r"entries \['features'\] are missing"):
        Reference.load(path)
    dataclasses.replace(reference.moments, sigma=np.eye(4)).save(path)
    with pytest.raises(ValueError, match=r"damaged reference: mu, sigma have shapes \[\[3\], \[4, 4\]\], expected"):
        ReferenceMoments.load(path)


def test_files_that_are_no_references_are_refused(protocol, tmp_path):
    path = tmp_path / "reference.npz"
    with pytest.raises(FileNotFoundError):
        Reference.load(path)
    protocol.reference.save(path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[100] ^= 0xFF
    single = tmp_path / "single.npy"
    np.save(single, np.zeros(3))
    for content in (b"", b"not an npz file", whole[:-50], bytes(flipped), single.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no reference: not a readable npz file"):
            Reference.load(path)

    np.savez(path, mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(ValueError, match=r"entries \['features', 'fingerprint', 'n', 'name'\] are missing"):
        Reference.load(path)
    dataclasses.replace(protocol.reference, sigma=np.eye(4)).save(path)
    with pytest.raises(ValueError, match=r"damaged reference: .* \[4, 4\]"):
        Reference.load(path)


def test_self_check(protocol):
    numbers = self_check(protocol)
    assert numbers["frechet"] < 1e-6
    assert numbers["precision"] == numbers["recall"] == 1
    tampered = dataclasses.replace(protocol.reference, mu=protocol.reference.mu + 0.1)
    with pytest.raises(ValueError, match=r"'fields' fails its self-check: frechet 0\.03"):
        self_check(dataclasses.replace(protocol, reference=tampered))


def test_a_digit_classifier_is_an_extractor():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (70, 28, 28, 3), dtype=torch.uint8, generator=generator)
    classifier = DigitClassifier("strided5x5")
    reference = make_reference(classifier, images, name="noise", batch_size=32)
    moments = RunningMoments(64)
    with torch.no_grad():
        moments.update(classifier(images).features_BD.numpy())
    np.testing.assert_allclose(reference.sigma, moments.covariance, atol=1e-6)
    assert self_check(Protocol("noise-cnn", classifier, reference))["frechet"] < 1e-6


@pytest.mark.parametrize(("n", "suffix"), [(2000, "2k"), (50000, "50k"), (1000, "1k"), (1500, "1500"), (250, "250")])
def test_count_suffix(n, suffix):
    assert count_suffix(n) == suffix


def test_count_suffix_of_nothing():
    with pytest.raises(ValueError, match="at least 1 image, got 0"):
        count_suffix(0)
