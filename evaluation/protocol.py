"""A protocol is a name for how numbers were made: an extractor and a reference. Images in, numbers with error bars out.

Metrics of different protocols or image counts do not compare, so every key carries both: `fid_mnist-cnn_2k`.

Shapes: B batch, N images of an evaluation, M reference images, H height, W width, D feature dim, K classes.
"""

import io
import re
import typing
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation import metrics, uncertainty
from evaluation.classifier import ClassifierOutput, check_images, check_labels
from evaluation.files import write_atomically
from evaluation.moments import RunningMoments

SELF_CHECK_TOLERANCE = 1e-6


class Extractor(typing.Protocol):
    """What turns images into features and logits; `DigitClassifier` is one."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str:
        """Identifies the weights: extractors with different ones give different numbers."""
        ...

    def __call__(self, images_BHW3: Tensor, /) -> ClassifierOutput:
        """uint8 [B, H, W, 3] -> features [B, D] and logits [B, K]."""
        ...


@dataclass(frozen=True, eq=False)
class ReferenceMoments:
    """Mean and covariance of real images as one extractor sees them: all that a Fréchet distance needs.

    Attributes:
        name: which images, for example "mnist5k".
        extractor_fingerprint: of the extractor that made the features.
        mu, sigma: float64 [D] and [D, D], mean and unbiased covariance of the features.
        n: the number of images.
    """

    name: str
    extractor_fingerprint: str
    mu: NDArray[np.float64]
    sigma: NDArray[np.float64]
    n: int

    def save(self, path: str | Path) -> None:
        """Write an npz file, atomically; its `mu` and `sigma` go by the names that other FID tools read."""
        _write_npz(path, **_moment_arrays(self))

    @classmethod
    def load(cls, path: str | Path) -> "ReferenceMoments":
        """Read a file that `save` of this class or of `Reference` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not an npz file, damaged, entries missing, or arrays that do not fit together.
        """
        arrays = _read_npz(path, ("mu", "sigma", "n", "name", "fingerprint"))
        return cls(str(arrays["name"]), str(arrays["fingerprint"]), arrays["mu"], arrays["sigma"], int(arrays["n"]))


@dataclass(frozen=True, eq=False)
class Reference:
    """Real images as one extractor sees them.

    Attributes:
        name, extractor_fingerprint, mu, sigma: as of `ReferenceMoments`.
        features: float32 [M, D].
    """

    name: str
    extractor_fingerprint: str
    mu: NDArray[np.float64]
    sigma: NDArray[np.float64]
    features: NDArray[np.float32]

    @property
    def n(self) -> int:
        """M, the number of real images."""
        return len(self.features)

    @property
    def moments(self) -> ReferenceMoments:
        """Without the features, a file of a few kilobytes."""
        return ReferenceMoments(self.name, self.extractor_fingerprint, self.mu, self.sigma, self.n)

    def save(self, path: str | Path) -> None:
        """Write an npz file, atomically; its `mu` and `sigma` go by the names that other FID tools read."""
        _write_npz(path, features=self.features, **_moment_arrays(self.moments))

    @classmethod
    def load(cls, path: str | Path) -> "Reference":
        """Read a file written by `save`.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not an npz file, damaged, entries missing, or arrays that do not fit together.
        """
        arrays = _read_npz(path, ("mu", "sigma", "features", "n", "name", "fingerprint"))
        return cls(str(arrays["name"]), str(arrays["fingerprint"]), arrays["mu"], arrays["sigma"], arrays["features"])


def _moment_arrays(moments: ReferenceMoments) -> dict[str, NDArray[typing.Any]]:
    return {
        "mu": moments.mu,
        "sigma": moments.sigma,
        "n": np.asarray(moments.n, np.int64),
        "name": np.asarray(moments.name),
        "fingerprint": np.asarray(moments.extractor_fingerprint),
    }


def _write_npz(path: str | Path, **arrays: typing.Any) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def _read_npz(path: str | Path, needed: tuple[str, ...]) -> dict[str, NDArray[typing.Any]]:
    """The arrays of a reference's file, as they were written."""
    try:
        with Path(path).open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            arrays = dict(archive)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is no reference: not a readable npz file ({error}); make it again") from error
    if missing := set(needed) - arrays.keys():
        raise ValueError(
            f"{path} is no reference: entries {sorted(missing)} are missing, found {sorted(arrays)}; "
            "make one with make_reference"
        )
    dim, n = arrays["mu"].size, int(arrays["n"])
    expected = {"mu": [dim], "sigma": [dim, dim], "features": [n, dim]}
    shapes = {name: list(arrays[name].shape) for name in expected if name in needed}
    if any(shape != expected[name] for name, shape in shapes.items()):
        raise ValueError(
            f"{path} is a damaged reference: {', '.join(shapes)} have shapes {list(shapes.values())}, "
            f"expected {[expected[name] for name in shapes]}; make it again"
        )
    return arrays


