"""Statistics of real images as one extractor sees them: what generated images are measured against, and its file.

The file is an npz that the common tools read: `mu` and `sigma`, as FID's, and `mu_s` and `sigma_s`, as ADM's evaluator
names those of the spatial layer. Ours also say which images and which extractor, and keep some images' features. ADM's
own files have neither, but images (`arr_0`) to make the features from: `align data stats` does.

Shapes: M kept images, D feature dim, S spatial feature dim, B batch.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evaluation.classifier import check_images
from evaluation.features.base import Extractor
from evaluation.features.make import extract
from evaluation.files import write_atomically
from evaluation.metrics import frechet_distance
from evaluation.moments import RunningMoments

KEPT = 10_000  # images whose features are kept: as many as ADM's files have images
SELF_CHECK_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Reference:
    """Real images as one extractor sees them.

    Attributes:
        name: which images, for example "mnist5k".
        extractor_fingerprint: of the extractor that made the features; None in files of ADM's format, which do not say.
        mu, sigma: float64 [D] and [D, D], mean and unbiased covariance of the features of all images.
        n: how many images that were; None where the file does not say.
        features: float32 [M, D] of some of them, spread evenly over all, or None: precision, KID and the like need them.
        mu_s, sigma_s: float64 [S] and [S, S], the same of the spatial layer, or None.
    """

    name: str
    extractor_fingerprint: str | None
    mu: NDArray[np.float64]
    sigma: NDArray[np.float64]
    n: int | None
    features: NDArray[np.float32] | None = None
    mu_s: NDArray[np.float64] | None = None
    sigma_s: NDArray[np.float64] | None = None

    @property
    def moments(self) -> Reference:
        """Without the features: a smaller file, and enough for a Fréchet distance."""
        return replace(self, features=None)

    @cached_property
    def hash(self) -> str:
        """16 hexadecimal digits of the statistics and features: equal ones measure against the same images."""
        digest = hashlib.sha256()
        for array in (self.mu, self.sigma, self.features, self.mu_s, self.sigma_s):
            digest.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def save(self, path: str | Path, *, images: NDArray[np.uint8] | None = None) -> None:
        """Write the npz file, atomically.

        images: uint8 [N, H, W, 3], stored as `arr_0`: ADM's own evaluator takes precision and recall from them.
        """
        arrays: dict[str, Any] = {"mu": self.mu, "sigma": self.sigma, "name": np.asarray(self.name)}
        optional = {"features": self.features, "mu_s": self.mu_s, "sigma_s": self.sigma_s, "arr_0": images}
        arrays |= {name: array for name, array in optional.items() if array is not None}
        if self.n is not None:
            arrays["n"] = np.asarray(self.n, np.int64)
        if self.extractor_fingerprint is not None:
            arrays["fingerprint"] = np.asarray(self.extractor_fingerprint)
        write_atomically(path, lambda file: np.savez_compressed(file, **arrays))

    @classmethod
    def load(cls, path: str | Path) -> Reference:
        """Read a file that `save` wrote, or one of ADM's format (`mu`, `sigma`, and maybe `mu_s`, `sigma_s`).

        Raises:
            FileNotFoundError: no such file.
            ValueError: not an npz file, damaged, without mu or sigma, or arrays that do not fit together.
        """
        arrays = read_npz(path, but=("arr_0", "arr_1"))
        if missing := {"mu", "sigma"} - arrays.keys():
            raise ValueError(
                f"{path} is no reference: entries {sorted(missing)} are missing, found {sorted(arrays)}; make one with "
                "`align data stats` (of images, arr_0, too)"
            )
        fingerprint, n = arrays.get("fingerprint"), arrays.get("n")
        reference = cls(
            name=str(arrays.get("name", Path(path).stem)),
            extractor_fingerprint=None if fingerprint is None else str(fingerprint),
            mu=arrays["mu"].astype(np.float64),
            sigma=arrays["sigma"].astype(np.float64),
            n=None if n is None else int(n),
            features=arrays.get("features"),
            mu_s=arrays.get("mu_s"),
            sigma_s=arrays.get("sigma_s"),
        )
        reference._check(path)
        return reference

    def _check(self, path: str | Path) -> None:
        moments = (self.mu, self.sigma, self.mu_s, self.sigma_s)
        if not all(np.isfinite(array).all() for array in moments if array is not None):
            raise ValueError(f"{path} holds NaN or infinity; make it again from images that the extractor can read")
        dim = self.mu.size
        spatial = 0 if self.mu_s is None else self.mu_s.size
        kept = 0 if self.features is None else len(self.features)
        expected = {
            "mu": [dim],
            "sigma": [dim, dim],
            "features": [kept, dim],
            "mu_s": [spatial],
            "sigma_s": [spatial] * 2,
        }
        found = {name: list(getattr(self, name).shape) for name in expected if getattr(self, name) is not None}
        if any(shape != expected[name] for name, shape in found.items()):
            raise ValueError(
                f"{path} is a damaged reference: {', '.join(found)} have shapes {list(found.values())}, "
                f"expected {[expected[name] for name in found]}; make it again"
            )


def read_npz(path: str | Path, *, but: tuple[str, ...] = ()) -> dict[str, NDArray[Any]]:
    """The arrays of an npz file, without those named in `but`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an npz file, or damaged.
    """
    try:
        with Path(path).open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            return {name: archive[name] for name in archive.files if name not in but}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a readable npz file ({error}); make it again") from error


def make_reference(
    extractor: Extractor,
    images: Tensor | Iterable[Tensor],
    *,
    name: str,
    total: int | None = None,
    keep: int = KEPT,
    batch_size: int = 250,
) -> Reference:
    """Run real images through the extractor and keep their moments, and the features of some.

    Args:
        images: uint8 [N, H, W, 3], or batches of them, whose number is then given as `total`.
        keep: images whose features are kept, evenly spread; 0 keeps none.

    Raises:
        TypeError, ValueError: images that are not uint8 [N, H, W, 3], fewer than two, or features that are not finite.
    """
    if isinstance(images, Tensor):
        check_images(images)
        total, images = len(images), images.split(batch_size)
    if total is None:
        raise ValueError("the number of images is not known; give it as total=")
    moments: dict[str, RunningMoments] = {}
    kept: list[NDArray[np.float32]] = []
    seen = 0
    for batch_BHW3 in images:
        arrays = extract(extractor, batch_BHW3)
        for layer in ("features", "spatial"):
            if layer in arrays:
                moments.setdefault(layer, RunningMoments(arrays[layer].shape[1])).update(arrays[layer])
        if keep:
            chosen = [row for row in range(len(batch_BHW3)) if is_kept(seen + row, total, keep)]
            kept.append(arrays["features"][chosen])
        seen += len(batch_BHW3)
    if seen < 2:
        raise ValueError(f"statistics need at least 2 images, got {seen}")
    spatial = moments.get("spatial")
    return Reference(
        name,
        extractor.fingerprint,
        moments["features"].mean,
        moments["features"].covariance,
        seen,
        np.concatenate(kept) if keep else None,
        None if spatial is None else spatial.mean,
        None if spatial is None else spatial.covariance,
    )


def is_kept(index: int, total: int, keep: int) -> bool:
    """Whether an image is one of the `keep`, of `total`, that are evenly spread."""
    part = min(keep, total)
    return (index + 1) * part // total > index * part // total


def self_check(reference: Reference) -> float:
    """The Fréchet distance of the kept features to the stored moments, 0 where those are the moments of all images.

    Raises:
        ValueError: it is not, so that the reference's moments and features disagree; or features of some images only.
    """
    features_MD = reference.features
    if features_MD is None or len(features_MD) != reference.n:
        raise ValueError(
            f"reference {reference.name!r} does not keep the features of all images, so nothing can be checked"
        )
    moments = RunningMoments(len(reference.mu))
    moments.update(features_MD)
    distance = frechet_distance(moments.mean, moments.covariance, reference.mu, reference.sigma)
    if not distance < SELF_CHECK_TOLERANCE:
        raise ValueError(
            f"reference {reference.name!r} fails its self-check: the Fréchet distance of its features to its moments is "
            f"{distance:.3g}, must be below {SELF_CHECK_TOLERANCE}; make it again with `align data stats`"
        )
    return distance
