"""Protocols and the evaluator, with an extractor so small that every feature is known."""

import dataclasses

import numpy as np
import pytest
import torch
from channel_means import ChannelMeans, images_and_labels

from evaluation import (
    Evaluator,
    ExtractorOutput,
    Protocol,
    Representation,
    count_suffix,
    frechet_distance,
    make_reference,
)
from evaluation.evaluator import describe_images
from evaluation.features.base import Extractor
from evaluation.measures import MEASURES, ScoreSplits

KEYS = {"fid", "is", "precision", "recall", "accuracy"}


def representation(extractor: Extractor | None = None, **settings) -> Representation:
    extractor = extractor or ChannelMeans()
    return Representation(
        extractor, make_reference(extractor, images_and_labels(80, seed=0)[0], name="fields"), **settings
    )


@pytest.fixture
def protocol() -> Protocol:
    return Protocol("rgb-means", (representation(),))


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


def test_fewer_than_two_images_are_refused(protocol):
    evaluator = Evaluator(protocol)
    evaluator.update(*images_and_labels(1, seed=0))
    with pytest.raises(ValueError, match="need at least 2 images, got 1"):
        evaluator.compute()


def test_too_few_images_for_a_metric_are_told(protocol):
    evaluator = Evaluator(protocol)
    evaluator.update(*images_and_labels(3, seed=0))
    result = evaluator.compute()
    assert result.metrics.keys() == {"fid_rgb-means_3", "is_rgb-means_3", "accuracy_rgb-means_3"}
    assert [remark.partition(":")[0] for remark in result.remarks] == ["precision", "recall", "fid"]
    assert "precision: not measured, it needs at least 4, and there are 3 images" in result.remarks
    assert any("fid: 3 images for 3 features; the covariance is rank-deficient" in line for line in result.remarks)


def test_without_labels_there_is_no_accuracy(protocol):
    evaluator = Evaluator(protocol)
    evaluator.update(images_and_labels(8, seed=0)[0])
    result = evaluator.compute()
    assert "accuracy: not measured, the images came without labels" in result.remarks
    assert "fid_rgb-means_8" in result.metrics
    assert evaluator.accuracy_by_class() == {}
    with pytest.raises(ValueError, match="labels are given with all images or none"):
        evaluator.update(*images_and_labels(8, seed=1))


def test_copies_are_counted(protocol):
    images, labels = images_and_labels(10, seed=0)
    evaluator = Evaluator(protocol)
    evaluator.update(images, labels)
    assert evaluator.copies() == 0
    evaluator.update(images[:3], labels[:3])
    assert evaluator.copies() == 3
    assert "3 of 13 images are exact copies of another one" in evaluator.compute().remarks


def test_every_metric_goes_with_any_extractor_that_has_what_it_needs():
    images, labels = images_and_labels(60, seed=1)
    evaluator = Evaluator(Protocol("all", (representation(metrics=tuple(MEASURES)),)))
    evaluator.update(images, labels)
    result = evaluator.compute()
    assert result.metrics.keys() == {f"{name}_all_60" for name in MEASURES}
    assert all(np.isfinite(value) for value in result.metrics.values())
    # every pixel of a flat field is its mean
    assert result.metrics["sfid_all_60"] == pytest.approx(result.metrics["fid_all_60"], rel=1e-5)


def test_a_metric_needs_what_the_extractor_gives():
    class Bare(ChannelMeans):
        def __call__(self, images_bhw3: torch.Tensor) -> ExtractorOutput:
            return ExtractorOutput(super().__call__(images_bhw3).features_BD)

    images, _ = images_and_labels(6, seed=0)
    with pytest.raises(ValueError, match="'is' needs logits, which this extractor does not give"):
        describe_images(Protocol("bare", (representation(Bare(), metrics=("is",)),)), images)
    with pytest.raises(ValueError, match="'sfid' needs mu_s and sigma_s, and reference 'fields' has none"):
        representation(Bare(), metrics=("sfid",))
    whole = representation()
    with pytest.raises(
        ValueError, match="'kid' needs the features of real images, and reference 'fields' holds moments"
    ):
        Representation(whole.extractor, whole.reference.moments, ("fid", "kid"))
    with pytest.raises(ValueError, match="unknown metric 'fld'; known: fid, sfid"):
        representation(metrics=("fld",))


class Doubled(ChannelMeans):
    name, fingerprint = "doubled", "00000000000000aa"

    def __call__(self, images_bhw3: torch.Tensor) -> ExtractorOutput:
        return ExtractorOutput(2 * super().__call__(images_bhw3).features_BD)


def test_representations_stand_side_by_side():
    images, labels = images_and_labels(50, seed=1)
    two = (representation(metrics=("fid", "is")), representation(Doubled(), metrics=("fid", "kid")))
    protocol = Protocol("two", two, baselines={"channel-means": 0.1, "doubled": 0.2})
    evaluator = Evaluator(protocol)
    evaluator.update(images, labels)
    metrics = evaluator.compute().metrics
    assert metrics.keys() == {f"{n}_two_50" for n in ("fid", "is", "fid-doubled", "kid-doubled", "fid-mean")}
    assert metrics["fid-doubled_two_50"] == pytest.approx(4 * metrics["fid_two_50"], rel=1e-5)
    assert metrics["fid-mean_two_50"] == pytest.approx((10 + 4 * 5) / 2 * metrics["fid_two_50"], rel=1e-5)
    assert protocol.contaminated({"00000000000000aa"}) == ["fid-doubled", "kid-doubled", "fid-mean"]
    assert dataclasses.replace(protocol, baselines={}).fingerprint == "0123456789abcdef+00000000000000aa"
    with pytest.raises(ValueError, match="extractors of different names"):
        Protocol("two", (two[0], two[0]))
    with pytest.raises(ValueError, match=r"baselines are of \['x'\]"):
        Protocol("two", two, baselines={"x": 1.0})