def make_reference(extractor: Extractor, images_MHW3: Tensor, *, name: str, batch_size: int = 250) -> Reference:
    """Run real images, uint8 [M, H, W, 3], through the extractor and keep its features and their moments.

    Raises:
        TypeError, ValueError: images that are not uint8 [M, H, W, 3], or too few of them for a covariance.
    """
    check_images(images_MHW3)
    batches = [_extract(extractor, images_BHW3)[0] for images_BHW3 in images_MHW3.split(batch_size)]
    features_MD = np.concatenate(batches)
    _require_full_rank(*features_MD.shape)
    moments = RunningMoments(features_MD.shape[1])
    moments.update(features_MD)
    return Reference(name, extractor.fingerprint, moments.mean, moments.covariance, features_MD)


@dataclass(frozen=True, eq=False)
class Protocol:
    """An extractor and a reference made by that very extractor, under a name for the metric keys.

    Raises:
        ValueError: a name that would not survive in a metric key, or a reference made by another extractor.
    """

    name: str
    extractor: Extractor
    reference: Reference

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9-]+", self.name):
            raise ValueError(
                f"protocol name {self.name!r} must be lower-case letters, digits and '-', as in 'mnist-cnn'"
            )
        made_by, reads_with = self.reference.extractor_fingerprint, self.extractor.fingerprint
        if made_by != reads_with:
            raise ValueError(
                f"reference {self.reference.name!r} was made by extractor {made_by}, but this one "
                f"({self.extractor.name}) is {reads_with}; their features do not compare. "
                "Make the reference again with make_reference"
            )


@dataclass(frozen=True)
class EvaluationResult:
    """Numbers and where they come from.

    Attributes:
        metrics: `fid`, `is`, `precision`, `recall`, `accuracy`, each as `<metric>_<protocol>_<count>`.
        stderr: a standard error under each of the same keys; see `evaluation.uncertainty` for what it covers.
        n: number of evaluated images.
        protocol: its name.
        reference_n: number of real images, or of distinct prompts; precision and recall depend on the former.
        extractor_fingerprint: equal fingerprints mean the same judge (of prompts: also the same prompts).
        intervals: under some of the keys of `metrics`, the ends of a 95 % interval.
    """

    metrics: dict[str, float]
    stderr: dict[str, float]
    n: int
    protocol: str
    reference_n: int
    extractor_fingerprint: str
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)


