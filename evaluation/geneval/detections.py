"""What a detector finds in an image, which of it counts, and the crops that colours are read from.

Images are uint8 arrays [H, W, 3] in RGB; boxes are (left, top, right, bottom) in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

Box = tuple[float, float, float, float]
GREY = 153  # "#999", what the authors put around an object before its colour is read


@dataclass(frozen=True)
class Detection:
    """One object: its class, the detector's confidence, its box and, if the detector gives one, its mask bool [H, W]."""

    label: str
    score: float
    box: Box
    mask: np.ndarray | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        left, top, right, bottom = self.box
        if not (math.isfinite(self.score) and all(map(math.isfinite, self.box)) and left <= right and top <= bottom):
            raise ValueError(
                f"a detection of {self.label!r} has score {self.score} and box {self.box}; a box is (left, top, right, bottom) in pixels, all finite"
            )


class Detector(Protocol):
    """Finds objects. Gives every one above the scorer's thresholds (0.3 by default); what counts is not its business."""

    name: str  # goes into the names of the metrics: scores of two detectors are not comparable
    labels: Sequence[str]  # all classes that it knows

    def __call__(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        """The objects of each image, in any order."""


class ColorClassifier(Protocol):
    """Names the colours of objects."""

    colors: Sequence[str]  # all names that it gives

    def __call__(self, image: np.ndarray, detections: Sequence[Detection], label: str) -> list[str]:
        """One colour for each detection, all of class `label`; `object_crop` shows what the authors' one looks at."""


def keep(
    detections: Iterable[Detection], *, threshold: float, max_objects: int, max_overlap: float
) -> dict[str, list[Detection]]:
    """The objects that count, of each class the most confident first.

    Scores above the threshold (not at it), of those the best `max_objects` of each class, of those the ones that overlap
    no better one of their class by `max_overlap` or more; 1.0 keeps them all, as the authors' default does.
    """
    kept: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda detection: -detection.score):
        if detection.score > threshold:
            kept.setdefault(detection.label, []).append(detection)
    return {label: _suppress(found[:max_objects], max_overlap) for label, found in kept.items()}


def _suppress(found: list[Detection], max_overlap: float) -> list[Detection]:
    if max_overlap == 1.0:  # also equal boxes stay
        return found
    distinct: list[Detection] = []
    for detection in found:
        if all(overlap(detection.box, better.box) < max_overlap for better in distinct):
            distinct.append(detection)
    return distinct


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes whose last pixels belong to them, so that sizes are a pixel larger."""
    shared = _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    return shared / (_area(a) + _area(b) - shared)


def _area(box: Box) -> float:
    return max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0)


def object_crop(image: np.ndarray, detection: Detection) -> np.ndarray:
    """uint8 [h, w, 3]: the box of an object, grey wherever its mask is not; a box between two pixels gets one of them.

    Raises:
        ValueError: the mask is of another size than the image.
    """
    height, width = image.shape[:2]
    if detection.mask is not None:
        if detection.mask.shape != (height, width):
            raise ValueError(
                f"a detection of {detection.label!r} has a mask {list(detection.mask.shape)} in an image of {height}x{width} pixels; masks are [H, W] of the image"
            )
        image = np.where(detection.mask[..., None], image, np.uint8(GREY))
    return image[box_slices(detection, height, width)]


def box_slices(detection: Detection, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of its box: whole pixels within the image, at least one each way."""
    left, top, right, bottom = map(round, detection.box)
    return _span(top, bottom, height), _span(left, right, width)


def _span(start: int, stop: int, size: int) -> slice:
    start = min(max(start, 0), size - 1)
    return slice(start, max(min(stop, size), start + 1))
