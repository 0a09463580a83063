"""Images in, numbers with error bars out. Images are not kept, and neither do their features stay in memory.

Shapes: B batch, N images of an evaluation, H height, W width.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation import metrics
from evaluation.classifier import check_images, check_labels
from evaluation.features.make import extract
from evaluation.measures import MEASURES, Comparison, missing, refuse_extractor, remarks
from evaluation.protocol import EvaluationResult, Protocol, count_suffix

Arrays = dict[str, NDArray[Any]]


def describe_images(protocol: Protocol, images_BHW3: Tensor) -> Arrays:
    """What `Evaluator.add` needs of images uint8 [B, H, W, 3], each array with a row an image.

    `<extractor>.features`, `.logits` and `.spatial` in float32, and `digest`, int64 [B, 2], equal for equal images.

    Raises:
        TypeError: images that are not uint8.
        ValueError: a wrong shape or size, or features that are not finite.
    """
    check_images(images_BHW3)
    images_BHW3 = protocol.prepare(images_BHW3)
    arrays: Arrays = {"digest": _digests(images_BHW3)}
    for part in protocol.representations:
        wanted = {"features"} | set().union(*(MEASURES[metric].needs for metric in part.metrics))
        found = extract(part.extractor, images_BHW3)
        refuse_extractor(part.metrics, found)
        arrays |= {f"{part.extractor.name}.{layer}": array for layer, array in found.items() if layer in wanted}
    return arrays


def _digests(images_BHW3: Tensor) -> NDArray[np.int64]:
    rows = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images_BHW3.cpu().numpy()]
    return np.frombuffer(b"".join(rows), np.int64).reshape(len(rows), 2)


class Evaluator:
    """Feed it images in batches of any size, then `compute`.

    Features lie in files, up to 20 kB for an image.

    folder: for these files and nothing else; what a killed one left there is cleared away, and who made it takes it away.
        None: a temporary one, which ends with the evaluator.
    """

    def __init__(self, protocol: Protocol, folder: Path | None = None) -> None:
        self.protocol = protocol
        self.n = 0
        self._temporary = tempfile.TemporaryDirectory(prefix="align-features-") if folder is None else None
        self._folder = Path(self._temporary.name) if self._temporary else Path(str(folder))
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in self._folder.iterdir():
            left.unlink()
        self._shapes: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}

    def update(self, images_BHW3: Tensor, labels_B: Tensor | None = None) -> None:
        """Add uint8 [B, H, W, 3] images and, if it was asked for, the class index each should show. A refused batch leaves
        no trace.

        Raises:
            TypeError: images that are not uint8, labels that are not integers.
            ValueError: wrong shapes, a label outside the extractor's classes, NaN or infinite features, or labels for some
                batches only.
        """
        arrays = describe_images(self.protocol, images_BHW3)
        if labels_B is not None:
            check_labels(labels_B, len(images_BHW3))
            arrays["labels"] = labels_B.cpu().numpy().astype(np.int64)
        self.add(arrays)

    def add(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Add what `describe_images` told of a batch, and maybe `labels`, int64 [B].

        Raises:
            ValueError: other arrays than those of the first batch, or a label outside the extractor's classes.
        """
        shapes = {name: (array.dtype, array.shape[1:]) for name, array in arrays.items()}
        if self.n and shapes != self._shapes:
            raise ValueError(
                f"a batch brings {sorted(shapes)}, the first one {sorted(self._shapes)}; labels are given with all images or none"
            )
        logits = arrays.get(f"{self.protocol.extractor.name}.logits")
        if "labels" in arrays and logits is not None and "accuracy" in self.protocol.representations[0].metrics:
            check_labels(torch.from_numpy(arrays["labels"]), len(logits), logits.shape[1])
        self._shapes = shapes
        for name, array in arrays.items():
            with (self._folder / name).open("ab") as file:
                file.write(np.ascontiguousarray(array).tobytes())
        self.n += len(arrays["digest"])

    def compute(self) -> EvaluationResult:
        """All metrics with standard errors; may be called again after more updates.

        Raises:
            ValueError: fewer than two images, or a metric that needs what there is not, such as labels.
        """
        if self.n < 2:
            raise ValueError(f"metrics compare distributions and need at least 2 images, got {self.n}")
        protocol, values, errors = self.protocol, dict[str, float](), dict[str, float]()
        told = self.check()
        suffix = f"{protocol.name}_{count_suffix(self.n)}"
        for part in protocol.representations:
            layers = {
                layer: self._rows(f"{part.extractor.name}.{layer}") for layer in ("features", "logits", "spatial")
            }
            features = layers["features"]
            assert features is not None  # every extractor gives them
            seen = Comparison(
                part.reference, features, layers["logits"], layers["spatial"], self._rows("labels"), protocol.splits
            )
            for metric in part.metrics:
                if (reason := missing(metric, seen)) is not None:
                    told.append(f"{protocol.key(metric, part)}: not measured, {reason}")
                    continue
                key = f"{protocol.key(metric, part)}_{suffix}"
                values[key], error = MEASURES[metric].function(seen)
                errors |= {} if math.isnan(error) else {key: error}
            told += remarks(part.metrics, seen)
        if protocol.baselines:
            distances = {
                part.extractor.name: values[f"{protocol.key('fid', part)}_{suffix}"]
                for part in protocol.representations
            }
            values[f"fid-mean_{suffix}"] = metrics.mean_frechet_ratio(distances, protocol.baselines)
        return EvaluationResult(
            metrics=values,
            stderr=errors,
            n=self.n,
            protocol=protocol.name,
            reference_n=protocol.reference.n,
            extractor_fingerprint=protocol.fingerprint,
            reference_hash=protocol.reference_hash,
            remarks=tuple(told),
        )

    def accuracy_by_class(self) -> dict[int, float]:
        """Share of each class's images that are classified as asked, for every class that images were added of; empty
        without labels, or if the protocol does not ask for accuracy."""
        labels_N, logits_NK = self._rows("labels"), self._rows(f"{self.protocol.extractor.name}.logits")
        if labels_N is None or logits_NK is None or "accuracy" not in self.protocol.representations[0].metrics:
            return {}
        correct_N = metrics.class_hits(logits_NK, labels_N)
        return {int(label): float(correct_N[labels_N == label].mean()) for label in np.unique(labels_N)}

    def copies(self) -> int:
        """How many images are exact copies of an earlier one."""
        digests = self._rows("digest")
        return 0 if digests is None else self.n - len(np.unique(digests, axis=0))

    def check(self) -> list[str]:
        """What there is to remark on the images, before minutes of metrics: another number than the protocol is for, copies."""
        told, wanted = [], self.protocol.num_images
        if wanted is not None and self.n != wanted:
            told.append(
                f"{self.n} images; protocol {self.protocol.name} is for {wanted}, and its published numbers too"
            )
        if copies := self.copies():
            told.append(f"{copies} of {self.n} images are exact copies of another one")
        return told

    def _rows(self, name: str) -> NDArray[Any] | None:
        """All rows of an array, mapped from its file; None where it was not added."""
        if name not in self._shapes:
            return None
        dtype, shape = self._shapes[name]
        size = self.n * int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if (self._folder / name).stat().st_size != size:
            raise ValueError(
                f"{self._folder / name} is written by another process, too; run an evaluation once at a time"
            )
        return np.memmap(self._folder / name, dtype, "r", shape=(self.n, *shape))