class Evaluator:
    """Feed it images in batches of any size, then `compute`. Features and logits stay in memory, images do not."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self._moments = RunningMoments(len(protocol.reference.mu))
        self._features: list[NDArray[np.float32]] = []
        self._logits: list[NDArray[np.float32]] = []
        self._labels: list[NDArray[np.int64]] = []

    def update(self, images_BHW3: Tensor, labels_B: Tensor) -> None:
        """Add uint8 [B, H, W, 3] images and the class index each was asked to show. A refused batch leaves no trace.

        Raises:
            TypeError: images that are not uint8, labels that are not integers.
            ValueError: wrong shapes, a label outside the extractor's classes, NaN or infinite features.
        """
        check_images(images_BHW3)
        features_BD, logits_BK = _extract(self.protocol.extractor, images_BHW3)
        check_labels(labels_B, len(images_BHW3), logits_BK.shape[1])
        self._moments.update(features_BD)
        self._features.append(features_BD)
        self._logits.append(logits_BK)
        self._labels.append(labels_B.cpu().numpy().astype(np.int64))

    def compute(self) -> EvaluationResult:
        """All metrics with standard errors; may be called again after more updates.

        Raises:
            ValueError: too few images for a covariance of full rank.
        """
        reference, moments = self.protocol.reference, self._moments
        _require_full_rank(moments.n, len(reference.mu))
        features_ND, logits_NK = np.concatenate(self._features), np.concatenate(self._logits)
        precise_N, covered_M = metrics.manifold_hits(reference.features, features_ND)
        correct_N = metrics.class_hits(logits_NK, np.concatenate(self._labels))
        values = {
            "fid": metrics.frechet_distance(moments.mean, moments.covariance, reference.mu, reference.sigma),
            "is": metrics.inception_score(logits_NK),
            "precision": float(precise_N.mean()),
            "recall": float(covered_M.mean()),
            "accuracy": float(correct_N.mean()),
        }
        errors = {
            "fid": uncertainty.frechet_stderr(features_ND, reference.mu, reference.sigma),
            "is": uncertainty.inception_score_stderr(logits_NK),
            "precision": uncertainty.mean_stderr(precise_N),
            "recall": uncertainty.recall_stderr(covered_M, moments.n),
            "accuracy": uncertainty.mean_stderr(correct_N),
        }
        suffix = f"{self.protocol.name}_{count_suffix(moments.n)}"
        return EvaluationResult(
            metrics={f"{metric}_{suffix}": value for metric, value in values.items()},
            stderr={f"{metric}_{suffix}": value for metric, value in errors.items()},
            n=moments.n,
            protocol=self.protocol.name,
            reference_n=reference.n,
            extractor_fingerprint=reference.extractor_fingerprint,
        )

    def accuracy_by_class(self) -> dict[int, float]:
        """Share of each class's images that are classified as asked, for every class that images were added of."""
        labels_N = np.concatenate(self._labels)
        correct_N = metrics.class_hits(np.concatenate(self._logits), labels_N)
        return {int(label): float(correct_N[labels_N == label].mean()) for label in np.unique(labels_N)}


def count_suffix(n: int) -> str:
    """The image count in a metric key: 2000 -> "2k", 50000 -> "50k", 1500 -> "1500". Raises ValueError below 1."""
    if n < 1:
        raise ValueError(f"a metric needs at least 1 image, got {n}")
    return f"{n // 1000}k" if n % 1000 == 0 else str(n)


def self_check(protocol: Protocol) -> dict[str, float]:
    """Score the reference's own features: the Fréchet distance to its stored moments is 0, precision and recall are 1.

    Returns:
        `frechet`, `precision`, `recall`.

    Raises:
        ValueError: a number is off, so the reference's moments and features disagree.
    """
    reference = protocol.reference
    moments = RunningMoments(len(reference.mu))
    moments.update(reference.features)
    frechet = metrics.frechet_distance(moments.mean, moments.covariance, reference.mu, reference.sigma)
    precision, recall = metrics.precision_recall(reference.features, reference.features)
    if not (frechet < SELF_CHECK_TOLERANCE and precision == recall == 1.0):
        raise ValueError(
            f"reference {reference.name!r} fails its self-check: frechet {frechet:.3g} (must be below "
            f"{SELF_CHECK_TOLERANCE}), precision {precision}, recall {recall} (must be 1); "
            "make it again with make_reference"
        )
    return {"frechet": frechet, "precision": precision, "recall": recall}


def _extract(extractor: Extractor, images_BHW3: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    with torch.inference_mode():
        output = extractor(images_BHW3)
    return output.features_BD.float().cpu().numpy(), output.logits_BK.float().cpu().numpy()


def _require_full_rank(n: int, dim: int) -> None:
    if n < dim + 1:
        raise ValueError(
            f"a Fréchet distance in {dim} features needs at least {dim + 1} images, got {n}: "
            "the covariance of fewer is rank-deficient and the distance meaningless; use more images"
        )