def test_the_size_of_images_is_the_protocols(protocol):
    images, _ = images_and_labels(4, seed=0)
    strict = dataclasses.replace(protocol, image_size=4)
    with pytest.raises(ValueError, match="scores images of 4x4, got 2x2"):
        describe_images(strict, images)
    resized = describe_images(dataclasses.replace(strict, resize="box"), images)
    plain = describe_images(protocol, images)
    np.testing.assert_array_equal(resized["channel-means.features"], plain["channel-means.features"])
    with pytest.raises(ValueError, match="resize is 'nearest'; it must be one of bicubic"):
        dataclasses.replace(strict, resize="nearest")


def test_rules_that_move_numbers_are_in_the_fingerprint(protocol):
    """Rows of another one are not compared."""
    rules = (
        {"image_size": 2},
        {"image_size": 4, "resize": "box"},
        {"image_size": 4, "resize": "lanczos"},
        {"splits": ScoreSplits(size=5000)},
        {"splits": ScoreSplits(size=5000, shuffle_seed=2020)},
        {"baselines": {"channel-means": 0.1}},
    )
    fingerprints = {dataclasses.replace(protocol, **one).fingerprint for one in rules}
    assert len(fingerprints) == len(rules)
    assert protocol.fingerprint == ChannelMeans.fingerprint not in fingerprints


def test_a_short_last_split_is_told(protocol):
    evaluator = Evaluator(dataclasses.replace(protocol, splits=ScoreSplits(size=8)))
    evaluator.update(*images_and_labels(20, seed=0))
    assert (
        "is: 20 images in splits of 8; the last one has only 4, and counts as much as the others"
        in evaluator.compute().remarks
    )


@pytest.mark.parametrize("name", ["a/b", "a_b", "", "mean"])
def test_extractors_names_stand_in_keys(name):
    class Named(ChannelMeans):
        pass

    Named.name = name
    with pytest.raises(ValueError, match="an extractor is called"):
        Protocol("named", (representation(Named()),))


def test_another_number_than_the_protocols_is_told(protocol):
    evaluator = Evaluator(dataclasses.replace(protocol, num_images=50))
    evaluator.update(*images_and_labels(20, seed=0))
    assert "20 images; protocol rgb-means is for 50, and its published numbers too" in evaluator.compute().remarks
    evaluator.update(*images_and_labels(30, seed=1))
    assert evaluator.compute().remarks == ()


@pytest.mark.parametrize(
    ("spoil_images", "spoil_labels", "error", "message"),
    [
        (lambda x: x.float(), lambda y: y, TypeError, "must be uint8 in 0..255, got torch.float32"),
        (lambda x: x.permute(0, 3, 1, 2), lambda y: y, ValueError, r"\[B, H, W, 3\], got \[6, 3, 2, 2\]"),
        (lambda x: x, lambda y: y[:5], ValueError, r"shape \[6\], got \[5\]"),
        (lambda x: x, lambda y: y + 3, ValueError, r"allowed 0\.\.2"),
        (lambda x: x, lambda y: y - 3, ValueError, "allowed 0 and above"),
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
        def __call__(self, images_bhw3: torch.Tensor) -> ExtractorOutput:
            return super().__call__(images_bhw3)._replace(features_BD=torch.full((len(images_bhw3), 3), torch.nan))

    broken = dataclasses.replace(protocol.representations[0], extractor=Broken())
    evaluator = Evaluator(Protocol("broken", (broken,)))
    with pytest.raises(ValueError, match="features of extractor channel-means are NaN or infinite for 6 of 6 images"):
        evaluator.update(*images_and_labels(6, seed=0))
    assert evaluator.n == 0


def test_a_reference_of_another_extractor_is_refused(protocol):
    class Other(ChannelMeans):
        fingerprint = "fedcba9876543210"

    with pytest.raises(ValueError, match=r"'fields' was made by extractor 0123456789abcdef.* is fedcba9876543210"):
        Representation(Other(), protocol.reference)


def test_a_reference_that_names_no_extractor_is_of_the_published_inception_alone(protocol):
    nameless = dataclasses.replace(protocol.reference, extractor_fingerprint=None)
    with pytest.raises(ValueError, match="does not say which extractor made it, as ADM's files do not"):
        Representation(ChannelMeans(), nameless)
    genuine = ChannelMeans()
    genuine.genuine = True
    assert Representation(genuine, nameless).reference is nameless


@pytest.mark.parametrize("name", ["", "mnist_cnn", "MNIST", "a b"])
def test_protocol_names_fit_metric_keys(protocol, name):
    with pytest.raises(ValueError, match="protocol name"):
        dataclasses.replace(protocol, name=name)


@pytest.mark.parametrize(("n", "suffix"), [(2000, "2k"), (50000, "50k"), (1000, "1k"), (1500, "1500"), (250, "250")])
def test_count_suffix(n, suffix):
    assert count_suffix(n) == suffix


def test_count_suffix_of_nothing():
    with pytest.raises(ValueError, match="at least 1 image, got 0"):
        count_suffix(0)
