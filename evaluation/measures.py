"""The metrics that a protocol may ask for by name: what each needs, and how it is taken from features.

Which extractor made the features is another choice: any metric goes with any extractor that gives what it needs.
Shapes: N generated images, M reference images, D feature dim, S spatial feature dim, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation import metrics, uncertainty
from evaluation.metrics.manifold import DENSITY_NEIGHBOURS
from evaluation.metrics.rows import chunks
from evaluation.moments import RunningMoments
from evaluation.reference import Reference

SUBSET = 1000  # images of a subset for KID, where there are so many
FIRST_SIZE = 5000  # where FID-infinity's line starts, if there are four times as many images
SIZES = 15  # points on that line


@dataclass(frozen=True)
class ScoreSplits:
    """How the Inception Score is split.

    size: images of a split; None: one split over all images.
    shuffle_seed: shuffles the images first, so that no split holds few classes; None keeps their order.
    """

    size: int | None = None
    shuffle_seed: int | None = None


@dataclass(frozen=True, eq=False)
class Comparison:
    """Generated images and real ones, both as one extractor sees them.

    features_ND, logits_NK, spatial_NS: float32; they may be memory-mapped, and are read in parts.
    labels_N: what each image was asked to show; None where nobody asked.
    """

    reference: Reference
    features_ND: NDArray[np.float32]
    logits_NK: NDArray[np.float32] | None = None
    spatial_NS: NDArray[np.float32] | None = None
    labels_N: NDArray[np.int64] | None = None
    splits: ScoreSplits = field(default_factory=ScoreSplits)

    @property
    def n(self) -> int:
        return len(self.features_ND)

    @cached_property
    def moments(self) -> RunningMoments:
        return _moments_of(self.features_ND)

    @cached_property
    def frechet_error(self) -> float:
        real, moments = self.reference, self.moments
        return metrics.frechet_stderr(self.features_ND, moments.mean, moments.covariance, real.mu, real.sigma)

    @cached_property
    def manifold(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Whether each generated image is precise, and each real one covered."""
        return metrics.manifold_hits(self._kept, self.features_ND)

    @cached_property
    def density(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        return metrics.density_coverage_hits(self._kept, self.features_ND)

    @property
    def _kept(self) -> NDArray[np.float32]:
        assert self.reference.features is not None  # `refuse_reference` refuses the metric
        return self.reference.features


Measured = tuple[float, float]  # a value and its standard error, NaN where none is known


@dataclass(frozen=True)
class Measure:
    """A metric by name.

    needs: of `features` (the reference keeps features, beside their moments), `logits`, `spatial` and `labels`.
    rank: the covariance of N images of that many features must have full rank for the number to mean what it says.
    least: images on either side, from the feature dim, below which there is no number at all.
    """

    function: Callable[[Comparison], Measured]
    needs: frozenset[str] = frozenset()
    rank: bool = False
    least: Callable[[int], int] = lambda dim: 2


def _moments_of(features_ND: NDArray[Any]) -> RunningMoments:
    moments = RunningMoments(features_ND.shape[1])
    for rows in chunks(len(features_ND)):
        moments.update(features_ND[rows])
    return moments


def _frechet(seen: Comparison) -> Measured:
    real, moments = seen.reference, seen.moments
    return metrics.frechet_distance(moments.mean, moments.covariance, real.mu, real.sigma), seen.frechet_error


def _spatial_frechet(seen: Comparison) -> Measured:
    real = seen.reference
    assert seen.spatial_NS is not None and real.mu_s is not None and real.sigma_s is not None
    moments = _moments_of(seen.spatial_NS)
    both = (moments.mean, moments.covariance, real.mu_s, real.sigma_s)
    return metrics.frechet_distance(*both), metrics.frechet_stderr(seen.spatial_NS, *both)


def _frechet_infinity(seen: Comparison) -> Measured:
    real = seen.reference
    smallest = max(seen.features_ND.shape[1] + 1, min(FIRST_SIZE, seen.n // 4))
    found = metrics.frechet_infinity(seen.features_ND, real.mu, real.sigma, smallest=smallest, points=SIZES)
    # the line's own error, and that of all its points together, which come of one set of images
    return found.value, math.hypot(found.stderr, seen.frechet_error)


def _kernel(seen: Comparison) -> Measured:
    assert seen.reference.features is not None
    real_MD = seen.reference.features
    size = min(SUBSET, len(real_MD), seen.n)
    found = metrics.kernel_distance(real_MD, seen.features_ND, subset_size=size)
    return found.value, found.stderr


def _cmmd(seen: Comparison) -> Measured:
    assert seen.reference.features is not None
    found = metrics.cmmd(seen.reference.features, seen.features_ND)
    return found.value, found.stderr


def _precision(seen: Comparison) -> Measured:
    precise_N, _ = seen.manifold
    return float(precise_N.mean()), uncertainty.mean_stderr(precise_N)


def _recall(seen: Comparison) -> Measured:
    _, covered_M = seen.manifold
    return float(covered_M.mean()), uncertainty.recall_stderr(covered_M, seen.n)


def _density(seen: Comparison) -> Measured:
    density_N, _ = seen.density
    return float(density_N.mean()), uncertainty.mean_stderr(density_N)


def _coverage(seen: Comparison) -> Measured:
    _, covered_M = seen.density
    return float(covered_M.mean()), uncertainty.recall_stderr(covered_M, seen.n)


def _inception_score(seen: Comparison) -> Measured:
    assert seen.logits_NK is not None
    score, error = (
        function(seen.logits_NK, split_size=seen.splits.size, shuffle_seed=seen.splits.shuffle_seed)
        for function in (metrics.inception_score, metrics.inception_score_stderr)
    )
    return score, error


def _accuracy(seen: Comparison) -> Measured:
    assert seen.logits_NK is not None and seen.labels_N is not None
    correct_N = metrics.class_hits(seen.logits_NK, seen.labels_N)
    return float(correct_N.mean()), uncertainty.mean_stderr(correct_N)


def _vendi(seen: Comparison) -> Measured:
    return metrics.vendi_score(seen.features_ND), math.nan


MEASURES = {
    "fid": Measure(_frechet, rank=True),
    "sfid": Measure(_spatial_frechet, frozenset({"spatial"}), rank=True),
    "fid-inf": Measure(_frechet_infinity, least=lambda dim: dim + 1 + SIZES),
    "kid": Measure(_kernel, frozenset({"features"})),
    "cmmd": Measure(_cmmd, frozenset({"features"})),
    "is": Measure(_inception_score, frozenset({"logits"})),
    "precision": Measure(_precision, frozenset({"features"}), least=lambda dim: metrics.NEIGHBOURS + 1),
    "recall": Measure(_recall, frozenset({"features"}), least=lambda dim: metrics.NEIGHBOURS + 1),
    "density": Measure(_density, frozenset({"features"}), least=lambda dim: DENSITY_NEIGHBOURS + 1),
    "coverage": Measure(_coverage, frozenset({"features"}), least=lambda dim: DENSITY_NEIGHBOURS + 1),
    "vendi": Measure(_vendi),
    "accuracy": Measure(_accuracy, frozenset({"logits", "labels"})),
}


def refuse_unknown_metrics(names: tuple[str, ...]) -> None:
    """Raises ValueError for no name, or one that is not known."""
    unknown = [name for name in names if name not in MEASURES]
    if unknown or not names:
        problem = f"unknown metric {unknown[0]!r}" if unknown else "no metric is asked for"
        raise ValueError(f"{problem}; known: {', '.join(MEASURES)}")


def refuse_reference(names: tuple[str, ...], reference: Reference) -> None:
    """Raises ValueError for a metric that needs what the reference does not hold."""
    for name in names:
        needs = MEASURES[name].needs
        if "features" in needs and reference.features is None:
            raise ValueError(
                f"metric {name!r} needs the features of real images, and reference {reference.name!r} holds moments only; make "
                "one that keeps them with `align data stats` (an ADM file's arr_0 will do), or leave the metric out"
            )
        if "spatial" in needs and reference.mu_s is None:
            raise ValueError(
                f"metric {name!r} needs mu_s and sigma_s, and reference {reference.name!r} has none; make it with an extractor "
                "that has a spatial layer (inception), or leave the metric out"
            )


def refuse_extractor(names: tuple[str, ...], given: Collection[str]) -> None:
    """Raises ValueError for a metric that needs a layer, `logits` or `spatial`, that an extractor did not give."""
    for name in names:
        if lacking := (MEASURES[name].needs & {"logits", "spatial"}) - set(given):
            raise ValueError(
                f"metric {name!r} needs {min(lacking)}, which this extractor does not give; take another, or leave it out"
            )


def missing(name: str, seen: Comparison) -> str | None:
    """Why a metric cannot be had of these images; None where it can."""
    measure = MEASURES[name]
    if "labels" in measure.needs and seen.labels_N is None:
        return "the images came without labels"
    least = measure.least(seen.features_ND.shape[1])
    counts = {"images": seen.n}
    if "features" in measure.needs and seen.reference.features is not None:
        counts["reference images"] = len(seen.reference.features)
    short = [f"{count} {what}" for what, count in counts.items() if count < least]
    return f"it needs at least {least}, and there are {' and '.join(short)}" if short else None


def remarks(names: tuple[str, ...], seen: Comparison) -> Iterator[str]:
    """What a reader should know of the counts behind the numbers."""
    real = seen.reference
    size = seen.splits.size
    if "is" in names and size is not None and seen.n % size:
        yield f"is: {seen.n} images in splits of {size}; the last one has only {seen.n % size}, and counts as much as the others"
    for name in names:
        if not MEASURES[name].rank:
            continue
        array = seen.spatial_NS if name == "sfid" else seen.features_ND
        assert array is not None
        dim = array.shape[1]
        for what, count in (("images", seen.n), ("reference images", real.n)):
            if count is not None and count <= dim:
                yield (
                    f"{name}: {count} {what} for {dim} features; the covariance is rank-deficient and the distance mostly bias. "
                    f"Use more than {dim}, or kid"
                )
